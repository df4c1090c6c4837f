"""`ct2mri stability` as a user runs it, on tiny pipelines whose answer is known."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ct2mri.cli import main
from ct2mri.data.cases import write_case
from ct2mri.data.io import save_volume
from ct2mri.data.plan import Split
from ct2mri.data.volume import Grid
from ct2mri.errors import RequestError
from ct2mri.files import write_json
from ct2mri.models.lookup import LookupTable
from ct2mri.options.evaluation import StabilityOptions
from ct2mri.pipeline import TranslationPipeline
from ct2mri.stability import stability
from ct2mri.stages import LookupStage
from tiny import ct, latents_stage, pipeline, plan, slices_stage

CHANGES = ["seed", "hu_higher", "hu_lower", "smoother", "sharper", "moved"]
SLOPE = 0.5


def line(slope):
    """A pipeline that gives back the CT itself, times a slope."""
    ends = torch.tensor([-1.0, 1.0])
    stage = LookupStage(LookupTable.of(ends, slope * ends), channel=0)
    # No resampling: what was moved by a voxel can then come back exactly.
    return TranslationPipeline(plan(spacing=None, crop_margin_mm=None), [stage], {"name": "line"})


@pytest.fixture(scope="module")
def cts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cts")
    save_volume(ct(seed=1), folder / "a" / "ct.nii.gz")
    save_volume(ct((17, 20, 18), seed=2), folder / "b" / "ct.nii.gz")
    save_volume(ct(seed=3), folder / "b" / "mr.nii.gz")  # is none of the CTs
    return folder


def run(model, cts, output, *words):
    assert main(["stability", str(cts), "--model", str(model), "-o", str(output), *words]) == 0
    return json.loads((output / "stability.json").read_text())


def means(report, measure):
    return {name: report["summary"][name][measure]["mean"] for name in CHANGES}


def test_a_line_shifts_by_its_slope_and_does_not_hallucinate(cts, tmp_path, capsys):
    line(SLOPE).save_pretrained(tmp_path / "model")
    report = run(tmp_path / "model", cts, tmp_path / "out")
    assert list(report["changes"]) == CHANGES and [c["case_id"] for c in report["cases"]] == ["a", "b"]
    change, source = means(report, "change"), means(report, "source_change")
    assert change["seed"] == 0 and source["seed"] is None and change["moved"] == 0 and source["moved"] == 0
    for name in ("hu_higher", "hu_lower"):
        assert source[name] == pytest.approx(20, abs=1e-3)
    for name in ("hu_higher", "hu_lower", "smoother", "sharper"):
        assert change[name] == pytest.approx(SLOPE * source[name] / 4024, rel=0.01)
    assert change["smoother"] == pytest.approx(change["sharper"], rel=0.01) and change["smoother"] > 0
    # A line makes of other HU another brightness and nothing else.
    assert means(report, "altered") == dict.fromkeys(CHANGES, 0)
    assert report["verdict"]["hallucinates"] == []
    assert all(isinstance(case["warnings"], list) for case in report["cases"])
    assert "Stable under small changes" in capsys.readouterr().out
    with (tmp_path / "out" / "stability.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(CHANGES) and lines[0]["source_change"] == ""
    assert "the source is the same" in lines[0]["notes"]


def test_a_cliff_between_two_tissues_hallucinates_when_hu_shift(cts, tmp_path):
    cliff = line(1)
    table = LookupTable.of(torch.tensor([-1.0, -0.463, -0.462, 1.0]), torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    cliff.stages[0].table = table  # tissue of 40 HU lies just above the step at 56 HU once 20 are added
    cliff.save_pretrained(tmp_path / "model")
    report = run(tmp_path / "model", cts, tmp_path / "out", "--card")
    guilty = report["verdict"]["hallucinates"]
    assert "hu_higher" in guilty and not {"seed", "hu_lower", "moved"} & set(guilty)
    assert report["summary"]["hu_higher"]["change"]["mean"] > 0.5
    card = (tmp_path / "model" / "README.md").read_text()
    assert "**Hallucinates under small changes" in card and "HU 20 higher" in card
    assert "| HU 20 higher |" in card and card.count("allucinates") == 2  # the sentence and the rule
    again = TranslationPipeline.from_pretrained(tmp_path / "model", "cpu")
    assert again.card["stability"]["hallucinates"] == guilty and again.hash == cliff.hash
    assert again.plan == cliff.plan or again.plan == replace(cliff.plan, split=Split(0, [], [], []))


def test_seeds_change_what_is_sampled_and_not_what_is_regressed(cts, tmp_path):
    drawn = pipeline(slices=slices_stage(), latents=None)
    drawn.save_pretrained(tmp_path / "model")
    one = tmp_path / "one"
    save_volume(ct(seed=1), one / "a.nii.gz")
    several = run(tmp_path / "model", one, tmp_path / "several", "--steps", "4")
    assert several["summary"]["seed"]["change"]["mean"] > 0.001
    assert several["request"]["num_inference_steps"] == 4
    single = run(tmp_path / "model", one, tmp_path / "single", "--steps", "1")
    assert single["summary"]["seed"]["change"]["mean"] == 0
    averaged = run(tmp_path / "model", one, tmp_path / "averaged", "--steps", "4", "--samples", "4")
    assert averaged["summary"]["seed"]["change"]["mean"] < several["summary"]["seed"]["change"]["mean"]


def test_both_stages_and_single_files_are_measured_alike(tmp_path):
    pipeline(latents=latents_stage()).save_pretrained(tmp_path / "model")
    save_volume(ct((12, 13, 11)), tmp_path / "any name.nii.gz")
    report = run(tmp_path / "model", tmp_path / "any name.nii.gz", tmp_path / "out")
    assert list(report["summary"]) == CHANGES
    assert all(np.isfinite(mean) for mean in means(report, "change").values())


def test_it_goes_on_where_it_was_and_refuses_other_settings(cts, tmp_path, capsys):
    line(1).save_pretrained(tmp_path / "model")
    folder = tmp_path / "cts"
    save_volume(ct(seed=1), folder / "a.nii.gz")
    first = run(tmp_path / "model", folder, tmp_path / "out")
    first["cases"][0]["voxels"] = 123456  # were it measured again, this would be another number
    write_json(tmp_path / "out" / "stability.json", first)
    save_volume(ct(seed=2), folder / "b.nii.gz")
    both = run(tmp_path / "model", folder, tmp_path / "out")
    assert both["cases"][0] == first["cases"][0] and len(both["cases"]) == 2
    words = ["stability", str(folder), "--model", str(tmp_path / "model"), "-o", str(tmp_path / "out")]
    assert main([*words, "--seed", "3"]) == 2
    assert "was made with another seed" in capsys.readouterr().err
    assert main([*words, "--precision", "bf16"]) == 2
    assert "was made with another precision" in capsys.readouterr().err
    line(1).with_plan(plan(spacing=None, crop_margin_mm=8.0)).save_pretrained(tmp_path / "other")
    assert main([*words, "--model", str(tmp_path / "other")]) == 2
    assert "was made with another plan" in capsys.readouterr().err
    save_volume(ct(seed=9), folder / "a.nii.gz")
    assert main(words) == 2
    assert "holds a as measured of another source than" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "stability.json").read_text()) == both


def test_only_the_held_out_cases_of_a_data_set(cts, tmp_path):
    line(1).save_pretrained(tmp_path / "model")
    plan(split=Split(0, ["p"], [], ["patient"])).write(tmp_path / "data" / "plan.json")
    for case_id, patient_id in (("a", "patient"), ("b", "p")):
        array = np.zeros((2, 2, 2), np.float32)
        write_case(
            tmp_path / "data" / "cases" / case_id, patient_id=patient_id, grid=Grid((2, 2, 2), np.eye(4)),
            source=array[None], target=array, mask=array > -1, valid=array > -1, target_range=(0.0, 1.0),
            inputs={}, notes=[],
        )  # fmt: skip
    report = run(tmp_path / "model", cts, tmp_path / "out", "--data", str(tmp_path / "data"))
    assert [(case["case_id"], case["patient_id"]) for case in report["cases"]] == [("a", "patient")]
    assert report["request"]["split"] == "test"  # another split does not come into the same report


def test_unusable_requests_get_one_sentence(cts, tmp_path):
    line(1).save_pretrained(tmp_path / "model")
    out, model = tmp_path / "out", str(tmp_path / "model")
    plan(split=Split(0, ["p"], [], [])).write(tmp_path / "data" / "plan.json")
    (tmp_path / "empty").mkdir()

    def refused(match, source=cts, **options):
        with pytest.raises(RequestError, match=match) as caught:
            stability(StabilityOptions(input=source, output=out, **{"model": model, **options}))
        assert "\n" not in str(caught.value) and not out.exists()

    refused("no file or folder", source=tmp_path / "nowhere")
    refused("holds no volume", source=tmp_path / "empty")
    refused("--card writes into the model's folder.*got none", model=None, card=True)
    refused("--card writes into the model's folder.*owner/name", model="owner/name", card=True)
    refused("without sampling", steps=5)
    refused("--batch_size is at least 1, got 0", batch_size=0)
    refused("--max_memory is a size such as 8GiB", max_memory="much")
    refused("--samples is at least 1", samples=0)
    refused("no prepared case", data=tmp_path / "data")
