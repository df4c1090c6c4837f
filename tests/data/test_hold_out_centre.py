"""A split that holds out all patients of one centre."""

import shutil

import numpy as np
import pytest

from ct2mri.data.cases import PreparedDataset
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.prepare import prepare
from ct2mri.data.splits import side_of_newcomer
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.options.data import PrepareOptions

SHAPE = (14, 15, 12)
AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])
# The centres' images are with and without contrast agent, which has to be asked for.
ALL_CONTRASTS = {"target_series": "1B"}
PATIENTS = ["1BA001", "1BA002", "1BB001", "1BB002", "1BC001"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Heads of three centres, laid out as SynthRAD2023."""
    root = tmp_path_factory.mktemp("synthrad")
    index = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    inside = np.sqrt(sum(axis**2 for axis in index)) < 1
    for seed, patient in enumerate(PATIENTS):
        noise = np.random.default_rng(seed).normal(0, 5, SHAPE)
        folder = root / "Task1" / "brain" / patient
        save_volume(Volume(np.where(inside, 40 + noise, -1000), AFFINE), folder / "ct.nii.gz")
        save_volume(Volume(np.where(inside, 300 + 20 * noise, 0), AFFINE), folder / "mr.nii.gz")
        save_volume(Volume(inside.astype(np.float32), AFFINE), folder / "mask.nii.gz")
    return root


def test_all_patients_of_the_centre_are_the_test(raw, tmp_path, capsys):
    options = {"raw": raw, "dataset": tmp_path / "set", "workers": 0, "hold_out_centre": "B", **ALL_CONTRASTS}
    prepare(PrepareOptions(**options))
    dataset = PreparedDataset(tmp_path / "set")
    split = dataset.plan.split
    assert split.test == ["1BB001", "1BB002"]
    assert len(split.validation) == 1 and sorted(split.train + split.validation) == [
        "1BA001",
        "1BA002",
        "1BC001",
    ]
    assert {dataset.case(case_id).centre for case_id in dataset.case_ids("test")} == {"B"}
    assert "centre B held out, 2 patients; 3 of other centres" in capsys.readouterr().out
    prepare(PrepareOptions(**options))  # the same again is no other split
    assert PreparedDataset(tmp_path / "set").plan.split == split
    with pytest.raises(RequestError, match="prepared with another split"):
        prepare(PrepareOptions(**options | {"hold_out_centre": "A"}))


def test_centres_that_are_not_there_are_refused(raw, tmp_path):
    def refused(match, **options):
        with pytest.raises(RequestError, match=match):
            prepare(PrepareOptions(**{"raw": raw, "dataset": tmp_path / "set", **ALL_CONTRASTS} | options))
        assert not (tmp_path / "set").exists()

    refused("tells the centres A, B, C", hold_out_centre="D")
    refused("both tell the split", hold_out_centre="A", splits=tmp_path / "splits.json")
    pairs = {"layout": "pairs", "raw": raw / "Task1" / "brain", "target_series": None}
    refused("tells no centres; give --splits", hold_out_centre="A", **pairs)
    alone = tmp_path / "alone" / "Task1" / "brain"
    alone.mkdir(parents=True)
    for patient in PATIENTS[:2]:
        (alone / patient).symlink_to(raw / "Task1" / "brain" / patient)
    refused("leaves nobody to train on", hold_out_centre="A", raw=tmp_path / "alone")


def add(raw, patient, seed):
    """One more patient, a copy of one with other noise."""
    folder = raw / "Task1" / "brain"
    shutil.copytree(folder / PATIENTS[0], folder / patient)
    for name in ("ct", "mr"):
        volume = load_volume(folder / patient / f"{name}.nii.gz")
        noise = np.random.default_rng(seed).normal(0, 2, SHAPE)
        save_volume(volume.with_array(volume.array + noise), folder / patient / f"{name}.nii.gz")


def test_patients_who_come_later_join_whatever_their_centre(raw, tmp_path, capsys):
    grown = shutil.copytree(raw, tmp_path / "raw")
    options = {"dataset": tmp_path / "set", "workers": 0, "hold_out_centre": "B", **ALL_CONTRASTS}
    prepare(PrepareOptions(raw=grown, **options))
    before = PreparedDataset(tmp_path / "set").plan.split
    for number, patient in enumerate(("1BA101", "1BA102", "1BA103", "1BB101", "1BC101", "1BC102")):
        add(grown, patient, number)
        prepare(PrepareOptions(raw=grown, **options))
    second = tmp_path / "second"
    for folder, patients in (("ours", ["1BB201"]), ("others", ["1BA201", "1BC201"])):
        for number, patient in enumerate(patients, start=50):
            add(grown, patient, number)
            where = second / folder / "Task1" / "brain"
            where.mkdir(parents=True, exist_ok=True)
            (grown / "Task1" / "brain" / patient).rename(where / patient)
        prepare(PrepareOptions(raw=second / folder, **options))
    dataset = PreparedDataset(tmp_path / "set")
    assert len(dataset.case_ids()) == 14
    split = dataset.plan.split
    assert split.test == ["1BB001", "1BB002", "1BB101", "1BB201"]
    assert set(before.train) < set(split.train) and set(before.validation) <= set(split.validation)
    # Of other centres, a newcomer's side hangs on nobody else.
    alone = PrepareOptions(raw=grown, validation_fraction=0.15, test_fraction=0, dataset=tmp_path)
    for patient in ("1BA101", "1BA102", "1BA103", "1BC101", "1BC102", "1BA201", "1BC201"):
        assert split.side(patient) == side_of_newcomer(patient, alone, None)
    for centre in ("A", "D"):
        with pytest.raises(RequestError, match=r"prepared with another (split|hold_out_centre)"):
            prepare(PrepareOptions(raw=second / "others", **options | {"hold_out_centre": centre}))
