import csv
import json
import re

import numpy as np
import pytest

from ct2mri.cli import main
from ct2mri.data.io import save_volume
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.evaluation.compare import compare, comparison_of, distance_from_best, verdict
from ct2mri.evaluation.evaluate import evaluation_of
from ct2mri.files import write_json
from ct2mri.options.evaluation import CompareOptions, EvaluateOptions

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPE = (9, 9, 8)
NAMES = tuple("abcdefg")


def target(seed):
    noise = np.random.default_rng(seed).uniform(size=SHAPE)
    return Volume((300 * noise.cumsum(axis=0) / SHAPE[0]).astype(np.float32), AFFINE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    for number, name in enumerate(NAMES):
        truth = target(number)
        save_volume(truth, folder / "truth" / f"{name}.nii.gz")
        for system, deviation in (("fair", 20), ("good", 10), ("other", 20)):
            noise = np.random.default_rng([number, len(system)]).standard_normal(SHAPE)
            volume = truth.with_array(truth.array + np.float32(deviation) * noise.astype(np.float32))
            save_volume(volume, folder / system / f"{name}.nii.gz")
    lines = [f"{name},p{number},{'north' if name < 'd' else 'south'}" for number, name in enumerate(NAMES)]
    (folder / "cases.csv").write_text("\n".join(["case_id,patient_id,centre", *lines]))
    for system in ("fair", "good", "other"):
        run(folder, system)
    return folder


def run(folder, system, name=None, **changed):
    options = {"targets": folder / "truth", "cases": folder / "cases.csv", **changed}
    report = evaluation_of(EvaluateOptions(predictions=folder / system, **options))
    write_json(folder / f"report-{name or system}" / "evaluation.json", report)


def reports(root, *names, **more):
    return CompareOptions(systems=[root / f"report-{name}" for name in names], **more)


def test_two_systems_are_compared_patient_by_patient(root, tmp_path, capsys):
    compare(reports(root, "fair", "good", names=["fair", "good"], output=tmp_path))
    found = json.loads((tmp_path / "comparison.json").read_text())
    psnr = found["differences"]["good"]["psnr"]
    assert psnr["difference"] == pytest.approx(20 * np.log10(2), abs=0.5)
    assert psnr["patients"] == 7 and psnr["a_higher"] == 7 and psnr["p_value"] < 0.05
    assert psnr["verdict"] == "better" and found["differences"]["good"]["mae"]["verdict"] == "better"
    assert set(found["centres"]) == {"north", "south"}
    north = found["centres"]["north"]["differences"]["good"]["psnr"]
    assert north["patients"] == 3 and north["verdict"] == "unclear"  # three patients tell nothing
    evaluated = json.loads((root / "report-fair" / "evaluation.json").read_text())
    floor = evaluated["noise_floor"]["psnr"]["mean"]
    assert found["noise_floor"]["psnr"] == pytest.approx(floor)
    of_cases = [case["noise_floor"]["values"]["psnr"] for case in evaluated["cases"]]
    assert found["centres"]["north"]["noise_floor"]["psnr"] == pytest.approx(np.mean(of_cases[:3]))
    ratios = [case["noise_floor"]["values"]["continuity.axial.ratio"] for case in evaluated["cases"]]
    apart = np.mean(np.abs(np.array(ratios) - 1))
    assert found["noise_floor"]["continuity.axial.ratio"] == pytest.approx(apart)
    with (tmp_path / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    line = next(of for of in lines if of["measure"] == "psnr" and not of["centre"])
    assert float(line["difference"]) == psnr["difference"] and line["system"] == "good"
    printed = capsys.readouterr().out
    assert "good less fair" in printed and "better" in printed
    assert "noise floor" in printed and f"{floor:.2f}" in printed
    text = (tmp_path / "comparison.html").read_text()
    assert "Comparison of fair, good" in text and "better" in text and "By centre" in text
    assert text.count(">noise floor</th>") >= 3 and f"{floor:.2f}" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_the_other_way_round_is_worse_and_alike_is_unclear(root):
    found = comparison_of(reports(root, "good", "fair", "other"))
    assert found["differences"]["report-fair"]["psnr"]["verdict"] == "worse"
    assert found["differences"]["report-other"]["ssim"]["verdict"] == "worse"
    same = comparison_of(reports(root, "fair", "other"))["differences"]["report-other"]["psnr"]
    assert same["verdict"] == "unclear" and same["interval"][0] < 0 < same["interval"][1]


def test_folders_of_predictions_are_measured_first(root, tmp_path):
    now = comparison_of(
        CompareOptions(
            systems=[root / "fair", root / "report-good"], targets=root / "truth", cases=root / "cases.csv"
        )
    )
    before = comparison_of(reports(root, "fair", "good"))
    assert now["differences"]["report-good"] == before["differences"]["report-good"]
    with pytest.raises(RequestError, match="--targets"):
        comparison_of(CompareOptions(systems=[root / "fair", root / "report-good"]))


def test_reports_are_not_measured_another_way(root, tmp_path):
    for given in ({"targets": root / "truth"}, {"masks": tmp_path}, {"units": "HU"}, {"split": "train"}):
        with pytest.raises(RequestError, match=f"--{next(iter(given))} says how predictions are measured"):
            comparison_of(reports(root, "fair", "good", **given))


def test_cases_of_one_system_alone_are_listed(root, tmp_path):
    report = json.loads((root / "report-good" / "evaluation.json").read_text())
    report["cases"] = report["cases"][:3]
    write_json(tmp_path / "r" / "evaluation.json", report)
    found = comparison_of(CompareOptions(systems=[root / "report-fair", tmp_path / "r"]))
    assert [case["case_id"] for case in found["cases"]] == ["a", "b", "c"]
    assert found["missing"] == {"report-fair": [], "r": ["d", "e", "f", "g"]}


def test_reports_that_were_not_measured_alike_are_refused(root, tmp_path):
    def changed(**fields):
        report = json.loads((root / "report-good" / "evaluation.json").read_text())
        for case in report["cases"]:
            case.update(fields)
        (tmp_path / "evaluation.json").write_text(json.dumps(report))
        return CompareOptions(systems=[root / "report-fair", tmp_path])

    with pytest.raises(RequestError, match="voxels in the mask"):
        comparison_of(changed(voxels=7))
    with pytest.raises(RequestError, match="patient_id"):
        comparison_of(changed(patient_id="someone"))
    floor = {"values": {"mae": 0.5}, "notes": {}}
    with pytest.raises(RequestError, match="different targets"):
        comparison_of(changed(noise_floor=floor))
    report = json.loads((root / "report-good" / "evaluation.json").read_text())
    write_json(root / "report-hu" / "evaluation.json", report | {"in_hu": True})
    with pytest.raises(RequestError, match="different units"):
        comparison_of(reports(root, "fair", "hu"))
    settings = json.loads((root / "report-good" / "evaluation.json").read_text())["cases"][0]["settings"]
    settings[""]["mask"] = "given"
    with pytest.raises(RequestError, match="different settings: mask"):
        comparison_of(changed(settings=settings))


def test_reports_of_other_sources_or_label_maps_are_refused(root, tmp_path):
    for name in NAMES:
        rng = np.random.default_rng(ord(name))
        ct = rng.choice([-900, 40, 900], SHAPE)
        labels = rng.integers(0, 3, SHAPE)
        for folder, array in [
            ("ct", ct), ("other-ct", ct[::-1]), ("labels", labels), ("other-labels", labels[::-1]),
            ("more-labels", np.where(labels == 2, 3, labels)),
        ]:  # fmt: skip
            save_volume(Volume(array.astype(np.float32), AFFINE), root / folder / f"{name}.nii.gz")
    given = {"sources": root / "ct", "labels": root / "labels"}
    run(root, "fair", "all", **given)
    run(root, "good", "same", **given)
    assert comparison_of(reports(root, "all", "same"))["differences"]["report-same"]["labels.2.mae"]
    run(root, "good", "without")
    assert "labels.2.mae" in comparison_of(reports(root, "all", "without"))["not_in_all"]
    for option, folder, words in [
        ("sources", "other-ct", "different sources"),
        ("labels", "other-labels", "different label maps"),
        ("labels", "more-labels", "different label maps"),
    ]:
        run(root, "good", "changed", **given | {option: root / folder})
        with pytest.raises(RequestError, match=f"Case a of .* {words}"):
            comparison_of(reports(root, "all", "changed"))


def test_requests_that_cannot_be_are_refused(root, tmp_path):
    with pytest.raises(RequestError, match="two systems"):
        comparison_of(reports(root, "fair"))
    with pytest.raises(RequestError, match="--names"):
        comparison_of(reports(root, "fair", "good", names=["x"]))
    with pytest.raises(RequestError, match="apart"):
        comparison_of(reports(root, "fair", "good", names=["x", "x"]))
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(RequestError, match="evaluate again"):
        comparison_of(CompareOptions(systems=[root / "report-fair", tmp_path]))
    with pytest.raises(RequestError, match="no file or folder"):
        comparison_of(CompareOptions(systems=[root / "report-fair", tmp_path / "nothing"]))


def test_measures_best_near_a_number_are_compared_by_their_distance():
    assert distance_from_best("continuity.axial.ratio", 0.9) == pytest.approx(0.1)
    assert distance_from_best("regions.bone.bias", -3.0) == 3
    assert distance_from_best("uncertainty.inside_95", 0.9) == pytest.approx(0.05)
    assert distance_from_best("psnr", 20.0) == 20 and distance_from_best("psnr", None) is None
    clear = {"interval": [0.1, 0.2], "difference": 0.15, "p_value": 0.01}
    assert verdict("continuity.axial.ratio", clear) == "worse" and verdict("ssim", clear) == "better"
    assert verdict("labels.3.volume_ml", clear) == "unclear"
    assert verdict("ssim", {**clear, "p_value": 0.2}) == "unclear"


def test_the_command_takes_any_number_of_systems(root, tmp_path, capsys):
    places = [str(root / f"report-{name}") for name in ("fair", "good", "other")]
    assert main(["compare", *places, "--names", "A", "B", "C", "-o", str(tmp_path / "out")]) == 0
    assert "B less A" in capsys.readouterr().out
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert main(["compare", places[0]]) == 2
