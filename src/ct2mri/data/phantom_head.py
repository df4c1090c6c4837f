"""Head phantoms: skull with face, teeth and neck, airways, eyes, muscles and fat, around the brain.

Coordinates are template millimetres as in stereotactic atlases: x right, y anterior, z superior, the origin
at the anterior commissure.
"""

from dataclasses import dataclass

import numpy as np

from ct2mri.data import phantom_brain, phantom_face
from ct2mri.data.phantom_anatomy import (
    Array,
    Canvas,
    Point,
    Region,
    SmoothNoise,
    ellipsoid,
    hump,
    smooth_maximum,
    smooth_minimum,
    tube,
    tube_region,
)
from ct2mri.data.phantom_tissues import Tissue

MEAN_SIZE = 0.98  # the template's proportions are those of an atlas, whose brain is larger than most
BOX: tuple[Point, Point] = ((-86, -118, -140), (86, 112, 94))


@dataclass(frozen=True)
class HeadShape:
    """What differs between heads; lengths in mm."""

    skull: float
    cortical: float
    skin: float
    fat: float
    face: float
    nose: float
    jaw: float
    frontal_sinus: float


def draw_head(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint one head."""
    shape = HeadShape(
        skull=rng.uniform(4.8, 7.4),
        cortical=rng.uniform(1.3, 2.0),
        skin=rng.uniform(1.6, 2.3),
        fat=rng.uniform(0.6, 1.7),
        face=rng.uniform(0.92, 1.08),
        nose=rng.uniform(-4, 5),
        jaw=rng.uniform(-6, 5),
        frontal_sinus=rng.uniform(0.3, 1.3),
    )
    whole = canvas.whole
    cavity = _cavity(whole)
    thickness = _skull_thickness(rng, whole, shape)
    head = _outline(rng, whole, cavity - thickness, shape)
    _paint_soft_tissue(canvas, rng, whole, head, shape)
    _paint_face_bones(canvas, rng, shape)
    _paint_skull(canvas, whole, cavity, thickness, shape)
    _paint_spine(canvas, rng)
    phantom_face.draw_airways(canvas, rng, shape.frontal_sinus)
    for side in (-1, 1):
        phantom_face.draw_ear(canvas, rng, side)
        phantom_face.draw_orbit(canvas, rng, side)
    phantom_face.draw_teeth(canvas, rng)
    inside = canvas.region(*phantom_brain.BOX)
    phantom_brain.draw_brain(canvas, rng, inside, cavity[inside.box])


def _cavity(region: Region) -> Array:
    """Signed distance to the inner surface of the skull: vault, middle and posterior fossae."""
    # Skulls are widest behind the middle and narrow towards the forehead.
    narrowing = 1 + 0.0009 * (region.y + 25)
    egg = Region(region.box, region.x * narrowing, region.y, region.z)
    vault = ellipsoid(egg, (0, -17, 12), (67, 88, 67))
    floor = -25 - region.z - 0.10 * np.abs(region.x) + 0.04 * (region.y + 20)
    cavity = smooth_maximum(vault, floor, 14)
    for side in (-1, 1):
        cavity = smooth_minimum(cavity, ellipsoid(region, (side * 40, -4, -22), (25, 33, 25)), 10)
    return smooth_minimum(cavity, ellipsoid(region, (0, -64, -32), (54, 42, 34)), 10)


def _skull_thickness(rng: np.random.Generator, region: Region, shape: HeadShape) -> Array:
    """Thickness of the skull in mm: thick behind and in front, thin at the temples and the base."""
    x, y, z = region.x, region.y, region.z
    thickness = np.float32(shape.skull) + 0.9 * region.noise(SmoothNoise(rng, 45))
    thickness += 2.5 * hump(x, y, z, (0, -100, -15), (30, 25, 20))
    temple = np.exp(-(((np.abs(x) - 66) / 16) ** 2) - ((y - 8) / 34) ** 2 - ((z + 10) / 26) ** 2)
    thickness -= 0.5 * np.float32(shape.skull) * temple.astype(np.float32)
    base = np.clip((-z - 22) / 15, 0, 1) * np.clip((y + 70) / 30, 0, 1)
    thickness -= base * 0.35 * thickness
    clipped: Array = np.clip(thickness, 2.4, None)
    return clipped


def _outline(rng: np.random.Generator, region: Region, skull: Array, shape: HeadShape) -> Array:
    """Signed distance to the skin."""
    x, y, z = region.x, region.y, region.z
    scalp = 3.8 + 2.4 * shape.fat + 0.5 * region.noise(SmoothNoise(rng, 50))
    temple = np.exp(-(((np.abs(x) - 62) / 20) ** 2) - ((y - 22) / 26) ** 2 - ((z + 22) / 30) ** 2)
    head = skull - scalp - 7 * temple.astype(np.float32)
    face = ellipsoid(region, (0, 28, -58), (61 * shape.face, 61, 62))
    chin = ellipsoid(region, (0, 47, -101), (40 * shape.face, 39 + 0.5 * shape.jaw, 27))
    brow = ellipsoid(region, (0, 48, -18), (50, 31, 26))
    head = smooth_minimum(head, smooth_minimum(face, brow, 12), 14)
    head = smooth_minimum(head, chin, 18)
    for side in (-1, 1):
        jaw = tube(region, [(0, 66 + shape.jaw, -110), *_jaw(side, shape)[2:]], (12, 12, 13))
        head = smooth_minimum(head, jaw, 16)
    for side in (-1, 1):
        head = smooth_minimum(head, ellipsoid(region, (side * 57, -27, -48), (15, 22, 26)), 12)
    neck = tube(
        region,
        [(0, -28, -40), (0, -36, -80), (0, -42, -125), (0, -46, -220)],
        (50, 51, 52, 60),
        (1.12, 1, 1),
    )
    head = smooth_minimum(head, neck, 20)
    tip: Point = (0, 103 + shape.nose, -58)
    nose = tube(region, [(0, 80, -28), (0, 92, -44), tip, (0, 88, -66)], (5, 6, 8, 9), (1.05, 1, 1))
    for side in (-1, 1):
        nose = smooth_minimum(nose, ellipsoid(region, (side * 11, 91, -63), (8, 11, 7)), 5)
    head = smooth_minimum(head, nose, 7)
    lips = ellipsoid(region, (0, 83, -88), (24, 10, 9))
    head = smooth_minimum(head, lips, 5)
    # Eye sockets lie a little deeper than brow and cheek.
    for side in (-1, 1):
        socket = ellipsoid(region, (side * 31, 90, -37), (17, 15, 11))
        head = smooth_maximum(head, -socket, 10)
    return head


def _paint_soft_tissue(
    canvas: Canvas, rng: np.random.Generator, whole: Region, head: Array, shape: HeadShape
) -> None:
    """Skin, fat under it, muscles with sheets of fat between them, glands."""
    canvas.paint(whole, Tissue.SKIN, head)
    low = np.clip((-whole.z - 25) / 40, 0, 1)
    fat = np.float32(shape.fat) * (2.3 + 2.8 * low + 0.7 * whole.noise(SmoothNoise(rng, 25)))
    under_skin = head + np.float32(shape.skin)
    canvas.paint(whole, Tissue.FAT, under_skin)
    muscle = under_skin + np.clip(fat, 0.8, None)
    canvas.paint(whole, Tissue.MUSCLE, muscle)
    sheets = whole.noise(SmoothNoise(rng, 30, band_pass=True).distance_to_zero(10))
    thick = np.float32(0.2 + 0.5 * shape.fat)
    planes = np.maximum(np.abs(sheets) - thick, np.maximum(muscle, whole.z + 22))
    canvas.paint(whole, Tissue.FAT, planes)
    _paint_neck_muscles(canvas, muscle)
    inside = under_skin + 0.5
    nose = canvas.around((0, 94, -56), 26)
    tip = ellipsoid(nose, (0, 97, -56), (14, 16, 22))
    canvas.paint(nose, Tissue.MUCOSA, np.maximum(tip, inside[nose.box] + 1))
    # The face between skin and bone is mostly fat; so is the cheek in front of the masseter.
    for side in (-1, 1):
        cheek = canvas.around((side * 42, 42, -72), 28)
        fat_pad = ellipsoid(cheek, (side * 43, 42, -72), (14, 24, 22))
        canvas.paint(cheek, Tissue.FAT, np.maximum(fat_pad, inside[cheek.box]))
        masseter = canvas.around((side * 57, 12, -78), 30)
        belly = ellipsoid(masseter, (side * 55, 14, -76), (7, 15, 24))
        canvas.paint(masseter, Tissue.MUSCLE, np.maximum(belly, inside[masseter.box]))
        parotid = canvas.around((side * 57, -14, -72), 26)
        gland = ellipsoid(parotid, (side * 57, -13, -70), (10, 14, 21))
        canvas.paint(parotid, Tissue.GLAND, np.maximum(gland, inside[parotid.box]))
        under_jaw = canvas.around((side * 28, 28, -112), 16)
        canvas.paint(under_jaw, Tissue.GLAND, ellipsoid(under_jaw, (side * 27, 26, -111), (8, 14, 9)))
        vessels = [(side * 27.0, -8.0, -55.0), (side * 29.0, -10.0, -100.0), (side * 30.0, -12.0, -200.0)]
        for dx, dy, radius in ((0, 6, 3.0), (7, -4, 4.5)):
            points: list[Point] = [(px + side * dx, py + dy, pz) for px, py, pz in vessels]
            around = tube_region(canvas, points, 12)
            canvas.paint(around, Tissue.FAT, tube(around, points, (radius + 1,) * 3))
            canvas.paint(around, Tissue.BLOOD, tube(around, points, (radius,) * 3))
    tongue = canvas.around((0, 40, -93), 40)
    body = ellipsoid(tongue, (0, 40, -94), (23, 32, 17), -8)
    canvas.paint(tongue, Tissue.MUSCLE, body)
    stripes = np.sin(tongue.x * 0.55).astype(np.float32) * 0.12 + 0.15
    canvas.paint(tongue, Tissue.FAT, body + 3, share=stripes)


def _jaw(side: int, shape: HeadShape) -> list[Point]:
    """Points along one half of the mandible, from the chin to the angle."""
    return [
        (0, 74 + shape.jaw, -113),
        (side * 18, 70 + shape.jaw, -112),
        (side * 36 * shape.face, 38, -106),
        (side * 48 * shape.face, 8, -98),
    ]


def _paint_neck_muscles(canvas: Canvas, muscle: Array) -> None:
    """The long muscles of the neck, each in its sheath of fat."""
    for side in (-1, 1):
        courses: list[tuple[list[Point], float, Point]] = [
            ([(side * 54, -34, -58), (side * 42, -14, -110), (side * 26, 6, -200)], 7.5, (0.75, 1.3, 1)),
            ([(side * 12, -76, -70), (side * 16, -74, -120), (side * 18, -76, -200)], 10, (1.2, 0.9, 1)),
            ([(side * 32, -66, -68), (side * 30, -62, -120), (side * 28, -62, -200)], 8.5, (1.1, 1, 1)),
            ([(side * 38, -42, -72), (side * 33, -42, -120), (side * 34, -44, -200)], 7.5, (0.9, 1.1, 1)),
            ([(side * 10, -21, -68), (side * 9, -22, -120), (side * 10, -24, -200)], 5.5, (1.3, 0.8, 1)),
            ([(side * 34, -4, -52), (side * 36, 16, -64), (side * 42, 10, -92)], 8, (0.9, 1, 1)),
        ]
        for points, radius, stretch in courses:
            around = tube_region(canvas, points, 1.4 * radius + 2)
            belly = np.maximum(tube(around, points, (radius,) * 3, stretch), muscle[around.box])
            canvas.paint(around, Tissue.FAT, np.maximum(belly - 1.3, muscle[around.box]))
            canvas.paint(around, Tissue.MUSCLE, belly)


def _paint_face_bones(canvas: Canvas, rng: np.random.Generator, shape: HeadShape) -> None:
    """Maxilla, cheek bones, nasal bones, mandible, petrous pyramids and the body of the sphenoid."""
    wide = shape.face
    middle = canvas.region((-62, -30, -92), (62, 92, -8))
    maxilla = smooth_maximum(ellipsoid(middle, (0, 46, -60), (40 * wide, 32, 30)), -(middle.z + 78), 3)
    canvas.paint_bone(middle, maxilla, 1.6, Tissue.YELLOW_MARROW)
    frontal = ellipsoid(middle, (0, 60, -22), (46, 18, 11))
    canvas.paint_bone(middle, frontal, 2.0, Tissue.DIPLOE)
    nasal = tube(middle, [(0, 80, -26), (0, 91, -44)], (3.2, 2.2), (2.6, 1, 1))
    canvas.paint(middle, Tissue.CORTICAL_BONE, nasal)
    sphenoid = ellipsoid(middle, (0, 8, -33), (19, 20, 14))
    clivus = tube(middle, [(0, -12, -26), (0, -24, -52)], (5, 5), (2.2, 1, 1))
    canvas.paint_bone(middle, smooth_minimum(sphenoid, clivus, 5), 1.5, Tissue.YELLOW_MARROW)
    for side in (-1, 1):
        # Side parts reach beyond the middle's box and are painted in their own.
        arch: list[Point] = [
            (side * 36 * wide, 66, -52),
            (side * 50 * wide, 54, -50),
            (side * 59 * wide, 32, -46),
            (side * 63 * wide, 8, -42),
            (side * 60, -14, -40),
        ]
        around = tube_region(canvas, arch, 12)
        canvas.paint_bone(
            around, tube(around, arch, (7, 7.5, 4, 3, 4), (0.8, 1, 1.3)), 1.5, Tissue.YELLOW_MARROW
        )
        rim: list[Point] = [(side * 46, 62, -26), (side * 50, 56, -38), (side * 46, 60, -50)]
        around = tube_region(canvas, rim, 9)
        canvas.paint_bone(around, tube(around, rim, (5, 4, 5)), 1.6, Tissue.YELLOW_MARROW)
        plate: list[Point] = [(side * 14, 10, -42), (side * 16, 6, -72)]
        around = tube_region(canvas, plate, 9)
        canvas.paint(around, Tissue.CORTICAL_BONE, tube(around, plate, (2, 1.4), (1, 3, 1)))
        petrous: list[Point] = [(side * 62, -30, -40), (side * 36, -22, -38), (side * 13, -10, -36)]
        around = tube_region(canvas, petrous, 15)
        canvas.paint_bone(around, tube(around, petrous, (10, 8, 5)), 4.5, Tissue.DIPLOE)
        mastoid = canvas.around((side * 57, -34, -52), 24)
        canvas.paint_bone(
            mastoid, ellipsoid(mastoid, (side * 54, -35, -51), (11, 13, 18)), 1.6, Tissue.YELLOW_MARROW
        )
        jaw = _jaw(side, shape)
        around = tube_region(canvas, jaw, 16)
        canvas.paint_bone(around, tube(around, jaw, (6, 6, 5.5, 5), (1, 1, 1.9)), 2.2, Tissue.YELLOW_MARROW)
        ramus: list[Point] = [(side * 48 * wide, 10, -98), (side * 51, -2, -68), (side * 53, -11, -46)]
        around = tube_region(canvas, ramus, 24)
        canvas.paint_bone(
            around, tube(around, ramus, (4.2, 3.6, 4.5), (1, 2.6, 1)), 1.8, Tissue.YELLOW_MARROW
        )


def _paint_skull(canvas: Canvas, whole: Region, cavity: Array, thickness: Array, shape: HeadShape) -> None:
    """Outer table, diploë and inner table around the cavity; the occiput opens to the spinal canal."""
    outer = cavity - thickness
    canvas.paint(whole, Tissue.CORTICAL_BONE, outer)
    cortical = np.float32(shape.cortical)
    diploe = np.maximum(outer + cortical, -(cavity - 0.85 * cortical))
    canvas.paint(whole, Tissue.DIPLOE, diploe)


def _paint_spine(canvas: Canvas, rng: np.random.Generator) -> None:
    """Cervical vertebrae with discs between them, and the canal with its fluid."""
    region = canvas.region((-30, -85, -200), (30, -5, -58))
    first = float(rng.uniform(-72, -68))
    z = region.z
    for level in range(9):
        height = first - 16.5 * level
        if height < float(z.min(initial=0)) - 15:
            break
        axis_y = -31 - 0.12 * (-70 - height)
        body = ellipsoid(region, (0, axis_y, height), (10.5 if level else 18, 8, 9))
        body = smooth_maximum(body, np.abs(z - np.float32(height)) - 6.8, 3)
        arch = np.maximum(
            np.abs(np.hypot(region.x, (region.y - np.float32(axis_y - 17)) * 1.05) - 13) - 3.2,
            np.abs(z - np.float32(height) + 0.25 * (region.y + 40)) - 5,
        )
        spine = tube(region, [(0, axis_y - 29, height - 3), (0, axis_y - 43, height - 8)], (3.5, 4))
        wings = tube(region, [(-21, axis_y - 8, height), (21, axis_y - 8, height)], (4.5, 4.5))
        bone = smooth_minimum(smooth_minimum(smooth_minimum(body, arch, 2), spine, 3), wings, 3)
        canvas.paint_bone(region, bone, 1.5, Tissue.RED_MARROW)
        disc = ellipsoid(region, (0, axis_y, height - 8.3), (9, 7.5, 2.8))
        canvas.paint(region, Tissue.CARTILAGE, disc)
    canal: list[Point] = [(0, -38, -54), (0, -46, -70), (0, -51, -100), (0, -60, -200)]
    around = tube_region(canvas, canal, 14)
    canvas.paint(around, Tissue.DURA, tube(around, canal, (14, 9.3, 8.6, 8.6)))
    canvas.paint(around, Tissue.CSF, tube(around, canal, (13, 8.3, 7.6, 7.6)))
