import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pydicom.data
import pytest
from PIL import Image

from ct2mri.data.cases import PreparedDataset
from ct2mri.data.check import check
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.layouts import find_cases
from ct2mri.data.plan import Plan
from ct2mri.data.prepare import prepare
from ct2mri.data.replay import prepare_source, restore_to_input
from ct2mri.data.splits import draw_split
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.options.data import CheckOptions, PrepareOptions, RawDataOptions

SHAPE = (26, 30, 22)


def pair(seed, spacing=(4.0, 4.0, 5.0)):
    """CT and MR of an ellipsoid with a bone shell, MR in whole numbers like a scanner's."""
    generator = np.random.default_rng(seed)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # LPS
    affine[:3, 3] = generator.uniform(-50, 50, 3)
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij")
    r = np.sqrt(sum(axis**2 for axis in axes)) / generator.uniform(0.9, 1)
    ct = np.select([r < 0.8, r < 0.9, r < 1], [40.0, 900.0, -80.0], -1000.0) + generator.normal(0, 5, SHAPE)
    mr = (
        np.select([r < 0.8, r < 0.9, r < 1], [300.0, 20.0, 700.0], 0.0)
        + np.abs(generator.normal(0, 9, SHAPE))
        + 1
    )
    return Volume(ct, affine), Volume(np.rint(mr), affine)


def write_raw(root, patients=4, suffix=".nii.gz", target=lambda mr: mr):
    for number in range(patients):
        ct, mr = pair(number)
        save_volume(ct, root / f"p{number}" / f"ct{suffix}")
        save_volume(target(mr), root / f"p{number}" / f"mr{suffix}")
    return root


def run(raw, dataset, **options):
    prepare(PrepareOptions(raw=raw, dataset=dataset, **{"workers": 0} | options))
    return PreparedDataset(dataset)


def test_pairs_become_a_data_set(tmp_path, capsys):
    dataset = run(write_raw(tmp_path / "raw"), tmp_path / "set", anatomy="head")
    plan = dataset.plan
    assert dataset.case_ids() == ["p0", "p1", "p2", "p3"]
    assert sorted(plan.split.patient_ids) == dataset.case_ids()
    assert [len(dataset.case_ids(side)) for side in ("train", "validation", "test")] == [2, 1, 1]
    assert (plan.spacing, plan.anatomy, plan.source_units, plan.channels) == (
        (4.0, 4.0, 5.0),
        "head",
        "HU",
        2,
    )
    assert plan.fingerprint.cases == 2 and plan.fingerprint.spacing_mm == [[4, 4], [4, 4], [5, 5]]
    references = [dataset.case(case_id).target_range[1] for case_id in dataset.case_ids("train")]
    assert plan.target_range == (0.0, np.median(references))
    for case_id in dataset.case_ids():
        case = dataset.case(case_id)
        assert case.grid.orientation == "RAS"
        assert case.source.shape == (2, *case.spatial_shape)
        assert case.mask[case.source[0] > (-200 + 1024) / 2012 - 1].mean() > 0.99
        assert case.valid.all()
        inside = np.asarray(case.target)[case.mask]
        assert np.percentile(inside, plan.target_percentile) == pytest.approx(1, abs=1e-3)
        assert inside.max() > 1  # not clipped
    out = capsys.readouterr().out
    assert "p0: 26×30×22 voxels" in out and "4 of 4 cases prepared" in out
    summary = json.loads((tmp_path / "set" / "prepare.json").read_text())
    assert summary["counts"] == {"prepared": 4, "left out": 0}


@pytest.mark.parametrize("edge", [0.859375, 0.48828125, 0.703125])
def test_voxels_that_have_the_size_of_the_plan_already_stay_as_they_are(tmp_path, edge):
    """Edges of voxels are a field of view over 256 or 512: more digits than three, and rounding adds up."""
    shape = (256, 12, 12)
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in shape], indexing="ij")
    inside = np.sqrt(sum(axis**2 for axis in axes)) < 1
    noise = np.random.default_rng(0).normal(0, 20, shape)
    ct = Volume(np.where(inside, 40 + noise, -1000), np.diag([edge, 8, 8, 1]))
    save_volume(ct, tmp_path / "raw" / "p0" / "ct.nii.gz")
    save_volume(ct.with_array(np.where(inside, 300 + noise, 0)), tmp_path / "raw" / "p0" / "mr.nii.gz")
    dataset = run(tmp_path / "raw", tmp_path / "set", validation_fraction=0, test_fraction=0)
    assert dataset.plan.spacing == pytest.approx((edge, 8, 8), abs=1e-6)
    own = prepare_source(ct, replace(dataset.plan, spacing=None))
    np.testing.assert_array_equal(dataset.case("p0").source, own.array)


def test_translate_meets_the_very_arrays_of_prepare(tmp_path):
    raw = write_raw(tmp_path / "raw", 3, suffix=".mha")
    dataset = run(raw, tmp_path / "set", spacing=[4.0, 5.0, 4.0])
    for case_id in dataset.case_ids():
        ct = load_volume(raw / case_id / "ct.mha")
        prepared, case = prepare_source(ct, dataset.plan), dataset.case(case_id)
        np.testing.assert_array_equal(prepared.array, case.source)
        np.testing.assert_array_equal(prepared.mask, case.mask)
        np.testing.assert_array_equal(prepared.grid.affine, case.affine)
        restored = restore_to_input(case.target, case.grid, ct, fill=-1)
        mr = load_volume(raw / case_id / "mr.mha")
        assert restored.grid.matches(mr.grid, tolerance_mm=0)
        body = ct.array > -300

        def likeness(array, body=body, restored=restored):
            return np.corrcoef(restored.array[body], array[body])[0, 1]

        assert likeness(mr.array) > 0.8
        # One voxel to any side it is less like: nothing was moved.
        shifted = [np.roll(mr.array, step, axis) for step in (-1, 1) for axis in range(3)]
        assert max(likeness(array) for array in shifted) < likeness(mr.array) - 0.2


def test_a_scanner_gain_of_ten_changes_no_bit(tmp_path):
    one = run(write_raw(tmp_path / "one", 3), tmp_path / "set1", spacing=[3.0, 3.0, 3.0])
    ten = run(
        write_raw(tmp_path / "ten", 3, target=lambda mr: mr.with_array(10 * mr.array)),
        tmp_path / "set10",
        spacing=[3.0, 3.0, 3.0],
    )
    for case_id in one.case_ids():
        a, b = one.case(case_id), ten.case(case_id)
        np.testing.assert_array_equal(a.target, b.target)
        np.testing.assert_array_equal(a.valid, b.valid)
        assert b.target_range[1] == pytest.approx(10 * a.target_range[1], rel=1e-6)
    assert ten.plan.target_range[1] == pytest.approx(10 * one.plan.target_range[1], rel=1e-6)


def test_bad_cases_are_left_out_by_name_and_the_rest_go_on(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", 9)
    ct, mr = pair(0)
    broken = ct.array.copy()
    broken[5, 5, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(broken, ct.affine), raw / "p0" / "ct.nii.gz")
    save_volume(ct.with_array(np.maximum(ct.array + 1024, 0)), raw / "p1" / "ct.nii.gz")
    elsewhere = mr.affine.copy()
    elsewhere[:3, 3] += 1000
    save_volume(Volume(mr.array, elsewhere), raw / "p2" / "mr.nii.gz")
    (raw / "p3" / "mr.nii.gz").unlink()
    (raw / "p4" / "ct.nii.gz").write_bytes((raw / "p5" / "ct.nii.gz").read_bytes()[:700])
    shutil.copy(raw / "p5" / "ct.nii.gz", raw / "p5" / "CT.nii.gz")
    dataset = run(raw, tmp_path / "set")
    assert dataset.case_ids() == ["p6", "p7", "p8"]
    summary = json.loads((tmp_path / "set" / "prepare.json").read_text())
    reasons = {case["case_id"]: case["reason"] for case in summary["cases"] if case["status"] == "left out"}
    assert summary["counts"] == {"prepared": 3, "left out": 6}
    assert "NaN" in reasons["p0"]
    assert "offset by +1024" in reasons["p1"]
    assert "do not overlap" in reasons["p2"]
    assert "no mr.*" in reasons["p3"]
    assert "ct.nii.gz" in reasons["p4"]
    assert "several" in reasons["p5"]
    out = capsys.readouterr().out
    assert "3 of 9 cases prepared" in out and "6 left out" in out and "left out: p2" in out
    # The reasons stay what they are when nothing is decided anew.
    run(raw, tmp_path / "set")
    again = json.loads((tmp_path / "set" / "prepare.json").read_text())
    assert {c["case_id"]: c["reason"] for c in again["cases"] if c["status"] == "left out"} == reasons


def test_complete_cases_are_kept_and_changed_ones_prepared_again(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", 3)
    run(raw, tmp_path / "set")
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "set" / "cases").rglob("*.npy")}
    plan = (tmp_path / "set" / "plan.json").read_text()
    shutil.rmtree(tmp_path / "set" / "cases" / "p1")  # as if killed before it
    (tmp_path / "set" / "cases" / ".partial-p1-xyz").mkdir()
    save_volume(pair(7)[1], raw / "p2" / "mr.nii.gz")
    capsys.readouterr()
    dataset = run(raw, tmp_path / "set")
    out = capsys.readouterr().out
    assert "p0: is up to date" in out and "p1: 26×30×22" in out and "p2: 26×30×22" in out
    assert all(f.stat().st_mtime_ns == t for f, t in times.items() if "p0" in f.parts)
    assert (tmp_path / "set" / "plan.json").read_text() == plan
    assert dataset.case_ids() == ["p0", "p1", "p2"]
    assert not list((tmp_path / "set" / "cases").glob(".*"))


def test_a_case_whose_arrays_are_missing_or_cut_short_is_prepared_again(tmp_path, capsys):
    """Of a copy that was interrupted, say; the refusal to read them says to run `prepare`."""
    raw = write_raw(tmp_path / "raw", 4)
    whole = run(raw, tmp_path / "set")
    arrays = {case: np.array(whole.case(case).source) for case in ("p0", "p1", "p2")}
    cases = tmp_path / "set" / "cases"
    (cases / "p0" / "source.npy").unlink()
    (cases / "p1" / "source.npy").write_bytes((cases / "p1" / "source.npy").read_bytes()[:-1])
    (cases / "p2" / "mask.npy").write_bytes(b"")
    with pytest.raises(RequestError, match="run `ct2mri prepare` again"):
        _ = whole.case("p0").source
    capsys.readouterr()
    again = run(raw, tmp_path / "set")
    assert capsys.readouterr().out.count("is up to date") == 1
    for case, array in arrays.items():
        np.testing.assert_array_equal(again.case(case).source, array)
        assert again.case(case).mask.any()


def test_the_same_request_from_python_is_the_same_whatever_holds_its_numbers(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", 3)
    asked = {"spacing": (5.0, 5.0, 5.0), "windows": [(-1000, 1000)]}
    run(raw, tmp_path / "set", **asked)
    run(raw, tmp_path / "set", **asked)
    assert capsys.readouterr().out.count("is up to date") == 3


def test_an_edited_plan_is_followed(tmp_path, capsys):
    raw = write_raw(tmp_path / "raw", 4)
    dataset = run(raw, tmp_path / "set")
    path = tmp_path / "set" / "plan.json"
    content = json.loads(path.read_text())
    content["spacing"] = [5.0, 5.0, 5.0]
    content["split"] = {"seed": 0, "train": ["p0", "p1"], "validation": ["p2"], "test": []}
    path.write_text(json.dumps(content))
    dataset = run(raw, tmp_path / "set")
    assert dataset.case_ids() == ["p0", "p1", "p2"]
    assert dataset.case("p0").spacing == (5.0, 5.0, 5.0)
    assert json.loads(path.read_text())["target_range"] == content["target_range"]
    out = capsys.readouterr().out
    assert "left out: p3: its patient is on no side" in out and "p3: removed" in out
    with pytest.raises(RequestError, match="another seed"):
        run(raw, tmp_path / "set", seed=4)
    content["split"]["test"] = ["p0"]
    path.write_text(json.dumps(content))
    with pytest.raises(RequestError, match="p0 is under train and under test"):
        run(raw, tmp_path / "set")


@pytest.mark.parametrize(
    "edit",
    [
        {"target_scaling": "zscore"},
        {"target_percentile": 60.0},
        {"target_scaling": "zscore", "enhance_contrast": True},
    ],
)
def test_a_plan_that_is_edited_to_scale_targets_otherwise_gets_the_range_of_that_scale(
    tmp_path, capsys, edit
):
    raw = write_raw(tmp_path / "raw", 4)
    before = run(raw, tmp_path / "set").plan
    path = tmp_path / "set" / "plan.json"
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(json.loads(path.read_text()) | edit))
    shutil.copy(edited, path)
    dataset = run(raw, tmp_path / "set")
    asked = run(raw, tmp_path / "asked", **edit)
    assert dataset.plan.target_range == asked.plan.target_range != before.target_range
    said = "target_range is measured anew"
    assert said in capsys.readouterr().out
    # A person's own scale stays, and so does everything where nothing was edited.
    own = {"target_range": [0.9 * end for end in dataset.plan.target_range]}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    for _ in range(2):
        assert list(run(raw, tmp_path / "set").plan.target_range) == own["target_range"]
    assert said not in capsys.readouterr().out
    # Of a plan that is given nobody knows what its range was measured by: it stays, and that is said.
    assert run(raw, tmp_path / "other", plan=edited).plan.target_range == before.target_range
    assert "The plan's target_range is" in capsys.readouterr().out
    run(raw, tmp_path / "same", plan=tmp_path / "asked" / "plan.json")
    assert "The plan's target_range is" not in capsys.readouterr().out


def test_a_plan_from_elsewhere_gives_settings_but_no_patients(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    given = run(raw, tmp_path / "set", spacing=[5.0, 5.0, 5.0], windows=[[-1000.0, 1000.0]])
    other = tmp_path / "other"
    for number in range(3):
        shutil.copytree(raw / f"p{number}", other / f"q{number}")
    path = tmp_path / "set" / "plan.json"
    dataset = run(other, tmp_path / "set2", plan=path)
    assert dataset.plan.spacing == (5.0, 5.0, 5.0) and dataset.plan.source_windows == [[-1000.0, 1000.0]]
    assert sorted(dataset.plan.split.patient_ids) == ["q0", "q1", "q2"]
    # Where it names these patients it is followed as it is.
    assert run(raw, tmp_path / "set3", plan=path).plan == given.plan
    with pytest.raises(RequestError, match="leave out --spacing"):
        run(raw, tmp_path / "set4", plan=path, spacing=[1.0, 1.0, 1.0])
    with pytest.raises(RequestError, match="no plan"):
        run(raw, tmp_path / "set4", plan=tmp_path / "absent.json")


def test_outside_the_field_of_view_padding_and_blanked_faces_are_not_valid(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    ct, mr = pair(0)
    blanked = mr.array.copy()
    blanked[:, :10] = 0  # the face
    # One world: the CT's; the MR lacks its upper slices and is padded below.
    blanked[:, :, :5] = 0
    save_volume(Volume(blanked[:, :, :15], mr.affine), raw / "p0" / "mr.nii.gz")
    dataset = run(raw, tmp_path / "set", spacing=[4.0, 4.0, 5.0])
    case = dataset.case("p0")
    ct_index = restore_to_input(case.valid.astype(np.float32), case.grid, ct, fill=2).array
    inside = restore_to_input(case.mask.astype(np.float32), case.grid, ct, fill=0).array > 0
    inside &= ct.array < 250  # bone is dark anyway
    assert ct_index[:, :, 15:][inside[:, :, 15:]].max() == 0
    assert ct_index[:, :, :5][inside[:, :, :5]].max() == 0
    assert ct_index[:, :9][inside[:, :9]].mean() < 0.1
    rest = ct_index[:, 12:, 6:14][inside[:, 12:, 6:14]]
    assert rest.min() == 1
    assert "blanked" in " ".join(case.notes) and "% of the body" in " ".join(case.notes)
    assert dataset.case("p1").valid.all()


def test_a_mask_beside_the_pair_is_the_body(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    ct, _ = pair(1)
    mask = np.zeros(SHAPE)
    mask[8:18, 8:18, 8:18] = 1
    save_volume(Volume(mask, ct.affine), raw / "p1" / "mask.nii.gz")
    assert run(raw, tmp_path / "set").case("p1").mask.sum() == 1000


@pytest.mark.parametrize("patients", [3, 4, 5, 10, 40])
def test_every_side_of_a_split_has_patients_and_none_has_the_same(patients):
    names = [f"p{n}" for n in range(patients)]
    split = draw_split(names, 0.15, 0.15, seed=1)
    assert sorted(split.patient_ids) == sorted(names)
    assert min(len(split.train), len(split.validation), len(split.test)) >= 1
    assert len(split.train) >= len(split.test)
    assert split == draw_split(names[::-1], 0.15, 0.15, seed=1)
    if patients >= 10:
        assert split.test != draw_split(names, 0.15, 0.15, seed=2).test


def test_too_few_patients_and_impossible_shares_are_said(tmp_path):
    raw = write_raw(tmp_path / "raw", 2)
    with pytest.raises(RequestError, match="at least 3"):
        run(raw, tmp_path / "set")
    assert not (tmp_path / "set" / "plan.json").exists()
    with pytest.raises(RequestError, match="less than 1"):
        run(raw, tmp_path / "set", validation_fraction=0.5, test_fraction=0.5)
    dataset = run(raw, tmp_path / "set", test_fraction=0.0)
    assert len(dataset.case_ids("train")) == len(dataset.case_ids("validation")) == 1


@pytest.mark.parametrize(("validation", "test"), [(0.9, 0.0), (0.5, 0.45)])
def test_shares_that_round_to_all_patients_are_refused(validation, test):
    with pytest.raises(RequestError, match=r"take all 4 patients.*nobody to train on"):
        draw_split(["a", "b", "c", "d"], validation, test, 0)


def test_a_split_file_is_kept_to(tmp_path):
    raw = write_raw(tmp_path / "raw", 4)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"train": ["p3", "p1", "gone"], "validation": ["p0"]}))
    dataset = run(raw, tmp_path / "set", splits=path)
    assert dataset.case_ids("train") == ["p1", "p3"] and dataset.case_ids("validation") == ["p0"]
    assert dataset.case_ids() == ["p0", "p1", "p3"]
    for content, said in [
        ({"train": ["p1"], "validation": ["p1"]}, "p1 is under train and under validation"),
        ({"train": ["x"]}, "names none of the patients"),
        ({"train": ["p1"], "val": ["p2"]}, "must hold lists"),
        (["p1"], "must hold lists"),
    ]:
        path.write_text(json.dumps(content))
        with pytest.raises(RequestError, match=said):
            run(raw, tmp_path / "set2", splits=path)


def test_a_split_file_that_is_not_there_or_no_json_is_said(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    with pytest.raises(RequestError, match=r"There is no split file .*who\.json"):
        run(raw, tmp_path / "set", splits=tmp_path / "who.json")
    (tmp_path / "who.json").write_text("{train: [p0]}")
    with pytest.raises(RequestError, match=r"who\.json cannot be read as JSON"):
        run(raw, tmp_path / "set", splits=tmp_path / "who.json")
    assert not (tmp_path / "set").exists()


def test_what_is_no_raw_folder_is_said(tmp_path):
    with pytest.raises(RequestError, match="no folder"):
        run(tmp_path / "absent", tmp_path / "set")
    (tmp_path / "raw" / "p0").mkdir(parents=True)
    with pytest.raises(RequestError, match="No pair was found"):
        run(tmp_path / "raw", tmp_path / "set")
    raw = write_raw(tmp_path / "good", 3)
    run(raw, tmp_path / "set")
    with pytest.raises(RequestError, match="prepared data set already"):
        run(tmp_path / "set", tmp_path / "set2")
    for number in range(3):
        (raw / f"p{number}" / "ct.nii.gz").write_bytes(b"nothing")
    with pytest.raises(RequestError, match="None of 3 cases"):
        run(raw, tmp_path / "set3")


def write_pictures(root, patients=3):
    generator = np.random.default_rng(0)
    sizes = {"axial": (31, 40), "coronal": (31, 24), "sagittal": (40, 24)}
    for number in range(patients):
        folder = root / f"s{number}"
        folder.mkdir(parents=True)
        for plane, (rows, columns) in sizes.items():
            disc = np.hypot(*np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]) < 0.8
            for kind, value in (("ct", 90), ("mr", 150)):
                pixels = np.where(disc, value + generator.integers(0, 40, disc.shape), 0).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{kind}_{plane}.png")
            Image.fromarray(disc).save(folder / f"mask_{plane}.png")
    return root


@pytest.mark.parametrize("inside", [".", "prepared"])
def test_a_data_set_among_its_raw_data_is_refused(tmp_path, inside):
    raw = write_raw(tmp_path / "raw", 3)
    before = sorted(raw.rglob("*"))
    with pytest.raises(RequestError, match="would lie among the raw data"):
        run(raw, raw / inside)
    assert sorted(raw.rglob("*")) == before


@pytest.mark.parametrize("raw", ["raw", "set/cases"])
def test_cases_that_are_something_else_are_left_as_they_are(tmp_path, raw):
    """What `cases` holds is replaced and removed, so it must be a data set's own."""
    raw = write_raw(tmp_path / raw, 3)
    write_raw(tmp_path / "set" / "cases", 4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    with pytest.raises(RequestError, match=r"p0 is no case of a prepared data set \(it has no case\.json\)"):
        run(raw, tmp_path / "set")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")} == before


def test_the_report_of_a_check_is_no_patient(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    check(CheckOptions(data=raw / "p0", workers=0))
    assert (raw / "p0-check" / "check.html").is_file()
    assert [case.case_id for case in find_cases(raw, RawDataOptions()).cases] == ["p0", "p1", "p2"]
    assert run(raw, tmp_path / "set", strict=True).case_ids() == ["p0", "p1", "p2"]


def test_options_that_would_do_nothing_are_refused(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    plan = tmp_path / "set" / "plan.json"
    run(raw, tmp_path / "set")
    with pytest.raises(RequestError, match=r"says already who is trained on .* --test_fraction \(0\.3\)"):
        run(raw, tmp_path / "set2", plan=plan, test_fraction=0.3)
    with pytest.raises(RequestError, match="source_windows is \\[\\]"):
        run(raw, tmp_path / "set2", windows=[])
    with pytest.raises(RequestError, match="target_percentile is for targets without units"):
        run(raw, tmp_path / "set2", source="mr", target="ct", target_percentile=90)
    with pytest.raises(RequestError, match="--seed is a number from 0 upward, got -3"):
        run(raw, tmp_path / "set2", seed=-3)
    assert not (tmp_path / "set2").exists()


def test_pictures_become_volumes_one_voxel_thick(tmp_path):
    raw = write_pictures(tmp_path / "raw")
    dataset = run(raw, tmp_path / "set")
    assert dataset.plan.source_units == "grey" and dataset.plan.source_windows == [[0.0, 255.0]]
    assert (dataset.plan.spacing, dataset.plan.crop_margin_mm) == (None, None)
    assert len(dataset.case_ids()) == 9
    shapes = {"axial": (31, 40, 1), "coronal": (31, 1, 24), "sagittal": (1, 40, 24)}
    for plane, shape in shapes.items():
        case = dataset.case(f"s1_{plane}")
        assert case.patient_id == "s1" and case.spatial_shape == shape and case.planes() == [plane]
        pixels = np.asarray(Image.open(raw / "s1" / f"ct_{plane}.png"))
        pixels = pixels[::-1, ::-1] if plane == "axial" else pixels[::-1]
        np.testing.assert_allclose((case.source[0].squeeze() + 1) * 127.5, pixels, atol=1e-3)
        mask = np.asarray(Image.open(raw / "s1" / f"mask_{plane}.png"))
        assert case.mask.sum() == mask.sum() and case.valid.all()
    # All planes of a patient are on one side.
    for side in ("train", "validation", "test"):
        assert {dataset.case(c).patient_id for c in dataset.case_ids(side)} == set(
            getattr(dataset.plan.split, side)
        )


def test_pictures_of_synthrad_patients_tell_their_centre(tmp_path):
    raw = write_pictures(tmp_path / "raw", 4)
    for number, name in enumerate(("1BA001", "1BC002", "1THE003")):
        (raw / f"s{number}").rename(raw / name)
    dataset = run(raw, tmp_path / "set")
    centres = {
        dataset.case(case_id).patient_id: dataset.case(case_id).centre for case_id in dataset.case_ids()
    }
    assert centres == {"1BA001": "A", "1BC002": "C", "1THE003": "E", "s3": None}


def test_pictures_that_do_not_fit_are_left_out(tmp_path):
    raw = write_pictures(tmp_path / "raw", 4)
    Image.fromarray(np.ones((5, 5), np.uint8)).save(raw / "s0" / "mr_axial.png")
    (raw / "s1" / "mr_coronal.png").unlink()
    Image.fromarray(np.ones((31, 40, 3), np.uint8)).save(raw / "s2" / "ct_axial.png")
    (raw / "s3" / "mr_axial.png").write_bytes(b"no picture")
    run(raw, tmp_path / "set")
    summary = json.loads((tmp_path / "set" / "prepare.json").read_text())
    reasons = {case["case_id"]: case["reason"] for case in summary["cases"] if case["status"] == "left out"}
    assert set(reasons) == {"s0_axial", "s1_coronal", "s2_axial", "s3_axial"}
    assert "differ in size" in reasons["s0_axial"] and "mode RGB" in reasons["s2_axial"]
    assert "no mr_coronal.png" in reasons["s1_coronal"]


def test_both_layouts_in_one_folder_need_a_word(tmp_path):
    raw = write_pictures(write_raw(tmp_path / "raw", 3))
    with pytest.raises(RequestError, match="--layout"):
        run(raw, tmp_path / "set")
    assert len(run(raw, tmp_path / "set", layout="pairs").case_ids()) == 3


def test_real_slices_keep_to_their_splits(shared_data, tmp_path):
    slices = shared_data / "synthrad2023_brain_slices"
    names = ["1BA001", "1BA005", "1BA014", "1BB002"]
    for name in names:
        shutil.copytree(slices / name, tmp_path / "raw" / name)
    shutil.copy(slices / "splits.json", tmp_path / "raw")
    told = json.loads((slices / "splits.json").read_text())
    dataset = run(tmp_path / "raw", tmp_path / "set")
    assert len(dataset.case_ids()) == 12
    assert dataset.plan.split.train == sorted(set(names) & set(told["train"]))
    assert dataset.plan.split.validation == sorted(set(names) & set(told["validation"]))
    assert dataset.plan.split.test == []
    # This patient's MR was cut off below before its CT: seen as tissue without any signal.
    assert 0.9 < dataset.case("1BA001_coronal").valid.mean() < 1


def test_a_real_pair_of_volumes(shared_data, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for kind in ("ct", "mr"):
            shutil.copy(shared_data / "head_templates" / f"{kind}.nii.gz", tmp_path / "raw" / name)
    dataset = run(tmp_path / "raw", tmp_path / "set")
    assert dataset.plan.fingerprint.looks_like == "head"
    case = dataset.case("a")
    assert case.grid.orientation == "RAS" and case.spacing == pytest.approx((2, 2, 2))
    soft = np.asarray(case.mask & (np.abs(case.source[1]) < 0.9))
    assert case.target[soft].mean() > -0.6  # tissue of the CT is bright in the MR: they lie on one another
    assert Plan.read(tmp_path / "set" / "plan.json") == dataset.plan


def test_dicom_folders_named_ct_and_mr_are_a_pair(tmp_path):
    for kind, name in (("ct", "CT_small.dcm"), ("mr", "MR_small.dcm")):
        (tmp_path / "p0" / kind).mkdir(parents=True)
        shutil.copy(pydicom.data.get_testdata_file(name), tmp_path / "p0" / kind)
    (case,) = find_cases(tmp_path, RawDataOptions()).cases
    source, target, mask = case.load()
    assert (source.metadata["modality"], target.metadata["modality"], mask) == ("CT", "MR", None)
    assert case.inputs()["source"]["files"] == 1
