import re
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from ct2mri import __version__
from ct2mri.data.dicom_write import mr_factor, save_dicom_series
from ct2mri.data.geometry import to_sitk
from ct2mri.data.io import load_volume
from ct2mri.data.phantom import draw_phantom
from ct2mri.data.volume import Grid, Volume
from ct2mri.errors import RequestError

SHARED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription"),
    *("ReferringPhysicianName", "ClinicalTrialProtocolID", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "PatientPosition", "BodyPartExamined", "Rows", "Columns"),
)
SENTENCE = "SYNTHETIC MR, generated from CT, not acquired."
OBLIQUE = Rotation.from_euler("xyz", [12, -25, 40], degrees=True).as_matrix()


def write(volume, folder, origin=None, **changes):
    settings = {"modality": "MR", "series_description": "SYNTHETIC MR from CT", "derivation": SENTENCE}
    save_dicom_series(volume, folder, origin=origin, model="tiny", **settings | changes)


def images(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def noise(affine, shape=(7, 9, 5), highest=1200.0) -> Volume:
    array = np.random.default_rng(0).integers(0, int(highest) + 1, shape)
    return Volume(array.astype(np.float32), affine)


def affine_of(directions, spacing=(0.9765625, 1.1, 2.5), start=(-123.4567891, 87.654321, -45.123456)):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions) * spacing
    affine[:3, 3] = start
    return affine


@pytest.fixture
def ct_folder(write_dicom_slice, tmp_path) -> Path:
    """An oblique CT series of 7 × 9 × 5 voxels with much about the patient in its headers."""
    row, column, normal = OBLIQUE.T
    rng = np.random.default_rng(1)
    about = {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "Müller^Änne",
        "PatientID": "HOSPITAL-4711",
        "PatientBirthDate": "19510203",
        "PatientSex": "F",
        "PatientAge": "073Y",
        "PatientAddress": "Hidden Lane 5",
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=["frame"]),
        "StudyDate": "20240506",
        "StudyTime": "070809",
        "StudyID": "ST77",
        "AccessionNumber": "ACC123456",
        "StudyDescription": "Schädel nativ",
        "ReferringPhysicianName": "Referrer^Rita",
        "InstitutionName": "Saint Elsewhere",
        "Manufacturer": "Scanners Ltd",
        "ManufacturerModelName": "Spiral 64",
        "DeviceSerialNumber": "SN99887766",
        "PatientPosition": "FFS",
        "BodyPartExamined": "HEAD",
        "PositionReferenceIndicator": "OM",
        "ClinicalTrialSponsorName": "Sponsors United",
        "ClinicalTrialProtocolID": "TRIAL-12345",
        "ClinicalTrialProtocolName": "TRIALNAME",
        "ClinicalTrialSiteID": "SITE-1",
        "ClinicalTrialSiteName": "Site One",
        "ClinicalTrialSubjectID": "SUBJECT-88",
        "ClinicalTrialTimePointID": "BASELINE",
        "SeriesNumber": 3,
        "KVP": 120,
    }
    for k in range(5):
        write_dicom_slice(
            tmp_path / "ct" / f"{k}.dcm",
            rng.integers(0, 3000, (9, 7)).astype(np.int16),
            [f"{x:.9f}" for x in np.array([-100.25, 50.5, 10]) + 2.5 * k * normal],
            ImageOrientationPatient=[f"{x:.12f}" for x in (*row, *column)],
            PixelSpacing=[1.1, 0.9765625],
            **about,
        )
    return tmp_path / "ct"


@pytest.fixture
def ct(ct_folder) -> Volume:
    return load_volume(ct_folder)


def dciodvfy(path: Path) -> None:
    """Assert that dicom3tools finds no error in a file, other than that it is older than SyntheticData."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if "Error" in line and "(0x0008,0x001c)" not in line]
    assert errors == []
    assert done.returncode == 0
    assert re.search(r"^(MR|CT)Image$", done.stderr, re.MULTILINE)


# --- what the images say ---------------------------------------------------------------------------------


def test_an_mr_lies_in_the_study_of_its_ct(ct, ct_folder, tmp_path):
    mr = ct.with_array(np.abs(ct.array))
    write(mr, tmp_path / "mr", ct.metadata["dicom"])
    sources = sorted(images(ct_folder), key=lambda d: d.ImagePositionPatient @ OBLIQUE[:, 2])
    results = images(tmp_path / "mr")
    assert len(results) == 5
    for source, result in zip(sources, results, strict=True):
        for keyword in SHARED:
            assert result[keyword].value == source[keyword].value, keyword
        assert str(result.PatientName) == "Müller^Änne"
        for keyword in ("PatientAddress", "KVP", "InstitutionName", "DeviceSerialNumber", "AcquisitionDate"):
            assert keyword not in result
        (reference,) = result.SourceImageSequence
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert np.allclose(result.ImagePositionPatient, source.ImagePositionPatient, rtol=0, atol=1e-6)
        assert result.SOPInstanceUID == result.file_meta.MediaStorageSOPInstanceUID
    uids = {uid for d in (*sources, *results) for uid in (d.SOPInstanceUID, d.SeriesInstanceUID)}
    assert len(uids) == 5 + 5 + 2
    assert [result.InstanceNumber for result in results] == [1, 2, 3, 4, 5]


def test_it_is_marked_synthetic_and_no_acquisition_is_invented(ct, tmp_path):
    write(ct.with_array(np.abs(ct.array)), tmp_path / "mr", ct.metadata["dicom"])
    for image in images(tmp_path / "mr"):
        assert image.SOPClassUID == image.file_meta.MediaStorageSOPClassUID == pydicom.uid.MRImageStorage
        assert image.Modality == "MR"
        assert image.ImageType == ["DERIVED", "SECONDARY", "OTHER"]
        assert (image.SyntheticData, image.BurnedInAnnotation) == ("YES", "NO")
        assert image.SeriesDescription == "SYNTHETIC MR from CT"
        assert image.DerivationDescription == SENTENCE
        assert (image.Manufacturer, image.ManufacturerModelName) == ("ct2mri", "tiny")
        assert image.SoftwareVersions == __version__
        scanner, drawer = image.ContributingEquipmentSequence
        assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("Scanners Ltd", "Spiral 64")
        assert scanner.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Acquisition Equipment"
        assert (drawer.Manufacturer, drawer.SoftwareVersions) == ("ct2mri", __version__)
        assert drawer.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Processing Equipment"
        assert (image.ScanningSequence, image.SequenceVariant) == ("RM", "NONE")
        for keyword in ("RepetitionTime", "EchoTime", "EchoTrainLength", "ScanOptions", "MRAcquisitionType"):
            assert image[keyword].is_empty
        for keyword in ("MagneticFieldStrength", "FlipAngle", "InversionTime", "ProtocolName"):
            assert keyword not in image
        assert (image.BitsAllocated, image.BitsStored, image.PixelRepresentation) == (16, 16, 0)
        assert (image.RescaleSlope, image.RescaleIntercept) == (1, 0)
        assert image.pixel_array.dtype == np.uint16
        dciodvfy(Path(image.filename))


def test_a_synthetic_ct_is_in_hu(ct, tmp_path):
    hu = ct.with_array(np.linspace(-1024, 3071, ct.array.size).reshape(ct.spatial_shape).round())
    write(hu, tmp_path / "ct-out", ct.metadata["dicom"], modality="CT")
    again = load_volume(tmp_path / "ct-out")
    assert np.array_equal(again.array, hu.array)
    assert again.metadata["modality"] == "CT"
    for image in images(tmp_path / "ct-out"):
        assert image.SOPClassUID == pydicom.uid.CTImageStorage
        assert image.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        assert (image.RescaleSlope, image.RescaleIntercept, image.RescaleType) == (1, -1024, "HU")
        assert image.KVP is None and image.PixelRepresentation == 0
        assert "ScanningSequence" not in image and "EchoTime" not in image
        dciodvfy(Path(image.filename))
    write(hu.with_array(hu.array - 500.5), tmp_path / "low", modality="CT")
    assert np.abs(load_volume(tmp_path / "low").array - (hu.array - 500.5)).max() <= 0.5


def test_without_dicom_behind_it_there_is_a_fresh_patient(tmp_path):
    volume = noise(affine_of(OBLIQUE))
    write(volume, tmp_path / "a")
    write(volume, tmp_path / "b")
    a, b = images(tmp_path / "a"), images(tmp_path / "b")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({str(image[keyword].value) for image in a}) == 1
        assert a[0][keyword].value and a[0][keyword].value != b[0][keyword].value
    assert a[0].PatientID.startswith("ct2mri-")
    assert "SourceImageSequence" not in a[0] and "PatientIdentityRemoved" not in a[0]
    assert [e.Manufacturer for e in a[0].ContributingEquipmentSequence] == ["ct2mri"]
    dciodvfy(tmp_path / "a" / "synthetic-00001.dcm")


def test_a_source_that_says_little_gets_what_the_standard_needs(write_dicom_slice, tmp_path):
    for k in range(2):
        write_dicom_slice(tmp_path / "ct" / str(k), np.zeros((4, 3), np.int16), (0, 0, 2 * k))
    ct = load_volume(tmp_path / "ct")
    write(ct.with_array(ct.array * 0), tmp_path / "mr", ct.metadata["dicom"])
    first = images(tmp_path / "mr")[0]
    assert str(first.PatientName) == "Secret^Name"
    assert first.FrameOfReferenceUID and first.StudyInstanceUID
    assert [e.Manufacturer for e in first.ContributingEquipmentSequence] == ["ct2mri"]
    dciodvfy(tmp_path / "mr" / "synthetic-00001.dcm")


def test_the_mark_of_lossy_compression_stays(ct, tmp_path):
    header = ct.metadata["dicom"].header
    header.LossyImageCompression, header.LossyImageCompressionRatio = "01", 8
    header.LossyImageCompressionMethod = "ISO_10918_1"
    write(ct.with_array(np.abs(ct.array)), tmp_path / "mr", ct.metadata["dicom"])
    image = images(tmp_path / "mr")[0]
    assert image.LossyImageCompression == "01" and image.LossyImageCompressionRatio == 8
    dciodvfy(tmp_path / "mr" / "synthetic-00001.dcm")


def test_slices_of_a_multi_frame_ct_are_named_by_their_frame(tmp_path):
    """Frames stored top down: slice 0, the lowest, is the last frame."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.FrameOfReferenceUID, header.Modality, header.PatientID = generate_uid(), "CT", "P1"
    header.Manufacturer, header.PatientPosition = "Scanners Ltd", "HFS"
    header.Rows, header.Columns, header.NumberOfFrames = 5, 4, 3
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    measures, orientation, transformation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 2.5], 3
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    transformation.RescaleSlope, transformation.RescaleIntercept = 1, -1024
    transformation.RescaleType = "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [transformation]
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = []
    for frame in range(3):
        position, groups = Dataset(), Dataset()
        position.ImagePositionPatient = [10, 20, 30 - 3 * frame]
        groups.PlanePositionSequence = [position]
        header.PerFrameFunctionalGroupsSequence.append(groups)
    stored = np.arange(60, dtype="<i2").reshape(3, 5, 4)
    header.PixelData = stored.tobytes()
    header["PixelData"].VR = "OW"
    header.save_as(tmp_path / "ct.dcm", enforce_file_format=True)

    ct = load_volume(tmp_path / "ct.dcm")
    mr = ct.with_array(ct.array + 1024)
    write(mr, tmp_path / "mr", ct.metadata["dicom"], factor=1)
    results = images(tmp_path / "mr")
    assert [d.SourceImageSequence[0].ReferencedFrameNumber for d in results] == [3, 2, 1]
    assert {d.SourceImageSequence[0].ReferencedSOPInstanceUID for d in results} == {header.SOPInstanceUID}
    assert {d.SourceImageSequence[0].ReferencedSOPClassUID for d in results} == {EnhancedCTImageStorage}
    assert [d.ImagePositionPatient[2] for d in results] == [24, 27, 30]
    assert np.array_equal(results[0].pixel_array, stored[2])
    assert {d.FrameOfReferenceUID for d in results} == {header.FrameOfReferenceUID}
    assert {d.PatientPosition for d in results} == {"HFS"}
    again = load_volume(tmp_path / "mr")
    assert again.grid.matches(ct.grid) and np.array_equal(again.array, mr.array)
    dciodvfy(tmp_path / "mr" / "synthetic-00002.dcm")


# --- where they lie --------------------------------------------------------------------------------------


def test_the_series_lies_on_the_grid_of_its_ct(ct, tmp_path):
    write(ct.with_array(np.abs(ct.array)), tmp_path / "mr", ct.metadata["dicom"])
    assert load_volume(tmp_path / "mr").grid.matches(ct.grid, tolerance_mm=1e-6)


@pytest.mark.parametrize("shape", [(7, 9, 5), (1, 2, 3), (5, 1, 2), (4, 3, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_any_straight_grid_comes_back(seed, shape, tmp_path):
    rng = np.random.default_rng(seed)
    directions = Rotation.random(random_state=seed).as_matrix()
    volume = noise(affine_of(directions, rng.uniform(0.3, 6, 3), rng.uniform(-900, 900, 3)), shape)
    write(volume, tmp_path / "mr", factor=1)
    again = load_volume(tmp_path / "mr")
    assert again.grid.matches(volume.grid, tolerance_mm=1e-6)
    assert np.array_equal(again.array, volume.array)
    for path in (tmp_path / "mr").iterdir():
        image = pydicom.dcmread(path)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceLocation"):
            raw = image.get_item(keyword).value
            assert all(len(number) <= 16 for number in raw.strip().split(b"\\")), raw


def test_simpleitk_reads_it_on_the_same_grid(tmp_path):
    volume = noise(affine_of(OBLIQUE))
    write(volume, tmp_path / "mr", factor=1)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "mr")))
    image, expected = reader.Execute(), to_sitk(volume)
    assert image.GetSize() == expected.GetSize()
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(expected))
    for index in np.ndindex(2, 2, 2):
        corner = [int(x) for x in np.array(index) * (np.array(volume.spatial_shape) - 1)]
        there, here = (i.TransformIndexToPhysicalPoint(corner) for i in (image, expected))
        assert np.allclose(there, here, rtol=0, atol=1e-4)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "RPI", "PIR", "ASL", "SAR"])
def test_a_marker_on_the_right_stays_on_the_right(axes, tmp_path):
    """Axes in any order and direction; a left-handed order is turned, and nothing moves in the patient."""
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    directions = np.zeros((3, 3))
    for axis, letter in enumerate(axes):
        directions[letters[letter][0], axis] = letters[letter][1]
    shape, tilt = (9, 10, 11), Rotation.from_euler("xyz", [5, -8, 10], degrees=True).as_matrix()
    affine = affine_of(tilt @ directions, (2.0, 2.5, 3.0), (0, 0, 0))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    world = np.einsum("ab,bijk->aijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    head = np.where((world**2).sum(axis=0) < 9**2, 300.0, 0.0)
    marker = ((world - np.array([7.0, 2.0, -1.0])[:, None, None, None]) ** 2).sum(axis=0) < 2.5**2
    head[marker] = 2000
    assert marker.any()
    write(Volume(head, affine), tmp_path / "mr")
    again = load_volume(tmp_path / "mr")
    found = np.argwhere(again.array == 2000) @ again.affine[:3, :3].T + again.affine[:3, 3]
    assert (found[:, 0] > 3).all()  # x counts to the right
    expected = world[:, marker].T
    assert len(found) == len(expected)
    nearest = np.linalg.norm(found[:, None] - expected[None], axis=2).min(axis=1)
    assert nearest.max() < 1e-3
    if np.linalg.det(affine) > 0:
        assert again.grid.matches(Grid(shape, affine))
    # Numbered as readers sort: along the normal of rows and columns.
    locations = [image.SliceLocation for image in images(tmp_path / "mr")]
    assert locations == sorted(locations)


@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_a_phantom_with_a_marker_on_its_right_goes_out_and_in(anatomy, tmp_path):
    """The phantom's CT is written and read; its MR is written beside that series and read twice."""
    phantom = draw_phantom(anatomy, 3, (6.0, 6.0, 7.0))
    grid = phantom.ct.grid
    world = np.einsum("ab,bijk->ijka", grid.affine[:3, :3], np.indices(grid.shape)) + grid.affine[:3, 3]
    body = phantom.labels.array > 0
    place = world[body].mean(axis=0) + np.array([40.0, 0.0, 10.0])  # x counts to the right
    marker = np.linalg.norm(world - place, axis=3) < 9
    assert marker.sum() > 3
    ct = phantom.ct.with_array(np.where(marker, 3000, phantom.ct.array.round().clip(-1024, 2000)))
    mr = phantom.mr.with_array(np.where(marker, 9999, phantom.mr.array.clip(0, 5000)))

    write(ct, tmp_path / "ct", modality="CT")
    back = load_volume(tmp_path / "ct")
    assert back.grid.matches(grid) and np.array_equal(back.array, ct.array)
    write(mr, tmp_path / "mr", back.metadata["dicom"], factor=1)
    again = load_volume(tmp_path / "mr")
    assert again.grid.matches(grid)
    assert np.abs(again.array - mr.array).max() <= 0.5
    assert np.array_equal(again.array == 9999, marker)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "mr")))
    image = reader.Execute()
    brightest = np.argwhere(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0) == 9999)
    left = [image.TransformIndexToPhysicalPoint([int(i) for i in index])[0] for index in brightest]
    assert -np.mean(left) == pytest.approx(world[marker][:, 0].mean(), abs=1e-3)
    assert -np.mean(left) > world[body][:, 0].mean() + 30


def test_real_cts_lie_where_they_lay(shared_data, tmp_path):
    """Head and abdomen as they were scanned, and a template whose voxels are in left-handed order."""
    for name in ("real_ct/head", "real_ct/abdomen_pelvis", "head_templates/ct"):
        ct = load_volume(shared_data / f"{name}.nii.gz")
        step = np.diag([3.0, 4.0, 5.0, 1.0])
        ct = Volume(ct.array[::3, ::4, ::5].round().clip(-1024), ct.affine @ step)
        write(ct, tmp_path / name, modality="CT")
        again = load_volume(tmp_path / name)
        if np.linalg.det(ct.affine) < 0:
            flip = np.diag([1.0, 1.0, -1.0, 1.0])
            flip[2, 3] = ct.spatial_shape[2] - 1
            ct = Volume(ct.array[:, :, ::-1], ct.affine @ flip)
        assert again.grid.matches(ct.grid)
        assert np.array_equal(again.array, ct.array)


def test_sheared_grids_are_refused(tmp_path):
    sheared = affine_of(np.eye(3))
    sheared[1, 2] += 0.1
    with pytest.raises(RequestError, match=r"are not perpendicular.*write NIfTI"):
        write(noise(sheared), tmp_path / "mr")
    assert not list(tmp_path.iterdir())
    rounded = affine_of(OBLIQUE.round(4))  # as some programs write their headers
    write(noise(rounded), tmp_path / "mr")
    assert load_volume(tmp_path / "mr").grid.matches(Grid((7, 9, 5), rounded), tolerance_mm=0.01)


def test_another_number_of_slices_than_the_source_is_refused(ct, tmp_path):
    with pytest.raises(RequestError, match="has 3 slices and its source had 5"):
        write(noise(ct.affine, (7, 9, 3)), tmp_path / "mr", ct.metadata["dicom"])


# --- values ----------------------------------------------------------------------------------------------


def test_small_values_are_stored_in_finer_steps_and_come_back(tmp_path):
    volume = noise(np.diag([2.0, 2.0, 2.0, 1.0]))
    volume = volume.with_array(volume.array / 1000)
    write(volume, tmp_path / "mr")
    again = load_volume(tmp_path / "mr")
    assert np.abs(again.array - volume.array).max() <= 0.0005 + 1e-6
    assert again.metadata["stored_per_unit"] == 1000 and again.metadata["warnings"] == []
    first = images(tmp_path / "mr")[0]
    assert first.DerivationDescription == f"{SENTENCE} Stored values are 1000 times these units."
    assert np.abs(first.pixel_array.T / 1000 - volume.array[:, :, 0]).max() <= 0.0005 + 1e-6


@pytest.mark.parametrize("factor", [1e-5, 0.1, 1, 10, 1e6])
def test_any_factor_comes_back(factor, tmp_path):
    volume = noise(np.eye(4))
    volume = volume.with_array(volume.array / np.float32(factor))
    write(volume, tmp_path / "mr", factor=factor)
    np.testing.assert_allclose(load_volume(tmp_path / "mr").array, volume.array, rtol=1e-6)


def test_only_what_was_multiplied_is_divided(tmp_path):
    """A CT of ours and another maker's MR may say the same; an MR of ours may have lost what it said."""
    volume, said = noise(np.eye(4)), "Stored values are 10 times these units."
    write(volume, tmp_path / "ct", modality="CT", derivation=said)
    assert np.array_equal(load_volume(tmp_path / "ct").array, volume.array)
    for name in ("other", "emptied"):
        write(volume, tmp_path / name, factor=10)
        for path in (tmp_path / name).iterdir():
            image = pydicom.dcmread(path)
            if name == "other":
                image.Manufacturer = "Scanners Ltd"
            else:
                del image.DerivationDescription
            image.save_as(path)
        read = load_volume(tmp_path / name)
        assert np.array_equal(read.array, 10 * volume.array)
        assert ("headers no longer tell" in " ".join(read.metadata["warnings"])) == (name == "emptied")


@pytest.mark.parametrize(
    ("highest", "upper", "factor"),
    [
        (1.0, None, 1000),
        (0.02, None, 100_000),
        (999.0, None, 10),
        (1000.0, None, 1),
        (65535.0, None, 1),
        (65536.0, None, 0.1),
        (0.0, None, 1),
        (0.4, 1.0, 1000),  # chosen for the model, whatever one result reaches
        (1.7, 1.0, 1000),
        (90.0, 1.0, 100),  # unless it would not fit
    ],
)
def test_the_factor_is_a_power_of_ten_that_fits(highest, upper, factor):
    volume = Volume(np.full((2, 2, 2), highest, np.float32), np.eye(4))
    assert mr_factor(volume, upper) == pytest.approx(factor)


def test_values_that_cannot_be_stored_are_refused(tmp_path):
    for value, modality, part in [
        (-0.5, "MR", "are 0 or more.*got -0.5"),
        (70_000.0, "CT", "more than 16 bits hold"),
        (np.nan, "MR", "NaN or infinite"),
        (np.inf, "CT", "NaN or infinite"),
    ]:
        volume = noise(np.eye(4))
        volume.array[1, 2, 3] = value
        with pytest.raises(RequestError, match=part):
            write(volume, tmp_path / "out", modality=modality)
    with pytest.raises(RequestError, match="more than 16 bits hold"):
        write(noise(np.eye(4)), tmp_path / "out", factor=1000)
    assert not list(tmp_path.iterdir())


# --- the patient -----------------------------------------------------------------------------------------


def test_anonymised_images_say_nothing_of_the_patient(ct, tmp_path):
    origin = ct.metadata["dicom"]
    earlier = Dataset()
    earlier.Manufacturer, earlier.InstitutionName = "Exporters", "Saint Elsewhere"
    origin.header.ContributingEquipmentSequence = [earlier]
    write(ct.with_array(np.abs(ct.array)), tmp_path / "mr", origin, anonymize=True)
    secrets = [
        str(element.value).encode("latin-1")
        for element in origin.header
        if element.tag.group in (0x0008, 0x0010, 0x0012, 0x0020)
        and element.VR in ("PN", "LO", "SH", "DA", "TM", "UI", "AS", "ST")
        and element.keyword not in ("SOPClassUID", "Manufacturer", "ManufacturerModelName")
        and len(str(element.value)) > 3
    ]
    secrets += [uid.encode() for uid in origin.sop_instance_uids]
    secrets += [b"Saint Elsewhere", b"SN99887766", b"Hidden Lane"]
    assert len(secrets) > 20
    for path in (tmp_path / "mr").iterdir():
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content]
        image = pydicom.dcmread(path)
        assert image.PatientIdentityRemoved == "YES" and image.DeidentificationMethod
        assert image.PatientID.startswith("ct2mri-")
        assert not any(element.value for element in image.iterall() if element.VR in ("DA", "TM", "DT"))
        assert (image.PatientPosition, image.BodyPartExamined) == ("FFS", "HEAD")
        assert image.ContributingEquipmentSequence[0].Manufacturer == "Scanners Ltd"
        dciodvfy(path)
    assert load_volume(tmp_path / "mr").grid.matches(ct.grid)


@pytest.mark.filterwarnings("error")
def test_the_patient_is_never_printed(ct, tmp_path, capfd, caplog):
    header = ct.metadata["dicom"].header
    with pydicom.config.disable_value_validation():
        header.PatientName = "Prominent^" + "N" * 80
        header.PatientID = "ID-" + "9" * 80
        header.PatientBirthDate = "born long ago"
        header.AccessionNumber = "ACCESSION-TOO-LONG-FOR-ITS-KIND"
    for anonymize in (False, True):
        write(
            ct.with_array(np.abs(ct.array)),
            tmp_path / f"{anonymize}",
            ct.metadata["dicom"],
            anonymize=anonymize,
        )
    with pydicom.config.disable_value_validation():
        assert images(tmp_path / "False")[0].PatientID == "ID-" + "9" * 80
    with pytest.raises(RequestError) as refused:
        write(ct, tmp_path / "x", ct.metadata["dicom"])
    captured = capfd.readouterr()
    said = captured.out + captured.err + caplog.text + str(refused.value) + repr(ct.metadata["dicom"])
    for secret in ("Prominent", "ID-99", "born long", "ACCESSION", "Müller", "4711"):
        assert secret not in said


# --- the folder ------------------------------------------------------------------------------------------


def test_only_a_series_of_ours_is_replaced(tmp_path):
    volume = noise(np.eye(4))
    out = tmp_path / "out"
    out.mkdir()
    write(volume, out)
    before = {path.name for path in out.iterdir()}
    write(noise(np.eye(4), (3, 3, 2)), out)
    assert len(before) == 5 and len(list(out.iterdir())) == 2
    (out / "thesis.doc").write_text("precious")
    with pytest.raises(RequestError, match=r"holds thesis.doc, which is no image.*would be lost"):
        write(volume, out)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RequestError, match="is no folder"):
        write(volume, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
    assert (out / "thesis.doc").read_text() == "precious"


def test_a_full_disk_leaves_no_half_series(tmp_path):
    """A limit on the size of files stands for the full disk."""
    volume = noise(np.eye(4), (40, 40, 3))
    write(noise(np.eye(4)), tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="out could not be written"):
            write(volume, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_volume(tmp_path / "out").spatial_shape == (7, 9, 5)
