"""`ct2mri translate --format dicom`: series in folders, looked after as results in files are."""

import json
import re
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import CTImageStorage, MRImageStorage

import tiny
from ct2mri.cli import main
from ct2mri.data.cases import PreparedDataset, write_case
from ct2mri.data.geometry import to_sitk
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.replay import prepare_source
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.evaluation.compare import comparison_of
from ct2mri.evaluation.evaluate import evaluation_of
from ct2mri.marking import safety_sentence, units
from ct2mri.options.evaluation import CompareOptions, EvaluateOptions
from ct2mri.options.translation import TranslateOptions
from ct2mri.translate import translate
from ct2mri.viewer.exporting import write_nrrd
from ct2mri.viewer.reading import load_kept, read_given
from ct2mri.viewer.stored import Described
from kills import killed_after

SECRETS = ("Secretname", "Hidden", "HOSPITAL-4711", "19510203", "born long ago", "ACC123456")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "2d"
    tiny.pipeline(latents=None).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def write_ct(write_dicom_slice):
    """A function that writes a CT volume as a series that says much about its patient."""

    def write(folder: Path, ct: Volume, **tags: object) -> Path:
        affine = np.diag([-1, -1, 1, 1]) @ ct.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        directions = affine[:3, :3] / spacing
        for k in range(ct.spatial_shape[2]):
            write_dicom_slice(
                folder / f"{k}.dcm",
                (ct.array[:, :, k].T + 1024).round().astype(np.int16),
                [f"{x:.9f}" for x in affine[:3, 2] * k + affine[:3, 3]],
                ImageOrientationPatient=[f"{x:.12f}" for x in directions[:, :2].T.ravel()],
                PixelSpacing=[spacing[1], spacing[0]],
                SliceThickness=spacing[2],
                **{
                    "PatientName": "Secretname^Hidden",
                    "PatientID": "HOSPITAL-4711",
                    "PatientBirthDate": "19510203",
                    "AccessionNumber": "ACC123456",
                    "StudyInstanceUID": "1.2.3.4.5",
                    "FrameOfReferenceUID": "1.2.3.4.6",
                    "Manufacturer": "Scanners Ltd",
                }
                | tags,
            )
        return folder

    return write


@pytest.fixture
def ct_folder(write_ct, tmp_path):
    return write_ct(tmp_path / "ct", tiny.ct())


def run(input_path, output, model, **options):
    options = {"format": "dicom"} | options
    translate(TranslateOptions(input=input_path, output=output, model=model, device="cpu", **options))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def images(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def refused(capsys, *words: object) -> str:
    """The one line on standard error of a command that exits with 2."""
    capsys.readouterr()
    assert main(["translate", *map(str, words)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


# --- one CT ----------------------------------------------------------------------------------------------


def test_a_ct_becomes_a_series_beside_it(model, ct_folder, tmp_path, capsys):
    run(ct_folder, tmp_path / "out" / "mr", model, seed=3)
    ct = load_volume(ct_folder)
    expected = tiny.pipeline(latents=None)(ct, seed=3)
    series = load_volume(tmp_path / "out" / "mr")
    assert series.grid.matches(ct.grid)
    # The tiny model's scale ends at 200, so values are stored tenfold, and read in its own units.
    assert np.abs(series.array - expected.array).max() <= 0.05 + 1e-4
    results, source = images(tmp_path / "out" / "mr"), images(ct_folder)
    assert {r.SOPClassUID for r in results} == {MRImageStorage}
    assert {str(r.PatientName) for r in results} == {"Secretname^Hidden"}
    assert {(r.PatientID, r.StudyInstanceUID, r.FrameOfReferenceUID) for r in results} == {
        ("HOSPITAL-4711", "1.2.3.4.5", "1.2.3.4.6")
    }
    by_position = {tuple(np.round(s.ImagePositionPatient, 3)): s.SOPInstanceUID for s in source}
    for result in results:
        place = tuple(np.round(result.ImagePositionPatient, 3))
        assert result.SourceImageSequence[0].ReferencedSOPInstanceUID == by_position[place]
    assert results[0].SeriesDescription == "SYNTHETIC MR from CT, not acquired (tiny)"
    description = results[0].DerivationDescription
    assert description.startswith(safety_sentence(tiny.plan()))
    assert "the model tiny (weights " in description and "2 steps, seed 3, mean of 1 sample." in description
    assert description.endswith(f"Values: {units(tiny.plan())}. Stored values are 10 times these units.")

    assert names(tmp_path / "out") == ["mr", "mr.json"]
    facts = json.loads((tmp_path / "out" / "mr.json").read_text())
    assert facts["content"] == "synthetic MR volume"
    assert facts["safety"] == safety_sentence(tiny.plan())
    assert (facts["source"], facts["seed"], facts["images"]) == ("ct", 3, 17)
    assert (facts["stored_per_unit"], facts["patient"]) == (10, "of the source")
    assert facts["dicom"] == {"anonymized": False}
    assert "mr, patient of the source: synthetic MR in arbitrary MR units" in capsys.readouterr().out


def test_an_input_inside_the_folder_of_the_result_is_kept(model, ct_folder, tmp_path):
    run(ct_folder, tmp_path / "series", model)
    before = {path.name: path.read_bytes() for path in (tmp_path / "series").iterdir()}
    first = tmp_path / "series" / min(before)
    with pytest.raises(RequestError, match=rf"series would be written over the input {first}; give another"):
        run(first, tmp_path / "series", model, overwrite=True)
    with pytest.raises(RequestError, match=r"series would be written over the input .*series; give another"):
        run(ct_folder, tmp_path / "series", model, mask=tmp_path / "series", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "series").iterdir()} == before


def test_a_validator_accepts_it(model, ct_folder, tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    run(ct_folder, tmp_path / "mr", model)
    for path in sorted((tmp_path / "mr").iterdir()):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        # dicom3tools is older than SyntheticData (0008,001C).
        assert [line for line in errors if "(0x0008,0x001c)" not in line] == []
        assert done.returncode == 0


def test_simpleitk_finds_left_on_the_left(model, write_ct, tmp_path):
    """A body that lies right of the middle, through DICOM in, the model, DICOM out and another reader."""
    ct = tiny.ct()
    x = np.einsum("b,bijk->ijk", ct.affine[0, :3], np.indices(ct.spatial_shape)) + ct.affine[0, 3]
    on_the_right = x > np.median(x) + 6
    ct = ct.with_array(np.where(on_the_right, ct.array, -1000))
    run(write_ct(tmp_path / "ct", ct), tmp_path / "mr", model)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "mr")))
    image, expected = reader.Execute(), to_sitk(ct)
    assert image.GetSize() == expected.GetSize()
    for read in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(image, read)(), getattr(expected, read)(), rtol=0, atol=1e-5)
    drawn = np.argwhere(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0) > 0)
    assert len(drawn) > 50
    left = [image.TransformIndexToPhysicalPoint([int(i) for i in index])[0] for index in drawn]  # LPS
    assert np.mean(left) < -(np.median(x) + 6)


def test_a_zip_and_a_spread(model, ct_folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as archive:
        for path in ct_folder.iterdir():
            archive.write(path, path.name)
    run(tmp_path / "ct.zip", tmp_path / "mr", model, samples=2, steps=3, uncertainty=tmp_path / "sd.nii.gz")
    assert names(tmp_path) == ["ct", "ct.zip", "mr", "mr.json", "sd.json", "sd.nii.gz"]
    assert load_volume(tmp_path / "sd.nii.gz").grid.matches(load_volume(tmp_path / "mr").grid)
    first = images(tmp_path / "mr")[0]
    assert first.PatientID == "HOSPITAL-4711"
    assert "mean of 2 samples" in first.DerivationDescription


def test_a_nifti_ct_gets_a_made_up_patient(model, tmp_path, capsys):
    save_volume(tiny.ct(), tmp_path / "ct.nii.gz")
    run(tmp_path / "ct.nii.gz", tmp_path / "mr", model)
    assert load_volume(tmp_path / "mr").grid.matches(tiny.ct().grid)
    assert images(tmp_path / "mr")[0].PatientID.startswith("ct2mri-")
    assert "patient made up: the source is no DICOM" in capsys.readouterr().out


def test_the_patient_is_left_out_on_request_and_never_printed(model, write_ct, tmp_path, capfd, caplog):
    # Values that break the rules of DICOM, which pydicom would quote.
    with pydicom.config.disable_value_validation():
        ct = write_ct(tmp_path / "Doe", tiny.ct(), PatientBirthDate="born long ago")
    capfd.readouterr()
    caplog.clear()
    command = ["translate", str(ct), "--model", model, "--device", "cpu", "--format", "dicom"]
    assert main([*command, "-o", str(tmp_path / "named")]) == 0
    assert main([*command, "-o", str(tmp_path / "nobody"), "--anonymize"]) == 0
    assert main([*command, "-o", str(tmp_path / "nobody"), "--anonymize"]) == 2  # exists
    captured = capfd.readouterr()
    said = captured.out + captured.err + caplog.text
    said += (tmp_path / "named.json").read_text() + (tmp_path / "nobody.json").read_text()
    assert not [secret for secret in SECRETS if secret in said]
    assert "patient left out" in captured.out
    with pydicom.config.disable_value_validation():
        assert str(images(tmp_path / "named")[0].PatientName) == "Secretname^Hidden"
    secret_bytes = [s.encode() for s in (*SECRETS, "1.2.3.4.5", "1.2.3.4.6", "Doe")]
    for path in (*(tmp_path / "nobody").iterdir(), tmp_path / "nobody.json"):
        assert not [secret for secret in secret_bytes if secret in path.read_bytes()]
    assert load_volume(tmp_path / "nobody").grid.matches(tiny.ct().grid)


def test_warnings_of_a_source_that_tell_its_name_do_not_without_the_patient(
    model, write_ct, write_dicom_slice, tmp_path
):
    doe = write_ct(tmp_path / "Doe", tiny.ct())
    (doe / "notes.txt").write_text("of the patient")
    scout = {"SeriesInstanceUID": "1.2.3.98765", "SeriesDescription": "Scout of Doe"}
    scout |= {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_dicom_slice(doe / "scout", np.zeros((9, 9), dtype=np.int16), **scout)
    image = nibabel.Nifti1Image(tiny.ct().array, None)
    image.header.set_zooms((3, 3, 3))
    image.to_filename(tmp_path / "Doe.nii")
    for source, words in (
        (doe, "Passed over 1 of 19 files in the source that are not DICOM images."),
        (doe, "Passed over what is no scan in the source: another series."),
        (tmp_path / "Doe.nii", "The source does not say how its voxels lie in the patient"),
    ):
        run(source, tmp_path / "named", model, overwrite=True)
        assert "Doe" in (tmp_path / "named.json").read_text()
        run(source, tmp_path / "nobody", model, anonymize=True, overwrite=True)
        sidecar = (tmp_path / "nobody.json").read_text()
        assert words in sidecar
        assert "Doe" not in sidecar and "98765" not in sidecar
        # The viewer makes results with and without the patient of one source.
        kept = tmp_path / f"kept-{len(words)}"
        kept.mkdir()
        read_given(source, kept, Described(name="ct", group="ct", role="source"))
        told = " ".join(load_kept(kept, "source").metadata["warnings"])
        assert words in told and "Doe" not in told


def test_a_model_that_makes_ct_writes_ct(ct_folder, tmp_path, capsys):
    plan = tiny.plan(
        source_modality="cbct",
        target_modality="ct",
        target_units="HU",
        target_scaling="window",
        target_window=[-1000.0, 2000.0],
        target_range=(-1000.0, 2000.0),
    )
    tiny.pipeline(latents=None, plan=plan).save_pretrained(tmp_path / "m")
    run(ct_folder, tmp_path / "out", str(tmp_path / "m"))
    source, result = load_volume(ct_folder), load_volume(tmp_path / "out")
    expected = tiny.pipeline(latents=None, plan=plan)(source)
    assert np.abs(result.array - expected.array).max() <= 0.5 + 1e-3
    assert result.array.min() == -1024 and result.array.max() > 0
    first = images(tmp_path / "out")[0]
    assert first.SOPClassUID == CTImageStorage
    assert first.SeriesDescription.startswith("SYNTHETIC CT from CBCT")
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["content"] == "synthetic CT volume" and facts["stored_per_unit"] == 1
    assert "synthetic CT in Hounsfield units" in capsys.readouterr().out
    assert "SYNTHETIC CT, generated from CBCT" in facts["safety"] and facts["safety"] in first.ImageComments


def test_other_modalities_are_refused(ct_folder, tmp_path):
    tiny.pipeline(latents=None, plan=tiny.plan(target_modality="pet")).save_pretrained(tmp_path / "m")
    with pytest.raises(RequestError, match="written for MR and CT, and this model makes pet"):
        run(ct_folder, tmp_path / "out", str(tmp_path / "m"))
    assert names(tmp_path) == ["ct", "m"]


def test_a_sheared_ct_is_refused_before_it_is_worked_on(model, tmp_path, capsys):
    affine = tiny.OBLIQUE.copy()
    affine[1, 2] += 0.3
    save_volume(tiny.ct(affine=affine), tmp_path / "ct.nii.gz")
    words = (tmp_path / "ct.nii.gz", "-o", tmp_path / "mr", "--model", model, "--format", "dicom")
    assert "not perpendicular (a sheared NIfTI)" in refused(capsys, *words)
    assert names(tmp_path) == ["ct.nii.gz"]


@pytest.mark.parametrize("place", [".", ".."])
def test_where_one_is_is_no_folder_for_one_series(model, write_ct, tmp_path, capsys, monkeypatch, place):
    (tmp_path / "cts").mkdir()
    ct_folder = write_ct(tmp_path / "cts" / "ct", tiny.ct())
    (tmp_path / "mr" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mr" / "inside")
    words = (ct_folder, "-o", place, "--model", model, "--format", "dicom", "--overwrite")
    assert "give the folder by its name, from outside" in refused(capsys, *words)
    assert names(tmp_path) == ["cts", "mr"] and names(tmp_path / "mr") == ["inside"]
    run(ct_folder.parent, Path(), model, overwrite=True)  # of several CTs, each has a folder in it
    assert names(Path()) == ["ct", "ct.json", "translate-summary.json"]


# --- folders are looked after as files are ---------------------------------------------------------------


def test_bad_requests_are_one_sentence_and_leave_nothing(model, ct_folder, tmp_path, capsys):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.doc").write_text("precious")
    (tmp_path / "out.json").write_text("{}")
    out, dicom = tmp_path / "o", ("--format", "dicom")
    for words, part in [
        (["-o", tmp_path / "mr.nii.gz", *dicom], "writes into a folder"),
        (["-o", kept / "thesis.doc", *dicom], "writes into a folder"),
        (["-o", ct_folder, *dicom], "would lie among the files of"),
        (["-o", ct_folder / "mr", *dicom], "would lie among the files of"),
        (["-o", kept, *dicom], "holds thesis.doc, which is no image of a synthetic series"),
        (["-o", kept, *dicom, "--overwrite"], "would be lost"),
        (["-o", tmp_path / "out", *dicom], "out.json exists"),
        (["-o", out, *dicom, "--samples", "2", "--uncertainty", out / "sd.nii"], "would lie inside"),
        (
            ["-o", out, *dicom, "--samples", "2", "--uncertainty", tmp_path / "o.nii"],
            "o.json; give names that differ in more than the suffix",
        ),
        (["-o", out / "mr.nii.gz", "--anonymize"], "--anonymize leaves the patient out of DICOM results"),
        (["-o", out], "is no file name; give one with a suffix such as .nii.gz, or add --format dicom"),
        (["-o", out / "mr.mha", "--format", "nifti"], "--format nifti writes .nii or .nii.gz"),
    ]:
        sentence = refused(capsys, ct_folder, "--model", model, *words)
        assert part in sentence, sentence
    assert names(tmp_path) == ["ct", "kept", "out.json"]
    assert names(kept) == ["thesis.doc"]
    assert len(names(ct_folder)) == 17


def test_results_are_not_overwritten_unless_asked(model, ct_folder, tmp_path, capsys):
    out = tmp_path / "mr"
    out.mkdir()
    run(ct_folder, out, model)  # an empty folder is free
    before = (out / "synthetic-00001.dcm").read_bytes()
    words = (ct_folder, "-o", out, "--model", model, "--format", "dicom")
    assert "mr exists; give another name, or --overwrite" in refused(capsys, *words)
    assert (out / "synthetic-00001.dcm").read_bytes() == before
    run(ct_folder, out, model, overwrite=True)
    assert (out / "synthetic-00001.dcm").read_bytes() != before
    assert len(names(out)) == 17 and names(tmp_path) == ["ct", "mr", "mr.json"]


def test_a_full_disk_leaves_no_half_series(model, ct_folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))  # a sidecar fits, an image does not
    try:
        with pytest.raises(OSError, match="mr could not be written"):
            run(ct_folder, tmp_path / "mr", model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["ct"]


@pytest.fixture
def cohort(write_ct, tmp_path):
    """A NIfTI CT, a DICOM series, and a sheared NIfTI, which cannot become DICOM."""
    folder = tmp_path / "cts"
    save_volume(tiny.ct(seed=1), folder / "a.nii.gz")
    write_ct(folder / "b", tiny.ct(seed=2))
    affine = tiny.OBLIQUE.copy()
    affine[1, 2] += 0.3
    save_volume(tiny.ct(affine=affine), folder / "c.nii.gz")
    return folder


def test_a_cohort_is_folders_and_what_is_done_stays(model, cohort, tmp_path, capsys):
    out = tmp_path / "mrs"
    with pytest.raises(RequestError, match=r"1 of 3 could not be translated \(c\)"):
        run(cohort, out, model)
    assert names(out) == ["a", "a.json", "b", "b.json", "translate-summary.json"]
    summary = json.loads((out / "translate-summary.json").read_text())
    assert "not perpendicular" in summary["failed"]["c"]
    assert images(out / "b")[0].PatientID == "HOSPITAL-4711"
    assert images(out / "a")[0].PatientID.startswith("ct2mri-")
    assert load_volume(out / "b").grid.matches(load_volume(cohort / "b").grid)

    (cohort / "c.nii.gz").unlink()
    before = {name: images(out / name)[0].SeriesInstanceUID for name in "ab"}
    capsys.readouterr()
    run(cohort, out, model)
    assert "0 translated, 2 done before, 0 failed" in capsys.readouterr().out
    assert {name: images(out / name)[0].SeriesInstanceUID for name in "ab"} == before
    (out / "a" / "synthetic-00009.dcm").unlink()  # no longer whole
    run(cohort, out, model)
    assert "1 translated, 1 done before, 0 failed" in capsys.readouterr().out
    assert len(names(out / "a")) == 17
    assert images(out / "b")[0].SeriesInstanceUID == before["b"]
    run(cohort, out, model, overwrite=True)
    assert images(out / "b")[0].SeriesInstanceUID != before["b"]

    for changes, what in [
        ({"seed": 1}, "another seed"),
        ({"anonymize": True}, "another dicom"),
        ({"format": "auto"}, "of another format"),
    ]:
        with pytest.raises(RequestError, match=what):
            run(cohort, out, model, **changes)
    (out / "b.json").unlink()
    (out / "b" / "notes.txt").write_text("precious")
    with pytest.raises(RequestError, match=r"holds notes.txt, which is no image"):
        run(cohort, out, model)
    assert (out / "b" / "notes.txt").exists()


@pytest.mark.parametrize("names_given", range(4))
def test_no_moment_to_be_killed_at_gives_a_series_the_sidecar_of_another(
    names_given, model, tmp_path, monkeypatch
):
    save_volume(tiny.ct(), tmp_path / "cts" / "a.nii.gz")
    run(tmp_path / "cts", tmp_path / "out", model, seed=1)
    with killed_after(names_given, monkeypatch):
        run(tmp_path / "cts", tmp_path / "out", model, seed=0, overwrite=True)
    try:
        run(tmp_path / "cts", tmp_path / "out", model, seed=1)
    except RequestError as error:
        assert "was written with another seed" in str(error)
        run(tmp_path / "cts", tmp_path / "out", model, seed=0)
    seed = json.loads((tmp_path / "out" / "a.json").read_text())["seed"]
    expected = tiny.pipeline(latents=None)(load_volume(tmp_path / "cts" / "a.nii.gz"), seed=seed)
    assert np.abs(load_volume(tmp_path / "out" / "a").array - expected.array).max() <= 0.05 + 1e-4


def test_a_series_does_not_take_the_sidecar_of_a_volume(model, cohort, tmp_path):
    (cohort / "c.nii.gz").unlink()
    run(cohort, tmp_path / "mrs", model, format="nifti")
    before = (tmp_path / "mrs" / "a.json").read_text()
    with pytest.raises(RequestError, match=r"a.json belongs to a result of another format"):
        run(cohort, tmp_path / "mrs", model)
    assert (tmp_path / "mrs" / "a.json").read_text() == before
    assert names(tmp_path / "mrs") == ["a.json", "a.nii.gz", "b.json", "b.nii.gz", "translate-summary.json"]


@pytest.fixture
def dataset(tmp_path):
    root, plan = tmp_path / "data", tiny.plan()
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


def test_cases_of_a_data_set_get_made_up_patients(model, dataset, tmp_path, capsys):
    run(None, tmp_path / "out", model, data=dataset)
    assert names(tmp_path / "out") == ["d-1", "d-1.json", "translate-summary.json"]
    run(None, tmp_path / "nifti", model, data=dataset, format="auto")
    series, volume = load_volume(tmp_path / "out" / "d-1"), load_volume(tmp_path / "nifti" / "d-1.nii.gz")
    assert series.grid.matches(volume.grid)
    assert np.abs(series.array - volume.array).max() <= 0.05 + 1e-4
    assert re.search(r"out/d-1, patient made up", capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "d-1.json").read_text())["case_id"] == "d-1"


def values_of(predictions: Path, **options) -> dict[str, float]:
    """The numbers of the one case of an evaluation."""
    (case,) = evaluation_of(EvaluateOptions(predictions=predictions, **options))["cases"]
    return case["values"]


def test_results_are_measured_on_the_scale_that_they_were_drawn_on(model, dataset, tmp_path):
    run(None, tmp_path / "nifti", model, data=dataset, format="nifti")
    run(None, tmp_path / "dicom", model, data=dataset)
    before = {name: values_of(tmp_path / name, data=dataset) for name in ("nifti", "dicom")}
    plan = json.loads((dataset / "plan.json").read_text())
    (dataset / "plan.json").write_text(json.dumps(plan | {"target_range": [0.0, 900.0]}))
    for name, values in before.items():
        assert values_of(tmp_path / name, data=dataset) == values
    (tmp_path / "nifti" / "d-1.json").unlink()
    assert values_of(tmp_path / "nifti", data=dataset)["mae"] != before["nifti"]["mae"]


def test_series_and_volumes_of_one_translation_are_evaluated_alike(model, dataset, tmp_path):
    spread = {"samples": 2, "uncertainty": tmp_path / "sd"}
    run(None, tmp_path / "nifti", model, data=dataset, format="nifti", **spread)
    run(None, tmp_path / "dicom", model, data=dataset, samples=2)
    case = PreparedDataset(dataset).case("d-1")
    save_volume(Volume(case.target + 1, case.affine), tmp_path / "truth" / "d-1.nii.gz")
    measures = ("mae", "rmse", "psnr", "ssim", "ncc", "uncertainty.spread_ratio", "uncertainty.inside_95")
    for against in ({"data": dataset}, {"targets": tmp_path / "truth"}):
        volume, series = (
            values_of(tmp_path / name, uncertainty=tmp_path / "sd", **against) for name in ("nifti", "dicom")
        )
        assert volume["mae"] > 0.01
        for name in measures:
            # Stored values are rounded to a tenth of a unit, and the range is 200 of these.
            assert series[name] == pytest.approx(volume[name], rel=2e-3, abs=5e-4), name
    systems = [tmp_path / "nifti", tmp_path / "dicom"]
    compared = comparison_of(CompareOptions(systems=systems, data=dataset))
    assert abs(compared["differences"]["dicom"]["mae"]["difference"]) < 5e-4


def test_a_series_that_no_longer_tells_its_units_is_not_evaluated_in_them(model, dataset, tmp_path):
    run(None, tmp_path / "mrs", model, data=dataset, samples=2, uncertainty=tmp_path / "sd")
    for path in (tmp_path / "mrs" / "d-1").iterdir():
        image = pydicom.dcmread(path)
        del image.DerivationDescription
        image.save_as(path)
    with pytest.raises(RequestError, match=r"Case d-1: d-1 is a synthetic MR whose headers no longer tell"):
        values_of(tmp_path / "mrs", data=dataset)
    case = PreparedDataset(dataset).case("d-1")
    save_volume(Volume(case.target + 1, case.affine), tmp_path / "truth" / "d-1.nii.gz")
    files = {"targets": tmp_path / "truth"}
    assert values_of(tmp_path / "mrs", **files)["mae"] > 0  # a gain is fitted
    with pytest.raises(RequestError, match=r"Case d-1: The prediction is a synthetic MR whose headers"):
        values_of(tmp_path / "mrs", uncertainty=tmp_path / "sd", **files)


def test_copies_of_results_stay_marked(model, ct_folder, tmp_path):
    """What a script reads and saves again, and what the viewer was given and hands out."""
    run(ct_folder, tmp_path / "mr", model)
    results = [tmp_path / "mr"]
    for suffix in (".nii.gz", ".mha", ".nrrd"):
        results.append(tmp_path / f"a{suffix}")
        run(ct_folder, results[-1], model, format="auto", overwrite=True)
    for result in results:
        volume = load_volume(result)
        save_volume(volume.with_array(volume.array / 2), tmp_path / "b.nii")
        assert b"SYNTHETIC MR from CT, not acquired" in (tmp_path / "b.nii").read_bytes()[:348]
        kept = tmp_path / f"kept-{result.suffix}"
        kept.mkdir()
        read_given(result, kept, Described(name="mr", group="case", role="result"))
        assert b"SYNTHETIC MR from CT, not acquired" in (kept / "source.nii").read_bytes()[:348]
        write_nrrd(kept, "source", tmp_path / "c.nrrd")
        assert b"SYNTHETIC MR from CT, not acquired" in (tmp_path / "c.nrrd").read_bytes()[:2000]
    assert "description" not in load_volume(ct_folder).metadata


@pytest.mark.parametrize(
    ("keyword", "value"), [("SeriesDescription", "renamed"), ("Manufacturer", "another program")]
)
def test_a_series_stays_marked_though_another_program_changed_a_word(
    keyword, value, model, ct_folder, tmp_path
):
    run(ct_folder, tmp_path / "mr", model)
    for file in (tmp_path / "mr").glob("*.dcm"):
        header = pydicom.dcmread(file)
        setattr(header, keyword, value)
        header.save_as(file)
    assert load_volume(tmp_path / "mr").metadata["description"].startswith("SYNTHETIC ")


def test_the_viewer_shows_a_series_in_its_own_units(model, ct_folder, tmp_path):
    run(ct_folder, tmp_path / "mr", model)
    run(ct_folder, tmp_path / "mr.nii.gz", model, format="nifti", overwrite=True)
    (tmp_path / "kept").mkdir()
    read_given(tmp_path / "mr", tmp_path / "kept", Described(name="mr", group="case", role="result"))
    kept, volume = load_kept(tmp_path / "kept", "source"), load_volume(tmp_path / "mr.nii.gz")
    assert np.abs(kept.array - volume.array).max() <= 0.05 + 1e-4
