import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from ct2mri.data.cases import write_case
from ct2mri.data.geometry import resample
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.plan import Plan, Split
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError
from ct2mri.evaluation.evaluate import evaluate, evaluation_of
from ct2mri.evaluation.matching import case_and_role, counterparts, find_cases
from ct2mri.evaluation.metrics import METRICS
from ct2mri.evaluation.pairing import fit_scale, pairs_of_files
from ct2mri.evaluation.stability import shares_of_error
from ct2mri.options.evaluation import EvaluateOptions

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def make_volume(seed, shape=(12, 11, 10), affine=AFFINE):
    rng = np.random.default_rng(seed)
    return Volume((400 * rng.uniform(size=shape)).astype(np.float32).cumsum(axis=0) / shape[0], affine)


def noisy(volume, seed, deviation=10):
    noise = np.random.default_rng(seed).standard_normal(volume.spatial_shape)
    return volume.with_array(volume.array + deviation * noise.astype(np.float32))


def make_folders(root, names=("a", "b", "c")):
    """Predictions in other units than the targets, and the masks."""
    for seed, name in enumerate(names):
        target = make_volume(seed)
        save_volume(target, root / "targets" / f"{name}.nii.gz")
        prediction = noisy(target, seed + 10)
        save_volume(prediction.with_array(prediction.array * 7), root / "predictions" / f"{name}_mr.nii.gz")
        mask = target.with_array((target.array > 60).astype(np.float32))
        save_volume(mask, root / "masks" / f"mask_{name}.nii.gz")
    return root / "predictions", root / "targets", root / "masks"


def run(*places, output, **more):
    evaluate(EvaluateOptions(predictions=places[0], targets=places[1], output=output, **more))
    return json.loads((output / "evaluation.json").read_text())


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("001.nii.gz", "001"),
        ("mr_001.nii.gz", "001"),
        ("001_synthetic_mr.nii", "001"),
        ("MR-001-b.mha", "001-b"),
        ("001.mr.nrrd", "001"),
        ("001/mr.nii.gz", "001"),
        ("smr1.nii", "smr1"),
    ],
)
def test_case_identifiers_leave_out_what_the_image_is(tmp_path, name, case_id):
    assert case_and_role(tmp_path / name)[0] == case_id


def test_folders_are_matched_scaled_and_written(tmp_path, capsys):
    predictions, targets, masks = make_folders(tmp_path)
    report = run(predictions, targets, masks=masks, output=tmp_path / "report")
    assert [case["case_id"] for case in report["cases"]] == ["a", "b", "c"]
    for case in report["cases"]:
        assert case["factors"]["gain"] == pytest.approx(1 / 7, rel=0.02)
        assert 20 < case["values"]["psnr"] < 40 and 0.5 < case["values"]["ssim"] < 1
        assert case["settings"][""]["data_range"] == 1
        assert "gain" in case["settings"][""]["normalisation"]
        assert case["noise_floor"]["values"]["psnr"] < case["values"]["psnr"]
    values = [case["values"]["psnr"] for case in report["cases"]]
    assert report["summary"]["psnr"]["mean"] == pytest.approx(np.mean(values))
    assert report["summary"]["psnr"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    with (tmp_path / "report" / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["psnr"]) for line in lines] == values
    printed = capsys.readouterr().out
    assert "mean ± deviation" in printed and "noise floor" in printed and "data range 1" in printed
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "evaluation.csv",
        "evaluation.html",
        "evaluation.json",
    ]


def test_the_scale_of_either_side_changes_nothing(tmp_path):
    target, other = make_volume(0), noisy(make_volume(0), 1)
    save_volume(target, tmp_path / "target.nii.gz")
    save_volume(other, tmp_path / "one.nii.gz")
    save_volume(other.with_array(other.array * 1000), tmp_path / "two.nii.gz")
    one = run(tmp_path / "one.nii.gz", tmp_path / "target.nii.gz", output=tmp_path / "1")
    two = run(tmp_path / "two.nii.gz", tmp_path / "target.nii.gz", output=tmp_path / "2")
    for name in set(METRICS) - {"ms_ssim", "ms_gmsd"}:
        assert one["summary"][name]["mean"] == pytest.approx(two["summary"][name]["mean"], rel=1e-4)
    assert "air included" in one["cases"][0]["settings"][""]["mask"]


def test_identical_volumes_are_called_identical_and_leave_the_mean(tmp_path, capsys):
    predictions, targets, _ = make_folders(tmp_path, ("a", "b"))
    save_volume(make_volume(0), predictions / "a_mr.nii.gz")
    report = run(predictions, targets, output=tmp_path / "report")
    first, second = report["cases"]
    assert first["values"]["psnr"] is None and first["notes"]["psnr"] == "identical"
    summary = report["summary"]["psnr"]
    assert summary["mean"] == second["values"]["psnr"] and summary["deviation"] is None
    assert summary["cases"] == 1 and summary["cases_without"] == 1
    assert "identical" in capsys.readouterr().out


def test_a_constant_image_and_an_empty_mask_give_no_nan(tmp_path, capsys):
    target = make_volume(0)
    for name, volume in [
        ("targets/a", target),
        ("targets/b", target),
        ("predictions/a", target.with_array(np.zeros_like(target.array))),
        ("predictions/b", noisy(target, 1)),
        ("masks/a", target.with_array(np.ones_like(target.array))),
        ("masks/b", target.with_array(np.zeros_like(target.array))),
    ]:
        save_volume(volume, tmp_path / f"{name}.nii.gz")
    report = run(
        tmp_path / "predictions", tmp_path / "targets", masks=tmp_path / "masks", output=tmp_path / "report"
    )
    assert report["cases"][0]["values"]["nmse"] == pytest.approx(1)
    assert "mask is empty" in report["cases"][1]["notes"]["mae"]
    assert report["summary"]["mae"]["cases"] == 1
    printed = capsys.readouterr().out
    assert "not defined" in printed and "nan" not in printed.lower()


def test_a_target_of_nothing_tells_no_scale_and_is_in_no_mean(tmp_path, capsys):
    predictions, targets, masks = make_folders(tmp_path, ("a", "b"))
    save_volume(make_volume(0).with_array(np.zeros_like(make_volume(0).array)), targets / "a.nii.gz")
    report = run(predictions, targets, masks=masks, output=tmp_path / "report")
    first, second = report["cases"]
    assert set(first["values"].values()) == {None}
    assert set(first["noise_floor"]["values"].values()) == {None}
    assert all("tells no scale" in note for note in first["notes"].values())
    assert report["summary"]["mae"]["mean"] == second["values"]["mae"] and second["values"]["mae"] < 0.1
    printed = capsys.readouterr().out
    assert "not above 0, so it tells no scale" in printed and "nan" not in printed.lower()


def test_cases_without_a_counterpart_are_listed(tmp_path, capsys):
    predictions, targets, _ = make_folders(tmp_path)
    (predictions / "b_mr.nii.gz").rename(predictions / "z_mr.nii.gz")
    report = run(predictions, targets, output=tmp_path / "report")
    assert report["without_prediction"] == ["b"] and report["without_target"] == ["z"]
    printed = capsys.readouterr().out
    assert "Not predicted, so not in the table: b." in printed and "table: z." in printed


def test_raw_patient_folders_serve_as_targets(tmp_path):
    predictions, targets, masks = make_folders(tmp_path)
    for name in "abc":
        folder = tmp_path / "raw" / name
        folder.mkdir(parents=True)
        (targets / f"{name}.nii.gz").rename(folder / "mr.nii.gz")
        (masks / f"mask_{name}.nii.gz").rename(folder / "mask.nii.gz")
        save_volume(make_volume(99), folder / "ct.nii.gz")
    raw = tmp_path / "raw"
    report = run(predictions, raw, masks=raw, output=tmp_path / "report")
    assert len(report["cases"]) == 3 and report["summary"]["psnr"]["mean"] > 20
    assert report["cases"][0]["settings"][""]["mask"] == "given"


def make_dataset(root, target_range=(0.0, 500.0), of_target=None, **plan):
    """A prepared data set of two held-out cases and one for training."""
    split = Split(seed=0, train=["p0"], validation=[], test=["p1", "p2"])
    plan = {"source_windows": [[-1024.0, 3000.0]]} | plan
    Plan(
        target_percentile=99.5,
        target_range=target_range,
        split=split,
        fingerprint=None,
        spacing=(1.5, 1.5, 2.0),
        crop_margin_mm=None,
        body_threshold=-300.0,
        **plan,
    ).write(root / "plan.json")
    for seed, patient_id in enumerate(["p0", "p1", "p2"]):
        target = make_volume(seed).array / 100 - 1
        mask = target > -0.7
        if of_target is not None:
            target, mask = of_target, np.ones_like(of_target, dtype=bool)
        valid = np.ones_like(mask)
        valid[:, :, 7:] = False
        write_case(
            root / "cases" / patient_id,
            patient_id=patient_id,
            grid=Grid(target.shape, AFFINE),
            source=np.zeros((1, *target.shape), np.float32),
            target=target,
            mask=mask,
            valid=valid,
            target_range=(0.0, 123.0),
            inputs={},
            notes=[],
        )
    return root


def test_a_prepared_data_set_brings_its_own_targets_masks_and_scale(tmp_path):
    dataset = make_dataset(tmp_path / "data")
    expected = {}
    for seed, patient_id in [(1, "p1"), (2, "p2")]:
        target = make_volume(seed).array / 100 - 1
        error = 0.05 * np.random.default_rng(seed).standard_normal(target.shape)
        error[:, :, 7:] = 100  # not valid, so it must not count
        mask = target > -0.7
        mask[:, :, 7:] = False
        expected[patient_id] = np.abs(error)[mask].mean()
        in_mr_units = ((target + 1) / 2 + error) * 500
        save_volume(Volume(in_mr_units.astype(np.float32), AFFINE), tmp_path / "out" / f"{patient_id}.nii.gz")
    evaluate(EvaluateOptions(predictions=tmp_path / "out", data=dataset, output=tmp_path / "report"))
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    found = {case["case_id"]: case["values"]["mae"] for case in report["cases"]}
    assert found == pytest.approx(expected, rel=1e-4)
    assert "nothing fitted" in report["cases"][0]["settings"][""]["normalisation"]
    assert report["cases"][0]["factors"]["target_high"] == 500


@pytest.mark.parametrize(
    ("windows", "told"),
    [([[-160.0, 240.0]], False), ([[-300.5, 250.0]], True), ([[-200.0, 3000.0]], False)],
)
def test_a_ct_whose_windows_end_before_tells_no_tissue(windows, told, tmp_path):
    dataset = make_dataset(tmp_path / "data", source_windows=windows)
    for seed, patient_id in [(1, "p1"), (2, "p2")]:
        save_volume(make_volume(seed), tmp_path / "out" / f"{patient_id}.nii.gz")
    report = evaluation_of(EvaluateOptions(predictions=tmp_path / "out", data=dataset))
    for case in report["cases"]:
        assert any("ends at" in remark and "not told apart" in remark for remark in case["remarks"]) != told
        assert ("regions.bone.mae" in case["values"]) == told and "edges.found" in case["values"]


def write_sidecar(path, content="synthetic MR volume", **plan):
    """What `translate` writes beside a result, as far as it tells how values are meant."""
    told = {"target_units": "relative", "target_scaling": "percentile", "target_percentile": 99.5}
    told["target_range"] = [0.0, 500.0]
    facts = {"content": content, "safety": "SYNTHETIC", "plan": told | plan, "samples": 3}
    path.write_text(json.dumps(facts))


def test_predictions_on_another_models_scale_are_measured_on_it_and_it_is_said(tmp_path, capsys):
    dataset = make_dataset(tmp_path / "data")
    for high, folder in ((500.0, "one"), (2000.0, "other")):
        for seed, patient_id in [(1, "p1"), (2, "p2")]:
            scaled = make_volume(seed).array / 200
            scaled += 0.05 * np.random.default_rng(seed).standard_normal(scaled.shape).astype(np.float32)
            spread = Volume(np.full_like(scaled, 0.05 * high), AFFINE)
            save_volume(Volume(scaled * np.float32(high), AFFINE), tmp_path / folder / f"{patient_id}.nii.gz")
            save_volume(spread, tmp_path / folder / "sd" / f"{patient_id}.nii.gz")
            for sidecar in (f"{patient_id}.json", f"sd/{patient_id}.json"):
                write_sidecar(tmp_path / folder / sidecar, target_range=[0.0, high])
    reports = []
    for folder in ("one", "other"):
        options = EvaluateOptions(
            predictions=tmp_path / folder,
            data=dataset,
            uncertainty=tmp_path / folder / "sd",
            output=tmp_path / f"report-{folder}",
        )
        evaluate(options)
        reports.append(json.loads((tmp_path / f"report-{folder}" / "evaluation.json").read_text()))
    for one, other in zip(*(report["cases"] for report in reports), strict=True):
        assert one["values"]["mae"] == pytest.approx(0.04, rel=0.1)
        for name, value in one["values"].items():
            assert other["values"][name] == (None if value is None else pytest.approx(value, rel=1e-3)), name
        assert other["settings"] == one["settings"], "so that `compare` takes both"
        assert one["remarks"] == [] and "0 to 2000 of it map to 0 and 1, not 0 to 500" in other["remarks"][0]
        assert (one["factors"]["target_high"], other["factors"]["target_high"]) == (500, 2000)
    assert "on the scale of another plan" in capsys.readouterr().out
    stability = {
        "data_range": 2000.0,  # of the model's plan, in which its changes are told
        "changes": {"seed": "x"},
        "cases": [{"case_id": "p1", "values": {"seed": {"change": 0.02}}}],
    }
    mae = reports[1]["cases"][0]["values"]["mae"]
    assert shares_of_error(stability, reports[1]["cases"], False)["seed"]["p1"] == pytest.approx(0.02 / mae)


@pytest.mark.parametrize(
    "plan",
    [
        {"target_units": "HU", "target_scaling": "window", "target_range": [-1024.0, 3000.0]},
        {"target_scaling": "zscore"},
        {"target_percentile": 99.0},
    ],
)
def test_predictions_whose_values_mean_something_else_are_refused(plan, tmp_path):
    dataset = make_dataset(tmp_path / "data")
    save_volume(make_volume(1), tmp_path / "out" / "p1.nii.gz")
    write_sidecar(tmp_path / "out" / "p1.json", **plan)
    name, value = next(iter(plan.items()))
    words = (
        rf"Case p1: by its sidecar, p1.nii.gz was drawn with {name} {value}, and the data set was prepared"
    )
    with pytest.raises(RequestError, match=words):
        evaluate(EvaluateOptions(predictions=tmp_path / "out", data=dataset))
    for other in ('{"plan": {"target_percentile": 99.0}}', "[]", "no JSON"):  # beside it, but no sidecar
        (tmp_path / "out" / "p1.json").write_text(other)
        evaluate(EvaluateOptions(predictions=tmp_path / "out", data=dataset))


def test_unusable_requests_get_one_sentence(tmp_path):
    predictions, targets, masks = make_folders(tmp_path, ("a", "b"))
    dataset = make_dataset(tmp_path / "data")

    def refused(match, **options):
        with pytest.raises(RequestError, match=match) as caught:
            evaluate(EvaluateOptions(predictions=options.pop("predictions", predictions), **options))
        assert "\n" not in str(caught.value)

    refused("either TARGETS")
    refused("either TARGETS", targets=targets, data=dataset)
    refused("own masks", masks=masks, data=dataset)
    refused("own masks and sources", sources=masks, data=dataset)
    refused("plan tells the units", units="HU", data=dataset)
    refused("with --labels; give both", targets=targets, predicted_labels=targets, labels=None)
    refused("no CT volume but those called mr.*words cbct, ct, sct", targets=targets, preset="synthrad2025")
    one = {"predictions": targets / "a.nii.gz", "targets": targets / "b.nii.gz"}
    refused("Case b.*looks like an MR", preset="synthrad2025", **one)
    refused("no CSV table", targets=targets, cases=tmp_path / "nowhere.csv")
    (tmp_path / "cases.csv").write_text("case_id,patient\na,x\n")
    refused("columns case_id, patient; it needs", targets=targets, cases=tmp_path / "cases.csv")
    (tmp_path / "cases.csv").write_text("case_id,patient_id\na,x\n")
    refused("no patient_id for b", targets=targets, cases=tmp_path / "cases.csv")
    (tmp_path / "cases.csv").write_text("case_id,patient_id\na,x\nb,y\na,x\na,z\n")
    refused("gives case a to two patients", targets=targets, cases=tmp_path / "cases.csv")
    refused("no file or folder", targets=tmp_path / "nowhere")
    refused("no validation case", data=dataset, split="validation")
    refused("No prediction matches", data=dataset)
    (tmp_path / "empty").mkdir()
    refused("holds no volume", targets=tmp_path / "empty")
    (tmp_path / "empty" / "plan.json").write_text("{}")
    refused("is a prepared data set, .*; give it as --data", targets=tmp_path / "empty")
    (masks / "mask_b.nii.gz").unlink()
    refused("no mask for b", targets=targets, masks=masks)
    save_volume(make_volume(0, affine=np.diag([1.5, 1.5, 2.5, 1])), predictions / "a_mr.nii.gz")
    refused("different grids.*--resample", targets=targets)
    broken = make_volume(0)
    broken.array[3, 3, 3] = np.nan
    save_volume(broken, predictions / "a_mr.nii.gz")
    refused("Case a.*not finite", targets=targets)
    save_volume(broken, predictions / "a.nii.gz")
    refused("both belong to case a", targets=targets)


def test_a_prediction_that_only_a_negative_gain_would_fit_is_refused(tmp_path):
    """A perfect prediction, from −1 to 1, would have a correlation of −1."""
    predictions, targets, masks = make_folders(tmp_path, ("a",))
    target = load_volume(targets / "a.nii.gz")
    between = target.with_array(target.array / np.float32(0.9 * target.array.max()) * 2 - 2)
    save_volume(between, predictions / "a_mr.nii.gz")
    with pytest.raises(RequestError, match=r"Case a: the gain .* is -\d.*do not begin at 0.*give it with 0"):
        run(predictions, targets, masks=masks, output=tmp_path / "report")
    save_volume(between.with_array(between.array + 2), predictions / "a_mr.nii.gz")
    report = run(predictions, targets, masks=masks, output=tmp_path / "report")
    assert report["cases"][0]["values"]["ncc"] == pytest.approx(1)


def test_a_source_that_is_not_finite_where_it_counts_is_refused(tmp_path):
    predictions, targets, masks = make_folders(tmp_path, ("a",))
    ct = make_hu(0, (12, 11, 10))
    mask = load_volume(masks / "mask_a.nii.gz").array > 0
    for place, refused in [(np.argwhere(mask)[0], True), (np.argwhere(~mask)[0], False)]:
        array = ct.array.copy()
        array[tuple(place)] = np.nan
        save_volume(Volume(array, AFFINE), tmp_path / "cts" / "a.nii.gz")
        options = {"masks": masks, "sources": tmp_path / "cts", "output": tmp_path / "report"}
        if refused:
            with pytest.raises(RequestError, match="Case a: The source holds 1 voxels inside the mask"):
                run(predictions, targets, **options)
        else:
            assert run(predictions, targets, **options)["cases"][0]["values"]["regions.bone.mae"] is not None


def test_nothing_is_left_behind_when_a_case_is_refused(tmp_path):
    predictions, targets, _ = make_folders(tmp_path, ("a", "b"))
    save_volume(make_volume(0, shape=(5, 5, 5)), predictions / "b_mr.nii.gz")
    with pytest.raises(RequestError, match="different grids"):
        run(predictions, targets, output=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_other_images_in_a_folder_are_left_alone(tmp_path):
    for name in ("1_mr", "1_mr_uncertainty", "1_ct", "2_mr"):
        save_volume(make_volume(0), tmp_path / f"{name}.nii.gz")
    assert {key: path.name for key, path in find_cases(tmp_path, "image").items()} == {
        "1": "1_mr.nii.gz",
        "2": "2_mr.nii.gz",
    }


def test_results_are_called_after_their_sources(tmp_path):
    """`translate` writes `ct_1.nii.gz` of the CT `ct_1.nii.gz`."""
    for name in ("ct_1", "2_ct", "ct_3", "ct_3_spread"):
        save_volume(make_volume(0), tmp_path / f"{name}.nii.gz")
    with pytest.raises(RequestError, match="but those called ct"):
        find_cases(tmp_path, "image", drawn=True)
    for name in ("ct_1", "2_ct", "ct_3_spread"):
        write_sidecar(tmp_path / f"{name}.json", "standard deviation" if "spread" in name else "synthetic MR")
    of_results, of_spreads = (find_cases(tmp_path, role, drawn=True) for role in ("image", "spread"))
    assert {name: path.name for name, path in of_results.items()} == {"1": "ct_1.nii.gz", "2": "2_ct.nii.gz"}
    assert {name: path.name for name, path in of_spreads.items()} == {"3": "ct_3_spread.nii.gz"}
    with pytest.raises(RequestError, match="but those called ct"):
        find_cases(tmp_path, "image")  # targets


def test_cases_and_their_folders_may_be_called_like_an_image(tmp_path):
    for name in ("CT_1/mr", "MR_2/mr", "CT_3", "4_mr", "5"):
        save_volume(make_volume(0), tmp_path / f"{name}.nii.gz")
    assert sorted(find_cases(tmp_path, "image")) == ["1", "2", "4", "5"]
    known = ["CT_1", "CT_3", "4_mr"]
    assert sorted(find_cases(tmp_path, "image", known)) == ["2", "4_mr", "5", "CT_1", "CT_3"]
    assert list(find_cases(tmp_path / "CT_3.nii.gz", "image", known)) == ["CT_3"]
    assert sorted(counterparts(tmp_path, "image", known)) == sorted(find_cases(tmp_path, "image", known))


def test_a_file_in_the_working_folder_is_called_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert case_and_role(Path("mr.nii.gz"))[0] == tmp_path.name


def test_the_scale_of_images_that_do_not_tell_is_one():
    zeros, mask = np.zeros((3, 3, 3), np.float32), np.ones((3, 3, 3), bool)
    assert fit_scale(zeros, zeros, mask) == {"gain": 1.0, "reference": 1.0}
    assert fit_scale(zeros + 1, zeros + 2, ~mask) == {"gain": 1.0, "reference": 1.0}
    assert fit_scale(zeros + 1, zeros + 2, mask) == {"gain": 2.0, "reference": 2.0}


def make_hu(seed, shape=(20, 21, 22)):
    """A made-up CT: air around a ball of tissue with a core of bone."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0)) + 0.02 * np.random.default_rng(seed).standard_normal(shape)
    array = np.select([radius < 0.4, radius < 0.85], [800.0, 40.0], -1000.0)
    return Volume(array.astype(np.float32), AFFINE)


def test_ct_is_compared_in_hu_with_a_challenges_numbers(tmp_path):
    for seed, name in enumerate("ab"):
        truth = make_hu(seed)
        save_volume(truth, tmp_path / "targets" / f"{name}_ct.nii.gz")
        save_volume(noisy(truth, seed + 5, 30), tmp_path / "out" / f"{name}_synthetic_ct.nii.gz")
        body = truth.with_array((truth.array > -500).astype(np.float32))
        save_volume(body, tmp_path / "masks" / f"{name}_mask.nii.gz")
    report = run(
        tmp_path / "out",
        tmp_path / "targets",
        masks=tmp_path / "masks",
        preset="synthrad2023",
        output=tmp_path / "report",
    )
    assert report["in_hu"] and report["measures"]["mae"]["unit"] == "HU"
    for case in report["cases"]:
        values, settings = case["values"], case["settings"]
        assert values["mae"] == pytest.approx(30 * np.sqrt(2 / np.pi), rel=0.05)
        assert values["synthrad2023.mae"] == pytest.approx(values["mae"], rel=1e-6)
        assert settings[""]["normalisation"] == "none: both in HU" and settings[""]["zero"] == -1024
        assert "peak 4024" in settings["synthrad2023"]["psnr"] and settings[""]["data_range"] == 4095
        assert values["regions.bone.mae"] == pytest.approx(values["mae"], rel=0.1)
        assert values["regions.air.mae"] is None and "no air" in case["notes"]["regions.air.mae"]
        assert case["noise_floor"]["values"]["synthrad2023.ssim"] < values["synthrad2023.ssim"]


@pytest.mark.parametrize("asked", [{"units": "HU"}, {"preset": "synthrad2023"}])
def test_what_is_not_in_hu_is_not_compared_in_hu(asked, tmp_path):
    """MR volumes against a raw folder of CT and MR, whose CTs would be taken for the truth."""
    for seed, name in enumerate("ab"):
        ct = make_hu(seed)
        mr = ct.with_array(np.select([ct.array > 500, ct.array > -500], [50.0, 300.0], 0.0))
        save_volume(ct, tmp_path / "raw" / name / "ct.nii.gz")
        save_volume(mr, tmp_path / "raw" / name / "mr.nii.gz")
        save_volume(noisy(mr, seed, 20), tmp_path / "out" / f"{name}.nii.gz")
        save_volume(noisy(ct, seed, 20), tmp_path / "sct" / f"{name}.nii.gz")
    words = r"Case a: the prediction a.nii.gz looks like an MR.*leave out --units HU.*set what lies outside"
    with pytest.raises(RequestError, match=words):
        run(tmp_path / "out", tmp_path / "raw", output=tmp_path / "report", **asked)
    with pytest.raises(RequestError, match=r"Case a: the target a.nii.gz looks like an MR.*lowest is -"):
        run(tmp_path / "sct", tmp_path / "out", output=tmp_path / "report", **asked)
    write_sidecar(tmp_path / "sct" / "b.json")
    with pytest.raises(RequestError, match=r"Case b: .*b.nii.gz was drawn with target_units relative by its"):
        run(tmp_path / "sct", tmp_path / "raw", output=tmp_path / "report", **asked)
    assert not (tmp_path / "report").exists()
    (tmp_path / "sct" / "b.json").unlink()
    report = run(tmp_path / "sct", tmp_path / "raw", output=tmp_path / "report", **asked)
    assert report["summary"]["mae"]["mean"] == pytest.approx(20 * np.sqrt(2 / np.pi), rel=0.05)


def test_hu_without_air_or_masked_are_not_refused_for_good(tmp_path, write_dicom_slice):
    truth = make_hu(0)
    body = truth.array > -500
    flat = truth.with_array(np.where(body, truth.array, 0))
    masked = flat.array.copy()
    masked[9:12, 9:12, 9:12] = -1024  # air inside the mask, and 0 outside it
    undrawn = truth.array.copy()
    undrawn[~body] = np.nan
    undrawn[10, 10, 10] = -900
    for name, array in [
        ("masked", masked),
        ("undrawn", undrawn),
        ("flat", flat.array),
        ("outside", np.where(body, truth.array, -1024)),
    ]:
        save_volume(truth.with_array(array.astype(np.float32)), tmp_path / f"{name}.nii")
    save_volume(truth, tmp_path / "target.nii.gz")
    save_volume(truth.with_array(body.astype(np.float32)), tmp_path / "mask.nii.gz")

    def measured(prediction):
        (case,) = run(
            tmp_path / prediction,
            tmp_path / "target.nii.gz",
            masks=tmp_path / "mask.nii.gz",
            units="HU",
            resample=True,
            output=tmp_path / "report",
        )["cases"]
        return case["values"]["mae"]

    assert measured("masked.nii") > 0 and measured("undrawn.nii") > 0
    with pytest.raises(RequestError, match=r"the lowest is 0\).*set what lies outside the mask to -1024"):
        measured("flat.nii")
    assert measured("outside.nii") == 0
    write_sidecar(tmp_path / "flat.json", target_units="HU")  # which is believed
    assert measured("flat.nii") == 0
    place = {"PixelSpacing": [1.5, 1.5], "ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}
    for k in range(22):  # and so is the header of a CT
        stored = (flat.array[:, :, k].T + 1024).round().astype(np.int16)
        write_dicom_slice(tmp_path / "series" / f"{k}.dcm", stored, (0, 0, 2.0 * k), **place)
    assert measured("series") == 0


def test_predictions_for_a_data_set_in_hu_are_in_hu(tmp_path):
    for name, truth in (("air", make_hu(0)), ("full", make_hu(0))):
        if name == "full":
            truth = truth.with_array(truth.array.clip(-50))
        in_hu = {"target_units": "HU", "target_scaling": "window", "target_window": [-1024.0, 3000.0]}
        scaled = (truth.array + 1024) / 2012 - 1
        dataset = make_dataset(tmp_path / name, (-1024.0, 3000.0), scaled.astype(np.float32), **in_hu)
        for patient_id in ("p1", "p2"):
            save_volume(truth.with_array(truth.array.clip(0)), tmp_path / "out" / f"{patient_id}.nii.gz")
        options = EvaluateOptions(predictions=tmp_path / "out", data=dataset)
        if name == "air":
            with pytest.raises(
                RequestError, match=r"Case p1: .*looks like an MR.*give predictions in HU, as"
            ):
                evaluate(options)
        else:  # no air was to be predicted
            evaluate(options)


def test_regions_edges_labels_and_patients_of_plain_files(tmp_path, capsys):
    lines = ["case_id,patient_id,centre"]
    for seed, (name, patient, centre) in enumerate([("a", "x", "A"), ("b", "x", "A"), ("c", "y", "B")]):
        ct = make_hu(seed)
        mr = ct.with_array(np.select([ct.array > 500, ct.array > -500], [50.0, 300.0], 0.0))
        labels = ct.with_array(np.select([ct.array > 500, ct.array > -500], [2.0, 1.0], 0.0))
        moved = labels.with_array(np.roll(labels.array, 1, axis=0))
        for folder, word, volume in [
            ("cts", "ct", ct),
            ("targets", "mr", mr),
            ("out", "mr", noisy(mr, seed, 20)),
            ("labels", "labels", labels),
            ("found", "seg", moved),
        ]:
            save_volume(volume, tmp_path / folder / f"{name}_{word}.nii.gz")
        lines.append(f"{name},{patient},{centre}")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    report = run(
        tmp_path / "out",
        tmp_path / "targets",
        sources=tmp_path / "cts",
        labels=tmp_path / "labels",
        predicted_labels=tmp_path / "found",
        cases=tmp_path / "cases.csv",
        output=tmp_path / "report",
    )
    a, b, c = (case["values"] for case in report["cases"])
    assert report["summary"]["mae"]["mean"] == pytest.approx(np.mean([(a["mae"] + b["mae"]) / 2, c["mae"]]))
    assert report["summary"]["mae"]["patients"] == 2 and report["summary"]["mae"]["cases"] == 3
    assert (
        report["centres"]["B"]["mae"]["mean"] == c["mae"] and report["centres"]["A"]["mae"]["patients"] == 1
    )
    assert a["labels.1.mae"] == pytest.approx(a["regions.soft_tissue.mae"], rel=1e-9)
    assert 0.7 < a["labels.2.dice"] < 0.95
    floor = report["cases"][0]["noise_floor"]["values"]
    assert floor["labels.2.dice"] == pytest.approx(a["labels.2.dice"], abs=0.1)
    assert a["labels.2.volume_ml"] == a["labels.2.true_volume_ml"] == pytest.approx(0.0045 * 280, rel=0.2)
    assert a["edges.against_truth_mm"] < 0.3 and a["edges.found"] > 0.9
    assert set(report["cases"][0]["profiles"]) == {"axial", "coronal", "sagittal"}
    profile = report["cases"][0]["profiles"]["axial"]
    assert len(profile["slices"]) == len(profile["mae"]) == 22 and profile["slice_mm"] == 2.0
    assert len(profile["steps"]) == len(profile["change_prediction"]) == 21
    printed = capsys.readouterr().out
    for words in (
        "Slice by slice",
        "Slice continuity",
        "Edges, in mm",
        "By the CT's HU",
        "By label",
        "By centre",
    ):
        assert words in printed
    assert printed.count("noise floor") >= 10 and "2 patients" in printed
    header = (tmp_path / "report" / "evaluation.csv").read_text().splitlines()[0].split(",")
    assert header[:3] == ["case_id", "patient_id", "centre"] and "labels.2.dice" in header


def test_predictions_on_another_grid_are_resampled_on_request_and_it_is_said(tmp_path, capsys):
    target = make_hu(0)
    smaller = Volume(
        target.array[2:, :, :-3], AFFINE @ np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    save_volume(target, tmp_path / "target.nii.gz")
    save_volume(noisy(smaller, 1, 30), tmp_path / "prediction.nii.gz")
    report = run(
        tmp_path / "prediction.nii.gz",
        tmp_path / "target.nii.gz",
        units="HU",
        resample=True,
        output=tmp_path / "report",
    )
    (case,) = report["cases"]
    assert case["voxels"] == 18 * 21 * 19
    assert case["values"]["mae"] == pytest.approx(30 * np.sqrt(2 / np.pi), rel=0.05)
    assert "was resampled" in case["remarks"][0] and "was resampled" in capsys.readouterr().out


def test_masks_and_sources_on_another_grid_are_resampled_on_request_and_it_is_said(tmp_path, capsys):
    ct = make_hu(0)
    mr = ct.with_array(np.select([ct.array > 500, ct.array > -500], [50.0, 300.0], 0.0))
    body = ct.with_array((ct.array > -500).astype(np.float32))
    finer = Grid((40, 21, 22), AFFINE @ np.array([[0.5, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    shorter = np.s_[:, :, :-6]
    for name, volume in [
        ("target", mr),
        ("prediction", noisy(mr, 1, 20)),
        ("mask", body),
        ("finer_mask", resample(body, finer, interpolation="nearest", fill=0)),
        ("source", ct),
        ("shorter_source", Volume(ct.array[shorter], ct.affine)),
    ]:
        save_volume(volume, tmp_path / f"{name}.nii.gz")

    def measured(mask, source, **options):
        beside = {"masks": tmp_path / f"{mask}.nii.gz", "sources": tmp_path / f"{source}.nii.gz"}
        places = tmp_path / "prediction.nii.gz", tmp_path / "target.nii.gz"
        (case,) = run(*places, output=tmp_path / "report", **beside, **options)["cases"]
        return case

    for names, what in ((("finer_mask", "source"), "mask"), (("mask", "shorter_source"), "source")):
        words = rf"Case .*: the {what} \(.*different grids; give --resample to bring the {what} onto the"
        with pytest.raises(RequestError, match=words):
            measured(*names)
    expected = measured("mask", "source")
    assert measured("mask", "source", resample=True) == expected, "what lies there already is left alone"
    found = measured("finer_mask", "source", resample=True)
    assert found["values"] == expected["values"]
    assert found["remarks"] == ["finer_mask.nii.gz was brought onto the case's grid by the nearest voxel."]
    assert "finer_mask.nii.gz was brought onto" in capsys.readouterr().out
    found = measured("finer_mask", "shorter_source", resample=True)
    assert found["voxels"] == body.array[shorter].sum()
    assert "The source was resampled (linear)" in found["remarks"][1]
    assert found["values"]["regions.bone.mae"] == pytest.approx(20 * np.sqrt(2 / np.pi) / 300, rel=0.3)


def test_a_prepared_data_set_tells_patients_and_refuses_presets_for_ct(tmp_path):
    dataset = make_dataset(tmp_path / "data")
    for seed, patient_id in [(1, "p1"), (2, "p2")]:
        save_volume(noisy(make_volume(seed), seed), tmp_path / "out" / f"{patient_id}.nii.gz")
    options = EvaluateOptions(predictions=tmp_path / "out", data=dataset, output=tmp_path / "report")
    evaluate(options)
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert [case["patient_id"] for case in report["cases"]] == ["p1", "p2"]
    assert report["summary"]["ssim"]["interval"] is not None and report["centres"] == {}
    options.preset = "synthrad2025"
    with pytest.raises(RequestError, match="not in HU; leave the preset out"):
        evaluate(options)


def test_the_command_gives_the_organisers_numbers(tmp_path, reference):
    with np.load(reference / "synthrad_metrics_hard.npz") as facts:
        for role in ("prediction", "target", "mask"):
            save_volume(Volume(facts[role].astype(np.float32), AFFINE), tmp_path / f"{role}.nii.gz")
        expected = {
            "synthrad2025.mae": facts["mae"],
            "synthrad2025.psnr": facts["psnr2025"],
            "synthrad2025.ms_ssim": facts["ms_ssim2025"][1],
        }
        report = run(
            tmp_path / "prediction.nii.gz",
            tmp_path / "target.nii.gz",
            masks=tmp_path / "mask.nii.gz",
            preset="synthrad2025",
            output=tmp_path / "report",
        )
    (case,) = report["cases"]
    for number, value in expected.items():
        assert case["values"][number] == pytest.approx(float(value), rel=1e-6)
    assert case["values"]["ms_ssim"] != pytest.approx(case["values"]["synthrad2025.ms_ssim"], rel=1e-6)


def make_spread(folder, planes):
    """A spread of case "a" that reaches over some planes only."""
    spread = np.random.default_rng(5).uniform(5, 15, (12, 11, planes)).astype(np.float32)
    save_volume(Volume(spread, AFFINE), folder / "a.nii.gz")
    return folder


def test_where_a_spread_does_not_reach_it_does_not_count(tmp_path):
    predictions, targets, masks = make_folders(tmp_path, ("a",))
    spreads = make_spread(tmp_path / "spread", planes=3)
    options = EvaluateOptions(predictions=predictions, targets=targets, masks=masks, uncertainty=spreads)
    options.resample = True
    (case,) = evaluation_of(options)["cases"]
    assert "The spread was resampled" in case["remarks"][0]
    assert case["remarks"][0].endswith("where it does not reach, uncertainty is not measured.")
    pair = pairs_of_files(predictions, targets, masks)[1]("a")
    inside = pair.mask[:, :, :3]
    error = np.abs(pair.prediction - pair.target)[:, :, :3][inside]
    spread = load_volume(spreads / "a.nii.gz").array[inside]
    assert case["values"]["uncertainty.rank_correlation"] == pytest.approx(spearmanr(spread, error).statistic)
    assert case["voxels"] == pair.mask.sum() > inside.sum()


@pytest.mark.parametrize(
    "told", ['{"samples": 1}', '{"samples": 0}', '{"samples": "three"}', '{"samples": tr', "[3]", "\udc80"]
)
def test_a_file_beside_a_spread_that_cannot_be_meant_is_refused(told, tmp_path):
    predictions, targets, masks = make_folders(tmp_path, ("a",))
    spreads = make_spread(tmp_path / "spread", planes=10)
    options = EvaluateOptions(predictions=predictions, targets=targets, masks=masks, uncertainty=spreads)
    (spreads / "a.json").write_bytes(told.encode(errors="surrogateescape"))
    with pytest.raises(RequestError, match=r"Case a: .*a\.json should tell how many samples.*take the file"):
        evaluation_of(options)
    (spreads / "a.json").write_text("{}")
    (case,) = evaluation_of(options)["cases"]
    assert case["settings"]["uncertainty"]["samples"] is None
