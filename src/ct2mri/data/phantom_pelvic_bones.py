"""The bones of the pelvis phantoms: hip bones, femora, sacrum and lumbar spine."""

from dataclasses import dataclass

import numpy as np

from ct2mri.data.phantom_anatomy import (
    Array,
    Canvas,
    Point,
    Region,
    SmoothNoise,
    ellipsoid,
    smooth_maximum,
    smooth_minimum,
    tube,
    tube_region,
)
from ct2mri.data.phantom_tissues import Tissue

HIP = 88.0  # mm from the midline to the centre of a femoral head


@dataclass(frozen=True)
class BoneShape:
    """What differs between skeletons.

    Attributes:
        width: factor on the pelvis's width; women's are wider.
        cortical: factor on the thickness of compact bone.
        marrow: what most of the pelvis and spine is filled with.
    """

    width: float
    cortical: float
    marrow: Tissue


def draw_hip_bone(canvas: Canvas, rng: np.random.Generator, side: int, shape: BoneShape) -> None:
    """Ilium, acetabulum, pubis and ischium of one side."""
    wide = shape.width
    region = canvas.region((0, -110, -75), (side * 165, 90, 150))
    x, y, z = side * region.x / wide, region.y, region.z
    # The wing: a curved blade from the sacrum to the crest, thick at its rim.
    blade_x = (
        74
        + 0.42 * (z - 25)
        + 0.30 * (y + 20)
        - 0.0022 * (y - 5) ** 2
        + 0.9 * region.noise(SmoothNoise(rng, 60))
    )
    rim = np.hypot((y + 12) / 72, (z - 40) / 82)
    half = 3.6 + 5.5 * np.clip((rim - 0.72) / 0.28, 0, 1) ** 2 + 5 * np.clip((55 - z) / 35, 0, 1)
    blade = np.abs(x - blade_x) * np.float32(0.87) - half
    wing = smooth_maximum(blade, (rim - 1) * 74, 5)
    wing = smooth_maximum(wing, 14 - z, 8)
    notch = (np.hypot((y + 82) / 36, (z - 10) / 40) - 1) * 36  # the greater sciatic notch
    wing = smooth_maximum(wing, -notch, 5)
    thick = tube(
        region,
        [(side * 44 * wide, -64, 76), (side * 62 * wide, -40, 48), (side * 80 * wide, -8, 26)],
        (15, 13, 17),
    )
    bone = smooth_minimum(wing, thick, 10)
    cup = ellipsoid(region, (side * 84 * wide, 0, 4), (33, 34, 34))
    bone = smooth_minimum(bone, cup, 6)
    pubis = tube(
        region,
        [(side * 70 * wide, 26, 8), (side * 40 * wide, 50, 2), (side * 12, 52, -14), (side * 9, 46, -32)],
        (11, 7, 10, 8),
        (0.9, 1, 1.15),
    )
    lower = tube(
        region,
        [
            (side * 10, 44, -34),
            (side * 32, 18, -52),
            (side * 52, -18, -60),
            (side * 58 * wide, -34, -46),
            (side * 72 * wide, -22, -8),
        ],
        (6, 5, 9, 14, 15),
    )
    bone = smooth_minimum(bone, smooth_minimum(pubis, lower, 5), 6)
    spine = tube(region, [(side * 118 * wide, 38, 62), (side * 104 * wide, 34, 36)], (7, 7))
    bone = smooth_minimum(bone, spine, 8)
    bone = np.maximum(bone, 3.0 - side * region.x)
    _marbled_bone(canvas, rng, region, bone, 2.0 * shape.cortical, shape.marrow)
    # The socket's cartilage around the femoral head.
    joint = canvas.around((side * HIP * wide, 0, 0), 30)
    canvas.paint(joint, Tissue.CARTILAGE, ellipsoid(joint, (side * HIP * wide, 0, 0), (26.5, 26.5, 26.5)))
    disc = canvas.around((0, 49, -18), 24)
    canvas.paint(
        disc, Tissue.CARTILAGE, np.maximum(ellipsoid(disc, (0, 48, -18), (8, 9, 19)), np.abs(disc.x) - 3.0)
    )


def draw_femur(canvas: Canvas, rng: np.random.Generator, side: int, shape: BoneShape) -> None:
    """Femoral head, neck, trochanters and shaft: compact bone grows thick along the shaft."""
    wide = shape.width
    hip = side * HIP * wide
    region = canvas.region((side * 55, -60, -320), (side * 175, 50, 40))
    out = float(rng.uniform(44, 52))
    head = ellipsoid(region, (hip, 0, 0), (24.0, 24.0, 24.0))
    neck = tube(region, [(hip, 0, 0), (hip + side * out * 0.8, -8, -30)], (15.5, 17), (1, 0.95, 1))
    trochanter = ellipsoid(region, (hip + side * out, -14, -16), (14, 19, 24))
    shaft = tube(
        region,
        [
            (hip + side * (out - 4), -10, -38),
            (hip + side * (out - 10), -6, -75),
            (hip + side * (out - 14), 2, -320),
        ],
        (20, 16, 14.5),
    )
    lesser = ellipsoid(region, (hip + side * (out - 25), -20, -56), (9, 10, 12))
    bone = smooth_minimum(smooth_minimum(head, neck, 7), smooth_minimum(trochanter, shaft, 9), 9)
    bone = smooth_minimum(bone, lesser, 8)
    cortex = shape.cortical * np.interp(-region.z, (-30, 20, 60, 110), (1.3, 2.2, 4.5, 6.5)).astype(
        np.float32
    )
    # Epiphyses and old shafts hold yellow marrow.
    _marbled_bone(canvas, rng, region, bone, cortex, Tissue.YELLOW_MARROW)


def _marbled_bone(
    canvas: Canvas,
    rng: np.random.Generator,
    region: Region,
    bone: Array,
    cortex: Array | float,
    marrow: Tissue,
) -> None:
    """A bone whose marrow is of one kind with islands of the other."""
    canvas.paint_bone(region, bone, cortex, marrow)
    other = Tissue.YELLOW_MARROW if marrow == Tissue.RED_MARROW else Tissue.RED_MARROW
    islands = np.clip(region.noise(SmoothNoise(rng, 24)) * 0.35, 0, 0.45)
    canvas.paint(region, other, bone + cortex + 1, share=islands)


def draw_spine(canvas: Canvas, rng: np.random.Generator, shape: BoneShape) -> None:
    """Lumbar vertebrae, sacrum and coccyx with the canal in them."""
    region = canvas.region((-62, -125, -50), (62, 20, 240))
    x, y, z = region.x, region.y, region.z
    lean = float(rng.uniform(-4, 4))
    bones: list[Array] = []
    # The sacrum: a curved wedge, wide above and behind.
    down = np.clip((98 - z) / 105, 0, 1)
    middle_y = -52 + lean - 62 * down * (1 - down) - 6 * down
    half_width = 54 * (1 - down) ** 0.75 + 8 * shape.width
    half_depth = 17 - 11 * down
    sacrum = np.hypot(np.abs(x) / half_width, (y - middle_y) / half_depth) - 1
    sacrum = smooth_maximum(sacrum * half_depth, np.maximum(z - 100 - 0.3 * (y + 52), -z - 10), 6)
    for level, height in enumerate((82, 62, 44, 28)):
        for side in (-1, 1):
            hole = tube(
                region,
                [(side * (20 - 2 * level), -30, height - 8), (side * (17 - 2 * level), -100, height + 6)],
                (4.2 - 0.5 * level, 3.5 - 0.5 * level),
            )
            sacrum = smooth_maximum(sacrum, -hole, 2)
    bones.append(sacrum)
    coccyx = tube(region, [(0, -62 + lean, -6), (0, -56 + lean, -22), (0, -46 + lean, -34)], (6, 5, 3))
    bones.append(coccyx)
    for level in range(4):
        height = 122 + 35 * level
        axis_y = -42 + lean + 5 * np.sin(level)
        body = ellipsoid(region, (0, axis_y, height), (30, 22, 30))
        body = smooth_maximum(body, np.abs(z - height) - 12.5, 4)
        pedicles = [
            tube(region, [(s * 15, axis_y - 15, height + 4), (s * 16, axis_y - 34, height)], (5, 6))
            for s in (-1, 1)
        ]
        processes = [
            tube(region, [(s * 16, axis_y - 28, height), (s * 44, axis_y - 32, height + 3)], (5, 3.5))
            for s in (-1, 1)
        ]
        spinous = tube(
            region, [(0, axis_y - 42, height - 4), (0, axis_y - 57, height - 10)], (3.5, 4.5), (1, 1, 2.2)
        )
        lamina = tube(
            region,
            [(-15, axis_y - 34, height - 2), (0, axis_y - 43, height - 5), (15, axis_y - 34, height - 2)],
            (4, 4.5, 4),
        )
        bone = body
        for part in (*pedicles, *processes, spinous, lamina):
            bone = smooth_minimum(bone, part, 3)
        bones.append(bone)
    for bone in bones:
        _marbled_bone(canvas, rng, region, bone, 1.7 * shape.cortical, shape.marrow)
    for level in range(4):
        disc = ellipsoid(region, (0, -42 + lean, 104 + 35 * level), (26, 19, 7))
        canvas.paint(region, Tissue.CARTILAGE, smooth_maximum(disc, np.abs(z - (104 + 35 * level)) - 5, 2))
    canal: list[Point] = [
        (0, -68 + lean, 240),
        (0, -72 + lean, 120),
        (0, -76 + lean, 84),
        (0, -86 + lean, 48),
    ]
    around = tube_region(canvas, canal, 12)
    canvas.paint(around, Tissue.FAT, tube(around, canal, (9.5, 9.5, 8, 3), (1.25, 1, 1)))
    canvas.paint(around, Tissue.CSF, tube(around, canal, (7.5, 7, 5, 1), (1.2, 1, 1)))
