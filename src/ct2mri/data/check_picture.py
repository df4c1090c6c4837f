"""A small picture of a pair: source, target, and the source's outlines over the target, in each plane."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ct2mri.data.cases import SLICE_AXIS, Orientation
from ct2mri.data.check_fit import CoarsePair
from ct2mri.data.geometry import Box, resample
from ct2mri.data.volume import Grid, Volume

_WINDOW = (-300.0, 700.0)  # HU
_BONE_HU = 250.0
_BRIGHT_PERCENTILE = 85.0  # of a source without units: its brightest parts are outlined in place of bone

_PANEL = 112  # pixels: the widest plane
_GAP = 3
_MARGIN_MM = 12.0
_THINNEST = 6  # voxels: a plane that shows fewer is a strip without use
_QUALITY = 50

_OUTLINE, _INNER, _LETTER = (53, 208, 255), (255, 150, 40), (255, 215, 94)

# What lies at the left border of each plane, in radiological display.
_LEFT: dict[Orientation, str] = {"axial": "R", "coronal": "R", "sagittal": "A"}


def thumbnail(source: Volume, target: Volume, coarse: CoarsePair, in_hu: tuple[bool, bool]) -> bytes | None:
    """A JPEG of some 10 kB: a row a plane; source, target, and outlines of the source over the target.

    Radiological display: the patient's right is on the left of axial and coronal planes, and sagittal planes
    face left. Both volumes are shown where they lie in space.

    Args:
        source: source volume.
        target: target volume, on any grid.
        coarse: the pair as it was compared, with the body.
        in_hu: whether source and target are in HU.

    Returns:
        None where the pair is too thin to show a plane.
    """
    body = coarse.body if coarse.body.any() else np.ones_like(coarse.body)
    i, j, k = (round(_MARGIN_MM / edge) for edge in coarse.grid.spacing)
    box = Box.around(body, (i, j, k))
    middle = [round(float(np.mean(index))) for index in np.nonzero(body)]
    planes = [
        plane
        for plane, axis in SLICE_AXIS.items()
        if min(size for other, size in enumerate(body.shape) if other != axis) >= _THINNEST
    ]
    if not planes:
        return None
    extents = np.array(box.shape) * coarse.grid.spacing
    widest = max(extents[1 if plane == "sagittal" else 0] for plane in planes)
    rows = []
    windows = [_window(volume, hu) for volume, hu in zip((source, target), in_hu, strict=True)]
    inner = _BONE_HU if in_hu[0] else _bright(source)
    for plane in sorted(planes, key=list(_LEFT).index):
        grid = _plane_grid(coarse.grid, box, plane, middle[SLICE_AXIS[plane]], float(widest) / _PANEL)
        shown = [
            _flat(resample(volume, grid, fill=window[0]).array, plane)
            for volume, window in zip((source, target), windows, strict=True)
        ]
        outlined = Volume(coarse.body.astype(np.float32), coarse.grid.affine)
        outline = _flat(resample(outlined, grid, fill=0).array, plane) > 0.5
        grey = [
            (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
            for image, (low, high) in zip(shown, windows, strict=True)
        ]
        over = np.stack([grey[1]] * 3, axis=-1)
        over[_border(outline)] = _OUTLINE
        over[_border((shown[0] > inner) & outline)] = _INNER
        panels = [np.stack([grey[0]] * 3, axis=-1), np.stack([grey[1]] * 3, axis=-1), over]
        rows.append(_lettered(np.concatenate([_framed(panel) for panel in panels], axis=1), _LEFT[plane]))
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    packed = io.BytesIO()
    sheet.save(packed, "JPEG", quality=_QUALITY, optimize=True, subsampling=0)
    return packed.getvalue()


def _window(volume: Volume, in_hu: bool) -> tuple[float, float]:
    if in_hu:
        return _WINDOW
    finite = volume.array[np.isfinite(volume.array)]
    return min(0.0, float(np.percentile(finite, 1))), float(np.percentile(finite, 99.5))


def _bright(volume: Volume) -> float:
    """A level that the brightest parts of the body exceed."""
    finite = volume.array[np.isfinite(volume.array)]
    return float(np.percentile(finite[finite > finite.mean()], _BRIGHT_PERCENTILE))


def _plane_grid(grid: Grid, box: Box, plane: Orientation, index: int, pixel_mm: float) -> Grid:
    """Square pixels over a box, in the one slice that shows the middle of the body."""
    axis = SLICE_AXIS[plane]
    spacing = np.array(grid.spacing)
    extent = np.array(box.shape) * spacing
    count = [1 if a == axis else max(1, round(float(extent[a] / pixel_mm))) for a in range(3)]
    first = np.array(box.lower) - 0.5 + 0.5 * pixel_mm / spacing  # in voxels of the coarse grid
    first[axis] = index
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    affine[:3, :3] *= pixel_mm / spacing
    return Grid((count[0], count[1], count[2]), affine)


def _flat(array: NDArray[np.float32], plane: Orientation) -> NDArray[np.float32]:
    """The one slice of an array (i, j, k) in radiological display: (rows from the top, columns)."""
    shown: NDArray[np.float32] = np.take(array, 0, axis=SLICE_AXIS[plane])[::-1, ::-1].T
    return shown


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner: NDArray[np.bool_] = ndimage.binary_erosion(mask, border_value=1)
    return mask & ~inner


def _framed(panel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A panel as wide as the widest, with a black gap to the next."""
    spare = max(0, _PANEL - panel.shape[1])
    sides = (spare // 2 + _GAP, spare - spare // 2)
    return np.pad(panel, ((_GAP, 0), sides, (0, 0)))


def _lettered(row: NDArray[np.uint8], letter: str) -> NDArray[np.uint8]:
    """The row with a letter at the left border of each panel that says which side of the patient is there."""
    image = Image.fromarray(row)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    for left in range(_GAP + 2, row.shape[1], _PANEL + _GAP):
        draw.text(
            (left, row.shape[0] / 2),
            letter,
            _LETTER,
            font,
            anchor="lm",
            stroke_width=1,
            stroke_fill=(0, 0, 0),
        )
    return np.asarray(image)
