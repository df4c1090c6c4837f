"""Planes of volumes as pictures: one window, one scale in mm, orientation marks, outlines of a CT.

All planes are in radiological display: the patient's right is on the left of axial and coronal planes, and
sagittal planes face left.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ct2mri.data.cases import SLICE_AXIS, Orientation

BONE_WINDOW = (-450.0, 1050.0)  # HU
SOFT_TISSUE_WINDOW = (-110.0, 190.0)  # HU
EDGE_LEVELS = (-300.0, 250.0)  # HU: skin and bone
EDGE_COLOURS = ("#35d0ff", "#ff8a3d")
ERROR_COLOURS = LinearSegmentedColormap.from_list(
    "signed_error", ["#a8d8ff", "#2f7fe0", "#0b2a55", "#000000", "#5a1508", "#e0552a", "#ffd0a8"], N=257
)

# Where each plane's left, right, upper and lower border lie in the patient.
MARKS: dict[Orientation, str] = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}

_MARGIN_MM = 8.0
_THINNEST_PLANE = 4  # voxels: a plane that shows fewer is a strip without use
_LOWEST_PLANE = 0.5  # inches
_TEXT, _MARK = "#e8ecf1", "#ffd75e"


@dataclass(frozen=True, eq=False)
class Panel:
    """A volume and how it is shown.

    Attributes:
        title: what it is.
        subtitle: its window.
        array: (i, j, k), axes in RAS order.
        window: values shown as the first and the last colour.
        colours: a matplotlib colour map or its name.
        edges: an image (i, j, k) whose outlines are drawn over it, or None.
        edge_levels: values of `edges` that are outlined.
    """

    title: str
    subtitle: str
    array: NDArray[np.float32]
    window: tuple[float, float]
    colours: Colormap | str = "gray"
    edges: NDArray[np.float32] | None = None
    edge_levels: tuple[float, ...] = EDGE_LEVELS


@dataclass(frozen=True, eq=False)
class View:
    """Which planes of a volume in RAS order are shown, and how large.

    Attributes:
        spacing: voxel edges in mm.
        box: the part that is shown.
        centre: the slice of each axis, counted in the whole volume.
        planes: from top to bottom.
        width: of every plane, inches; those of less than the widest's mm have black beside them.
        inch_per_mm: the one scale.
    """

    spacing: tuple[float, float, float]
    box: list[slice]
    centre: list[int]
    planes: list[Orientation]
    width: float
    inch_per_mm: float

    @classmethod
    def around(cls, body: NDArray[np.bool_], spacing: tuple[float, float, float], width: float) -> Self:
        """Planes through the middle of a body, with a margin around it.

        Args:
            body: (i, j, k), axes in RAS order; at least one voxel.
            spacing: voxel edges in mm.
            width: inches of every plane.
        """
        box = _box(body, spacing)
        planes = _planes(box)
        widest = max(_size_mm(box, spacing, plane)[0] for plane in planes)
        centre = [round(float(np.mean(index))) for index in np.nonzero(body)]
        return cls(spacing, box, centre, planes, width, width / widest)

    def height(self, plane: Orientation) -> float:
        """Inches of a plane."""
        return max(_size_mm(self.box, self.spacing, plane)[1] * self.inch_per_mm, _LOWEST_PLANE)

    def cut(self, array: NDArray[Any], plane: Orientation) -> NDArray[Any]:
        """The plane of an array (i, j, k) as it is shown: (rows from the top, columns from the left)."""
        axis = SLICE_AXIS[plane]
        inner = tuple(slice(None) if other == axis else size for other, size in enumerate(self.box))
        return plane_of(array[inner], plane, self.centre[axis])

    def draw(self, axes: Axes, panel: Panel, plane: Orientation, *, scale_bar: bool) -> None:
        """Show a plane of a panel, centred, in true proportions, with its orientation marks."""
        image = self.cut(panel.array, plane)
        column_mm, row_mm = (self.spacing[other] for other in range(3) if other != SLICE_AXIS[plane])
        width, height = image.shape[1] * column_mm, image.shape[0] * row_mm
        axes.imshow(
            image, cmap=panel.colours, vmin=panel.window[0], vmax=panel.window[1], interpolation="bilinear",
            extent=(0, width, height, 0), aspect="auto",
        )  # fmt: skip
        if panel.edges is not None:
            outlined = self.cut(panel.edges, plane)
            if min(outlined.shape) > 1:
                columns = (np.arange(outlined.shape[1]) + 0.5) * column_mm
                rows = (np.arange(outlined.shape[0]) + 0.5) * row_mm
                for level, colour in zip(panel.edge_levels, EDGE_COLOURS, strict=True):
                    if outlined.min() < level < outlined.max():
                        axes.contour(
                            columns, rows, outlined, levels=[level], colors=[colour], linewidths=0.7,
                            linestyles="solid",
                        )  # fmt: skip
        spare_x = (self.width / self.inch_per_mm - width) / 2
        spare_y = (self.height(plane) / self.inch_per_mm - height) / 2
        axes.set_xlim(-spare_x, width + spare_x)
        axes.set_ylim(height + spare_y, -spare_y)
        axes.set_facecolor("black")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        places = [(0.025, 0.5), (0.975, 0.5), (0.5, 0.975), (0.5, 0.025)]
        alignments = [("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom")]
        for letter, (x, y), (horizontal, vertical) in zip(MARKS[plane], places, alignments, strict=True):
            axes.text(
                x, y, letter, transform=axes.transAxes, color=_MARK, fontsize=9, fontweight="bold",
                ha=horizontal, va=vertical, path_effects=[withStroke(linewidth=2.2, foreground="black")],
            )  # fmt: skip
        if scale_bar:
            self._draw_scale_bar(axes, width)

    def _draw_scale_bar(self, axes: Axes, width_mm: float) -> None:
        """A bar of a round length in mm at the lower left."""
        length = max(step for step in (1, 2, 5, 10, 20, 50, 100, 200) if step == 1 or step <= width_mm / 3)
        left, right = axes.get_xlim()
        bottom, _ = axes.get_ylim()
        x, y = left + 0.08 / self.inch_per_mm, bottom - 0.1 / self.inch_per_mm
        assert x + length < right
        outline = [withStroke(linewidth=3.5, foreground="black")]
        axes.plot(
            [x, x + length], [y, y], color=_TEXT, linewidth=2.2, solid_capstyle="butt", path_effects=outline
        )
        axes.text(
            x, y - 0.05 / self.inch_per_mm, f"{length} mm", color=_TEXT, fontsize=8, ha="left", va="bottom",
            path_effects=outline,
        )  # fmt: skip


def plane_of(array: NDArray[Any], orientation: Orientation, index: int) -> NDArray[Any]:
    """One slice of a RAS array (i, j, k) as it is shown: (rows from the top, columns from the left)."""
    # Right and superior come first along columns and rows in radiological display, so every axis is reversed;
    # the sagittal plane's columns run from anterior.
    plane: NDArray[Any] = np.take(array, index, axis=SLICE_AXIS[orientation])
    return plane[::-1, ::-1].T


def in_hu(window: tuple[float, float]) -> str:
    """A window of HU in words."""
    return f"{window[0]:.0f} to {window[1]:.0f} HU".replace("-", "−")


def brightest_shown(image: NDArray[np.float32], body: NDArray[np.bool_]) -> float:
    """The value without unit that is shown as white, above 0."""
    # Fat is more than twice as bright as brain on T1; where it is rare enough, it may saturate.
    brightest = float(min(np.percentile(image[body], 99.5), 1.75 * np.median(image[body])))
    return brightest if brightest > 0 else 1.0


def _box(body: NDArray[np.bool_], spacing: tuple[float, float, float]) -> list[slice]:
    """The body's box with a margin around it."""
    box = []
    for axis, edge in enumerate(spacing):
        inside = np.flatnonzero(body.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(_MARGIN_MM / edge)
        box.append(
            slice(max(int(inside[0]) - margin, 0), min(int(inside[-1]) + 1 + margin, body.shape[axis]))
        )
    return box


def _planes(box: list[slice]) -> list[Orientation]:
    """The planes worth showing: all three, but for those of which a thin volume has a strip alone."""
    thinnest: dict[Orientation, int] = {
        plane: min(size.stop - size.start for axis, size in enumerate(box) if axis != SLICE_AXIS[plane])
        for plane in MARKS
    }
    return [plane for plane in MARKS if thinnest[plane] >= min(_THINNEST_PLANE, max(thinnest.values()))]


def _size_mm(
    box: list[slice], spacing: tuple[float, float, float], plane: Orientation
) -> tuple[float, float]:
    """Width and height of a plane in mm."""
    width, height = (
        (box[axis].stop - box[axis].start) * spacing[axis] for axis in range(3) if axis != SLICE_AXIS[plane]
    )
    return width, height
