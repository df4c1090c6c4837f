import pickle
import re

import numpy as np
import pytest
from pydicom.uid import MRImageStorage, generate_uid

from ct2mri.data.dicom_write import save_dicom_series
from ct2mri.data.io import load_volume
from ct2mri.data.layouts import find_cases
from ct2mri.errors import RequestError
from ct2mri.options.data import RawDataOptions


@pytest.fixture
def write_series(write_dicom_slice):
    """A function that writes a small series whose first stored value says which it is."""

    def write(folder, value, description, *, modality="CT", slices=3, skip=(), **tags):
        tags = {
            "SeriesInstanceUID": generate_uid(entropy_srcs=[str(folder), description]),
            "StudyInstanceUID": "1.2.1",
            "FrameOfReferenceUID": "1.2.9",
            "PatientID": "id-1",
            "SeriesDescription": description,
        } | tags
        if modality != "CT":
            tags |= {"Modality": modality, "SOPClassUID": MRImageStorage, "RescaleIntercept": 0}
        for number in range(slices):
            if number in skip:
                continue
            stored = np.full((4, 5), value, np.uint16)
            name = f"{description}{number}".replace(" ", "_")
            uid = generate_uid(entropy_srcs=[str(folder), name])
            write_dicom_slice(folder / f"{name}.dcm", stored, (0, 0, 2 * number), SOPInstanceUID=uid, **tags)

    return write


def find(raw, **options):
    return find_cases(raw, RawDataOptions(**options))


def values(case):
    return tuple(float(volume.array[0, 0, 0]) for volume in (case.load_source(), case.load_target()))


def ids(found):
    return [case.case_id for case in found.cases]


def test_a_mixed_tree_is_sorted_into_pairs(tmp_path, write_series):
    # All series of a patient lie in one folder, as many exports do.
    for number, patient in enumerate(("anna", "bert")):
        identity = {"PatientID": f"id-{number}", "StudyInstanceUID": f"1.2.{number}"}
        write_series(tmp_path / patient, 1000 + number, "CT soft", **identity)
        write_series(tmp_path / patient, 500 + number, "T1 mprage", modality="MR", **identity)
        write_series(tmp_path / patient, 7, "Scout", modality="MR", slices=1, **identity)
        (tmp_path / patient / "report.txt").write_text("no image")
    found = find(tmp_path)
    assert (found.layout, ids(found), found.left_out, found.notes) == ("dicom", ["anna", "bert"], {}, [])
    assert [values(case) for case in found.cases] == [(-24, 500), (-23, 501)]
    assert found.cases[0].facts == {"target_contrast": "T1w"}
    assert "T1 mprage" in found.cases[0].target_name and "id-0" not in repr(found)
    turned = find(tmp_path, source="mr", target="ct").cases[0]
    assert values(turned) == (500, -24) and turned.facts == {"source_contrast": "T1w"}
    copy = pickle.loads(pickle.dumps(turned))
    assert copy.inputs() == turned.inputs() and copy.inputs()["source"]["files"] == 3


def test_a_choice_among_several_mr_series(tmp_path, write_series):
    for patient in ("pat1", "pat2"):
        identity = {"PatientID": patient}
        write_series(tmp_path / patient / "a", 1, "CT", **identity)
        write_series(tmp_path / patient / "b", 2, "ax T1", modality="MR", **identity)
        write_series(tmp_path / patient / "c", 3, "ax T2", modality="MR", **identity)
    with pytest.raises(RequestError, match=r"several mr images.*ax T1.*ax T2.*--target_series"):
        find(tmp_path)
    assert [values(case)[1] for case in find(tmp_path, target_series="t1").cases] == [2, 2]
    assert [values(case)[1] for case in find(tmp_path, target="T2").cases] == [3, 3]
    # One patient without that series is named, the other goes on.
    for path in (tmp_path / "pat1" / "c").iterdir():
        path.unlink()
    found = find(tmp_path, target="t2")
    assert ids(found) == ["pat2"] and "it has no t2 series" in found.left_out["pat1"]


def test_contrasts_guessed_from_headers_are_not_mixed(tmp_path, write_series):
    for patient, description in {"a": "T1 mprage", "b": "T2 tse", "c": "T1 vibe"}.items():
        write_series(tmp_path / patient, 1, "CT", PatientID=patient)
        write_series(tmp_path / patient, 2, description, modality="MR", PatientID=patient)
    with pytest.raises(RequestError, match="T1w in 2 cases, T2w in 1 cases"):
        find(tmp_path)
    assert ids(find(tmp_path, target="t1")) == ["a", "c"]
    write_series(tmp_path / "d", 1, "CT", PatientID="d")
    write_series(tmp_path / "d", 2, "T1 Gd", modality="MR", PatientID="d", ContrastBolusAgent="Gadovist")
    with pytest.raises(RequestError, match="T1w with contrast agent in 1 cases"):
        find(tmp_path)
    assert ids(find(tmp_path, target="t1c")) == ["d"] and ids(find(tmp_path, target="t1")) == ["a", "c"]


def test_results_of_ours_are_no_images_to_learn_from(tmp_path, write_series):
    """They lie in the study of their CT, as `translate --format dicom` writes them for viewers."""
    for patient in ("anna", "bert"):
        identity = {"PatientID": patient, "StudyInstanceUID": f"1.2.{patient == 'anna':d}"}
        write_series(tmp_path / patient, 1000, "CT soft", **identity)
        volume = load_volume(tmp_path / patient)
        result = volume.with_array(np.full_like(volume.array, 7))
        words = {"series_description": "SYNTHETIC MR from CT", "derivation": "Synthetic.", "model": "tiny"}
        origin = volume.metadata["dicom"]
        save_dicom_series(result, tmp_path / patient / "out", modality="MR", origin=origin, **words)
        if patient == "anna":
            write_series(tmp_path / patient, 500, "T1 mprage", modality="MR", **identity)
    found = find(tmp_path)
    assert ids(found) == ["anna"] and values(found.cases[0]) == (-24, 500)
    (reason,) = found.left_out.values()
    assert "its only mr is synthetic" in reason and "acquired" in reason


def test_cone_beam_cts_are_told_apart(tmp_path, write_series):
    for patient in ("a", "b"):
        write_series(tmp_path / patient, 1, "kV CBCT", PatientID=patient, ManufacturerModelName="OBI")
        write_series(tmp_path / patient, 3, "T1", modality="MR", PatientID=patient)
    write_series(tmp_path / "a", 2, "planning", PatientID="a")
    found = find(tmp_path)
    assert [values(case) for case in found.cases] == [(2 - 1024, 3)]
    assert "its only CT is a cone-beam CT" in found.left_out["b"]
    cone = find(tmp_path, source="cbct")
    assert ids(cone) == ["a", "b"] and "source of 2 of 2 cases is a cone-beam CT" in cone.notes[0]
    assert cone.cases[0].facts["source_cbct"]


def test_two_people_under_one_identifier_are_left_out(tmp_path, write_series):
    for patient, name in {"a": "Alpha^One", "b": "Beta^Two", "c": "Gamma^Three"}.items():
        identity = {"PatientID": "ANON" if patient != "c" else "other", "PatientName": name}
        identity["StudyInstanceUID"] = generate_uid(entropy_srcs=[patient])
        write_series(tmp_path / patient, 1, "CT", **identity)
        write_series(tmp_path / patient, 2, "T1", modality="MR", **identity)
    found = find(tmp_path)
    assert ids(found) == ["c"]
    ((name, reason),) = found.left_out.items()
    assert "two patients go by one PatientID (in a, b)" in reason
    assert not any(word in name + reason for word in ("ANON", "Alpha", "Beta"))


def test_studies_of_one_patient_are_cases_of_one_patient(tmp_path, write_series):
    for study in ("first", "second"):
        identity = {"StudyInstanceUID": generate_uid(entropy_srcs=[study])}
        write_series(tmp_path / study, 1, "CT", **identity)
        write_series(tmp_path / study, 2, "T1", modality="MR", **identity)
    found = find(tmp_path)
    assert len({case.case_id for case in found.cases}) == 2
    assert len({case.patient_id for case in found.cases}) == 1
    assert "2 studies with a pair each" in found.notes[0]
    before = ids(found)
    write_series(tmp_path / "third", 1, "CT", PatientID="id-2")
    write_series(tmp_path / "third", 2, "T1", modality="MR", PatientID="id-2")
    assert ids(find(tmp_path)) == [*before, "third"]


def test_ct_and_mr_of_different_studies_are_a_pair_that_may_not_be_aligned(tmp_path, write_series):
    write_series(tmp_path / "a" / "x", 1, "CT", StudyInstanceUID="1.2.3")
    write_series(
        tmp_path / "a" / "y", 2, "T1", modality="MR", StudyInstanceUID="1.2.4", FrameOfReferenceUID="1.2.8"
    )
    found = find(tmp_path)
    assert ids(found) == ["a"] and "different frames of reference" in found.notes[0]


def test_an_mr_without_a_ct_and_a_damaged_header_are_named(tmp_path, write_series):
    for patient in ("a", "b"):
        write_series(tmp_path / patient, 2, "T1", modality="MR", PatientID=patient)
    write_series(tmp_path / "a", 1, "CT", PatientID="a")
    write_series(tmp_path / "a", 1, "broken", PatientID="a", slices=1, NumberOfFrames=1)
    (broken,) = tmp_path.glob("a/broken*")
    number_of_frames = b"\x28\x00\x08\x00IS\x02\x00"
    assert number_of_frames + b"1 " in broken.read_bytes()
    broken.write_bytes(broken.read_bytes().replace(number_of_frames + b"1 ", number_of_frames + b"xx"))
    found = find(tmp_path)
    assert ids(found) == ["a"] and "no ct series (there is “T1”" in found.left_out["b"]
    assert any("(a/broken0.dcm)" in note for note in found.notes)


def test_a_missing_middle_slice_is_told_when_read(tmp_path, write_series):
    write_series(tmp_path / "a", 1, "CT", slices=7, skip=(3,))
    write_series(tmp_path / "a", 2, "T1", modality="MR")
    (case,) = find(tmp_path).cases
    with pytest.raises(RequestError, match="missing"):
        case.load()
    assert case.load_target().spatial_shape == (5, 4, 3)


# Gold Atlas


def write_atlas(write_series, root):
    for number, patient in enumerate(("1_01_P", "2_03_P")):
        identity = {"PatientID": patient, "PatientName": patient}
        write_series(root / patient, 100 + number, "CT", FrameOfReferenceUID="1.2.8", **identity)
        write_series(root / patient, 200 + number, "CT deformed", **identity)
        write_series(root / patient, 300 + number, "T1", modality="MR", **identity)
        write_series(root / patient, 400 + number, "T2", modality="MR", **identity)


def test_the_gold_atlas_is_taken_with_its_deformed_ct(tmp_path, write_series):
    write_atlas(write_series, tmp_path)
    with pytest.raises(RequestError, match=r"gold-atlas.*several mr images.*--target_series"):
        find(tmp_path)
    found = find(tmp_path, target="t2")
    assert (found.layout, ids(found)) == ("gold-atlas", ["1_01_P", "2_03_P"])
    assert [values(case) for case in found.cases] == [(200 - 1024, 400), (201 - 1024, 401)]
    assert [case.centre for case in found.cases] == ["1", "2"] and found.notes == []
    turned = find(tmp_path, source="t1", target="ct")
    assert [values(case) for case in turned.cases] == [(300, 200 - 1024), (301, 201 - 1024)]
    # The CT as scanned is there for who asks for it by name, and then said to lie elsewhere.
    scanned = find(tmp_path, target="t2", source_series="ct")
    assert values(scanned.cases[0]) == (100 - 1024, 400) and "frames of reference" in scanned.notes[0]


def test_the_deformed_ct_is_told_by_its_description_where_frames_do_not(tmp_path, write_series):
    identity = {"PatientID": "1_01_P", "PatientName": "1_01_P"}
    for value, description in ((100, "CT 3mm"), (200, "CTtoMR")):
        write_series(tmp_path / "1_01_P", value, description, **identity)
    write_series(tmp_path / "1_01_P", 400, "t2_tse_tra", modality="MR", **identity)
    (case,) = find(tmp_path).cases
    assert values(case) == (200 - 1024, 400) and case.facts["target_contrast"] == "T2w"


def test_a_folder_that_bears_the_patients_name_names_no_case(tmp_path, write_series):
    people = {
        "DOE_Jane_1": {"PatientID": "mrn-1", "PatientName": "Doe^Jane"},
        "anon-2": {"PatientID": "anon-2", "PatientName": "ANON-2"},  # a pseudonym
        "anna": {"PatientID": "id-3", "PatientName": "Anna", "PatientIdentityRemoved": "YES"},
        "export": {"PatientID": "id-4", "PatientName": "Roe^Bert"},
    }
    for folder, person in people.items():
        write_series(tmp_path / folder, 1000, "CT", **person)
        write_series(tmp_path / folder, 500, "T1", modality="MR", **person)
    found = find(tmp_path)
    assert found.left_out == {} and {"anon-2", "anna", "export"} < set(ids(found))
    (hashed,) = set(ids(found)) - set(people)
    assert re.fullmatch("patient-[0-9a-f]{8}", hashed)
    assert hashed == next(case.patient_id for case in found.cases if case.case_id == hashed)
