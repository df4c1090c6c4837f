import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from scipy.spatial.transform import Rotation

from ct2mri import Volume, load_volume
from ct2mri.data import dicom_files
from ct2mri.errors import RequestError

Writer = Callable[..., None]


@pytest.fixture
def series(write_dicom_slice: Writer, tmp_path: Path) -> Path:
    """Five slices 2 mm apart, named against their order; voxel (i, j, k) holds i + 10 j + 100 k - 1024."""
    folder = tmp_path / "series"
    rows, columns = np.mgrid[:4, :6]
    for k in range(5):
        stored = (columns + 10 * rows + 100 * k).astype(np.int16)
        write_dicom_slice(folder / f"IM{9 - k}", stored, (5, 6, 7 + 2 * k))
    return folder


def test_a_series_is_a_volume(series: Path) -> None:
    volume = load_volume(series)
    assert volume.spatial_shape == (6, 4, 5)
    i, j, k = np.indices((6, 4, 5))
    assert np.array_equal(volume.array, i + 10 * j + 100 * k - 1024)
    assert np.allclose(volume.affine, [[-1, 0, 0, -5], [0, -1, 0, -6], [0, 0, 2, 7], [0, 0, 0, 1]])
    metadata = dict(volume.metadata)
    origin = metadata.pop("dicom")
    assert metadata == {
        "modality": "CT",
        "kvp": None,
        "kernel": None,
        "manufacturer": None,
        "slice_thickness": 2,
        "contrast_agent": False,
        "cbct": False,
        "mr_contrast": None,
        "localizer": False,
        "warnings": [],
        "path": str(series),
    }
    uids = [pydicom.dcmread(series / f"IM{9 - k}").SOPInstanceUID for k in range(5)]
    assert list(origin.sop_instance_uids) == uids
    assert origin.header.SOPInstanceUID == uids[0]
    assert origin.header.PatientName == "Secret^Name"
    assert "PixelData" not in origin.header
    assert "Secret" not in repr(origin)


def test_an_oblique_anisotropic_series_lies_where_the_standard_says(
    write_dicom_slice: Writer, tmp_path: Path
) -> None:
    """Equation C.7.6.2.1-1 of DICOM PS3.3: position + row direction · Δi · i + column direction · Δj · j."""
    row, column, normal = Rotation.from_euler("xyz", [15, 25, -40], degrees=True).as_matrix().T
    start = np.array([-30.5, 20.25, 110])
    for k in range(4):
        stored = np.zeros((5, 7), dtype=np.int16)
        if k == 2:
            stored[4, 1] = 3000
        write_dicom_slice(
            tmp_path / f"{k}.dcm",
            stored,
            [f"{x:.6f}" for x in start - 3.5 * k * normal],
            ImageOrientationPatient=[f"{x:.8f}" for x in (*row, *column)],
            PixelSpacing=[0.5, 1.25],  # distance of rows, then of columns
        )
    volume = load_volume(tmp_path)
    assert volume.spacing == pytest.approx((1.25, 0.5, 3.5), abs=1e-5)
    index = np.unravel_index(volume.array.argmax(), volume.spatial_shape)
    left, posterior, superior = start - 3.5 * 2 * normal + row * 1.25 * 1 + column * 0.5 * 4
    assert np.allclose((volume.affine @ [*index, 1])[:3], [-left, -posterior, superior], atol=1e-3)


def test_each_slice_is_rescaled_by_its_own_header(write_dicom_slice: Writer, tmp_path: Path) -> None:
    stored = np.arange(16, dtype=np.int16).reshape(4, 4)
    rescale = [(1, -1024), (2.5, -1000.5), (0.5, 3)]
    for k, (slope, intercept) in enumerate(rescale):
        write_dicom_slice(
            tmp_path / f"{k}.dcm", stored, (0, 0, k), RescaleSlope=slope, RescaleIntercept=intercept
        )
    volume = load_volume(tmp_path)
    for k, (slope, intercept) in enumerate(rescale):
        assert np.array_equal(volume.array[:, :, k], stored.T * slope + intercept)


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2.5, -1000.5)])
def test_padding_is_found_before_rescaling(
    slope: float, intercept: float, write_dicom_slice: Writer, tmp_path: Path
) -> None:
    stored = np.array([[-2000, -2001], [-976, 1000]], dtype=np.int16)
    write_dicom_slice(
        tmp_path / "a.dcm", stored, RescaleSlope=slope, RescaleIntercept=intercept, PixelPaddingValue=-2000
    )
    expected = stored.T * slope + intercept
    expected[0, 0] = -1024
    assert np.array_equal(load_volume(tmp_path / "a.dcm").array[:, :, 0], expected)


def test_padding_noted_as_unsigned_and_as_a_range(write_dicom_slice: Writer, tmp_path: Path) -> None:
    stored = np.array([[-2000, -1990], [-1989, 1000]], dtype=np.int16)
    write_dicom_slice(tmp_path / "a.dcm", stored)
    file = pydicom.dcmread(tmp_path / "a.dcm")
    file.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    file.add_new("PixelPaddingRangeLimit", "US", 2**16 - 1990)
    file.save_as(tmp_path / "a.dcm")
    assert load_volume(tmp_path / "a.dcm").array[:, :, 0].T.tolist() == [[-1024, -1024], [-3013, -24]]


def test_padding_of_an_unsigned_mr_becomes_nought(write_dicom_slice: Writer, tmp_path: Path) -> None:
    stored = np.array([[65535, 7], [8, 9]], dtype=np.uint16)
    write_dicom_slice(tmp_path / "a.dcm", stored, Modality="MR", RescaleIntercept=0, PixelPaddingValue=65535)
    volume = load_volume(tmp_path / "a.dcm")
    assert volume.metadata["modality"] == "MR"
    assert volume.array[:, :, 0].T.tolist() == [[0, 7], [8, 9]]


def test_contrast_agent(write_dicom_slice: Writer, tmp_path: Path) -> None:
    for k, agent in enumerate(["ISOVUE300/100", "", "NONE"]):
        write_dicom_slice(tmp_path / f"{k}.dcm", np.zeros((2, 2), dtype=np.int16), ContrastBolusAgent=agent)
    found = [load_volume(tmp_path / f"{k}.dcm").metadata["contrast_agent"] for k in range(3)]
    assert found == [True, False, False]


def test_one_slice_is_a_volume_of_depth_one(write_dicom_slice: Writer, tmp_path: Path) -> None:
    zero = np.zeros((2, 3), dtype=np.int16)
    write_dicom_slice(tmp_path / "a" / "1", zero, SliceThickness=2.5)
    volume = load_volume(tmp_path / "a")
    assert volume.spatial_shape == (3, 2, 1)
    assert volume.spacing[2] == 2.5
    assert "single slice" in volume.metadata["warnings"][0]
    write_dicom_slice(tmp_path / "b" / "1", zero, SliceThickness=None)
    volume = load_volume(tmp_path / "b")
    assert volume.spacing[2] == 1
    assert "1 mm is assumed" in volume.metadata["warnings"][0]


def test_zip_of_a_series(series: Path, tmp_path: Path) -> None:
    path = tmp_path / "series.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in series.iterdir():
            archive.write(file, f"some/folder/{file.name}")
            archive.writestr(f"__MACOSX/some/folder/._{file.name}", b"resource fork")
    packed, loose = load_volume(path), load_volume(series)
    assert np.array_equal(packed.array, loose.array)
    assert np.array_equal(packed.affine, loose.affine)
    assert packed.metadata["path"] == str(path)
    assert packed.metadata["warnings"] == []


def test_zip_cannot_write_elsewhere(series: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    names = ["../escaped.dcm", "/absolute.dcm", "..\\windows.dcm", "a/../../up.dcm", "same.dcm"]
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for file, name in zip(sorted(series.iterdir()), names, strict=True):
            archive.writestr(name, file.read_bytes())
    files = dicom_files.unpack_zip(tmp_path / "evil.zip", inner)
    assert sorted(files) == sorted(inner.iterdir())
    assert len(files) == 5
    assert load_volume(tmp_path / "evil.zip").spatial_shape == (6, 4, 5)


def test_zip_that_unpacks_to_too_much_is_refused(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(2**20))
    monkeypatch.setattr(dicom_files, "_UNPACKED_LIMIT", 2**19)
    with pytest.raises(RequestError, match=r"bomb\.zip unpacks to"):
        load_volume(path)


def test_damaged_and_locked_zips_are_refused(series: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(series / "IM9", "IM9")
    whole = path.read_bytes()
    locked = bytearray(whole)
    directory = whole.index(b"PK\x01\x02")
    locked[6] |= 1  # the flag of encryption, in both headers of the file
    locked[directory + 8] |= 1
    flipped = bytearray(whole)
    flipped[directory - 5] ^= 255  # a pixel that no longer fits the checksum
    for content in (whole[:-30], b"", b"no zip", bytes(locked), bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(RequestError, match=r"a\.zip cannot be unpacked"):
            load_volume(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no image")
    with pytest.raises(RequestError, match=r"a\.zip holds no DICOM image"):
        load_volume(path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="empty holds no DICOM image"):
        load_volume(tmp_path / "empty")


def test_files_that_are_no_images_are_passed_over_and_counted(series: Path) -> None:
    (series / "README.txt").write_text("exported by hand")
    (series / "broken.dcm").write_bytes(b"short")
    (series / ".DS_Store").write_bytes(b"hidden")
    (series / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    volume = load_volume(series)
    assert volume.spatial_shape == (6, 4, 5)
    assert volume.metadata["warnings"] == ["Passed over 2 of 7 files in series that are not DICOM images."]


def test_mixed_series_are_listed_without_names_of_patients(series: Path, write_dicom_slice: Writer) -> None:
    for k in range(2):
        write_dicom_slice(
            series / f"other{k}",
            np.zeros((4, 6), dtype=np.int16),
            (0, 0, k),
            SeriesInstanceUID="1.2.840.99.12345",
            SeriesDescription="AX T1",
            Modality="MR",
        )
    with pytest.raises(RequestError, match="holds 2 image series where one is needed") as caught:
        load_volume(series)
    message = str(caught.value)
    assert "“AX T1” (MR, 2 images, UID …840.99.12345)" in message
    assert "“no description” (CT, 5 images, UID …1.2.3)" in message
    assert "Secret" not in message


def test_missing_slices_are_refused(series: Path) -> None:
    (series / "IM7").unlink()
    with pytest.raises(RequestError, match=r"1 slice of series is missing, at 11\.00 mm along the stack"):
        load_volume(series)


def test_several_slices_at_one_place_are_refused(series: Path, write_dicom_slice: Writer) -> None:
    write_dicom_slice(series / "copy", np.zeros((4, 6), dtype=np.int16), (5, 6, 9))
    with pytest.raises(RequestError, match="several slices at one position"):
        load_volume(series)


def test_gantry_tilt_is_refused(write_dicom_slice: Writer, tmp_path: Path) -> None:
    for k in range(5):
        position = (0, 3 * k * np.sin(np.radians(15)), 3 * k * np.cos(np.radians(15)))
        write_dicom_slice(tmp_path / f"{k}.dcm", np.zeros((2, 2), dtype=np.int16), position)
    with pytest.raises(RequestError, match=r"gantry tilt of 15\.0°"):
        load_volume(tmp_path)


def test_rounded_positions_are_no_tilt(write_dicom_slice: Writer, tmp_path: Path) -> None:
    for k in range(5):
        position = (0.01 * (k % 2), -0.01 * (k % 2), 3 * k + 0.02 * (k % 2))
        write_dicom_slice(tmp_path / f"{k}.dcm", np.zeros((2, 2), dtype=np.int16), position)
    assert load_volume(tmp_path).spacing == pytest.approx((1, 1, 3))


@pytest.mark.parametrize(
    "tags",
    [{"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, {"PixelSpacing": [2, 2]}, {"Rows": 2, "Columns": 12}],
)
def test_slices_that_differ_are_refused(tags: dict, series: Path, write_dicom_slice: Writer) -> None:
    write_dicom_slice(series / "scout", np.zeros((4, 6), dtype=np.int16), (5, 6, 17), **tags)
    with pytest.raises(RequestError, match=r"2 image series .*CT, 5 images.*CT, 1 image,"):
        load_volume(series)


@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ({"ImagePositionPatient": None}, "does not say where it lies"),
        ({"ImageOrientationPatient": None}, "does not say where it lies"),
        ({"PixelSpacing": [0, 1]}, "does not say where it lies"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no pair of perpendicular directions"),
        ({"NumberOfFrames": 3}, "multi-frame"),
        ({"SamplesPerPixel": 3}, "colour images"),
    ],
)
def test_images_that_make_no_volume_are_refused(
    tags: dict, match: str, write_dicom_slice: Writer, tmp_path: Path
) -> None:
    write_dicom_slice(tmp_path / "a.dcm", np.zeros((4, 6), dtype=np.int16), **tags)
    with pytest.raises(RequestError, match=match):
        load_volume(tmp_path / "a.dcm")


def test_a_slice_cut_short_is_refused(series: Path) -> None:
    whole = (series / "IM7").read_bytes()
    for kept in (len(whole) - 20, 500, 200):
        (series / "IM7").write_bytes(whole[:kept])
        with pytest.raises(RequestError, match=r"damaged|missing|differ"):
            load_volume(series)


def pydicom_sample(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


def test_pydicom_samples() -> None:
    ct = load_volume(pydicom_sample("CT_small.dcm"))
    assert ct.spatial_shape == (128, 128, 1)
    assert ct.spacing == pytest.approx((0.661468, 0.661468, 5))
    assert (ct.metadata["modality"], ct.metadata["contrast_agent"]) == ("CT", True)
    assert ct.array.min() == -896
    assert "single slice" in ct.metadata["warnings"][0]
    mr = load_volume(pydicom_sample("MR_small.dcm"))
    assert (mr.metadata["modality"], mr.metadata["contrast_agent"]) == ("MR", False)
    assert "PatientName" not in mr.metadata


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"]
)
def test_compressed_slices(name: str) -> None:
    plain: Volume = load_volume(pydicom_sample("MR_small.dcm"))
    assert np.array_equal(load_volume(pydicom_sample(name)).array, plain.array)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("MR_truncated.dcm", "pixels of MR_truncated.dcm cannot be read"),
        ("rtplan.dcm", "holds no DICOM image"),
        ("SC_rgb_rle.dcm", "colour"),
        ("badVR.dcm", r"header of badVR.dcm .* damaged"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_pydicom_samples_that_are_no_volume(name: str, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        load_volume(pydicom_sample(name))


def test_a_real_disc_folder() -> None:
    """Patients, series and an index, as on a disc of a clinic."""
    disc = pydicom_sample("CT_small.dcm").parent / "dicomdirtests"
    assert load_volume(disc / "98892001" / "CT5N").spatial_shape == (16, 16, 5)
    with pytest.raises(RequestError, match="slices of CT2 are missing"):
        load_volume(disc / "77654033" / "CT2")
    with pytest.raises(RequestError, match=r"24 image series.*“Routine Brain” \(CT, 4 images.* and 18 more"):
        load_volume(disc)
