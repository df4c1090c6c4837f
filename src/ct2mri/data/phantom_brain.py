"""The brain of the head phantoms: folded cortex, white matter, deep nuclei, ventricles, cerebellum, stem."""

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

BOX: tuple[Point, Point] = ((-76, -112, -75), (76, 78, 88))


@dataclass(frozen=True)
class BrainShape:
    """What differs between brains; lengths in mm.

    Attributes:
        csf: space between brain and skull.
        sulcus: half the width of a closed sulcus.
        sulcus_depth: mean depth of the sulci.
        cortex: thickness of the grey ribbon.
        ventricles: factor on the ventricles' width.
        fissure: half the width of the fissure between the hemispheres.
    """

    csf: float
    sulcus: float
    sulcus_depth: float
    cortex: float
    ventricles: float
    fissure: float


def draw_brain_shape(rng: np.random.Generator) -> BrainShape:
    """A brain between young (narrow sulci and ventricles) and old (wide ones)."""
    age = rng.uniform(0, 1)
    return BrainShape(
        csf=1.0 + 1.5 * age + rng.uniform(-0.2, 0.3),
        sulcus=0.4 + 0.45 * age,
        sulcus_depth=rng.uniform(12, 17),
        cortex=rng.uniform(2.4, 3.1),
        ventricles=0.75 + 0.8 * age + rng.uniform(-0.1, 0.2),
        fissure=0.8 + 0.8 * age,
    )


def draw_brain(canvas: Canvas, rng: np.random.Generator, region: Region, cavity: Array) -> None:
    """Paint the content of the skull.

    Args:
        canvas: the head so far.
        rng: source of the case's anatomy.
        region: voxels of `BOX`.
        cavity: signed distance to the inner surface of the skull there, in mm.
    """
    shape = draw_brain_shape(rng)
    midline = SmoothNoise(rng, 90)
    canvas.paint(region, Tissue.DURA, cavity)
    canvas.paint(region, Tissue.CSF, cavity + 0.6)
    x = region.x + 1.2 * region.noise(midline)
    tent = _tentorium(region, x)
    _paint_folds(canvas, rng, region, x, cavity, tent, shape)
    _paint_deep(canvas, rng, shape)
    _paint_cerebellum(canvas, rng, region, x, cavity, tent, shape)
    _paint_stem(canvas)
    _paint_sinuses(canvas, region, x, cavity, tent)


def _tentorium(region: Region, x: Array) -> Array:
    """Height in mm above the sheet that bears the occipital lobes; below it lies the cerebellum."""
    behind = np.clip(-(region.y + 42), 0, None)
    return region.z - (-3 - 0.011 * x * x * np.clip(1 - behind / 110, 0.5, 1) - 0.18 * behind)


def _paint_folds(
    canvas: Canvas,
    rng: np.random.Generator,
    region: Region,
    x: Array,
    cavity: Array,
    tent: Array,
    shape: BrainShape,
) -> None:
    """The hemispheres: a grey ribbon that follows crowns and sulcal walls, around white matter."""
    y, z = region.y, region.z
    side = np.abs(x)
    # The hull: the skull's inside above the tentorium, without the cisterns around the brain stem.
    hull = cavity + np.float32(shape.csf) + 0.5 * region.noise(SmoothNoise(rng, 30))
    hull = np.maximum(hull, -smooth_maximum(tent - 1.0, y + 28, 4))
    hull = smooth_maximum(hull, -ellipsoid(region, (0, -18, -24), (19, 25, 17)), 5)

    # Between the hemispheres a fissure, but for the middle where they are joined.
    joined = ellipsoid(region, (0, -7, 8), (40, 37, 25))
    fissure = np.maximum(side - np.float32(shape.fissure), -joined)
    # The lateral fissure runs from the front below to the back above and opens onto the insula.
    slope = z - (-6 - 0.42 * (y - 12)) + 2.5 * region.noise(SmoothNoise(rng, 28))
    lateral = np.maximum(np.abs(slope) - np.float32(0.9 + shape.sulcus), 37 - side)
    lateral = np.maximum(lateral, np.abs(y + 10) - 34)
    insula = np.maximum(np.abs(side - 38) - np.float32(0.5 + 0.8 * shape.sulcus), np.abs(slope + 4) - 15)
    lateral = smooth_minimum(lateral, np.maximum(insula, np.abs(y - 4) - 24), 3)

    outer = np.minimum(-hull, fissure)  # depth below the surfaces that bear gyri
    depth = np.clip(outer, 0, 30)
    # Sulci are the zero surfaces of a noise on the brain's surface, carried inwards along rays from the
    # middle line of each hemisphere, so that their walls stand upright on the surface.
    ray_x = x - np.sign(x) * 22
    ray_y = y - np.clip(y, -62, 32)
    ray_z = z - 12
    length = np.sqrt(ray_x * ray_x + ray_y * ray_y + ray_z * ray_z) + np.float32(1e-3)
    reach = 1 + depth / np.maximum(length, 8)
    folds = SmoothNoise(rng, 26.5, band_pass=True).distance_to_zero(12)
    wobble = 0.3 * depth * region.noise(SmoothNoise(rng, 28))  # sulci lean and bend
    surface_x = np.sign(x) * 22 + ray_x * reach + wobble + np.sign(x) * 300
    wall = np.abs(folds(surface_x, y - ray_y + ray_y * reach, z - ray_z + ray_z * reach + wobble)) / reach
    bottom = np.float32(shape.sulcus_depth) + 3.5 * region.noise(SmoothNoise(rng, 40))
    below = np.clip(depth - bottom, 0, None)
    opening = np.float32(shape.sulcus) * (0.6 + 0.9 * np.exp(-depth / 4))
    sulcus = np.sqrt(wall * wall + below * below) - opening

    pial = -np.minimum(np.minimum(outer, lateral), sulcus)
    canvas.paint(region, Tissue.GREY_MATTER, pial)
    white = pial + np.float32(shape.cortex) + 0.25 * region.noise(SmoothNoise(rng, 15))
    canvas.paint(region, Tissue.WHITE_MATTER, white)
    # The callosum joins the hemispheres above and around the ventricles.
    callosum = np.maximum(np.abs(joined + 3.2) - 3.2, side - 16)
    callosum = np.maximum(callosum, 8 - z)
    canvas.paint(region, Tissue.WHITE_MATTER, callosum)


def _paint_deep(canvas: Canvas, rng: np.random.Generator, shape: BrainShape) -> None:
    """Deep nuclei and ventricles, each side with its own proportions."""
    core = canvas.region((-48, -80, -32), (48, 50, 40))
    canvas.paint(core, Tissue.WHITE_MATTER, ellipsoid(core, (0, -6, 7), (26, 34, 17)))
    for side in (-1, 1):
        size = float(rng.uniform(0.92, 1.08))
        half = canvas.region((side * 2, -80, -32), (side * 48, 50, 40))
        putamen = ellipsoid(half, (side * 27, 2, 1), (5.5 * size, 17 * size, 10 * size), 8)
        canvas.paint(half, Tissue.DEEP_GREY, putamen)
        pallidum = ellipsoid(half, (side * 20, -3, -1), (4.5 * size, 10 * size, 6.5 * size), 8)
        canvas.paint(half, Tissue.DEEP_GREY, pallidum, share=0.6)
        # The capsule between nuclei stays white: caudate and thalamus end 3 mm short of the putamen.
        arc: list[Point] = [
            (side * 14, 20, 2),
            (side * 14, 14, 13),
            (side * 18, -4, 21),
            (side * 24, -26, 20),
        ]
        canvas.paint(half, Tissue.DEEP_GREY, tube(half, arc, (6.5 * size, 6 * size, 3.5, 2)))
        thalamus = ellipsoid(half, (side * 10, -18, 7), (8.5 * size, 15 * size, 9 * size), -12)
        canvas.paint(half, Tissue.DEEP_GREY, thalamus)
        hippocampus: list[Point] = [(side * 22, -8, -22), (side * 27, -22, -15), (side * 26, -36, -3)]
        canvas.paint(half, Tissue.GREY_MATTER, tube(half, hippocampus, (7, 4.5, 2.5)))
        wide = shape.ventricles * float(rng.uniform(0.88, 1.12))
        horns: list[Point] = [
            (side * 7, 31, 1),
            (side * 6.5, 20, 11),
            (side * 8, 4, 19),
            (side * 11, -16, 23),
            (side * 20, -36, 18),
            (side * 26, -44, 9),
        ]
        lateral = tube(half, horns, [wide * r for r in (3, 4.2, 4, 3.8, 4.8, 6)], (1.0, 1, 1.25))
        occipital: list[Point] = [(side * 26, -44, 9), (side * 24, -60, 5), (side * 21, -72, 5)]
        lateral = smooth_minimum(lateral, tube(half, occipital, [wide * r for r in (6, 3, 1)]), 3)
        temporal: list[Point] = [(side * 26, -44, 9), (side * 32, -36, -5), (side * 32, -20, -17)]
        lateral = smooth_minimum(lateral, tube(half, temporal, [wide * r for r in (4.5, 2, 1.2)]), 3)
        canvas.paint(half, Tissue.CSF, np.maximum(lateral, 0.8 - side * half.x))
        plexus = ellipsoid(half, (side * 24, -43, 8), (2.5, 4, 4))
        canvas.paint(half, Tissue.BLOOD, np.maximum(plexus, lateral + 1.5))
    third = canvas.region((-6, -30, -16), (6, 8, 14))
    slab = smooth_maximum(
        np.abs(third.x) - np.float32(1.3 + 1.3 * shape.ventricles),
        ellipsoid(third, (0, -12, 0), (9, 17, 12)),
        2,
    )
    canvas.paint(third, Tissue.CSF, slab)


def _paint_cerebellum(
    canvas: Canvas,
    rng: np.random.Generator,
    region: Region,
    x: Array,
    cavity: Array,
    tent: Array,
    shape: BrainShape,
) -> None:
    """Two hemispheres and the vermis, in thin leaves around a branching white core."""
    left, right = (ellipsoid(region, (side * 25, -66, -36), (32, 40, 31)) for side in (-1, 1))
    hull = smooth_minimum(smooth_minimum(left, right, 8), ellipsoid(region, (0, -60, -28), (16, 28, 26)), 8)
    hull = smooth_maximum(hull, tent + 1.2, 2)
    hull = smooth_maximum(hull, cavity + np.float32(0.6 + shape.csf), 4)
    canvas.paint(region, Tissue.GREY_MATTER, hull)
    # Leaves lie around a transverse axis: fissures at regular angles, bent by noise.
    y, z = region.y + 46, region.z + 34
    radius = np.sqrt(y * y + z * z) + 4
    angle = np.arctan2(z, -y) + 0.006 * np.abs(x) + 0.09 * region.noise(SmoothNoise(rng, 28))
    leaves = 15
    fissure = np.abs(np.sin(leaves * angle)) * radius / leaves
    lobes = np.abs(np.sin(5 * angle + 0.7)) * radius / 5
    core = np.minimum(
        ellipsoid(region, (-17, -60, -37), (17, 15, 9)), ellipsoid(region, (17, -60, -37), (17, 15, 9))
    )
    core = np.minimum(core, ellipsoid(region, (0, -54, -33), (8, 10, 6)))
    branches = np.maximum((radius / 5) - lobes - 2.6 + 0.06 * radius, hull + 5)
    canvas.paint(region, Tissue.WHITE_MATTER, smooth_minimum(core, branches, 2), share=0.85)
    slit = np.maximum(np.maximum(fissure - 0.4, hull), -(hull + 8))
    canvas.paint(region, Tissue.CSF, slit, share=0.55)


def _paint_stem(canvas: Canvas) -> None:
    """Midbrain, pons, medulla, the cord below, and the fourth ventricle behind them."""
    cord: list[Point] = [(0, -37, -52), (0, -44, -68), (0, -48, -90), (0, -50, -150)]
    below = tube_region(canvas, cord, 10)
    canvas.paint(below, Tissue.BRAIN_STEM, tube(below, cord, (7, 5.5, 5, 4.5), (1.2, 1, 1)))
    stem = canvas.region((-26, -60, -60), (26, -4, 6))
    midbrain = tube(stem, [(0, -22, 2), (0, -27, -16)], (11, 10), (1.25, 1, 1))
    legs = [tube(stem, [(s * 16, -14, -4), (s * 9, -18, -18)], (6, 6)) for s in (-1, 1)]
    pons = ellipsoid(stem, (0, -26, -30), (17, 12, 13))
    medulla = tube(stem, [(0, -31, -40), (0, -38, -54)], (9, 7), (1.15, 1, 1))
    arms = [tube(stem, [(s * 10, -32, -31), (s * 20, -48, -35)], (7, 6)) for s in (-1, 1)]
    whole = smooth_minimum(smooth_minimum(midbrain, pons, 4), medulla, 4)
    for part in (*legs, *arms):
        whole = smooth_minimum(whole, part, 3)
    canvas.paint(stem, Tissue.BRAIN_STEM, whole)
    fourth = ellipsoid(stem, (0, -43, -33), (8, 4.5, 9), 15)
    aqueduct = tube(stem, [(0, -28, -4), (0, -38, -24), (0, -42, -34)], (1.2, 1.4, 2))
    canvas.paint(stem, Tissue.CSF, smooth_minimum(fourth, aqueduct, 2))


def _paint_sinuses(canvas: Canvas, region: Region, x: Array, cavity: Array, tent: Array) -> None:
    """Falx and tentorium (dura), and the venous sinuses along them."""
    y, z = region.y, region.z
    away = ellipsoid(region, (0, -7, 8), (42, 50, 36))
    falx = np.maximum(np.maximum(np.abs(x) - 0.5, -away), np.maximum(cavity, -tent))
    canvas.paint(region, Tissue.DURA, falx)
    sheet = np.maximum(np.maximum(np.abs(tent) - 0.6, cavity), np.maximum(y + 45, -(y + 108)))
    canvas.paint(region, Tissue.DURA, sheet)
    sagittal = np.maximum(np.abs(x) * 1.1 - cavity - 8.5, cavity) * 0.7
    sagittal = np.maximum(sagittal, -(cavity + 7))
    sagittal = np.maximum(sagittal, np.where((z > 5) | ((y < -60) & (tent > -2)), -50, 50).astype(np.float32))
    canvas.paint(region, Tissue.BLOOD, np.where(np.abs(x) * 1.1 < 4.5 + cavity * 0.55, sagittal, 20))
    transverse = np.maximum(np.hypot(tent, cavity + 3) - 3.2, y + 50)
    canvas.paint(region, Tissue.BLOOD, transverse)
