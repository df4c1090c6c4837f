import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from ct2mri import load_volume
from ct2mri.data.dicom import DicomSeries, find_series, load_series, scan_files
from ct2mri.data.dicom_files import visible_files
from ct2mri.errors import RequestError

Writer = Callable[..., None]
ZERO = np.zeros((3, 4), dtype=np.int16)


def write_series(write: Writer, folder: Path, uid: str, count: int = 3, **tags: Any) -> None:
    for k in range(count):
        write(folder / f"{uid}_{k}", ZERO + k, (0, 0, 2 * k), SeriesInstanceUID=uid, **tags)


def found(folder: Path) -> list[DicomSeries]:
    return find_series(visible_files(folder), folder.name)


def test_a_mixed_tree_is_sorted_into_series(write_dicom_slice: Writer, tmp_path: Path) -> None:
    common = {"PatientID": "P-1", "StudyInstanceUID": "1.9", "FrameOfReferenceUID": "1.8"}
    write_series(write_dicom_slice, tmp_path / "a", "1.1", 4, SeriesDescription="Pelvis 3.0", **common)
    write_series(write_dicom_slice, tmp_path / "b", "1.2", 2, Modality="MR", SeriesDescription="t1", **common)
    write_series(write_dicom_slice, tmp_path / "c" / "d", "1.2", 5, Modality="MR", PatientID="P-2")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes.txt").write_text("notes")
    plan = get_testdata_file("rtstruct.dcm", download=False)
    assert isinstance(plan, str)
    shutil.copy(plan, tmp_path / "rtstruct.dcm")
    first, second, third = found(tmp_path)
    assert (first.uid, first.modality, first.description) == ("1.1", "CT", "Pelvis 3.0")
    assert (first.study_uid, first.frame_of_reference_uid, first.images) == ("1.9", "1.8", 4)
    assert [path.name for path in first.files] == [f"1.1_{k}" for k in range(4)]
    assert first.patient_key == second.patient_key != third.patient_key
    assert second.uid == third.uid == "1.2"  # two patients may not share a series, whatever its UID says
    assert (second.images, third.images) == (2, 5)
    assert "P-1" not in repr(first)
    assert first.patient_key not in repr(first)
    volume = load_series(third, "third")
    assert volume.spatial_shape == (4, 3, 5)
    scan = scan_files(visible_files(tmp_path))
    assert scan.series == [first, second, third]
    assert [path.name for path in scan.others] == ["notes.txt", "rtstruct.dcm"]
    assert scan.damaged == []


def test_damaged_headers_are_named_while_others_go_on(write_dicom_slice: Writer, tmp_path: Path) -> None:
    write_series(write_dicom_slice, tmp_path, "1.1")
    write_dicom_slice(tmp_path / "1.1_1", ZERO, (0, 0, 2), SeriesInstanceUID="1.1", NumberOfFrames="7777")
    whole = (tmp_path / "1.1_1").read_bytes()
    (tmp_path / "1.1_1").write_bytes(whole.replace(b"7777", b"many"))
    scan = scan_files(visible_files(tmp_path))
    assert [path.name for path in scan.damaged] == ["1.1_1"]
    assert [series.images for series in scan.series] == [2]
    with pytest.raises(RequestError, match=r"header of 1\.1_1 in .* is damaged"):
        found(tmp_path)


def test_a_scout_among_the_slices_is_split_off(write_dicom_slice: Writer, tmp_path: Path) -> None:
    write_series(write_dicom_slice, tmp_path, "1.1")
    scout = {
        "SeriesInstanceUID": "1.1",
        "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
    }
    write_dicom_slice(tmp_path / "scout", np.zeros((9, 9), dtype=np.int16), **scout)
    slices, alone = found(tmp_path)
    assert (slices.images, alone.images) == (3, 1)
    assert (slices.facts["localizer"], alone.facts["localizer"]) == (False, True)
    volume = load_volume(tmp_path)
    assert volume.spatial_shape == (4, 3, 3)
    (warning,) = volume.metadata["warnings"]
    assert "Passed over what is no scan" in warning
    assert "(CT, 1 image, UID …1.1)" in warning


def test_a_dose_report_beside_the_slices_is_passed_over(write_dicom_slice: Writer, tmp_path: Path) -> None:
    write_series(write_dicom_slice, tmp_path, "1.1")
    write_dicom_slice(
        tmp_path / "report",
        np.zeros((9, 9), dtype=np.uint16),
        SeriesInstanceUID="1.2",
        SeriesDescription="Dose Report",
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
    )
    assert [series.located for series in found(tmp_path)] == [True, False]
    volume = load_volume(tmp_path)
    assert volume.spatial_shape == (4, 3, 3)
    assert "“Dose Report”" in volume.metadata["warnings"][0]


def test_a_dose_beside_the_slices_is_passed_over(write_dicom_slice: Writer, tmp_path: Path) -> None:
    write_series(write_dicom_slice, tmp_path, "1.1")
    dose = get_testdata_file("rtdose_1frame.dcm", download=False)
    assert isinstance(dose, str)
    shutil.copy(dose, tmp_path / "dose.dcm")
    volume = load_volume(tmp_path)
    assert volume.spatial_shape == (4, 3, 3)
    assert "(RTDOSE, 1 image" in volume.metadata["warnings"][0]


def test_two_stacks_are_never_chosen_between(write_dicom_slice: Writer, tmp_path: Path) -> None:
    write_series(write_dicom_slice, tmp_path, "1.1")
    write_series(write_dicom_slice, tmp_path, "1.2", Modality="MR")
    with pytest.raises(RequestError, match="2 image series where one is needed"):
        load_volume(tmp_path)


def test_rounded_orientations_are_one_series(write_dicom_slice: Writer, tmp_path: Path) -> None:
    for k in range(4):
        turned = [1, 0.0004 * (k % 2), 0, 0, 1, 0]
        write_dicom_slice(tmp_path / str(k), ZERO, (0, 0, k), ImageOrientationPatient=turned)
    (series,) = found(tmp_path)
    assert series.images == 4


def person(write: Writer, folder: Path, **tags: Any) -> DicomSeries:
    write(folder / "1", ZERO, (0, 0, 0), PatientID="7", **tags)
    (series,) = found(folder)
    return series


def test_people_under_one_identifier(write_dicom_slice: Writer, tmp_path: Path) -> None:
    doe = {"PatientName": "Doe^Jane", "PatientBirthDate": "19500102", "PatientSex": "F"}
    cases = {
        "same": doe,
        "otherwise written": {**doe, "PatientName": "DOE JANE^^^MRS"},
        "born otherwise": {**doe, "PatientBirthDate": "19500201"},
        "other sex": {**doe, "PatientSex": "M"},
        "other name": {**doe, "PatientName": "Roe^Richard"},
        "no traits": {"PatientName": "", "PatientBirthDate": "", "PatientSex": ""},
    }
    everyone = {
        name: person(write_dicom_slice, tmp_path / str(n), **tags)
        for n, (name, tags) in enumerate(cases.items())
    }
    same = everyone["same"]
    assert len({series.patient_key for series in everyone.values()}) == 1
    contradicting = {name for name, series in everyone.items() if series.contradicts(same)}
    assert contradicting == {"born otherwise", "other sex", "other name"}
    assert contradicting == {name for name, series in everyone.items() if same.contradicts(series)}
    assert "Jane" not in repr(same)
    assert replace(same, patient_key="") != same


def test_patients_are_not_named_by_warnings(
    write_dicom_slice: Writer, tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog
) -> None:
    """pydicom quotes values that break the standard's rules, here a name too long and no date at all."""
    write_series(write_dicom_slice, tmp_path, "1.1")
    for path in tmp_path.iterdir():
        file = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            file.PatientName = "Secret" * 20
            file.PatientBirthDate = "Secret"
            file.PatientID = "Secret" * 20
            file.save_as(path)
    recwarn.clear()
    caplog.clear()
    volume = load_volume(tmp_path)
    assert str(volume.metadata["dicom"].header.PatientID).startswith("Secret")
    assert not [str(warning.message) for warning in recwarn]
    assert "Secret" not in caplog.text


def test_a_real_disc_has_its_index_left_out() -> None:
    """Patients, series and an index, as on a disc of a clinic."""
    path = get_testdata_file("dicomdirtests/DICOMDIR", download=False)
    disc = Path(path).parent if isinstance(path, str) else Path("missing")
    files = visible_files(disc)
    assert "DICOMDIR" not in {file.name for file in files}
    series = find_series(files, "disc")
    assert {one.modality for one in series} == {"CR", "CT", "MR"}
    assert len({one.patient_key for one in series}) == 2
    brain = next(one for one in series if one.description == "Routine Brain")
    assert brain.images == 4
    assert brain.facts["kvp"] is None or brain.facts["kvp"] > 60
    assert any(one.facts["localizer"] for one in series if "LOCALIZER" in one.description)
