import itertools

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from ct2mri.data.geometry import reorientation_to_canonical
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError
from ct2mri.evaluation import charts
from ct2mri.evaluation.panels import MARKS, plane_of
from ct2mri.evaluation.pictures import SAFETY_SENTENCE, draw_sheet, picture_sheet

SPACING = (2.0, 2.5, 4.0)
SHAPE = (40, 44, 24)


def make_head(shape=SHAPE, spacing=SPACING):
    """CT and MR of a ball of water in air, on a RAS grid."""
    axes = np.meshgrid(
        *[(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
    )
    ball = sum((x / (0.4 * n * s)) ** 2 for x, n, s in zip(axes, shape, spacing, strict=True)) < 1
    ct = np.where(ball, 40.0, -1000.0).astype(np.float32)
    mr = np.where(ball, 100.0, 0.0).astype(np.float32)
    return Volume(ct, np.diag([*spacing, 1.0])), Volume(mr, np.diag([*spacing, 1.0]))


def sheet(ct, result, draft=None, truth=None):
    return draw_sheet(ct, result, draft=draft, truth=truth, title="a title", facts="model, seed 3")


def shown(figure):
    """The panels of a sheet by name: the array of the picture each shows."""
    return {axes.get_label(): np.asarray(axes.images[0].get_array()) for axes in figure.axes}


@pytest.mark.parametrize("plane", MARKS)
def test_a_spot_lies_where_the_marks_say(plane):
    spot = np.zeros(SHAPE)
    spot[30, 35, 20] = 1  # right, anterior, superior of the middle of a RAS grid
    image = plane_of(spot, plane, {"axial": 20, "coronal": 35, "sagittal": 30}[plane])
    row, column = np.argwhere(image)[0]
    left, right, top, bottom = MARKS[plane]
    assert (left if column < image.shape[1] / 2 else right) in "RA"
    assert (top if row < image.shape[0] / 2 else bottom) in "AS"


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SLA"])
def test_the_stored_orientation_does_not_change_the_sheet(orientation):
    ct, mr = make_head()
    mr.array[24:28, 26:30, 14:16] = 300
    expected = shown(sheet(ct, mr))
    # Store the same voxels along other axes: the inverse of what brings that orientation to RAS.
    codes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(orientation):
        world, sign = codes[letter]
        affine[world, axis] = sign * SPACING[world]
    shape = tuple(SHAPE[codes[letter][0]] for letter in orientation)
    turn = reorientation_to_canonical(Grid(shape, affine))
    stored = [Volume(turn.undo_array(volume.array), affine) for volume in (ct, mr)]
    got = shown(sheet(*stored))
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


def test_panels_follow_what_is_given():
    ct, mr = make_head()
    columns = {label.split(": ", 1)[1] for label in shown(sheet(ct, mr))}
    assert columns == {"CT, bone", "CT, soft tissue", "result: synthetic MR", "CT edges on the result"}
    figure = sheet(ct, mr, draft=mr, truth=mr)
    assert len(figure.axes) == 3 * 7 + 1
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"R", "L", "A", "P", "S", "I", "20 mm", "draft (2D stage)", "truth", "signed error"} <= texts
    written = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert SAFETY_SENTENCE in written and "a title" in written and "model, seed 3" in written
    assert "Radiological" in written


def test_the_scale_bar_and_the_proportions_are_true():
    ct, mr = make_head()
    figure = sheet(ct, mr)
    figure.canvas.draw()
    inch_per_mm = []
    for axes in figure.axes:
        box = axes.get_window_extent()
        left, right = axes.get_xlim()
        bottom, top = axes.get_ylim()
        inch_per_mm += [box.width / (right - left), box.height / (bottom - top)]
        if lines := axes.lines:
            (bar,) = lines
            label = next(text.get_text() for text in axes.texts if text.get_text().endswith("mm"))
            assert np.ptp(bar.get_xdata()) == float(label.removesuffix(" mm"))
    assert inch_per_mm == pytest.approx([inch_per_mm[0]] * len(inch_per_mm), rel=1e-6)


def test_error_is_signed_and_in_per_cent_of_the_shared_window():
    ct, mr = make_head()
    brighter = mr.with_array(mr.array * 1.1)
    figure = sheet(ct, brighter, truth=mr)
    error = next(axes.images[0] for axes in figure.axes if axes.get_label() == "axial: signed error")
    image = np.asarray(error.get_array())
    assert image.max() == pytest.approx(10, abs=1e-3) and image.min() == 0
    red, _, blue, _ = error.cmap(error.norm(10.0))
    assert red > blue
    red, _, blue, _ = error.cmap(error.norm(-10.0))
    assert blue > red
    assert colors.to_hex(error.cmap(error.norm(0.0))) == "#000000"
    windows = {
        axes.images[0].get_clim()
        for axes in figure.axes
        if "result" in axes.get_label() or "truth" in axes.get_label()
    }
    assert windows == {(0.0, 100.0)}


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_a_single_slice_shows_its_one_plane(thin):
    shape = tuple(1 if axis == thin else n for axis, n in enumerate(SHAPE))
    ct, mr = make_head(shape, (2.0, 2.0, 2.0))
    planes = {label.split(":")[0] for label in shown(sheet(ct, mr))}
    assert planes == {("sagittal", "coronal", "axial")[thin]}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 2), (1, 5, 2)])
def test_volumes_of_a_few_voxels_can_be_drawn(shape, tmp_path):
    ct, mr = make_head(shape)
    picture_sheet(tmp_path / "sheet.png", ct, mr, title="small", facts="")
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


def test_names_are_no_formulas(tmp_path):
    ct, mr = make_head()
    name = r"ct $\foo$"
    picture_sheet(tmp_path / "sheet.png", ct, mr, title=name, facts=name)
    assert name in charts.paired(["first", name], [[1.0, 2.0]], "", "spoken")
    assert name in charts.box_plot({"all": [1.0, 2.0], name: [1.0]}, None, "", "spoken")


def test_the_file_is_a_png_that_carries_the_sentence(tmp_path):
    ct, mr = make_head()
    picture_sheet(tmp_path / "sheet.png", ct, mr, truth=mr, title="a title", facts="")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.format == "PNG" and image.text["Description"] == SAFETY_SENTENCE
        dark = np.asarray(image.convert("L"))
    assert np.median(dark) < 40 and dark.max() > 200
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_volumes_on_other_grids_are_refused(tmp_path):
    ct, mr = make_head()
    moved = Volume(mr.array, np.diag([2.0, 2.5, 5.0, 1.0]))
    for name, place in itertools.product(["result", "draft", "truth"], [tmp_path / "sheet.png"]):
        given = {"result": mr, name: moved}
        with pytest.raises(RequestError, match=f"the {name}.*CT's"):
            picture_sheet(place, ct, title="", facts="", **given)
    assert not list(tmp_path.iterdir())
