import subprocess
import sys

import numpy as np
import pytest

from ct2mri.data.cases import PreparedCase, PreparedDataset, write_case
from ct2mri.data.plan import Plan, Split
from ct2mri.data.volume import Grid
from ct2mri.errors import RequestError


def write_dataset(root, shape=(4, 5, 6)):
    generator = np.random.default_rng(0)
    for patient_id in ("a", "b", "c"):
        write_case(
            root / "cases" / f"{patient_id}_1",
            patient_id=patient_id,
            grid=Grid(shape, np.diag([2.0, 2.0, 3.0, 1.0])),
            source=generator.uniform(-1, 1, (2, *shape)).astype(np.float32),
            target=generator.uniform(-1, 2, shape).astype(np.float32),
            mask=generator.random(shape) < 0.7,
            valid=generator.random(shape) < 0.9,
            target_range=(0.0, 123.5),
            inputs={"plan": "x"},
            notes=["said so"],
        )
    plan = Plan(
        source_windows=[[-1024.0, 3000.0], [-160.0, 240.0]],
        target_percentile=99.5,
        target_range=(0.0, 100.0),
        split=Split(seed=0, train=["a"], validation=["b"], test=["z"]),
        fingerprint=None,
        spacing=(2.0, 2.0, 3.0),
        crop_margin_mm=None,
        body_threshold=-300.0,
    )
    plan.write(root / "plan.json")
    return root


def test_cases_come_back_mapped_from_disk(tmp_path):
    dataset = PreparedDataset(write_dataset(tmp_path))
    assert dataset.case_ids() == ["a_1", "b_1", "c_1"]
    assert dataset.case_ids("train") == ["a_1"]
    assert dataset.case_ids("test") == []
    case = dataset.case("b_1")
    assert (case.patient_id, case.target_range, case.spacing) == ("b", (0.0, 123.5), (2.0, 2.0, 3.0))
    assert isinstance(case.source, np.memmap)
    assert case.source.shape == (2, 4, 5, 6) and case.target.shape == (4, 5, 6)
    assert case.mask.dtype == case.valid.dtype == np.bool_
    assert case.notes == ["said so"]


def test_what_is_known_of_a_scan_is_kept_with_it(tmp_path):
    ones = np.ones((1, 1, 1), np.float32)
    facts = {"target_contrast": "T1w", "source": {"kvp": 120.0, "cbct": True}, "target": {}}
    written = write_case(
        tmp_path / "x",
        patient_id="x",
        grid=Grid((1, 1, 1), np.eye(4)),
        source=ones[None],
        target=ones,
        mask=ones > 0,
        valid=ones > 0,
        target_range=(-3.5, 8.25),
        inputs={},
        notes=[],
        centre="B",
        facts=facts,
        registration={"edge_distance_mm": 0.5},
        write_also=lambda folder: (folder / "picture.png").write_bytes(b"drawn"),
    )
    for case in (written, PreparedCase.read(tmp_path / "x")):
        assert (case.target_range, case.centre, case.facts) == ((-3.5, 8.25), "B", facts)
        assert case.registration == {"edge_distance_mm": 0.5}
    assert (tmp_path / "x" / "picture.png").read_bytes() == b"drawn"


def test_drafts_are_kept_beside_the_case(tmp_path):
    case = PreparedDataset(write_dataset(tmp_path)).case("a_1")
    assert case.draft is None
    draft = np.random.default_rng(1).random((1, 4, 5, 6), dtype=np.float32)
    case.write_draft(draft)
    np.testing.assert_array_equal(case.draft, draft[0])
    with pytest.raises(ValueError):
        case.write_draft(draft[:, :2])


@pytest.mark.parametrize(
    ("shape", "planes"),
    [
        ((4, 5, 6), {"axial", "coronal", "sagittal"}),
        ((4, 5, 1), {"axial"}),
        ((4, 1, 6), {"coronal"}),
        ((1, 5, 6), {"sagittal"}),
    ],
)
def test_planes_are_those_with_pixels_both_ways(tmp_path, shape, planes):
    assert set(PreparedDataset(write_dataset(tmp_path, shape)).case("a_1").planes()) == planes


def test_a_killed_write_leaves_no_case(tmp_path):
    with pytest.raises(AttributeError):
        write_case(
            tmp_path / "x",
            patient_id="x",
            grid=Grid((1, 1, 1), np.eye(4)),
            source=np.zeros((1, 1, 1, 1), np.float32),
            target=None,  # fails half way
            mask=np.ones((1, 1, 1), bool),
            valid=np.ones((1, 1, 1), bool),
            target_range=(0.0, 1.0),
            inputs={},
            notes=[],
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_data_set_is_said(tmp_path):
    with pytest.raises(RequestError, match="no data set"):
        PreparedDataset(tmp_path / "absent")
    with pytest.raises(RequestError, match=r"no plan\.json"):
        PreparedDataset(tmp_path)
    root = write_dataset(tmp_path / "set")
    with pytest.raises(RequestError, match="no case 'q'"):
        PreparedDataset(root).case("q")
    (root / "cases" / "a_1" / "target.npy").write_bytes(b"half")
    with pytest.raises(RequestError, match="damaged"):
        _ = PreparedDataset(root).case("a_1").target
    (root / "cases" / "a_1" / "case.json").write_text("{}")
    with pytest.raises(RequestError, match="damaged"):
        PreparedDataset(root).case_ids()
    with pytest.raises(RequestError, match="missing"):
        PreparedCase.read(root / "cases" / "b_2")
    (root / ".unfinished-plan.json").write_text("{}")
    with pytest.raises(RequestError, match="not prepared to the end"):
        PreparedDataset(root)


def test_reading_a_data_set_needs_no_image_library():
    code = (
        "import sys, ct2mri.data.cases, ct2mri.data.plan; "
        "print([m for m in ('SimpleITK', 'nibabel', 'pydicom', 'torch', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
