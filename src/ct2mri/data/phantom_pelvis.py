"""Pelvis phantoms: pelvic bones, hips and thighs, muscles, and the organs between them.

Coordinates are template millimetres: x right, y anterior, z superior, the origin midway between the centres
of the femoral heads.
"""

from dataclasses import dataclass

import numpy as np

from ct2mri.data import phantom_pelvic_bones
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
from ct2mri.data.phantom_pelvic_bones import BoneShape
from ct2mri.data.phantom_tissues import Tissue

BOX: tuple[Point, Point] = ((-205, -125, -190), (205, 130, 190))


@dataclass(frozen=True)
class PelvisShape:
    """What differs between pelvises; lengths in mm.

    Attributes:
        female: wider pelvis, uterus instead of prostate.
        fat: thickness of the fat under the skin.
        bones: what differs between skeletons.
        bladder: radius of the bladder.
        rectum: radius of the rectum; rectal_gas: share of its radius that gas fills.
        muscle: factor on the muscles' thickness.
    """

    female: bool
    fat: float
    bones: BoneShape
    bladder: float
    rectum: float
    rectal_gas: float
    muscle: float


def draw_pelvis(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint one pelvis."""
    female = bool(rng.integers(2))
    shape = PelvisShape(
        female=female,
        fat=float(rng.uniform(9, 34)),
        bones=BoneShape(
            width=1.05 if female else 1.0,
            cortical=rng.uniform(0.8, 1.25),
            marrow=Tissue.RED_MARROW if rng.integers(2) else Tissue.YELLOW_MARROW,
        ),
        bladder=rng.uniform(30, 48),
        rectum=rng.uniform(13, 20),
        rectal_gas=float(rng.choice([0.0, 0.4, 0.65, 0.8])),
        muscle=rng.uniform(0.88, 1.08),
    )
    whole = canvas.whole
    wall = _wall(rng, whole, shape)
    skin, inner = _paint_soft_tissue(canvas, rng, whole, wall, shape)
    _paint_muscles(canvas, rng, wall, shape)
    _paint_bowel(canvas, rng, whole, inner)
    _paint_organs(canvas, rng, skin, shape)
    _paint_vessels(canvas, shape)
    phantom_pelvic_bones.draw_spine(canvas, rng, shape.bones)
    for side in (-1, 1):
        phantom_pelvic_bones.draw_hip_bone(canvas, rng, side, shape.bones)
        phantom_pelvic_bones.draw_femur(canvas, rng, side, shape.bones)


def _oval(region: Region, half_width: Array, front: Array, back: Array, power: float) -> Array:
    """Signed distance (first order) to a trunk whose cross-section is a rounded oval."""
    middle, half_depth = (front - back) / 2 + back, (front - back) / 2
    x = np.abs(region.x) / half_width
    y = np.abs(region.y - middle) / half_depth
    radius = (x**power + y**power) ** np.float32(1 / power)
    # The mean of the half axes turns the relative distance into mm well enough for rounded ovals.
    scale = np.sqrt(region.x**2 + (region.y - middle) ** 2) / np.maximum(radius, 0.05)
    distance: Array = (radius - 1) * scale
    return distance


def _wall(rng: np.random.Generator, region: Region, shape: PelvisShape) -> Array:
    """Signed distance to the outer surface of the muscles of trunk and thighs."""
    z = region.z
    wide = 6.0 if shape.female else 0.0
    # Waist, iliac crests, hips: widths of the muscular trunk by height.
    width = np.interp(z, (-60, -20, 20, 70, 110, 200), (162, 160 + wide, 152 + wide, 142 + wide, 133, 122))
    front = np.interp(z, (-60, -10, 40, 100, 200), (58, 62, 66, 72, 78)) + rng.uniform(-4, 4)
    back = np.interp(z, (-60, -20, 40, 100, 200), (-84, -92, -95, -97, -98))
    width *= shape.muscle
    trunk = _oval(region, width.astype(np.float32), front.astype(np.float32), back.astype(np.float32), 2.5)
    trunk = smooth_maximum(trunk, -z - 42, 30)
    legs = [
        tube(
            region,
            [(side * 88, -14, -20), (side * 90, -8, -120), (side * 84, -4, -300)],
            [shape.muscle * r for r in (74, 74, 62)],
            (1, 1.06, 1),
        )
        for side in (-1, 1)
    ]
    # The gluteal cleft and the space between the thighs stay open.
    wall = smooth_minimum(trunk, smooth_minimum(legs[0], legs[1], 4), 26)
    return wall + 1.5 * region.noise(SmoothNoise(rng, 80))


def _paint_soft_tissue(
    canvas: Canvas, rng: np.random.Generator, whole: Region, wall: Array, shape: PelvisShape
) -> tuple[Array, Array]:
    """Skin, fat, the muscular wall and the fat in it; returns the distances to skin and inside."""
    x, y, z = whole.x, whole.y, whole.z
    behind = np.clip((-y - 30) / 50, 0, 1) * np.clip((90 - z) / 60, 0, 1)
    belly = np.clip((y - 20) / 40, 0, 1) * np.clip((z + 20) / 60, 0, 1)
    fat = np.float32(shape.fat) * (
        0.75 + 0.6 * behind + 0.5 * belly + 0.12 * whole.noise(SmoothNoise(rng, 90))
    )
    skin = wall - fat
    cleft = np.maximum(np.abs(x) - 0.13 * np.clip(-y - 62, 0, None), z - 25)
    skin = smooth_maximum(skin, -np.maximum(cleft, y + 62) - 1, 8)
    between = np.maximum(np.abs(x) - 2.5 - 0.05 * np.clip(-z - 60, 0, None), z + 62)
    skin = smooth_maximum(skin, -between, 6)
    canvas.paint(whole, Tissue.SKIN, skin)
    canvas.paint(whole, Tissue.FAT, skin + 2)
    strands = np.abs(whole.noise(SmoothNoise(rng, 40, band_pass=True).distance_to_zero(8)))
    canvas.paint(whole, Tissue.MUSCLE, np.maximum(strands - 0.25, skin + 3), share=0.4)
    canvas.paint(whole, Tissue.MUSCLE, np.maximum(wall, skin + 3))
    sheets = whole.noise(SmoothNoise(rng, 46, band_pass=True).distance_to_zero(12))
    thick = np.float32(0.1 + 0.022 * shape.fat)
    canvas.paint(whole, Tissue.FAT, np.maximum(np.abs(sheets) - thick, np.maximum(wall + 5, skin + 3)))
    # Inside the wall: thin in front (rectus), thicker at the sides, thickest behind (back muscles, buttocks).
    layer = 9 + 6 * np.clip(np.abs(x) / 90, 0, 1) + 34 * np.clip((-y - 5) / 70, 0, 1)
    cavity = smooth_maximum(wall + layer, ellipsoid(whole, (0, 6, 62), (128, 66, 150)), 12)
    basin = ellipsoid(whole, (0, -6, 30), (58 * shape.bones.width, 56, 57))
    inner = smooth_minimum(smooth_maximum(cavity, 45 - z, 20), smooth_maximum(basin, wall + 9, 8), 14)
    canvas.paint(whole, Tissue.FAT, inner)
    return skin, inner


def _paint_muscles(canvas: Canvas, rng: np.random.Generator, wall: Array, shape: PelvisShape) -> None:
    """Each muscle in its sheath of fat; those of one side with their own size."""
    for side in (-1, 1):
        size = shape.muscle * float(rng.uniform(0.94, 1.06))
        courses: list[tuple[list[Point], list[float], Point]] = [
            # psoas and iliacus
            (
                [(side * 42, -8, 200), (side * 52, 2, 110), (side * 72, 36, 30), (side * 84, 18, -50)],
                [20, 21, 17, 9],
                (1, 1, 1),
            ),
            ([(side * 100, -4, 125), (side * 94, 14, 60), (side * 86, 32, 10)], [10, 13, 12], (1.1, 0.9, 1)),
            # gluteus maximus, medius, minimus
            (
                [(side * 42, -82, 80), (side * 70, -84, 20), (side * 112, -58, -48)],
                [14, 26, 16],
                (1.25, 0.9, 1),
            ),
            (
                [(side * 112, -24, 118), (side * 132, -10, 62), (side * 136, -12, 14)],
                [12, 21, 11],
                (0.75, 1.5, 1),
            ),
            ([(side * 112, 4, 84), (side * 122, 8, 46), (side * 128, 8, 16)], [6, 12, 8], (0.8, 1.2, 1)),
            # obturator internus, piriformis, levator ani
            ([(side * 56, -8, 30), (side * 53, -8, -10), (side * 50, -34, -42)], [8, 10, 8], (0.65, 2, 1)),
            ([(side * 30, -62, 60), (side * 76, -50, 30), (side * 112, -26, 22)], [9, 9, 4], (1, 1, 1)),
            ([(side * 38, -10, -22), (side * 22, -28, -44), (side * 10, -40, -56)], [2.5, 3, 3.5], (1, 3, 1)),
            # sartorius, tensor fasciae latae, rectus femoris, vasti
            ([(side * 118, 42, 66), (side * 98, 60, -20), (side * 62, 54, -200)], [7, 9, 10], (1, 0.9, 1)),
            ([(side * 128, 34, 60), (side * 134, 34, -10), (side * 136, 10, -90)], [8, 12, 6], (0.8, 1.3, 1)),
            (
                [(side * 106, 42, 24), (side * 102, 52, -60), (side * 94, 54, -200)],
                [8, 15, 20],
                (1.1, 0.9, 1),
            ),
            (
                [(side * 122, 10, -28), (side * 124, 14, -120), (side * 112, 16, -300)],
                [10, 25, 27],
                (0.9, 1.3, 1),
            ),
            # pectineus, adductors, hamstrings
            ([(side * 36, 44, -6), (side * 66, 28, -48), (side * 92, 0, -90)], [11, 14, 6], (1.2, 0.9, 1)),
            ([(side * 20, 22, -40), (side * 52, 16, -100), (side * 64, 8, -250)], [10, 22, 22], (1, 1.2, 1)),
            (
                [(side * 44, -30, -62), (side * 62, -22, -130), (side * 66, -14, -300)],
                [12, 26, 24],
                (1, 1.1, 1),
            ),
            (
                [(side * 62, -48, -48), (side * 80, -56, -130), (side * 84, -50, -300)],
                [8, 20, 26],
                (1.3, 0.9, 1),
            ),
            # rectus abdominis, back muscles
            ([(side * 14, 48, -8), (side * 28, 66, 60), (side * 36, 74, 220)], [5, 6.5, 7], (3.4, 1, 1)),
            ([(side * 24, -76, 62), (side * 30, -74, 110), (side * 34, -68, 220)], [12, 20, 24], (1.2, 1, 1)),
        ]
        for points, radii, stretch in courses:
            radii = [size * radius for radius in radii]
            around = tube_region(canvas, points, 2.1 * max(radii) + 3)
            limit = wall[around.box]
            belly = np.maximum(tube(around, points, radii, stretch), limit)
            canvas.paint(around, Tissue.FAT, np.maximum(belly - 1.8, limit))
            canvas.paint(around, Tissue.MUSCLE, belly)


def _paint_bowel(canvas: Canvas, rng: np.random.Generator, whole: Region, inner: Array) -> None:
    """Loops of small bowel above the bladder and the colon at the sides, with content and gas."""
    for place in range(int(rng.integers(18, 28))):
        colon = place < 3
        x = float(rng.uniform(-85, 85)) if not colon else (-84.0, 84.0, 40.0)[place]
        centre: Point = (x, float(rng.uniform(-8, 50)), float(rng.uniform(52, 175)))
        points: list[Point] = [centre]
        for _ in range(4):
            step = rng.normal(0, 18, 3)
            px, py, pz = points[-1]
            points.append(
                (
                    px + step[0] * (0.3 if colon else 1),
                    py + 0.6 * step[1],
                    pz + step[2] * (2 if colon else 0.7),
                )
            )
        radius = float(rng.uniform(15, 22)) if colon else float(rng.uniform(9, 15))
        around = tube_region(canvas, points, radius + 3)
        limit = inner[around.box] + 2
        wave = 1.5 * around.noise(SmoothNoise(rng, 22))
        loop = np.maximum(tube(around, points, (radius,) * len(points)) + wave, limit)
        canvas.paint(around, Tissue.FAT, np.maximum(loop - 2, limit))
        canvas.paint(around, Tissue.MUSCLE, loop)
        canvas.paint(around, Tissue.BOWEL_CONTENT, loop + 2.2)
        # Gas rises to the front.
        level = float(np.mean([point[1] for point in points])) + radius * float(rng.uniform(-0.4, 1.4))
        if colon or rng.uniform() < 0.3:
            canvas.paint(around, Tissue.GAS, np.maximum(loop + 2.4, level - around.y))


def _paint_organs(canvas: Canvas, rng: np.random.Generator, skin: Array, shape: PelvisShape) -> None:
    """Bladder; prostate and seminal vesicles, or uterus; rectum and sigmoid."""
    size = shape.bladder
    floor = -10.0 if shape.female else -2.0
    bladder_at: Point = (float(rng.uniform(-5, 5)), 18, floor + 0.85 * size)
    gut: list[Point] = [
        (0, -38, -60),
        (0, -44, -40),
        (float(rng.uniform(-4, 4)), -46, -10),
        (float(rng.uniform(-10, 10)), -44, 30),
        (float(rng.uniform(-22, -6)), -28, 60),
        (-46, 2, 78),
    ]
    radii = [6, 9, shape.rectum, 0.9 * shape.rectum, 0.8 * shape.rectum, 0.8 * shape.rectum]
    around = tube_region(canvas, gut, max(radii) + 6)
    rectum = tube(around, gut, radii, (1.1, 1, 1)) + 1.2 * around.noise(SmoothNoise(rng, 28))
    rectum = np.maximum(rectum, skin[around.box] + 2)
    canvas.paint(around, Tissue.MUSCLE, rectum)
    canvas.paint(around, Tissue.BOWEL_CONTENT, rectum + 3)
    if shape.rectal_gas > 0:
        bubble = rectum + 3 + np.float32((1 - shape.rectal_gas) * shape.rectum)
        canvas.paint(around, Tissue.GAS, np.maximum(bubble, -around.z - 25))
    region = canvas.around(bladder_at, 1.3 * size + 8)
    bladder = ellipsoid(region, bladder_at, (1.12 * size, 0.86 * size, 0.88 * size)) + 1.5 * region.noise(
        SmoothNoise(rng, 60)
    )
    canvas.paint(region, Tissue.MUSCLE, bladder - 3.5)
    canvas.paint(region, Tissue.URINE, bladder)
    if shape.female:
        top = bladder_at[2] + 0.35 * size
        womb: list[Point] = [(0, -24, -6), (0, -20, 18), (float(rng.uniform(-12, 12)), 2, top + 16)]
        place = tube_region(canvas, womb, 36)
        uterus = smooth_minimum(
            tube(place, womb[:2], (12, 12)),
            tube(place, womb[1:], (12, float(rng.uniform(19, 25))), (1.2, 1, 1)),
            6,
        )
        canvas.paint(place, Tissue.UTERUS, uterus)
        lining = tube(place, [(0, -18, 20), (womb[2][0], 0, top + 14)], (1, 3), (2, 1, 1))
        canvas.paint(place, Tissue.MUCOSA, lining)
        vagina = tube(place, [(0, -24, -8), (0, -10, -50)], (6, 5), (2.2, 0.7, 1))
        canvas.paint(place, Tissue.MUSCLE, np.maximum(vagina, skin[place.box] + 2))
        for side in (-1, 1):
            ovary = canvas.around((side * 42, -14, 34), 20)
            canvas.paint(ovary, Tissue.UTERUS, ellipsoid(ovary, (side * 42, -14, 34), (9, 13, 15)))
            canvas.paint(ovary, Tissue.CSF, ellipsoid(ovary, (side * 43, -12, 36), (4, 5, 4)))
    else:
        prostate_at: Point = (0, 6, -18)
        grown = float(rng.uniform(0.95, 1.4))
        region = canvas.around(prostate_at, 40)
        gland = ellipsoid(region, prostate_at, (24 * grown, 17 * grown, 19 * grown))
        canvas.paint(region, Tissue.FAT, gland - 1.5)
        canvas.paint(region, Tissue.PROSTATE, gland)
        for side in (-1, 1):
            vesicle = canvas.around((side * 18, -20, 6), 28)
            lobes = ellipsoid(vesicle, (side * 18, -20, 6), (17, 6.5, 9)) + 1.2 * vesicle.noise(
                SmoothNoise(rng, 12)
            )
            canvas.paint(vesicle, Tissue.PROSTATE, lobes)
            cord: list[Point] = [(side * 16, 62, -30), (side * 30, 62, 6), (side * 56, 56, 34)]
            path = tube_region(canvas, cord, 8)
            canvas.paint(path, Tissue.MUSCLE, tube(path, cord, (5, 5, 4)), share=0.7)
        outside = canvas.region((-45, 0, -140), (45, 100, -30))
        penis = tube(outside, [(0, 12, -50), (0, 44, -50), (0, 66, -62), (0, 70, -92)], (9, 12, 14, 13))
        scrotum = ellipsoid(outside, (0, 38, -96), (34, 25, 27))
        canvas.paint(outside, Tissue.SKIN, np.minimum(penis - 2.5, scrotum))
        canvas.paint(outside, Tissue.FAT, scrotum + 3)
        canvas.paint(outside, Tissue.BLOOD, penis)
        for side in (-1, 1):
            testis = ellipsoid(outside, (side * 15, 38, -98), (11, 13, 19))
            canvas.paint(outside, Tissue.CSF, testis - 1.5)
            canvas.paint(outside, Tissue.PROSTATE, testis)


def _paint_vessels(canvas: Canvas, shape: PelvisShape) -> None:
    """Aorta and vena cava with their forks, iliac and femoral vessels, and lymph nodes beside them."""
    for side in (-1, 1):
        artery: list[Point] = [
            (4, 4, 220),
            (2, 2, 140),
            (side * 30, -2, 96),
            (side * 50, 12, 52),
            (side * 72, 52, 2),
            (side * 76, 46, -50),
            (side * 74, 28, -300),
        ]
        vein: list[Point] = [
            (-22, -2, 220),
            (-16, -4, 136),
            (side * 34, -14, 92),
            (side * 50, -2, 50),
            (side * 62, 48, 0),
            (side * 68, 40, -50),
            (side * 70, 20, -300),
        ]
        inner: list[Point] = [(side * 34, -8, 90), (side * 44, -34, 56), (side * 50, -36, 20)]
        for points, radii in (
            (artery, (9, 9, 6, 5.5, 5, 4.5, 4)),
            (vein, (11, 11, 7.5, 7, 6.5, 6, 5)),
            (inner, (4.5, 4, 3)),
        ):
            around = tube_region(canvas, points, 14)
            vessel = tube(around, points, radii)
            canvas.paint(around, Tissue.FAT, vessel - 2)
            canvas.paint(around, Tissue.BLOOD, vessel)
        for node in ((side * 70, 60, -14), (side * 84, 66, -26), (side * 60, 20, 36)):
            place = canvas.around(node, 8)
            canvas.paint(place, Tissue.MUSCLE, ellipsoid(place, node, (4, 3.5, 6)))
