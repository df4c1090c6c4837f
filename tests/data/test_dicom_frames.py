import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from ct2mri import load_volume
from ct2mri.data.dicom import find_series, load_series
from ct2mri.errors import RequestError

Writer = Callable[..., None]

ROW, COLUMN, NORMAL = Rotation.from_euler("xyz", [8, -12, 20], degrees=True).as_matrix().T
START = np.array([-31.25, 12.5, 40])
SHAPE = (5, 7)  # rows, columns
DISTANCE = 2.5


def item(**tags: Any) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def write_enhanced(
    path: Path,
    stored: np.ndarray,
    heights: list[float],
    *,
    rescale: list[tuple[float, float]] | None = None,
    stacks: list[str] | None = None,
    times: list[int] | None = None,
    orientations: list[list[float]] | None = None,
    series: str = "1.2.3.4",
    **tags: Any,
) -> None:
    """Write one enhanced image: stored values (frames, rows, columns), heights along NORMAL in mm."""
    kind = tags.get("SOPClassUID", EnhancedMRImageStorage)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = pydicom.dataset.FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    file.SeriesInstanceUID, file.PatientName, file.PatientID = series, "Secret^Name", "007"
    file.Modality = "CT" if kind == EnhancedCTImageStorage else "MR"
    file.NumberOfFrames, file.Rows, file.Columns = stored.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, int(stored.dtype.kind == "i")
    shared = item(PixelMeasuresSequence=[item(PixelSpacing=[0.5, 1.25], SliceThickness=DISTANCE)])
    orientation = [f"{x:.10f}" for x in (*ROW, *COLUMN)]
    if orientations is None:
        shared.PlaneOrientationSequence = [item(ImageOrientationPatient=orientation)]
    if rescale is None:
        shared.PixelValueTransformationSequence = [item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")]
    file.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for n, height in enumerate(heights):
        frame = item(
            PlanePositionSequence=[
                item(ImagePositionPatient=[f"{x:.8f}" for x in START + height * NORMAL]),
            ],
            FrameContentSequence=[item(StackID="1" if stacks is None else stacks[n])],
        )
        if times is not None:
            frame.FrameContentSequence[0].TemporalPositionIndex = times[n]
        if orientations is not None:
            frame.PlaneOrientationSequence = [item(ImageOrientationPatient=orientations[n])]
        if rescale is not None:
            slope, intercept = rescale[n]
            frame.PixelValueTransformationSequence = [
                item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")
            ]
        frames.append(frame)
    file.PerFrameFunctionalGroupsSequence = frames
    file.PixelData = stored.tobytes()
    for keyword, value in tags.items():
        setattr(file, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path)


@pytest.fixture
def stored() -> np.ndarray:
    """Six frames; frame n holds n · 100 and more."""
    return (np.arange(35).reshape(1, *SHAPE) + 100 * np.arange(6)[:, None, None]).astype(np.uint16)


ORDER = [3, 0, 5, 1, 4, 2]  # which height each frame lies at
HEIGHTS = [DISTANCE * place for place in ORDER]


def lies(i: int, j: int, k: int) -> np.ndarray:
    """World coordinates of a voxel, RAS mm."""
    left, posterior, superior = START + 1.25 * i * ROW + 0.5 * j * COLUMN + DISTANCE * k * NORMAL
    return np.array([-left, -posterior, superior])


def test_frames_are_sorted_by_where_they_lie(stored: np.ndarray, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", stored, HEIGHTS)
    volume = load_volume(tmp_path / "a.dcm")
    assert volume.spatial_shape == (7, 5, 6)
    assert volume.spacing == pytest.approx((1.25, 0.5, DISTANCE), abs=1e-6)
    for frame, place in enumerate(ORDER):
        assert np.array_equal(volume.array[:, :, place].T, stored[frame])
    for voxel in ((0, 0, 0), (6, 4, 5), (2, 3, 1)):
        assert np.allclose((volume.affine @ [*voxel, 1])[:3], lies(*voxel), atol=1e-5)
    assert volume.metadata["modality"] == "MR"
    origin = volume.metadata["dicom"]
    uid = pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID
    assert origin.sop_class_uid == EnhancedMRImageStorage
    assert origin.sop_instance_uids == (uid,) * 6
    assert origin.frame_numbers == tuple(ORDER.index(place) + 1 for place in range(6))
    assert "PerFrameFunctionalGroupsSequence" not in origin.header
    assert origin.header.PatientID == "007"


def test_each_frame_has_its_own_rescale_and_padding_is_a_stored_value(tmp_path: Path) -> None:
    stored = np.arange(6 * 35, dtype=np.int16).reshape(6, *SHAPE) - 100
    stored[:, 0, 0] = -2000
    rescale = [(1 + n / 4, -1000.0 - n) for n in range(6)]
    write_enhanced(
        tmp_path / "a.dcm",
        stored,
        HEIGHTS,
        rescale=rescale,
        SOPClassUID=EnhancedCTImageStorage,
        PixelPaddingValue=-2000,
    )
    volume = load_volume(tmp_path / "a.dcm")
    assert volume.metadata["modality"] == "CT"
    assert volume.metadata["warnings"] == []
    for frame, (slope, intercept) in enumerate(rescale):
        expected = (stored[frame] * slope + intercept).astype(np.float32)
        expected[0, 0] = -1024
        assert np.array_equal(volume.array[:, :, ORDER[frame]].T, expected)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, RLELossless])
def test_compressed_frames(syntax: pydicom.uid.UID, stored: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_enhanced(path, stored, HEIGHTS, rescale=[(n + 1, n) for n in range(6)])
    expected = load_volume(path)
    file = pydicom.dcmread(path)
    if syntax == RLELossless:
        file.compress(RLELossless)
    else:
        writer = SimpleITK.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(tmp_path / "coded.dcm"))
        writer.Execute(SimpleITK.GetImageFromArray(stored))
        coded = pydicom.dcmread(tmp_path / "coded.dcm")
        file.PixelData = encapsulate(list(generate_frames(coded.PixelData, number_of_frames=6)))
        file["PixelData"].is_undefined_length = True
        file.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
    file.save_as(path)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(load_volume(path).array, expected.array)


def test_a_series_of_several_enhanced_images(stored: np.ndarray, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "whole.dcm", stored, HEIGHTS)
    write_enhanced(tmp_path / "parts" / "1", stored[:2], HEIGHTS[:2])
    write_enhanced(tmp_path / "parts" / "2", stored[2:], HEIGHTS[2:])
    whole, parts = load_volume(tmp_path / "whole.dcm"), load_volume(tmp_path / "parts")
    assert np.array_equal(parts.array, whole.array)
    assert np.array_equal(parts.affine, whole.affine)
    assert len(set(parts.metadata["dicom"].sop_instance_uids)) == 2
    (series,) = find_series(sorted((tmp_path / "parts").iterdir()), "parts")
    assert series.images == 6


def test_an_enhanced_image_of_one_frame(stored: np.ndarray, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", stored[:1], [0])
    volume = load_volume(tmp_path / "a.dcm")
    assert volume.spatial_shape == (7, 5, 1)
    assert volume.spacing[2] == DISTANCE


@pytest.mark.parametrize(
    ("heights", "arguments", "match"),
    [
        (HEIGHTS, {"stacks": list("112212")}, r"holds 2 stacks of slices"),
        (
            [0, 0, 2.5, 2.5, 5, 5],
            {"times": [1, 2] * 3},
            r"several slices at one position, at 40\.79, 43\.29, 45\.79 mm along the stack "
            r"\(a\.dcm frame 1, a\.dcm frame 2 share the first\): they differ in TemporalPositionIndex",
        ),
        ([0, 2.5, 5, 10, 12.5, 15], {}, r"1 slice of a\.dcm is missing, at 48\.29 mm along the stack"),
        ([0, 2.5, 5, 7, 12.5, 15], {}, r"unevenly spaced \(2\.00 to 5\.50 mm"),
        (
            HEIGHTS,
            {"orientations": [[1, 0, 0, 0, 1, 0]] * 5 + [[0, 1, 0, 0, 0, -1]]},
            "differ in size, pixel spacing or direction",
        ),
        (HEIGHTS, {"orientations": [[1, 0, 0, 0, 1, 0]] * 6}, r"gantry tilt of \d+\.\d°"),
        (HEIGHTS[:5], {}, "multi-frame DICOM of 6 frames that says of 5 where they lie"),
        (HEIGHTS, {"SharedFunctionalGroupsSequence": []}, "does not say where it lies"),
        (HEIGHTS, {"PerFrameFunctionalGroupsSequence": []}, "says of 0 where they lie"),
        (HEIGHTS, {"PixelData": bytes(100)}, "pixels of a.dcm cannot be read"),
    ],
)
def test_frames_that_make_no_volume_are_refused(
    heights: list[float], arguments: dict[str, Any], match: str, stored: np.ndarray, tmp_path: Path
) -> None:
    write_enhanced(tmp_path / "a.dcm", stored, heights, **arguments)
    with pytest.raises(RequestError, match=match) as caught:
        load_volume(tmp_path / "a.dcm")
    assert "Secret" not in str(caught.value)


def test_an_odd_oblique_volume_that_simpleitk_reads_alike(write_dicom_slice: Writer, tmp_path: Path) -> None:
    """SimpleITK's own series reader as the oracle of geometry and rescaling."""
    rng = np.random.default_rng(0)
    for k in range(5):
        write_dicom_slice(
            tmp_path / f"{9 - k}.dcm",
            rng.integers(-1000, 2000, (9, 11)).astype(np.int16),
            [f"{x:.8f}" for x in START + 3 * k * NORMAL],
            ImageOrientationPatient=[f"{x:.10f}" for x in (*ROW, *COLUMN)],
            PixelSpacing=[0.7, 0.9],
            RescaleSlope=2,
            RescaleIntercept=-500,
        )
    volume = load_volume(tmp_path)
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = SimpleITK.ReadImage(names, SimpleITK.sitkFloat32)
    assert np.array_equal(volume.array, SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
    for voxel in ((0, 0, 0), (10, 8, 4), (3, 7, 2)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(voxel)
        assert np.allclose((volume.affine @ [*voxel, 1])[:3], [-left, -posterior, superior], atol=1e-4)


def axial(write: Writer, folder: Path, heights: list[float], **tags: Any) -> Path:
    for n, z in enumerate(heights):
        write(folder / f"IM{n}", np.full((3, 4), n, dtype=np.int16), (0, 0, z), **tags)
    return folder


@pytest.mark.parametrize(
    ("heights", "match"),
    [
        ([0, 2, 6], r"1 slice of s is missing, at 4\.00 mm along the stack \(its slices lie 2\.00 mm apart"),
        ([-10, -8, -2, 0, 2], r"2 slices of s are missing, at -6\.00, -4\.00 mm"),
        ([0, 3, 6, 9, 33], r"7 slices of s are missing, at 12\.00, 15\.00, 18\.00, 21\.00, 24\.00 mm and 2"),
        ([0.2, 0.8, 1.4, 2.6], r"at 2\.00 mm along the stack \(its slices lie 0\.60"),
        ([0, 2, 4, 4.5, 6], r"unevenly spaced \(0\.50 to 2\.00 mm apart, most unlike .* 4\.00 and 4\.50 mm"),
        ([0, 2, 4, 9], r"unevenly spaced"),
        ([0, 2, 4, 4, 6], r"several slices at one position, at 4\.00 mm.*\(IM2, IM3 share"),
    ],
)
def test_gaps_are_named_by_position(
    heights: list[float], match: str, write_dicom_slice: Writer, tmp_path: Path
) -> None:
    axial(write_dicom_slice, tmp_path / "s", heights)
    with pytest.raises(RequestError, match=match):
        load_volume(tmp_path / "s")


@pytest.mark.parametrize(
    ("numbers", "whole", "hint"),
    [
        ([1, 2, 3, 4], None, None),
        ([0, 1, 2, 3], 4, None),
        ([4, 5, 6, 7], None, "numbered from 4 on; look whether the first 3 are missing"),
        ([7, 6, 5, 4], 9, "numbered from 4 on; look whether the first 3 are missing"),
        ([1, 2, 3, 4], 6, "4 images of 6 in its acquisition by its header; look whether the last ones"),
        ([2, 4, 6, 8], 9, None),  # numbered otherwise: nothing follows
        ([None, 5, 6, 7], None, None),
    ],
)
def test_a_missing_end_shows_in_the_numbers_of_images(
    numbers: list[int | None], whole: int | None, hint: str | None, write_dicom_slice: Writer, tmp_path: Path
) -> None:
    for n, number in enumerate(numbers):
        tags = {"InstanceNumber": number} if number is not None else {}
        if whole is not None:
            tags["ImagesInAcquisition"] = whole
        write_dicom_slice(tmp_path / f"IM{n}", np.full((3, 4), n, dtype=np.int16), (0, 0, 2 * n), **tags)
    warnings = load_volume(tmp_path).metadata["warnings"]
    assert len(warnings) == (hint is not None)
    assert hint is None or hint in warnings[0]


def test_positions_rounded_to_tenths_are_even(write_dicom_slice: Writer, tmp_path: Path) -> None:
    axial(write_dicom_slice, tmp_path, [round(0.625 * k, 1) for k in range(30)])
    assert load_volume(tmp_path).spacing[2] == pytest.approx(0.625, abs=2e-3)


def test_echoes_in_one_series_are_told(write_dicom_slice: Writer, tmp_path: Path) -> None:
    axial(write_dicom_slice, tmp_path / "s" / "a", [0, 3], EchoTime=4, AcquisitionNumber=1)
    axial(write_dicom_slice, tmp_path / "s" / "b", [0, 3], EchoTime=90, AcquisitionNumber=1)
    with pytest.raises(RequestError, match=r"at 0\.00, 3\.00 mm .* differ in EchoTime, so these are several"):
        load_volume(tmp_path / "s")


def test_copies_of_a_file_are_passed_over(write_dicom_slice: Writer, tmp_path: Path) -> None:
    folder = axial(write_dicom_slice, tmp_path / "s", [0, 3, 6])
    shutil.copy(folder / "IM1", folder / "copy of IM1")
    volume = load_volume(folder)
    assert volume.spatial_shape == (4, 3, 3)
    assert volume.metadata["warnings"] == ["1 file of s is a copy of another and was passed over."]
    changed = pydicom.dcmread(folder / "copy of IM1")
    changed.RescaleIntercept = 0
    changed.save_as(folder / "copy of IM1")
    with pytest.raises(RequestError, match=r"several slices at one position.*nothing in their headers"):
        load_volume(folder)


def test_slices_shifted_sideways_are_no_tilt(write_dicom_slice: Writer, tmp_path: Path) -> None:
    for k in range(6):
        write_dicom_slice(tmp_path / f"{k}", np.zeros((3, 4), dtype=np.int16), (5 * (k >= 3), 0, k))
    with pytest.raises(RequestError, match=r"shifted sideways against each other, by up to 5\.0 mm"):
        load_volume(tmp_path)


@pytest.mark.parametrize("degrees", [-20, 0.5, 12.5])
def test_a_tilt_is_measured(degrees: float, write_dicom_slice: Writer, tmp_path: Path) -> None:
    for k in range(40):
        y = 2 * k * np.tan(np.radians(degrees))
        write_dicom_slice(tmp_path / f"{k}", np.zeros((3, 4), dtype=np.int16), (0, f"{y:.6f}", 2 * k))
    with pytest.raises(RequestError, match=rf"gantry tilt of {abs(degrees):.1f}°"):
        load_volume(tmp_path)


def test_mosaics_are_refused(write_dicom_slice: Writer, tmp_path: Path) -> None:
    zero = np.zeros((3, 4), dtype=np.int16)
    write_dicom_slice(
        tmp_path / "a.dcm", zero, Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    )
    with pytest.raises(RequestError, match="mosaics"):
        load_volume(tmp_path / "a.dcm")


def test_a_dose_grid_says_not_where_its_frames_lie() -> None:
    path = get_testdata_file("rtdose.dcm", download=False)
    assert isinstance(path, str)
    (series,) = find_series([Path(path)], "dose")
    assert series.modality == "RTDOSE"
    with pytest.raises(RequestError, match="15 frames that says of 0 where they lie"):
        load_series(series, "dose")
