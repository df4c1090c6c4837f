"""A picture to judge a registration by: edges of one volume over the other, before and after."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.alignment import coarsened, in_hu, view, working_grid
from ct2mri.data.geometry import resample
from ct2mri.data.volume import Grid, Volume
from ct2mri.files import atomic_path

_WORKING_MM = 1.5
_OUTLINE_MM = 3.0  # voxel edge on which bodies are found
_BONE_HU = 250.0
_PLANES = ("sagittal", "coronal", "axial")
_SKIN_COLOUR, _INNER_COLOUR = "#ffb000", "#4cc9f0"  # apart for every eye, and both bright over grey
_HEIGHT_INCHES = 3.2  # of one plane


def write_registration_picture(source: Volume, before: Volume, after: Volume, path: Path) -> None:
    """Write a PNG of three planes through the source's body: as the pair came, and registered.

    Edges of the CT (outline of the body, and of bone above 250 HU) are drawn over the other volume in grey;
    where neither is a CT, the source's outline and its median inside are drawn over the target.

    Args:
        source: the volume that stayed.
        before: the target as it came.
        after: the target as it was brought onto the source.
        path: where to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid = working_grid(source, _WORKING_MM)
    target_drawn = in_hu(after) and not in_hu(source)
    columns = []
    for title, target in (("as they came", before), ("registered", after)):
        drawn, under = (target, source) if target_drawn else (source, target)
        columns.append((title, _grey(under, grid), _edges(drawn, grid)))
    body = _body(source, grid) > 0.5
    inside = np.argwhere(body) if body.any() else np.argwhere(~body)
    middle = np.rint((inside.min(axis=0) + inside.max(axis=0)) / 2).astype(int)

    lengths = np.array(grid.shape) * grid.spacing
    shapes = [np.delete(lengths, axis) for axis in range(3)]  # width and height in mm of each plane
    widths = [_HEIGHT_INCHES * across / up for across, up in shapes]
    figure = Figure(figsize=(min(sum(widths), 16.0), 2 * _HEIGHT_INCHES + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, width_ratios=widths, squeeze=False)
    for row, (title, grey, edges) in enumerate(columns):
        for axis, plane in enumerate(_PLANES):
            panel = axes[row, axis]
            spacing = np.delete(grid.spacing, axis)
            panel.imshow(
                np.take(grey, middle[axis], axis).T,
                cmap="gray",
                vmin=0,
                vmax=1,
                origin="lower",
                aspect=spacing[1] / spacing[0],
            )
            for array, level, colour in edges:
                cut = np.take(array, middle[axis], axis).T
                if min(cut.shape) > 1 and cut.min() < level < cut.max():
                    panel.contour(cut, [level], colors=[colour], linewidths=0.7)
            panel.set_title(f"{plane}, {title}", fontsize=9)
            panel.set_xticks([])
            panel.set_yticks([])
    inner = f"bone (above {_BONE_HU:g} HU)" if in_hu(drawn) else "median inside"
    figure.suptitle(
        f"Lines: outline of the body (yellow) and {inner} (blue) of the "
        f"{'target' if target_drawn else 'source'}; grey: the {'source' if target_drawn else 'target'}",
        fontsize=9,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _grey(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    """Levels from 0 to 1 to be shown in grey."""
    low, high = np.percentile(volume.array, (1, 99.5))
    on_grid = coarsened(volume, grid, fill=float(low)).array
    levels: NDArray[np.float32] = np.clip((on_grid - low) / max(high - low, 1e-6), 0, 1)
    return levels


def _body(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    """1 inside the body, 0 outside; the outline lies at 0.5."""
    shown = view(volume, working_grid(volume, _OUTLINE_MM))
    return resample(Volume(shown.body.astype(np.float32), shown.grid.affine), grid, fill=0).array


def _edges(volume: Volume, grid: Grid) -> list[tuple[NDArray[np.float32], float, str]]:
    """What lines are drawn of: an array (i, j, k), the level that the line follows, its colour."""
    body = _body(volume, grid)
    inner = coarsened(volume, grid, fill=float(volume.array.min())).array
    inside = inner[body > 0.5]
    level = _BONE_HU if in_hu(volume) or not inside.size else float(np.median(inside))
    return [(body, 0.5, _SKIN_COLOUR), (inner, level, _INNER_COLOUR)]
