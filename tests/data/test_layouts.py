import json
import pickle
import shutil

import numpy as np
import openpyxl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ct2mri.data.io import save_volume
from ct2mri.data.layouts import find_cases
from ct2mri.data.layouts.flat import patient_of
from ct2mri.data.layouts.naming import is_mr_word, tokens
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.options.data import RawDataOptions

AFFINE = np.array([[-1.9, 0.2, 0, 20], [0.2, 1.9, 0.3, -30], [0, -0.3, 3, 5], [0, 0, 0, 1.0]])  # oblique


def write(path, value=0.0, shape=(5, 7, 3)):
    """A small volume whose first voxel says which it is."""
    array = np.zeros(shape)
    array[0, 0, 0] = value
    save_volume(Volume(array, AFFINE), path)


def find(raw, **options):
    return find_cases(raw, RawDataOptions(**options))


def values(case):
    """The first voxels of source and target: which files were read."""
    source, target, _ = case.load()
    return source.array[0, 0, 0], target.array[0, 0, 0]


def ids(found):
    return [case.case_id for case in found.cases]


# pairs


def test_pairs_are_found_in_either_direction(tmp_path):
    for number, patient in enumerate(("b", "a")):
        write(tmp_path / patient / "ct.nii.gz", 10 + number)
        write(tmp_path / patient / "MR.mha", 20 + number)
        write(tmp_path / patient / "mask.nrrd")
    found = find(tmp_path)
    assert (found.layout, ids(found), found.left_out, found.pictures) == ("pairs", ["a", "b"], {}, False)
    assert [values(case) for case in found.cases] == [(11, 21), (10, 20)]
    assert found.cases[0].mask.name == "mask.nrrd"
    np.testing.assert_allclose(found.cases[0].load_target().affine, AFFINE, atol=1e-5)
    turned = find(tmp_path, source="MR", target="ct")
    assert [values(case) for case in turned.cases] == [(21, 11), (20, 10)]
    assert turned.cases[0].source_name == "MR.mha" and turned.cases[0].target_name == "ct.nii.gz"


def test_cases_go_to_other_processes_and_tell_when_files_change(tmp_path):
    write(tmp_path / "a" / "ct.nii.gz", 1)
    write(tmp_path / "a" / "mr.nii.gz", 2)
    (case,) = find(tmp_path).cases
    copy = pickle.loads(pickle.dumps(case))
    assert values(copy) == (1, 2) and copy.inputs() == case.inputs()
    before = json.loads(json.dumps(case.inputs()))
    assert before["mask"] is None and before["source"]["name"] == "ct.nii.gz"
    write(tmp_path / "a" / "mr.nii.gz", 3, shape=(6, 7, 8))
    assert case.inputs() != before


def test_an_mr_without_a_ct_and_a_ct_without_an_mr_are_named(tmp_path):
    for patient, names in {"a": ["ct", "mr"], "b": ["mr"], "c": ["ct", "t1"], "d": []}.items():
        (tmp_path / patient).mkdir()
        for name in names:
            write(tmp_path / patient / f"{name}.nii.gz")
    found = find(tmp_path)
    assert ids(found) == ["a"] and set(found.left_out) == {"b", "c", "d"}
    assert found.left_out["b"] == "it has no ct.* (there is mr.nii.gz)"
    assert found.left_out["c"] == "it has no mr.* (there is ct.nii.gz, t1.nii.gz)"


def test_a_ct_with_two_mrs_waits_for_a_choice(tmp_path):
    for patient in ("pat1", "pat2"):
        write(tmp_path / patient / "ct.nii.gz")
        write(tmp_path / patient / "mr_t1.nii.gz", 1)
        write(tmp_path / patient / "mr_T2.nii.gz", 2)
        write(tmp_path / patient / "mr_t1_mask.nii.gz", 3)  # no MR itself
    with pytest.raises(
        RequestError, match=r"several mr images \(mr_T2.nii.gz, mr_t1.nii.gz\).*--target_series"
    ):
        find(tmp_path)
    chosen = find(tmp_path, target_series="T1")  # in the file's name, not in the patient's
    assert [values(case)[1] for case in chosen.cases] == [1, 1]
    by_word = find(tmp_path, target="t2")
    assert [values(case)[1] for case in by_word.cases] == [2, 2]
    assert {case.facts["target_contrast"] for case in by_word.cases} == {"T2w"}
    with pytest.raises(RequestError, match=r"none of its mr images .* is named as --target_series says"):
        find(tmp_path, target_series="flair")
    # An image named by the modality alone is the one that is meant.
    write(tmp_path / "pat1" / "mr.nii.gz", 9)
    found = find(tmp_path)
    assert ids(found) == ["pat1"] and values(found.cases[0])[1] == 9 and set(found.left_out) == {"pat2"}


def test_contrasts_are_not_mixed(tmp_path):
    for patient, name in {"a": "mr_t1", "b": "mr_t2", "c": "mr_t1"}.items():
        write(tmp_path / patient / "ct.nii.gz")
        write(tmp_path / patient / f"{name}.nii.gz")
    with pytest.raises(RequestError, match=r"T1w in 2 cases, T2w in 1 cases.*--target"):
        find(tmp_path)
    found = find(tmp_path, target="t1")
    assert ids(found) == ["a", "c"] and "no t1" in found.left_out["b"]
    # As a source the contrast is seen, so it is said.
    found = find(tmp_path, source="mr", target="ct")
    assert ids(found) == ["a", "b", "c"] and "T1w in 2 cases, T2w in 1 cases" in found.notes[0]
    assert [case.facts["source_contrast"] for case in found.cases] == ["T1w", "T2w", "T1w"]
    # One whose contrast is not told does not join the others silently.
    (tmp_path / "b" / "mr_t2.nii.gz").rename(tmp_path / "b" / "mr.nii.gz")
    found = find(tmp_path)
    assert ids(found) == ["a", "c"] and "is not told, that of the others is T1w" in found.left_out["b"]
    found = find(tmp_path, target_series="mr")
    assert ids(found) == ["a", "b", "c"] and "not told in 1 cases" in found.notes[0]


def test_a_cone_beam_ct_is_told_apart(tmp_path):
    for patient in ("a", "b"):
        for name in ("cbct", "ct", "mr"):
            write(tmp_path / patient / f"{name}.nii.gz", {"cbct": 1, "ct": 2, "mr": 3}[name])
    assert [values(case) for case in find(tmp_path).cases] == [(2, 3), (2, 3)]
    assert find(tmp_path).notes == []
    found = find(tmp_path, source="cbct", target="ct")
    assert [values(case) for case in found.cases] == [(1, 2), (1, 2)]
    assert found.cases[0].facts == {"source_cbct": True}
    assert "source of 2 of 2 cases is a cone-beam CT" in found.notes[0]


def test_names_that_differ_in_case_alone_are_two_patients_with_one_identifier(tmp_path):
    for patient in ("P1", "p1", "p2"):
        write(tmp_path / patient / "ct.nii.gz")
        write(tmp_path / patient / "mr.nii.gz")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell upper from lower case")
    found = find(tmp_path)
    assert ids(found) == ["p2"] and set(found.left_out) == {"P1", "p1"}
    assert "2 patients go by the identifier p1" in found.left_out["p1"]


def test_one_patients_folder_is_a_pair_as_well(tmp_path):
    write(tmp_path / "anna" / "ct.nii.gz", 1)
    write(tmp_path / "anna" / "mr.nii.gz", 2)
    (case,) = find(tmp_path / "anna").cases
    assert (case.case_id, *values(case)) == ("anna", 1, 2)


# flat


@pytest.mark.parametrize(
    "names",
    [
        ("{}_ct.nii.gz", "{}_mr.mha", "{}_mask.nii.gz"),
        ("{}-CT.nii", "{}-MRI.nii", "{}-mask.nii"),
        ("ct_{}.nrrd", "mr_{}.nrrd", "mask_{}.nrrd"),
        ("ct/{}.nii.gz", "mr/{}.nii.gz", "mask/{}.nii.gz"),
        ("CT/{}_ct.nii.gz", "MR/{}_mr_t1.nii.gz", "mask/{}_mask.nii.gz"),
    ],
)
def test_flat_folders(tmp_path, names):
    for number, patient in enumerate(("site_a-01", "site_a-02")):
        for kind, name in enumerate(names):
            write(tmp_path / name.format(patient), 10 * kind + number)
    found = find(tmp_path)
    assert (found.layout, ids(found), found.left_out) == ("flat", ["site_a-01", "site_a-02"], {})
    assert [values(case) for case in found.cases] == [(0, 10), (1, 11)]
    assert [case.mask.load().array[0, 0, 0] for case in found.cases] == [20, 21]
    turned = find(tmp_path, source="mr", target="ct")
    assert [values(case) for case in turned.cases] == [(10, 0), (11, 1)]
    assert turned.cases[0].target_name == names[0].format("site_a-01")  # with its folder, where it has one


def test_flat_images_without_a_partner_or_with_two(tmp_path):
    for name in ("a_ct", "a_mr", "b_ct", "c_mr", "d_ct", "d_mr_t1", "d_mr_t2"):
        write(tmp_path / f"{name}.nii.gz")
    write(tmp_path / "a_mr.nrrd")
    found = find(tmp_path, target_series="nii", layout="flat")
    assert ids(found) == ["a"]
    assert found.left_out["b"] == "it has no mr image" and found.left_out["c"] == "it has no ct image"
    assert "several mr images (d_mr_t1.nii.gz, d_mr_t2.nii.gz)" in found.left_out["d"]
    by_word = find(tmp_path, target="t2")
    assert ids(by_word) == ["d"] and by_word.cases[0].target_name == "d_mr_t2.nii.gz"


def test_a_patient_called_t1_says_nothing_of_the_contrast(tmp_path):
    for patient in ("T1", "T2"):
        write(tmp_path / f"{patient}_ct.nii.gz")
        write(tmp_path / f"{patient}_mr.nii.gz")
    assert [case.facts for case in find(tmp_path).cases] == [{}, {}]
    for patient in ("T1", "T2"):
        write(tmp_path / "mr_t2" / f"{patient}.nii.gz")
    by_folder = find(tmp_path, target="t2").cases
    assert [(case.case_id, case.facts["target_contrast"]) for case in by_folder] == [
        ("T1", "T2w"),
        ("T2", "T2w"),
    ]


def test_files_whose_names_tell_no_patient_are_named_and_left_out(tmp_path):
    """Their case would have no name, and its folder take the place of that of all cases."""
    for name in ("p1_ct", "p1_mr", "_ct", "_mr", "ct_"):
        write(tmp_path / f"{name}.nii.gz")
    found = find(tmp_path, layout="flat")
    assert ids(found) == ["p1"] and set(found.left_out) == {"_ct.nii.gz"}
    assert "tells no patient" in found.left_out["_ct.nii.gz"]


@settings(max_examples=40)
@given(
    patient=st.from_regex(r"[A-Za-z0-9]+([_\-. ][A-Za-z0-9]+){0,3}", fullmatch=True),
    gap=st.sampled_from("_-."),
    word=st.sampled_from(["ct", "mr", "t1", "pet"]),
)
def test_a_name_before_a_modality_is_the_patients(patient, gap, word):
    assume(not any(is_mr_word(part) or part in ("ct", "pt", "pet") for part in tokens(patient)))
    assert patient_of(f"{patient}{gap}{word.upper()}", word) == patient
    assert patient_of(f"{word}{gap}{patient}", word) == patient
    assert patient_of(f"{patient}_mr_{word}", word) == (patient if word == "t1" else f"{patient}_mr")
    assert patient_of(patient, word) is None


# SynthRAD


def write_synthrad(root, patients, suffix, kinds=("ct", "mr", "mask")):
    for number, patient in enumerate(patients):
        for kind in kinds:
            write(root / patient / f"{kind}{suffix}", number)


def write_table(path, sheets):
    """A table of acquisitions as the data sets have them: sheet → rows of column → text."""
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for title, rows in sheets.items():
        sheet = workbook.create_sheet(title)
        sheet.append(list(rows[0]))
        for row in rows:
            sheet.append(list(row.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    workbook.save(path)


def mr_row(patient, description, scanning, repetition, echo, maker="Philips"):
    return {
        "ID": patient,
        "Set": "train",
        "PatientAge": "empty",
        "Modality": "MR",
        "SeriesDescription": description,
        "ScanningSequence": scanning,
        "FlipAngle": "20",
        "InversionTime": "-",
        "EchoTime": echo,
        "RepetitionTime": repetition,
        "Manufacturer": maker,
    }


def test_synthrad2023_as_downloaded(tmp_path):
    brain = tmp_path / "Task1" / "brain"
    write_synthrad(brain, ("1BA001", "1BB002", "1BC003"), ".nii.gz")
    (brain / "overview").mkdir()
    (brain / "overview" / "1BA001_train.png").write_bytes(b"")
    # The brains of centres B and C were given a contrast agent: as a target they are not mixed unasked.
    with pytest.raises(
        RequestError, match=r"agent in 2 cases, T1w in 1 cases.*--target_series and the begin"
    ):
        find(brain)
    for raw in (tmp_path, tmp_path / "Task1", brain):
        found = find(raw, target_series="1B")
        assert (found.layout, ids(found)) == ("synthrad2023", ["1BA001", "1BB002", "1BC003"])
        assert found.left_out == {} and "T1w with contrast agent in 2 cases" in found.notes[0]
    assert [case.centre for case in found.cases] == ["A", "B", "C"]
    assert found.cases[0].facts == {"anatomy": "brain", "target_contrast": "T1w"}
    assert found.cases[1].load_target().metadata["contrast_agent"] is True
    assert all(case.mask for case in found.cases)
    assert ids(find(brain, target="t1")) == ["1BA001"] and ids(find(brain, target="t1c")) == [
        "1BB002",
        "1BC003",
    ]
    assert find(brain, target="t1").left_out["1BC003"] == "its MR is T1w with contrast agent, not T1w"
    write_synthrad(tmp_path / "Task1" / "pelvis", ("1PA001", "1PC002"), ".nii.gz")
    pelvis = find(tmp_path / "Task1" / "pelvis")
    assert [case.facts for case in pelvis.cases] == [{"anatomy": "pelvis"}] * 2
    assert "2 centres (A, C), whose sequences differ" in pelvis.notes[0]
    assert ids(find(tmp_path, target_series="1pc")) == ["1PC002"]
    assert len(find(tmp_path, source="mr", target="ct").cases) == 5
    # The validation set comes without CT; a copy of a patient is no second patient.
    (brain / "1BA001" / "ct.nii.gz").unlink()
    shutil.copytree(brain / "1BB002", tmp_path / "Task1" / "copy" / "1BB002")
    found = find(tmp_path / "Task1", target_series="1")
    assert ids(found) == ["1BC003", "1PA001", "1PC002"]
    assert "no ct.*" in found.left_out["1BA001"]
    assert "2 patients go by the identifier 1BB002" in found.left_out["1BB002"]
    assert "brain" in found.left_out["1BB002"] and "copy" in found.left_out["1BB002"]


def test_synthrad_tables_tell_contrast_and_scanner(tmp_path):
    pelvis = tmp_path / "Task1" / "pelvis"
    write_synthrad(pelvis, ("1PA001", "1PA004", "1PC002", "1PC003"), ".nii.gz")
    write_table(
        pelvis / "overview" / "1_pelvis_train.xlsx",
        {
            "CT": [
                {"ID": "1PA001", "KVP": "120.0", "SliceThickness": "3.0", "Manufacturer": "empty"},
                {"ID": "1PC002", "KVP": 100, "SliceThickness": "?", "Manufacturer": "SIEMENS"},
            ],
            "MR": [
                mr_row("1PA001", "T1_3D_FFE", "GR", "4.6", "2.3"),
                mr_row("1PA004", "empty", "['GR', 'RM']", "4.6", 2.3),
                mr_row("1PC002", "T2W_TSE", "['SE']", "6000", "100"),
                mr_row("1PC003", "empty", "SE", "6000", "100"),  # no name: told by its times
            ],
        },
    )
    with pytest.raises(RequestError, match=r"T1w in 2 cases, T2w in 2 cases"):
        find(pelvis)
    found = find(pelvis, target="t2")
    assert ids(found) == ["1PC002", "1PC003"] and found.notes == []
    assert found.left_out["1PA001"] == "its MR is T1w, not T2w"
    source, target, _ = found.cases[0].load()
    assert {key: source.metadata.get(key) for key in ("kvp", "manufacturer", "slice_thickness")} == {
        "kvp": 100.0,
        "manufacturer": "SIEMENS",
        "slice_thickness": None,
    }
    assert target.metadata["mr_contrast"] == "T2w" and target.metadata["manufacturer"] == "Philips"
    turned = find(pelvis, source="mr", target="ct")
    assert [case.facts["source_contrast"] for case in turned.cases] == ["T1w", "T1w", "T2w", "T2w"]
    # A damaged table costs what it tells, and that is said.
    (pelvis / "overview" / "1_pelvis_train.xlsx").write_bytes(b"PK no workbook")
    found = find(pelvis)
    assert len(found.cases) == 4 and "1_pelvis_train.xlsx cannot be read" in found.notes[0]
    assert "2 centres (A, C), whose sequences differ" in found.notes[1]


def test_synthrad2025_as_downloaded(tmp_path):
    for region in ("AB", "HN", "TH"):
        folder = tmp_path / "Task1" / region
        write_synthrad(folder, (f"1{region}A001", f"1{region}D002"), ".mha")
        write(folder / f"1{region}A001" / "ct_def.mha")
        (folder / "overviews").mkdir()
        (folder / "overviews" / f"1{region}A001_train.png").write_bytes(b"")
    found = find(tmp_path)
    assert found.layout == "synthrad2025"
    assert ids(found) == ["1ABA001", "1ABD002", "1HNA001", "1HND002", "1THA001", "1THD002"]
    assert [case.centre for case in found.cases] == ["A", "D"] * 3
    assert [case.facts["anatomy"] for case in found.cases] == ["AB", "AB", "HN", "HN", "TH", "TH"]
    assert {case.source_name for case in found.cases} == {"ct.mha"}
    with pytest.raises(
        RequestError, match="1ABA001: no table in its overview folder tells whether its MR is T"
    ):
        find(tmp_path, target="t1")
    write_table(
        tmp_path / "Task1" / "HN" / "overviews" / "1_HN_train_parameters.xlsx",
        {"MRI": [mr_row("1HNA001", "t1_mprage", "['GR', 'IR']", "1900", "2.5"), mr_row("1HND002", *"----")]},
    )
    assert ids(find(tmp_path, target="t1")) == ["1HNA001"]
    write_synthrad(tmp_path / "Task2" / "HN", ("2HNB001",), ".mha", ("ct", "cbct", "mask"))
    write_table(
        tmp_path / "Task2" / "HN" / "overviews" / "2_HN_train_parameters.xlsx",
        {"CBCT": [{"ID": "2HNB001", "KVP": "100"}], "CT": [{"ID": "2HNB001", "KVP": "120"}]},
    )
    cone = find(tmp_path / "Task2", source="cbct", target="ct")
    assert cone.cases[0].facts == {"anatomy": "HN", "source_cbct": True} and "CBCT" in cone.notes[0]
    assert [volume.metadata["kvp"] for volume in cone.cases[0].load()[:2]] == [100, 120]
    with pytest.raises(RequestError, match="2HNB001: it has no mr"):
        find(tmp_path / "Task2")


# BIDS


def test_bids_with_and_without_sessions(tmp_path):
    write(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz", 1)
    write(tmp_path / "sub-01" / "ct" / "sub-01_ct.nii.gz", 2)
    write(tmp_path / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz")
    for session in ("ses-a", "ses-b"):
        folder = tmp_path / "sub-02" / session / "anat"
        write(folder / f"sub-02_{session}_acq-highres_T1w.nii.gz", 3)
        write(folder / f"sub-02_{session}_ct.nii.gz", 4)
        write(folder / f"sub-02_{session}_desc-body_mask.nii.gz")
    # MR and CT on different days.
    write(tmp_path / "sub-03" / "ses-1" / "anat" / "sub-03_ses-1_ce-gad_T1w.nii.gz", 5)
    write(tmp_path / "sub-03" / "ses-2" / "anat" / "sub-03_ses-2_ct.nii.gz", 6)
    write(tmp_path / "sub-04" / "anat" / "sub-04_T1w.nii.gz")
    write(tmp_path / "derivatives" / "sub-05" / "anat" / "sub-05_T1w.nii.gz")
    found = find(tmp_path, source="mr", target="ct")
    assert found.layout == "bids"
    assert {case.case_id: (case.patient_id, *values(case)) for case in found.cases} == {
        "sub-01": ("sub-01", 1, 2),
        "sub-02_ses-a": ("sub-02", 3, 4),
        "sub-02_ses-b": ("sub-02", 3, 4),
        "sub-03": ("sub-03", 5, 6),
    }
    assert found.left_out == {"sub-04": "it has no ct image (there is sub-04_T1w.nii.gz)"}
    assert [bool(case.mask) for case in found.cases] == [False, True, True, False]
    assert found.notes == [
        "The source images are of several MR contrasts: T1w in 3 cases, T1w with contrast agent in 1 cases."
    ]
    with pytest.raises(RequestError, match="T1w with contrast agent in 1 cases"):
        find(tmp_path)
    assert ids(find(tmp_path, target="t1")) == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert ids(find(tmp_path, target="t1c")) == ["sub-03"]


def test_bids_contrasts_are_chosen_and_never_mixed(tmp_path):
    for subject, contrasts in {"sub-1": ("T1w", "T2w"), "sub-2": ("T2w",), "sub-3": ("T1w",)}.items():
        write(tmp_path / subject / "anat" / f"{subject}_ct.nii.gz")
        write(tmp_path / subject / "anat" / f"{subject}_acq-cbct_ct.nii.gz", 7)
        for contrast in contrasts:
            write(tmp_path / subject / "anat" / f"{subject}_{contrast}.nii.gz", int(contrast[1]))
    with pytest.raises(RequestError, match="T2w in 1 cases"):
        find(tmp_path)
    found = find(tmp_path, target="T2")
    assert [(case.case_id, *values(case)) for case in found.cases] == [("sub-1", 0, 2), ("sub-2", 0, 2)]
    assert "sub-3" in found.left_out and found.notes == []
    assert ids(find(tmp_path, target_series="t1w")) == ["sub-1", "sub-3"]
    cone = find(tmp_path, source="cbct", target="t1w")
    assert [values(case) for case in cone.cases] == [(7, 1), (7, 1)]
    assert cone.cases[0].facts["source_cbct"]


# Recognition


def test_a_folder_that_fits_several_layouts_needs_a_word(tmp_path):
    write(tmp_path / "p" / "ct.nii.gz")
    write(tmp_path / "p" / "mr.nii.gz")
    write(tmp_path / "q_ct.nii.gz")
    write(tmp_path / "q_mr.nii.gz")
    with pytest.raises(RequestError, match="--layout pairs or --layout flat"):
        find(tmp_path)
    assert ids(find(tmp_path, layout="flat")) == ["q"] and ids(find(tmp_path, layout="pairs")) == ["p"]


def test_what_fits_no_layout_says_what_is_there(tmp_path):
    for patient in ("a", "b"):
        write(tmp_path / patient / "planning.nii.gz")
        write(tmp_path / patient / "t1.nii.gz")
    write(tmp_path / "sub-ject_flair.nii.gz")
    with pytest.raises(RequestError, match=r"2 subfolders, images named planning, t1.*--source"):
        find(tmp_path)
    assert ids(find(tmp_path, source="planning", target="t1")) == ["a", "b"]
    with pytest.raises(RequestError, match="both MR; name two modalities"):
        find(tmp_path, source="MR", target="mri")
    with pytest.raises(RequestError, match=r"No pair.*layout bids.*sub-ID"):
        find(tmp_path, layout="bids")
