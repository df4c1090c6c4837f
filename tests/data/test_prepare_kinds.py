"""`prepare` of any modalities in either direction, what it records of each case, and what it refuses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from prepare_tiny import ellipsoid, run, write_patients

from ct2mri.data.cases import PreparedDataset
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.replay import prepare_source
from ct2mri.data.volume import Volume
from ct2mri.errors import CasesLeftOutError, RequestError


def test_the_other_way_round_gives_hounsfield_units(tmp_path):
    raw = write_patients(tmp_path / "raw", range(3))
    dataset = run(raw, tmp_path / "set", source="mr", target="ct")
    plan, case = dataset.plan, dataset.case("p0")
    assert (plan.source_modality, plan.source_units, plan.source_windows) == ("mr", "relative", [[0.0, 1.25]])
    assert (plan.target_units, plan.target_scaling, plan.target_range) == ("HU", "window", (-1024.0, 3000.0))
    hu = (np.asarray(case.target) + 1) * 2012 - 1024
    ct, _ = ellipsoid(0)
    assert set(np.rint(np.unique(hu))) == set(np.unique(ct.array))
    assert case.target_range == (-1024.0, 3000.0) and case.valid.all()
    narrow = run(raw, tmp_path / "set2", source="mr", target="ct", target_window=[-200.0, 300.0])
    assert narrow.plan.target_range == (-200.0, 300.0) and narrow.case("p0").target.max() == 1
    with pytest.raises(RequestError, match="lower first"):
        run(raw, tmp_path / "set3", source="mr", target="ct", target_window=[300.0, -200.0])
    with pytest.raises(RequestError, match="target_window is for targets in HU"):
        run(raw, tmp_path / "set3", target_window=[-200.0, 300.0])
    with pytest.raises(RequestError, match="leave both out"):
        run(raw, tmp_path / "set3", source="mr", target="ct", target_scaling="zscore")
    with pytest.raises(RequestError, match="--source mr --target ct"):
        run(raw, tmp_path / "set3", plan=tmp_path / "set" / "plan.json")
    again = run(raw, tmp_path / "set4", plan=tmp_path / "set" / "plan.json", source="MR", target="CT")
    assert again.plan == plan


def test_targets_are_scaled_and_enhanced_as_asked(tmp_path):
    raw = write_patients(tmp_path / "raw", range(3))
    plain = run(raw, tmp_path / "plain")
    scored = run(raw, tmp_path / "scored", target_scaling="zscore")
    case = scored.case("p0")
    inside = np.asarray(case.target)[case.mask & case.valid]
    assert abs(inside.mean()) < 0.01 and inside.std() == pytest.approx(1 / 3, abs=0.01)
    assert scored.plan.target_range[0] < 0 < scored.plan.target_range[1]
    enhanced = run(raw, tmp_path / "enhanced", enhance_contrast=True)
    assert enhanced.plan.enhance_contrast
    assert np.abs(enhanced.case("p0").target - plain.case("p0").target).max() > 0.05
    with pytest.raises(RequestError, match="--enhance_contrast"):
        run(raw, tmp_path / "set", plan=tmp_path / "plain" / "plan.json", enhance_contrast=True)


def test_shading_is_corrected_where_asked(tmp_path):
    shaded = write_patients(tmp_path / "raw", range(3), size=24, edge=6.0)
    for number in range(3):
        path = shaded / f"p{number}" / "mr.nii.gz"
        mr = load_volume(path)
        ramp = np.linspace(0.5, 1.5, mr.spatial_shape[0])[:, None, None]
        save_volume(mr.with_array(mr.array * ramp), path)

    def unevenness(dataset):
        """Right half of the inner tissue over the left."""
        case = dataset.case("p0")
        values = np.where((case.source[0] > -0.5) & (case.source[0] < -0.4), (case.target + 1) / 2, np.nan)
        middle = values.shape[0] // 2
        return abs(np.log(np.nanmean(values[:middle]) / np.nanmean(values[middle:])))

    plain = unevenness(run(shaded, tmp_path / "plain"))
    corrected = unevenness(run(shaded, tmp_path / "corrected", bias_correction=True))
    assert corrected < 0.5 * plain


def test_the_table_is_air_unless_it_is_to_stay(tmp_path):
    raw = write_patients(tmp_path / "raw", range(3), size=32, edge=3.0)
    ct, _ = ellipsoid(0, size=32, edge=3.0)
    array = ct.array.copy()
    array[:, 32] = 500  # behind the patient: LPS
    save_volume(ct.with_array(array), raw / "p0" / "ct.nii.gz")
    without = run(raw, tmp_path / "without")
    assert without.plan.remove_table
    case = without.case("p0")
    assert (case.source[0][~case.mask] == -1).all() and 0.1 < case.mask.mean() < 0.9
    case = run(raw, tmp_path / "with", remove_table=False).case("p0")
    assert (case.source[0][~case.mask] > -0.5).any()
    prepared = prepare_source(load_volume(raw / "p0" / "ct.nii.gz"), without.plan)
    np.testing.assert_array_equal(prepared.array, without.case("p0").source)


def write_dicom(folder, volume, write_dicom_slice, **tags):
    """A volume on an LPS grid as a series of single frames."""
    for k in range(volume.spatial_shape[2]):
        position = np.asarray(volume.affine @ [0, 0, k, 1])[:3] * [-1, -1, 1]
        stored = np.rint(volume.array[:, :, k].T).astype(np.int16)
        write_dicom_slice(
            folder
            / f"{folder.parent.name}-{folder.name}-{k:03d}.dcm",  # the name makes the image's identifier
            stored,
            [float(p) for p in position],
            RescaleIntercept=0,
            PixelSpacing=[6, 6],
            SliceThickness=6,
            **tags,
        )


def test_facts_of_headers_are_kept_and_a_cone_beam_ct_is_told(tmp_path, write_dicom_slice, capsys):
    raw = write_patients(tmp_path / "raw", range(3))
    (raw / "p0" / "ct.nii.gz").unlink()
    tags = {"KVP": 120, "ConvolutionKernel": "H30s", "ManufacturerModelName": "On-Board Imager (OBI)"}
    write_dicom(raw / "p0" / "ct", ellipsoid(0)[0], write_dicom_slice, SeriesInstanceUID="1.2.3", **tags)
    case = run(raw, tmp_path / "set").case("p0")
    assert case.facts["source"]["kvp"] == 120 and case.facts["source"]["kernel"] == "H30s"
    assert case.facts["source"]["cbct"] is True
    assert "cone-beam CT" in " ".join(case.notes) and "--source cbct" in capsys.readouterr().out
    assert "Secret" not in (case.folder / "case.json").read_text()


def test_targets_of_another_contrast_are_named_and_left_out(tmp_path, write_dicom_slice):
    raw = write_patients(tmp_path / "raw", range(5))
    for number, name in enumerate(["AX T1 SE", "AX T1 SE", "AX T2 TSE"]):
        folder = raw / f"p{number}"
        (folder / "mr.nii.gz").unlink()
        tags = {"Modality": "MR", "SeriesDescription": name, "SeriesInstanceUID": f"1.2.{number + 1}"}
        write_dicom(folder / "mr", ellipsoid(number)[1], write_dicom_slice, **tags)
    dataset = run(raw, tmp_path / "set")
    assert dataset.case_ids() == ["p0", "p1", "p3", "p4"]
    assert "p2" not in dataset.plan.split.patient_ids
    (reason,) = reasons(tmp_path / "set").values()
    assert "T2w" in reason and "T1w" in reason and "--target_series" in reason
    # The same where it comes later, and where a plan is given and nobody looks at all first.
    assert run(raw, tmp_path / "set").case_ids() == ["p0", "p1", "p3", "p4"]
    content = json.loads((tmp_path / "set" / "plan.json").read_text())
    content["split"]["train"].append("p2")
    (tmp_path / "plan.json").write_text(json.dumps(content))
    assert run(raw, tmp_path / "set2", plan=tmp_path / "plan.json").case_ids() == ["p0", "p1", "p3", "p4"]


def write_study(folder, person, seed, write_dicom_slice):
    """CT and MR of one study in a folder."""
    for name, volume, tags in zip(
        ("ct", "mr"), ellipsoid(seed), ({}, {"Modality": "MR", "SeriesDescription": "T1"}), strict=True
    ):
        tags = {
            "PatientID": person,
            "PatientName": f"Doe^{person}",
            "StudyInstanceUID": f"1.3.{seed}",
            **tags,
        }
        uids = {"SeriesInstanceUID": f"1.2.{seed}.{name == 'mr':d}", "FrameOfReferenceUID": f"1.4.{seed}"}
        write_dicom(folder / f"{name}-{seed}", volume, write_dicom_slice, **tags, **uids)


def test_a_patient_who_comes_again_in_another_folder_stays_on_one_side(tmp_path, write_dicom_slice, capsys):
    raw, second = tmp_path / "raw", tmp_path / "second"
    for number in range(4):
        write_study(raw / f"export-{number}", f"id-{number}", number, write_dicom_slice)
    before = run(raw, tmp_path / "set").plan.split
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("cases/*/*")}
    assert "id-" not in (tmp_path / "set" / "cases" / "export-0" / "case.json").read_text()
    for number in range(4):  # follow-ups, in the same raw folder and in one of their own
        write_study(
            (raw, second)[number % 2] / f"later-{number}", f"id-{number}", 10 + number, write_dicom_slice
        )
    capsys.readouterr()
    run(raw, tmp_path / "set")
    dataset = run(second, tmp_path / "set")
    assert dataset.plan.split == before and len(dataset.case_ids()) == 8
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert "later-1 (export-1), later-3 (export-3)" in capsys.readouterr().out
    # And somebody else in a folder of that name takes nobody's place.
    write_study(tmp_path / "third" / "export-0", "id-9", 20, write_dicom_slice)
    write_study(tmp_path / "third" / "export-8", "id-8", 21, write_dicom_slice)
    dataset = run(tmp_path / "third", tmp_path / "set")
    assert len(dataset.case_ids()) == 9 and "export-8" in dataset.case_ids()
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert "knows another patient by the name export-0" in capsys.readouterr().out
    alone = tmp_path / "alone"
    write_study(alone / "export-0", "id-9", 23, write_dicom_slice)
    (alone / "splits.json").write_text(json.dumps({"train": ["export-0"]}))
    with pytest.raises(
        RequestError, match=r"None of 1 cases can be used.*another patient by the name export-0"
    ):
        run(alone, tmp_path / "set")
    PreparedDataset(tmp_path / "set")  # which stays as it is
    # Nor does a follow-up of another patient in a folder of that name.
    write_study(tmp_path / "fourth" / "export-0", "id-1", 22, write_dicom_slice)
    dataset = run(tmp_path / "fourth", tmp_path / "set")
    assert dataset.case("export-1_export-0").patient_id == "export-1" and len(dataset.case_ids()) == 10
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    run(tmp_path / "fourth", tmp_path / "set")
    assert "export-1_export-0: is up to date" in capsys.readouterr().out


def test_data_prepared_before_patients_were_told_by_headers_keep_their_names(tmp_path, write_dicom_slice):
    raw = tmp_path / "raw"
    for number in range(3):
        write_study(raw / f"export-{number}", f"id-{number}", number, write_dicom_slice)
    before = run(raw, tmp_path / "set").plan.split
    for path in (tmp_path / "set").glob("cases/*/case.json"):
        content = json.loads(path.read_text())
        del content["facts"]["person"]
        path.write_text(json.dumps(content))
    write_study(raw / "later", "id-1", 10, write_dicom_slice)
    dataset = run(raw, tmp_path / "set")
    assert dataset.plan.split == before and len(dataset.case_ids()) == 4


def test_a_contrast_agent_makes_another_contrast_in_every_layout(tmp_path, write_dicom_slice):
    raw = write_patients(tmp_path / "raw", range(4))
    for number in range(4):
        folder = raw / f"p{number}"
        (folder / "mr.nii.gz").unlink()
        tags = {"Modality": "MR", "SeriesDescription": "AX T1 SE", "SeriesInstanceUID": f"1.2.{number + 1}"}
        if number == 2:
            tags["ContrastBolusAgent"] = "Gadovist"
        write_dicom(folder / "mr", ellipsoid(number)[1], write_dicom_slice, **tags)
    assert run(raw, tmp_path / "set").case_ids() == ["p0", "p1", "p3"]
    (reason,) = reasons(tmp_path / "set").values()
    assert "its target is T1w with contrast agent by its name or header, most others are T1w" in reason


def test_every_ambiguous_or_damaged_patient_of_an_export_is_named_and_the_rest_prepared(
    tmp_path, write_dicom_slice, capsys
):
    raw = tmp_path / "raw"

    def write(patient, series, volume, folder=None, **tags):
        name = folder or patient
        uid = "1.2." + ".".join(str(ord(letter)) for letter in name + series)
        study = "1.3." + ".".join(str(ord(letter)) for letter in name)
        modality = "CT" if series.startswith("ct") else "MR"
        tags = {"PatientID": patient, "PatientBirthDate": "19500101", "SeriesInstanceUID": uid} | tags
        tags |= {"StudyInstanceUID": study, "FrameOfReferenceUID": study + ".1", "Modality": modality}
        write_dicom(raw / name / series, volume, write_dicom_slice, SeriesDescription=series, **tags)

    for number, patient in enumerate(["good1", "good2", "good3", "gap", "twins"]):
        ct, mr = ellipsoid(number)
        write(patient, "ct", ct)
        write(patient, "mr t1 se", mr)
    write("lonely", "mr t1 se", ellipsoid(5)[1])
    write("torn", "ct", ellipsoid(6)[0])
    write("torn", "mr t1 se", ellipsoid(6)[1])
    write("torn", "mr t1 mprage", ellipsoid(7)[1])
    for series, volume in zip(("ct", "mr t1 se"), ellipsoid(8), strict=True):  # another person
        write("twins", series, volume, folder="twins2", PatientBirthDate="19610203")
    next((raw / "gap" / "ct").glob("*-007.dcm")).unlink()
    with pytest.raises(CasesLeftOutError):
        run(raw, tmp_path / "set", strict=True, layout="dicom")
    dataset = PreparedDataset(tmp_path / "set")
    assert [name for name in dataset.case_ids() if "good" in name] == dataset.case_ids()
    assert len(dataset.case_ids()) == 3
    told = reasons(tmp_path / "set")

    assert len(told) == 4
    assert "missing" in told["gap"] and "42.00 mm" in told["gap"]
    assert "no ct series" in told["lonely"]
    assert "mprage" in told["torn"] and "--target_series" in told["torn"]
    assert "two patients go by one PatientID" in " ".join(told.values())
    everything = capsys.readouterr().out + (tmp_path / "set" / "prepare.json").read_text()
    assert "Secret" not in everything and "1961" not in everything and "1950" not in everything


def reasons(dataset):
    summary = json.loads((dataset / "prepare.json").read_text())
    return {case["case_id"]: case["reason"] for case in summary["cases"] if case["status"] == "left out"}


def test_pairs_are_registered_where_asked_and_told_how_well(tmp_path, capsys):
    motion = np.eye(4)
    motion[:3, 3] = [300.0, -9.0, 6.0]  # as in another frame of reference: nothing overlaps
    phantom, raw = draw_phantom("head", 1, spacing=7.0), tmp_path / "raw"
    save_volume(phantom.ct, raw / "p0" / "ct.nii.gz")
    save_volume(Volume(phantom.mr.array, motion @ phantom.mr.affine), raw / "p0" / "mr.nii.gz")
    alone = {"validation_fraction": 0.0, "test_fraction": 0.0}
    with pytest.raises(RequestError, match="do not overlap"):
        run(raw, tmp_path / "none", **alone)
    dataset = run(raw, tmp_path / "set", register="rigid", **alone)
    assert dataset.plan.registration == "rigid"
    case = dataset.case("p0")
    assert np.abs(np.array(case.registration["matrix"])[:3, 3] + motion[:3, 3]).max() < 3
    assert case.registration["start_agreement_mm"] < 3 and case.registration["starts"] > 1
    assert "registered: moved by" in " ".join(case.notes)
    assert (case.folder / "registration.png").read_bytes()[1:4] == b"PNG"
    out = capsys.readouterr().out
    assert out.count("doubtful registration: p0") == len(case.registration["warnings"])
    with pytest.raises(RequestError, match="another register"):
        run(raw, tmp_path / "set", **alone)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_voxel_far_below_nought_makes_no_ct_of_an_mr(tmp_path):
    """Interpolation by splines undershoots beside bright voxels; files other than DICOM name no modality."""
    raw = tmp_path / "raw"
    for name, lowest in (("plain", 0.0), ("undershot", -250.0)):
        ct, mr = ellipsoid(3)
        array = mr.array * 10
        array[0, 0, 0] = lowest
        moved = mr.affine.copy()
        moved[:3, 3] += (9, -6, 5)
        save_volume(ct, raw / name / "ct.nii.gz")
        save_volume(Volume(array, moved), raw / name / "mr.nii.gz")
    dataset = run(raw, tmp_path / "set", register="rigid", validation_fraction=0, test_fraction=0)
    plain, undershot = (dataset.case(name).registration for name in ("plain", "undershot"))
    assert undershot["warnings"] == plain["warnings"]
    np.testing.assert_allclose(undershot["matrix"], plain["matrix"], atol=0.2)


def test_a_worker_that_is_killed_costs_one_case(tmp_path):
    raw = write_patients(tmp_path / "raw", range(5), size=46, edge=2.5)
    command = [sys.executable, "-m", "ct2mri", "prepare", str(raw), str(tmp_path / "set"), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    cases = tmp_path / "set" / "cases"
    while len(list(cases.glob("p*/case.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (worker,) = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", worker], check=True)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert len(PreparedDataset(tmp_path / "set").case_ids()) == 4
    (reason,) = reasons(tmp_path / "set").values()
    assert "SIGKILL" in reason and "memory" in reason and "--workers" in reason and reason in out
    assert run(raw, tmp_path / "set").case_ids() == [f"p{n}" for n in range(5)]
