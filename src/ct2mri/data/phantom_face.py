"""The small parts of the head phantoms: airways and sinuses, ears, eyes, teeth."""

import numpy as np

from ct2mri.data.phantom_anatomy import (
    Canvas,
    Point,
    SmoothNoise,
    ellipsoid,
    smooth_maximum,
    tube,
    tube_region,
)
from ct2mri.data.phantom_tissues import Tissue


def draw_airways(canvas: Canvas, rng: np.random.Generator, frontal_sinus: float) -> None:
    """Nasal cavity with turbinates, paranasal sinuses, pharynx."""
    region = canvas.region((-48, -8, -90), (48, 106, 22))
    nasal = ellipsoid(region, (0, 46, -54), (15, 36, 21))
    nasal = smooth_maximum(nasal, -(region.z + 73), 4)
    canvas.paint(region, Tissue.MUCOSA, nasal)
    septum = np.abs(region.x + 1.5 * region.noise(SmoothNoise(rng, 35))) - 1.0
    lumen = np.maximum(nasal + 1.5, -(septum - 1.2))
    for side in (-1, 1):
        for height, size in ((-65, 4.6), (-53, 3.6), (-43, 2.4)):
            turbinate = tube(
                region, [(side * 7.5, 22, height), (side * 8, 66, height + 2)], (size, size), (0.85, 1, 1.2)
            )
            lumen = np.maximum(lumen, -turbinate + 0.2)
        nostril = tube(region, [(side * 6, 84, -60), (side * 7, 98, -72)], (3.5, 3.2))
        lumen = np.minimum(lumen, nostril)
        maxillary = ellipsoid(region, (side * 29, 46, -59), (13 * float(rng.uniform(0.8, 1.1)), 19, 17))
        canvas.paint(region, Tissue.CORTICAL_BONE, maxillary - 1.6)
        canvas.paint(region, Tissue.MUCOSA, maxillary)
        canvas.paint(region, Tissue.AIR, maxillary + float(rng.choice([0.6, 1.0, 3.5])))
        frontal = ellipsoid(
            region,
            (side * 12, 66.5, -9 + 6 * frontal_sinus),
            (9 + 5 * frontal_sinus, 5.5, 6 + 9 * frontal_sinus),
        )
        canvas.paint(region, Tissue.CORTICAL_BONE, frontal - 1.5)
        canvas.paint(region, Tissue.AIR, np.maximum(frontal, 0.7 - side * region.x))
        sphenoid = ellipsoid(region, (side * 8, 11, -34), (7.5, 13, 9.5))
        canvas.paint(region, Tissue.CORTICAL_BONE, sphenoid - 1)
        canvas.paint(region, Tissue.AIR, sphenoid)
    canvas.paint(region, Tissue.CORTICAL_BONE, np.maximum(septum, nasal), share=0.4)
    canvas.paint(region, Tissue.AIR, lumen)
    ethmoid = ellipsoid(region, (0, 42, -33), (14, 27, 11))
    canvas.paint(region, Tissue.CORTICAL_BONE, ethmoid - 0.8)
    walls = np.abs(region.noise(SmoothNoise(rng, 14, band_pass=True).distance_to_zero(6)))
    canvas.paint(region, Tissue.MUCOSA, ethmoid)
    canvas.paint(region, Tissue.AIR, np.maximum(ethmoid, 0.9 - walls))
    canvas.paint(region, Tissue.CORTICAL_BONE, np.maximum(ethmoid, walls - 0.35), share=0.6)
    throat: list[Point] = [(0, 14, -56), (0, 8, -70), (0, 4, -90), (0, 4, -112), (0, 8, -140), (0, 6, -220)]
    around = tube_region(canvas, throat, 20)
    size = float(rng.uniform(0.8, 1.2))
    radii = [size * r for r in (7, 6, 4.5, 5.5, 8, 9)]
    pharynx = tube(around, throat, radii, (1.6, 1, 1))
    canvas.paint(around, Tissue.MUCOSA, pharynx - 2.5)
    canvas.paint(around, Tissue.AIR, pharynx)


def draw_ear(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    """Auricle, ear canal, the air cells of the mastoid and the middle ear."""
    tilt = float(rng.uniform(-12, 5))
    flap = canvas.around((side * 78, -30, -34), 36)
    auricle = ellipsoid(flap, (side * 77, -29, -33), (14, 18, 30), tilt)
    sheet = np.abs(side * flap.x - 74 + 0.5 * (flap.y + 22)) - 2.8
    auricle = smooth_maximum(auricle, sheet, 2)
    canvas.paint(flap, Tissue.SKIN, auricle)
    canvas.paint(flap, Tissue.CARTILAGE, auricle + 1.5)
    canal: list[Point] = [(side * 80, -24, -40), (side * 64, -22, -38), (side * 48, -20, -36)]
    around = tube_region(canvas, canal, 8)
    canvas.paint(around, Tissue.AIR, tube(around, canal, (4, 3, 3.2)))
    mastoid = canvas.around((side * 57, -34, -50), 24)
    cells = ellipsoid(mastoid, (side * 53, -34, -48), (8.5, 10.5, 15))
    walls = np.abs(mastoid.noise(SmoothNoise(rng, 10, band_pass=True).distance_to_zero(5)))
    canvas.paint(mastoid, Tissue.AIR, np.maximum(cells, 0.85 - walls))


def draw_orbit(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    """Bony orbit, its fat, the eyeball with its lens, the muscles and the optic nerve."""
    region = canvas.region((side * 4, 8, -64), (side * 60, 96, -10))
    axis: list[Point] = [(side * 12, 18, -31), (side * 24, 42, -35), (side * 31, 62, -37)]
    cone = tube(region, axis, (4, 14, 19))
    front = region.y - 66 - 0.12 * (30 - side * region.x)
    wall = np.maximum(cone - 2.2, front + 3)
    canvas.paint(region, Tissue.CORTICAL_BONE, wall)
    canvas.paint(region, Tissue.FAT, smooth_maximum(cone, front - 2, 5))
    size = float(rng.uniform(11.8, 12.8))
    eye: Point = (side * 31.5, 64, -37)
    apex: Point = (side * 13, 20, -31)
    back: Point = (side * 30, 53, -36.5)
    canvas.paint(region, Tissue.WHITE_MATTER, tube(region, [apex, (side * 21, 38, -35), back], (2, 2, 2)))
    for dx, dz in ((0, 10), (0, -10), (10, 0), (-10, 0)):
        belly: Point = (side * 25 + dx, 46, -35 + dz)
        insertion: Point = (eye[0] + 1.05 * dx, 62, eye[2] + 1.05 * dz)
        canvas.paint(region, Tissue.MUSCLE, tube(region, [apex, belly, insertion], (1, 2.4, 1)))
    ball = ellipsoid(region, eye, (size, size, size))
    canvas.paint(region, Tissue.DURA, ball)
    canvas.paint(region, Tissue.VITREOUS, ball + 1.1)
    lens: Point = (eye[0], eye[1] + size - 4.6, eye[2])
    canvas.paint(region, Tissue.LENS, ellipsoid(region, lens, (4.8, 2.1, 4.8)))
    lid = np.maximum(ellipsoid(region, eye, (size + 3, size + 3, size + 3)), eye[1] + 8 - region.y)
    canvas.paint(region, Tissue.SKIN, np.maximum(lid, -ball))


def draw_teeth(canvas: Canvas, rng: np.random.Generator) -> None:
    """Two rows of teeth in their alveolar bone, some missing."""
    region = canvas.region((-40, 20, -114), (40, 88, -72))
    x, y = region.x, region.y
    # Along a parabola; its arc length places the teeth.
    curve = 74 - 0.045 * x * x
    across = (y - curve) / np.sqrt(1 + (0.09 * x) ** 2)
    along = x * (1 + 0.0009 * x * x)
    for top, bottom, shift in ((-77, -90, 0.0), (-91, -104, -1.5)):
        height = np.abs(region.z - (top + bottom) / 2) - 6.0
        row = np.maximum(np.abs(across - shift) - 4.6, height - 1.5)
        row = np.maximum(row, 38 - y)
        if bottom == -90:
            canvas.paint_bone(region, np.maximum(row, -(region.z + 84)), 1.2, Tissue.YELLOW_MARROW)
        else:
            canvas.paint_bone(region, np.maximum(row, region.z + 97), 1.2, Tissue.YELLOW_MARROW)
        for place in range(-7, 8):
            if rng.uniform() < 0.12:
                continue
            tooth = np.hypot(along - np.float32(place * 7.4), (across - shift) * 0.9) - 3.1
            canvas.paint(region, Tissue.TOOTH, smooth_maximum(np.maximum(tooth, 38 - y), height, 2))
