import h5py
import numpy as np
import pytest

from ct2mri.data.layouts import find_cases
from ct2mri.data.published_files import PUBLISHED_SHAPES
from ct2mri.errors import RequestError
from ct2mri.options.data import RawDataOptions

BRAIN = PUBLISHED_SHAPES["brain"]


def write_raw(path, low, high, anatomy="brain"):
    """A volume of `low`, with `high` in its first slice, row and column."""
    array = np.full(PUBLISHED_SHAPES[anatomy], low, "<f4")
    array[0, 0, 0] = high
    path.parent.mkdir(parents=True, exist_ok=True)
    array.tofile(path)


def find(raw, **options):
    return find_cases(raw, RawDataOptions(**options))


def ids(found):
    return [case.case_id for case in found.cases]


def test_raw_volumes_in_two_folders(tmp_path):
    write_raw(tmp_path / "ct" / "001.raw", -1, 1)
    write_raw(tmp_path / "mr" / "001.raw", 0, 1)
    write_raw(tmp_path / "ct" / "002", -1, 0)
    found = find(tmp_path)
    assert (found.layout, ids(found), found.pictures) == ("published", ["001"], True)
    assert "not documented" in found.notes[0] and found.left_out == {"002": "it has no mr image"}
    (case,) = found.cases
    assert (case.source_name, case.target_name) == ("ct/001.raw", "mr/001.raw")
    assert case.facts == {"anatomy": "brain"}
    source, target, _ = case.load()
    assert source.spatial_shape == BRAIN[::-1] and source.orientation == "LPS"
    assert source.spacing == (1, 1, 1)
    # Black and white, and the lowest slice's foremost right corner, as assumed.
    assert (source.array.min(), source.array[0, 0, 0]) == (0, 255)
    assert (target.array.min(), target.array[0, 0, 0]) == (0, 255)


def test_raw_volumes_of_two_anatomies_or_with_other_values_are_named(tmp_path):
    write_raw(tmp_path / "a_ct.raw", -1024, 3000, "pelvis")
    write_raw(tmp_path / "a_mr.raw", 0, 1, "pelvis")
    write_raw(tmp_path / "b_ct.raw", 0, 1)
    write_raw(tmp_path / "b_mr.raw", 0, 1, "pelvis")
    (tmp_path / "c_ct.raw").write_bytes(bytes(100))  # of no published size
    found = find(tmp_path)
    assert ids(found) == ["a"]
    assert found.left_out == {"b": "b_ct.raw is a brain, b_mr.raw a pelvis"}
    with pytest.raises(RequestError, match="from -1024 to 3000, not normalised"):
        found.cases[0].load_source()
    assert found.cases[0].load_target().spacing == (1, 1, 2.5)


def write_slices(path, volumes, dataset="axial", rest=0, channel=None):
    depth, rows, columns = BRAIN
    shape = [volumes * depth + rest, rows, columns]
    if channel is not None:
        shape.insert(channel, 1)
    with h5py.File(path, "w") as file:
        stack = file.create_dataset(dataset, tuple(shape), "f4", chunks=True)
        for number in range(volumes):
            stack[(number * depth, *[0] * (len(shape) - 1))] = (number + 1) / 10
        file.create_dataset("sagittal", (5, depth, rows), "f4")


@pytest.mark.parametrize("channel", [None, 1, 3])
def test_slices_in_hdf5_become_volumes_again(tmp_path, channel):
    write_slices(tmp_path / "train_ct.h5", 2, channel=channel)
    write_slices(tmp_path / "train_mr.h5", 2, dataset="224x168")
    found = find(tmp_path)
    assert (found.layout, ids(found)) == ("published", ["brain_001", "brain_002"])
    assert found.cases[1].source_name == "train_ct.h5 volume 2"
    source, target, _ = found.cases[1].load()
    assert source.spatial_shape == BRAIN[::-1]
    assert source.array[0, 0, 0] == target.array[0, 0, 0] == pytest.approx(0.2 * 255)
    assert np.count_nonzero(source.array) == 1


def test_slices_that_are_no_whole_volumes_have_no_patient(tmp_path):
    write_slices(tmp_path / "ct.h5", 1, rest=3)
    write_slices(tmp_path / "mr.h5", 1, rest=3)
    with pytest.raises(RequestError, match=r"163 axial slices.*multiple of 160.*cannot be told"):
        find(tmp_path)
