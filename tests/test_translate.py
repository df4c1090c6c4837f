import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import tiny
from ct2mri import __version__
from ct2mri.cli import main
from ct2mri.data.cases import PreparedDataset, write_case
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.plan import Fingerprint
from ct2mri.data.replay import prepare_source
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.marking import safety_sentence, short_description, short_spread_description, units
from ct2mri.options.translation import TranslateOptions
from ct2mri.translate import find_cts, translate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "both"
    tiny.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ct_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cts") / "head.nii.gz"
    save_volume(tiny.ct(), path)
    return path


def run(input_path, output, model, **options):
    translate(TranslateOptions(input=input_path, output=output, model=model, device="cpu", **options))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_becomes_a_marked_file_on_its_grid(model, ct_file, tmp_path, capsys):
    run(ct_file, tmp_path / "mr.nii.gz", model, seed=3)
    ct, mr = load_volume(ct_file), load_volume(tmp_path / "mr.nii.gz")
    assert np.array_equal(mr.affine, ct.affine)
    assert np.array_equal(mr.array, tiny.pipeline()(ct, seed=3).array)
    image = nibabel.load(tmp_path / "mr.nii.gz")
    assert image.get_data_dtype() == np.float32
    assert image.header["descrip"].item().decode() == short_description(tiny.plan())
    assert names(tmp_path) == ["mr.json", "mr.nii.gz"]
    assert "synthetic MR in arbitrary MR units" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_told_before_the_work(model, ct_file, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way of a folder")
    monkeypatch.setattr("ct2mri.translate.load_volume", None)  # not reached
    for wanted in ({}, {"format": "dicom"}):
        with pytest.raises(RequestError, match=r"Nothing can be written into .*file.*Not a directory"):
            run(ct_file, blocked / "deeper" / ("mr" if wanted else "mr.nii.gz"), model, **wanted)
    with pytest.raises(RequestError, match="Nothing can be written into"):
        run(ct_file, tmp_path / "mr.nii.gz", model, samples=2, uncertainty=blocked / "spread.nii.gz")
    with pytest.raises(RequestError, match="Nothing can be written into"):
        run(ct_file.parent, blocked / "results", model)
    assert names(tmp_path) == ["file"]


def test_descriptions_fit_a_nifti_header():
    for words in (("ct", "mr"), ("mr", "ct"), ("a-long-word", "an-ünusual-one")):
        plan = tiny.plan(source_modality=words[0], target_modality=words[1])
        for sentence in (short_description(plan), short_spread_description(plan)):
            assert sentence.isascii()
            assert len(sentence) <= 79
            assert "SYNTHETIC" in sentence


def test_the_sidecar_tells_how_it_was_made(model, ct_file, tmp_path):
    run(ct_file, tmp_path / "mr.mha", model, seed=5, steps=3, sampler="unipc")
    facts = json.loads((tmp_path / "mr.json").read_text())
    assert facts["safety"] == safety_sentence(tiny.plan())
    assert facts["units"] == units(tiny.plan())
    assert facts["model"] == {"name": "tiny", "hash": tiny.pipeline().hash}
    assert facts["source"] == "head.nii.gz"
    assert (facts["seed"], facts["num_inference_steps"], facts["sampler"]) == (5, 3, "unipc")
    assert facts["earlier_stages"] == [{"stage": "slices", "num_inference_steps": 2, "sampler": "ddim"}]
    assert facts["warnings"] == []
    assert facts["ct2mri"] == __version__


def test_the_spread_over_samples(model, ct_file, tmp_path):
    run(ct_file, tmp_path / "mr.nii.gz", model, samples=2, uncertainty=tmp_path / "u" / "sd.nii.gz")
    expected = tiny.pipeline().translate(load_volume(ct_file), samples=2)
    assert np.array_equal(load_volume(tmp_path / "u" / "sd.nii.gz").array, expected.spread.array)
    assert np.array_equal(load_volume(tmp_path / "mr.nii.gz").array, expected.volume.array)
    assert names(tmp_path) == ["mr.json", "mr.nii.gz", "u/sd.json", "u/sd.nii.gz"]
    header = nibabel.load(tmp_path / "u" / "sd.nii.gz").header
    assert header["descrip"].item().decode() == short_spread_description(tiny.plan())
    facts = json.loads((tmp_path / "u" / "sd.json").read_text())
    assert facts["content"].startswith("standard deviation")
    assert facts["safety"] == safety_sentence(tiny.plan())


def test_a_mask_and_a_plan_replace_the_models_own(model, ct_file, tmp_path):
    ct = tiny.ct()
    mask = np.zeros(ct.spatial_shape, dtype=np.float32)
    mask[5:12, 6:15, 6:11] = 1
    save_volume(ct.with_array(mask), tmp_path / "mask.nii.gz", dtype="uint8")
    tiny.plan(spacing=None, target_range=(0.0, 1000.0)).write(tmp_path / "plan.json")
    run(ct_file, tmp_path / "a.nii.gz", model, mask=tmp_path / "mask.nii.gz", plan=tmp_path / "plan.json")
    array = load_volume(tmp_path / "a.nii.gz").array
    assert not array[mask == 0].any()
    assert array.max() > 250  # the model's own plan ends at 200
    tiny.plan(source_windows=[[0.0, 80.0], [-1024.0, 3000.0]]).write(tmp_path / "plan.json")
    with pytest.raises(RequestError, match="plan has 2 source windows, the slices stage was trained with 1"):
        run(ct_file, tmp_path / "b.nii.gz", model, plan=tmp_path / "plan.json")


def test_warnings_are_loud_and_kept(ct_file, tmp_path, capsys):
    fingerprint = Fingerprint(
        cases=3,
        spacing_mm=[[1.0, 1.0]] * 3,
        body_size_mm=[[150.0, 200.0]] * 3,
        body_area_cm2=None,
        hu_percentiles=None,
        tissue_fractions=None,
        contrast_share=None,
        looks_like="head",
    )
    tiny.pipeline(latents=None, plan=tiny.plan(fingerprint=fingerprint)).save_pretrained(tmp_path / "m")
    run(ct_file, tmp_path / "mr.nii.gz", str(tmp_path / "m"))
    errors = capsys.readouterr().err
    assert "WARNING, head.nii.gz: Spacing: voxels measure 3 mm left-right" in errors
    assert "WARNING, head.nii.gz: Field of view" in errors
    kept = json.loads((tmp_path / "mr.json").read_text())["warnings"]
    assert len(kept) == errors.count("WARNING") > 1


def test_a_dicom_folder_is_one_ct(model, tmp_path, write_dicom_slice):
    ct = tiny.ct((20, 22, 9), np.eye(4))
    for k in range(9):
        stored = (ct.array[:, :, k].T + 1024).round().astype(np.int16)
        write_dicom_slice(tmp_path / "series" / f"{k}.dcm", stored, (0, 0, 4.0 * k), PixelSpacing=[4, 4])
    run(tmp_path / "series", tmp_path / "mr.nii.gz", model)
    mr = load_volume(tmp_path / "mr.nii.gz")
    assert mr.grid.matches(load_volume(tmp_path / "series").grid)
    assert mr.array.max() > 0


# --- several ---------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path, write_dicom_slice):
    """Two good CTs, a patient folder with one, a DICOM series, one that is cut short, and an MR."""
    folder = tmp_path / "cts"
    for name, seed in (("b.nii.gz", 1), ("c.mha", 2), ("patient/ct.nii.gz", 3)):
        save_volume(tiny.ct(seed=seed), folder / name)
    save_volume(tiny.ct(), folder / "patient" / "mr.nii.gz")
    whole = (folder / "b.nii.gz").read_bytes()
    (folder / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    mr = tiny.ct()
    save_volume(mr.with_array((mr.array.clip(0) + 10) / 5), folder / "d.nii.gz")
    (folder / "notes.txt").write_text("not a volume")
    return folder


def test_patients_whose_images_are_dicom(tmp_path, write_dicom_slice):
    for patient in ("p1", "p2"):
        for image in ("ct", "mr"):
            path = tmp_path / patient / image / "0.dcm"
            write_dicom_slice(path, np.zeros((4, 4), np.int16), (0, 0, 0.0))
    write_dicom_slice(tmp_path / "p3" / "0.dcm", np.zeros((4, 4), np.int16), (0, 0, 0.0))
    expected = {"p1": tmp_path / "p1" / "ct", "p2": tmp_path / "p2" / "ct", "p3": tmp_path / "p3"}
    assert find_cts(tmp_path) == expected


def test_one_bad_file_does_not_stop_the_others(model, cohort, tmp_path, capsys):
    out = tmp_path / "mrs"
    with pytest.raises(
        RequestError, match=r"2 of 5 could not be translated \(a, d\).*translate-summary.json"
    ):
        run(cohort, out, model)
    written = ["b.json", "b.nii.gz", "c.json", "c.nii.gz", "patient.json", "patient.nii.gz"]
    assert names(out) == [*written, "translate-summary.json"]
    summary = json.loads((out / "translate-summary.json").read_text())
    assert summary["translated"] == 3
    assert "damaged or cut short" in summary["failed"]["a"]
    assert "looks like an MR" in summary["failed"]["d"]
    captured = capsys.readouterr()
    assert "FAILED a: " in captured.err
    assert "3 translated, 0 done before, 2 failed" in captured.out
    expected = tiny.pipeline()(load_volume(cohort / "patient" / "ct.nii.gz"))
    assert np.array_equal(load_volume(out / "patient.nii.gz").array, expected.array)

    # Again: what is done stays, what was repaired is added.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    save_volume(tiny.ct(), cohort / "a.nii.gz")
    (cohort / "d.nii.gz").unlink()
    run(cohort, out, model)
    assert "1 translated, 3 done before, 0 failed" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    run(cohort, out, model, overwrite=True)
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


def test_results_of_other_settings_are_not_mixed(model, cohort, tmp_path):
    for name in ("a.nii.gz", "d.nii.gz"):
        (cohort / name).unlink()
    run(cohort, tmp_path / "mrs", model)
    save_volume(tiny.ct(), cohort / "e.nii.gz")
    with pytest.raises(
        RequestError, match=r"b.nii.gz was written with another seed; give another output folder"
    ):
        run(cohort, tmp_path / "mrs", model, seed=1)
    assert not (tmp_path / "mrs" / "e.nii.gz").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"remove_table": True},
        {"bias_correction": True},
        {"target_percentile": 99.0},
        {"target_scaling": "zscore"},
        {"enhance_contrast": True},
        {"crop_margin_mm": 8.0},
        {"source_units": "relative", "source_percentile": 99.0, "body_threshold": None},
    ],
)
def test_results_of_another_plan_are_not_mixed(change, model, tmp_path):
    save_volume(tiny.ct(), tmp_path / "cts" / "a.nii.gz")
    plan = tmp_path / "plan.json"
    tiny.plan().write(plan)
    run(tmp_path / "cts", tmp_path / "mrs", model, plan=plan)
    before = (tmp_path / "mrs" / "a.nii.gz").read_bytes()
    tiny.plan(anatomy="head", assumptions=["The moon is round."]).write(plan)
    run(tmp_path / "cts", tmp_path / "mrs", model, plan=plan)
    tiny.plan(**change).write(plan)
    words = r"a.nii.gz was written with another plan \(" + ", ".join(
        name for name in tiny.plan().decisive if name in change
    )
    with pytest.raises(RequestError, match=rf"{words}\); give another output folder"):
        run(tmp_path / "cts", tmp_path / "mrs", model, plan=plan)
    assert (tmp_path / "mrs" / "a.nii.gz").read_bytes() == before


def test_results_whose_sidecar_tells_less_of_the_plan_are_not_taken_for_the_same(model, tmp_path):
    save_volume(tiny.ct(), tmp_path / "cts" / "a.nii.gz")
    run(tmp_path / "cts", tmp_path / "mrs", model)
    sidecar = tmp_path / "mrs" / "a.json"
    facts = json.loads(sidecar.read_text())
    assert facts["plan"].pop("remove_table") is False
    sidecar.write_text(json.dumps(facts))
    with pytest.raises(RequestError, match=r"a plan that its sidecar, of an earlier version, tells only in"):
        run(tmp_path / "cts", tmp_path / "mrs", model)
    run(tmp_path / "cts", tmp_path / "mrs", model, overwrite=True)
    run(tmp_path / "cts", tmp_path / "mrs", model)


def test_a_cohorts_outputs_are_folders(model, cohort, tmp_path):
    for output in (tmp_path / "mr.nii.gz", cohort / "notes.txt"):
        with pytest.raises(RequestError, match="must be a folder"):
            run(cohort, output, model)
    with pytest.raises(RequestError, match="--uncertainty must be a folder"):
        run(cohort, tmp_path / "o", model, samples=2, uncertainty=tmp_path / "sd.nii")
    with pytest.raises(RequestError, match="are both"):
        run(cohort, tmp_path / "o", model, samples=2, uncertainty=tmp_path / "o")
    with pytest.raises(RequestError, match="among their CTs"):
        run(cohort, cohort, model)
    with pytest.raises(RequestError, match=r"among their CTs in .*give another --uncertainty"):
        run(cohort, tmp_path / "o", model, samples=2, uncertainty=cohort, overwrite=True)
    with pytest.raises(RequestError, match="--mask is the body of one CT"):
        run(cohort, tmp_path / "o", model, mask=cohort / "b.nii.gz")
    save_volume(tiny.ct(), cohort / "c.nrrd")
    with pytest.raises(RequestError, match=r"would both become c;"):
        run(cohort, tmp_path / "o", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no CT"):
        run(tmp_path / "empty", tmp_path / "o", model)
    assert not (tmp_path / "o").exists()


# --- a prepared data set ---------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    root, plan = tmp_path / "data", tiny.plan(target_range=(0.0, 300.0))
    for seed, patient in enumerate("abcd"):
        prepared = prepare_source(tiny.ct(seed=seed), plan)
        write_case(
            root / "cases" / f"{patient}-1",
            patient_id=patient,
            grid=prepared.grid,
            source=prepared.array,
            target=prepared.array[0],
            mask=prepared.mask,
            valid=np.ones_like(prepared.mask),
            target_range=(0.0, 250.0),
            inputs={},
            notes=[],
        )
    plan.write(root / "plan.json")
    return root


def test_held_out_cases_of_a_data_set(model, dataset, tmp_path):
    run(None, tmp_path / "out", model, data=dataset, samples=2, uncertainty=tmp_path / "sd")
    assert names(tmp_path / "out") == ["d-1.json", "d-1.nii.gz", "translate-summary.json"]
    assert names(tmp_path / "sd") == ["d-1.json", "d-1.nii.gz"]
    case, mr = PreparedDataset(dataset).case("d-1"), load_volume(tmp_path / "out" / "d-1.nii.gz")
    assert mr.grid.matches(case.grid)
    assert not mr.array[~case.mask].any()
    drawn = tiny.pipeline().sample(case.source, samples=2)
    # In the units of the data set's plan, where the evaluation expects them.
    expected = ((drawn.mean + 1) / 2 * 300)[case.mask]
    np.testing.assert_allclose(mr.array[case.mask], expected, rtol=1e-5, atol=1e-3)
    facts = json.loads((tmp_path / "out" / "d-1.json").read_text())
    assert (facts["case_id"], facts["plan"]["target_range"]) == ("d-1", [0.0, 300.0])
    run(None, tmp_path / "training", model, data=dataset, split="train")
    assert [path.name for path in sorted((tmp_path / "training").glob("*.nii.gz"))] == [
        "a-1.nii.gz",
        "b-1.nii.gz",
    ]


def test_results_of_another_data_sets_case_are_not_taken_for_done(model, dataset, tmp_path):
    run(None, tmp_path / "out", model, data=dataset)
    other = tmp_path / "other"
    shutil.copytree(dataset, other, copy_function=shutil.copyfile)
    run(None, tmp_path / "out", model, data=other)  # the same, elsewhere
    summary = json.loads((tmp_path / "out" / "translate-summary.json").read_text())
    assert (summary["translated"], summary["done_before"]) == (0, 1)
    case = other / "cases" / "d-1"
    whole = {name: (case / name).read_bytes() for name in ("source.npy", "mask.npy", "case.json")}
    facts = json.loads(whole["case.json"])
    facts["affine"][0][3] += 1
    source = np.load(case / "source.npy")
    source[0, 3, 3, 3] += 0.01
    mask = np.load(case / "mask.npy")
    mask[3, 3, 3] ^= True
    for name, what in (("source", "source"), ("mask", "mask"), ("case", "source")):
        for file, content in whole.items():
            (case / file).write_bytes(content)
        if name == "case":
            (case / "case.json").write_text(json.dumps(facts))
        else:
            np.save(case / f"{name}.npy", source if name == "source" else mask)
        with pytest.raises(
            RequestError, match=rf"d-1.nii.gz was made of another {what}.*; give another output"
        ):
            run(None, tmp_path / "out", model, data=other)


def test_the_data_set_way_agrees_with_the_volume_way(model, dataset, tmp_path):
    run(None, tmp_path / "out", model, data=dataset)
    mr = load_volume(tmp_path / "out" / "d-1.nii.gz")
    plan = tiny.plan(target_range=(0.0, 300.0))
    prepared = prepare_source(tiny.ct(seed=3), plan)
    same = tiny.pipeline(plan=plan).sample(prepared.array)
    np.testing.assert_allclose(
        mr.array[prepared.mask], ((same.mean + 1) / 2 * 300)[prepared.mask], rtol=1e-5, atol=1e-3
    )


def test_data_sets_that_do_not_fit_are_refused(model, dataset, tmp_path):
    with pytest.raises(RequestError, match="once: either a CT or a folder of CTs, or --data"):
        run(dataset, tmp_path / "o", model, data=dataset)
    with pytest.raises(RequestError, match="once: either a CT"):
        run(None, tmp_path / "o", model)
    with pytest.raises(RequestError, match="--mask and --plan go with a CT"):
        run(None, tmp_path / "o", model, data=dataset, plan=dataset / "plan.json")
    plan = tiny.plan(source_windows=[[0.0, 80.0]])
    plan.write(dataset / "plan.json")
    with pytest.raises(
        RequestError, match=r"prepared with source_windows \[\[0.0, 80.0\]\], the model was trained"
    ):
        run(None, tmp_path / "o", model, data=dataset)
    (dataset / "plan.json").unlink()
    with pytest.raises(RequestError, match=r"holds no plan.json, so it is no prepared data set"):
        run(None, tmp_path / "o", model, data=dataset)
    with pytest.raises(RequestError, match="There is no data set"):
        run(None, tmp_path / "o", model, data=tmp_path / "nowhere")
    assert not (tmp_path / "o").exists()


# --- bad input, by the command ---------------------------------------------------------------------------


def refused(capsys, *words: object) -> str:
    """The one line on standard error of a command that exits with 2."""
    capsys.readouterr()
    assert main(["translate", *map(str, words)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    assert text.startswith("ct2mri: ")
    return text


def save_raw(path, array, affine=None):
    nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def test_bad_cts_are_one_sentence_and_leave_nothing(model, tmp_path, capsys):
    ct = tiny.ct()
    nan = ct.array.copy()
    nan[2, 3, 4] = np.nan
    source = tmp_path / "in"
    source.mkdir()
    (source / "cut.nii.gz").write_bytes(b"\x1f\x8b" + bytes(50))
    (source / "note.txt").write_text("hello")
    cases = {
        save_raw(source / "flat.nii", np.zeros((5, 6), np.float32)): "2 axes",
        save_raw(source / "four.nii", np.zeros((5, 6, 7, 2), np.float32)): "4 axes",
        save_raw(source / "mr.nii", (ct.array.clip(0) + 10) / 5): "looks like an MR",
        save_raw(source / "nan.nii", nan): "NaN or infinite",
        save_raw(source / "air.nii", np.full((9, 9, 9), -1000, np.float32)): "No body was found",
        source / "cut.nii.gz": "damaged or cut short",
        source / "note.txt": "format of note.txt is unknown",
        source / "none.nii.gz": "There is no file or folder",
    }
    for path, part in cases.items():
        sentence = refused(capsys, path, "-o", tmp_path / "out" / "mr.nii.gz", "--model", model)
        assert part in sentence, sentence
    assert not (tmp_path / "out").exists()


def test_bad_requests_are_one_sentence_and_leave_nothing(model, ct_file, tmp_path, capsys):
    out = tmp_path / "out" / "mr.nii.gz"
    common = [ct_file, "-o", out, "--model", model]
    for words, part in [
        ([*common, "--steps", "0"], "1 to 1000 steps, got 0"),
        ([*common, "--steps", "1001"], "1 to 1000 steps, got 1001"),
        ([*common, "--device", "abacus"], "auto, cpu, cuda or mps, got abacus"),
        ([*common, "--samples", "0"], "samples is at least 1"),
        ([*common, "--batch_size", "0"], "batch_size is at least 1"),
        ([*common, "--uncertainty", tmp_path / "sd.nii"], "needs --samples of at least 2"),
        ([*common, "--samples", "2", "--uncertainty", out], "are both"),
        (
            [*common, "--samples", "2", "--uncertainty", tmp_path / "out" / "mr.nrrd"],
            "would both have the sidecar",
        ),
        ([*common, "--mask", tmp_path / "no.nii"], "There is no file or folder"),
        ([*common, "--plan", tmp_path / "no.json"], "There is no plan"),
        ([ct_file, "-o", tmp_path / "out" / "mr.jpg", "--model", model], "Cannot write mr.jpg; allowed"),
        ([ct_file, "-o", out, "--model", tmp_path / "nowhere"], "There is no model folder"),
        ([ct_file, "-o", out, "--model", Path(model) / "slices"], "is no model folder"),
    ]:
        sentence = refused(capsys, *words)
        assert part in sentence, sentence
    assert not list(tmp_path.iterdir())


def test_an_unknown_device_is_refused_whatever_there_is(ct_file, model, tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    words = (ct_file, "-o", tmp_path / "mr.nii", "--model", model, "--device", "cuda")
    assert "There is no cuda on this machine" in refused(capsys, *words)


def test_a_model_with_a_missing_part_is_one_sentence(ct_file, tmp_path, capsys):
    tiny.pipeline().save_pretrained(tmp_path / "m")
    for part in ("latents/model.safetensors", "vqvae/stage.json"):
        (tmp_path / "m" / part).rename(tmp_path / "away")
        sentence = refused(capsys, ct_file, "-o", tmp_path / "o" / "mr.nii", "--model", tmp_path / "m")
        assert part.split("/")[1] in sentence
        (tmp_path / "away").rename(tmp_path / "m" / part)
    (tmp_path / "m" / "slices").rename(tmp_path / "m" / "s")
    (tmp_path / "m" / "vqvae").rename(tmp_path / "m" / "slices")
    sentence = refused(capsys, ct_file, "-o", tmp_path / "o" / "mr.nii", "--model", tmp_path / "m")
    assert "holds a `vqvae` stage; a `slices` stage was asked for" in sentence
    assert not (tmp_path / "o").exists()


def test_results_are_not_overwritten_unless_asked(model, ct_file, tmp_path, capsys):
    out = tmp_path / "mr.nii.gz"
    out.write_bytes(b"precious")
    assert "exists; give another name, or --overwrite" in refused(
        capsys, ct_file, "-o", out, "--model", model
    )
    assert out.read_bytes() == b"precious"
    run(ct_file, out, model, overwrite=True)
    assert load_volume(out).grid.matches(tiny.ct().grid)
    out.unlink()
    assert re.search(r"mr.json exists", refused(capsys, ct_file, "-o", out, "--model", model))
    (tmp_path / "sd.json").write_text("precious")
    words = (ct_file, "-o", tmp_path / "b.nii", "--samples", "2", "--uncertainty", tmp_path / "sd.nii")
    assert "sd.json exists; give another name" in refused(capsys, *words, "--model", model)
    assert (tmp_path / "sd.json").read_text() == "precious"
    assert names(tmp_path) == ["mr.json", "sd.json"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_input_is_never_written_over(overwrite, model, tmp_path, capsys):
    source, mask, plan = (tmp_path / name for name in ("own.nii.gz", "mask.nii.gz", "plan.json"))
    save_volume(tiny.ct(), source)
    save_volume(tiny.ct().with_array(np.ones_like(tiny.ct().array)), mask)
    tiny.plan().write(plan)
    (tmp_path / "link.nii.gz").symlink_to(source)
    (tmp_path / "deeper").mkdir()
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    common = ["--mask", mask, "--plan", plan, "--samples", "2", "--model", model, *overwrite]
    for output, spread, kept in [
        (source, "sd.nii", source),
        (tmp_path / "deeper" / ".." / "own.nii.gz", "sd.nii", source),
        (tmp_path / "link.nii.gz", "sd.nii", source),
        (mask, "sd.nii", mask),
        (tmp_path / "plan.nii.gz", "sd.nii", plan),  # its sidecar
        (tmp_path / "mr.nii", source, source),
        (tmp_path / "mr.nii", mask, mask),
        (tmp_path / "mr.nii", "plan.nii", plan),
    ]:
        words = (source, "-o", output, "--uncertainty", tmp_path / spread, *common)
        assert f"would be written over the input {kept}; give another name" in refused(capsys, *words)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_no_source_of_a_cohort_is_written_over(model, tmp_path):
    cts = tmp_path / "cts"
    for seed, name in enumerate(("ct.nii.gz", "001/ct.nii.gz", "b.nii.gz")):
        save_volume(tiny.ct(seed=seed), cts / name)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.nii.gz").symlink_to(cts / "b.nii.gz")
    before = {name: (cts / name).read_bytes() for name in names(cts)}
    for output, spread, path in [
        (cts / "001", tmp_path / "sd", "001/ct.nii.gz"),
        (tmp_path / "out", cts / "001", "001/ct.nii.gz"),
        (tmp_path / "links", tmp_path / "sd", "b.nii.gz"),
    ]:
        with pytest.raises(RequestError, match=rf"would be written over the input .*{path}; give another"):
            run(cts, output, model, samples=2, uncertainty=spread, overwrite=True)
    assert {name: (cts / name).read_bytes() for name in names(cts)} == before
    assert not (tmp_path / "out").exists() and not (tmp_path / "sd").exists()


def test_results_of_a_cohort_among_its_folders_are_none_of_its_cts(model, tmp_path):
    cts = tmp_path / "cts"
    for seed, name in enumerate(("ct.nii.gz", "001/ct.nii.gz")):
        save_volume(tiny.ct(seed=seed), cts / name)
    for output, spread in (
        (cts / "out", {}),
        (tmp_path / "out", {"samples": 2, "uncertainty": cts / "out"}),
    ):
        for done_before in (0, 2):
            run(cts, output, model, **spread)
            summary = json.loads((output / "translate-summary.json").read_text())
            assert (summary["done_before"], summary["failed"]) == (done_before, {})
        shutil.rmtree(cts / "out")


def test_a_full_disk_leaves_no_half_file(model, tmp_path):
    """A limit on the size of files stands for the full disk: writing fails midway, as it would there."""
    save_volume(tiny.ct((30, 30, 30), np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "ct.nii.gz")
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))\n"
        "from ct2mri.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "out"
    words = ["translate", str(tmp_path / "ct.nii.gz"), "-o", str(out / "mr.nii.gz"), "--model", model]
    words += ["--samples", "2", "--uncertainty", str(out / "sd.nii.gz"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "out/mr.nii.gz could not be written" in done.stderr.splitlines()[-1]
    assert done.stderr.endswith(").\n")
    assert "Traceback" not in done.stderr
    assert list(out.iterdir()) == []


def test_the_starter_model_is_the_default(ct_file, tmp_path, monkeypatch):
    import ct2mri.pipeline

    tiny.pipeline(latents=None).save_pretrained(tmp_path / "package" / "starter" / "model")
    monkeypatch.setattr(ct2mri.pipeline, "files", lambda package: tmp_path / "package")
    run(ct_file, tmp_path / "mr.nii.gz", None)
    assert json.loads((tmp_path / "mr.json").read_text())["model"]["name"] == "tiny"
    monkeypatch.setattr(ct2mri.pipeline, "files", lambda package: tmp_path)
    with pytest.raises(RequestError, match="holds no starter model; give a model with --model"):
        run(ct_file, tmp_path / "other.nii.gz", None)


def test_real_cts_overlay_on_their_results(model, shared_data, tmp_path):
    path = shared_data / "real_ct" / "head.nii.gz"
    ct = load_volume(path)
    # Every fourth voxel: the grid and its tilt are what matters here.
    step = np.diag([4.0, 4.0, 2.0, 1.0])
    small = Volume(ct.array[::4, ::4, ::2], ct.affine @ step)
    save_volume(small, tmp_path / "ct.nii.gz")
    run(tmp_path / "ct.nii.gz", tmp_path / "mr.nii.gz", model, batch_size=64)
    mr = load_volume(tmp_path / "mr.nii.gz")
    assert np.array_equal(mr.affine, load_volume(tmp_path / "ct.nii.gz").affine)
    assert mr.spatial_shape == small.spatial_shape
    drawn = mr.array > 0
    assert drawn[small.array < -500].mean() < 0.2
    assert drawn[small.array > 300].mean() > 0.5
