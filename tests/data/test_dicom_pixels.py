from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from ct2mri import load_volume
from ct2mri.errors import RequestError

Writer = Callable[..., None]

RNG = np.random.default_rng(0)
SMOOTH = (np.add.outer(np.arange(21) * 40, np.arange(17) * 60) + RNG.integers(0, 9, (21, 17))).astype(
    np.int16
)


def compress(path: Path, how: str) -> None:
    """Write the pixels of a single-frame file anew, compressed by GDCM or pydicom, the header as it is."""
    file = pydicom.dcmread(path)
    if how == "RLE":
        file.compress(RLELossless)
    else:
        coded = path.with_suffix(".coded")
        writer = SimpleITK.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(how)
        writer.SetFileName(str(coded))
        writer.Execute(SimpleITK.GetImageFromArray(file.pixel_array))
        pixels = pydicom.dcmread(coded)
        coded.unlink()
        file.PixelData = encapsulate(list(generate_frames(pixels.PixelData, number_of_frames=1)))
        file["PixelData"].is_undefined_length = True
        file.file_meta.TransferSyntaxUID = pixels.file_meta.TransferSyntaxUID
    file.save_as(path)


@pytest.mark.parametrize(
    ("how", "syntax"), [("JPEG", JPEGLosslessSV1), ("JPEG2000", JPEG2000Lossless), ("RLE", RLELossless)]
)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_compressed_series_are_the_plain_ones(
    how: str, syntax: str, dtype: type, write_dicom_slice: Writer, tmp_path: Path
) -> None:
    for k in range(3):
        stored = (SMOOTH + k * 100 - (900 if dtype is np.int16 else 0)).astype(dtype)
        stored[:2, :3] = 63 if k == 1 else 64
        write_dicom_slice(
            tmp_path / "plain" / f"{k}.dcm",
            stored,
            (0, 0, 3 * k),
            PixelPaddingValue=63,
            RescaleSlope=1 + k,
            RescaleIntercept=-1000 - k,
        )
    plain = load_volume(tmp_path / "plain")
    assert (plain.array[:3, :2, 1] == -1024).all()
    assert np.array_equal(plain.array[:3, :2, 2], np.full((3, 2), 64 * 3 - 1002))
    (tmp_path / "plain").rename(tmp_path / "packed")
    for path in (tmp_path / "packed").iterdir():
        compress(path, how)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    packed = load_volume(tmp_path / "packed")
    assert np.array_equal(packed.array, plain.array)
    assert np.array_equal(packed.affine, plain.affine)


@pytest.mark.parametrize("how", ["JPEG", "JPEG2000", "RLE"])
def test_compressed_slices_cut_short_are_refused(
    how: str, write_dicom_slice: Writer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.dcm"
    write_dicom_slice(path, RNG.integers(0, 4000, (40, 50)).astype(np.int16))
    compress(path, how)
    whole = path.read_bytes()
    for kept in (len(whole) - 9, len(whole) - 1000, len(whole) - 3000):
        path.write_bytes(whole[:kept])
        with pytest.raises(RequestError, match=r"pixels of a\.dcm cannot be read.*cut short"):
            load_volume(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"]
)
@pytest.mark.parametrize("plain", ["MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"])
def test_one_image_in_many_transfer_syntaxes(name: str, plain: str) -> None:
    expected = load_volume(sample(plain))
    assert expected.array.max() == 2145
    assert np.array_equal(load_volume(sample(name)).array, expected.array)


def sample(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


def test_signs_that_a_jpeg2000_stream_and_its_header_tell_apart() -> None:
    """The stream says unsigned, the header signed with 13 bits: -2000 would else be read as 6192."""
    file = pydicom.dcmread(sample("J2K_pixelrep_mismatch.dcm"))
    volume = load_volume(sample("J2K_pixelrep_mismatch.dcm"))
    assert (file.RescaleSlope, file.RescaleIntercept) == (1, 0)
    assert volume.array.min() == -2000
    assert np.array_equal(volume.array[:, :, 0].T, file.pixel_array)


def test_a_file_without_its_preface(write_dicom_slice: Writer, tmp_path: Path) -> None:
    """Then nothing says how values are coded, but the elements show it."""
    write_dicom_slice(tmp_path / "a.dcm", SMOOTH)
    expected = load_volume(tmp_path / "a.dcm").array
    file = pydicom.dcmread(tmp_path / "a.dcm")
    for implicit in (True, False):
        bare = pydicom.Dataset(file)
        bare.save_as(tmp_path / "a.dcm", implicit_vr=implicit, little_endian=True)
        assert b"DICM" not in (tmp_path / "a.dcm").read_bytes()
        assert np.array_equal(load_volume(tmp_path / "a.dcm").array, expected)


def test_bits_not_in_use_are_no_part_of_the_value(write_dicom_slice: Writer, tmp_path: Path) -> None:
    """Old scanners kept graphics in the upper four bits; a signed value may lack its sign's extension."""
    values = np.array([[-2048, -1], [0, 2047]])
    stored = ((values & 0xFFF) | np.array([[0, 0xF000], [0x1000, 0xA000]])).astype(np.uint16)
    write_dicom_slice(
        tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept=0
    )
    assert load_volume(tmp_path / "a.dcm").array[:, :, 0].T.tolist() == values.tolist()


def test_values_above_the_lowest_bits(write_dicom_slice: Writer, tmp_path: Path) -> None:
    write_dicom_slice(
        tmp_path / "a.dcm",
        np.array([[16, 32]], dtype=np.uint16),
        BitsStored=12,
        HighBit=15,
        RescaleIntercept=0,
    )
    assert load_volume(tmp_path / "a.dcm").array[:, 0, 0].tolist() == [1, 2]


def test_padding_beyond_the_bits_in_use(write_dicom_slice: Writer, tmp_path: Path) -> None:
    """−2000 as 16 bits, though only 12 unsigned ones are said to be in use: its lowest 12 are 2096, bone."""
    write_dicom_slice(
        tmp_path / "a.dcm", np.array([[63536, 2096]], dtype=np.uint16), BitsStored=12, HighBit=11
    )
    file = pydicom.dcmread(tmp_path / "a.dcm")
    file.add_new("PixelPaddingValue", "SS", -2000)
    file.save_as(tmp_path / "a.dcm")
    assert load_volume(tmp_path / "a.dcm").array[:, 0, 0].tolist() == [-1024, 2096 - 1024]


def test_mr_slopes_are_honoured(write_dicom_slice: Writer, tmp_path: Path) -> None:
    """Philips scales every MR slice by a slope of its own."""
    stored = np.arange(6, dtype=np.uint16).reshape(2, 3)
    for k, slope in enumerate([1.5, 0.25]):
        write_dicom_slice(
            tmp_path / f"{k}.dcm",
            stored,
            (0, 0, k),
            SOPClassUID=pydicom.uid.MRImageStorage,
            Modality="MR",
            RescaleSlope=slope,
            RescaleIntercept=2 * k,
        )
    array = load_volume(tmp_path).array
    assert np.array_equal(array[:, :, 0], stored.T * 1.5)
    assert np.array_equal(array[:, :, 1], stored.T * 0.25 + 2)


def test_a_slope_of_nought_is_refused(write_dicom_slice: Writer, tmp_path: Path) -> None:
    write_dicom_slice(tmp_path / "a.dcm", SMOOTH, RescaleSlope=0)
    with pytest.raises(RequestError, match="RescaleSlope = 0"):
        load_volume(tmp_path / "a.dcm")


@pytest.mark.parametrize("tags", [{"BitsStored": 17}, {"HighBit": 16}, {"BitsStored": 0}, {"HighBit": 3}])
def test_impossible_bits_are_refused(tags: dict[str, int], write_dicom_slice: Writer, tmp_path: Path) -> None:
    write_dicom_slice(tmp_path / "a.dcm", SMOOTH, **tags)
    with pytest.raises(
        RequestError, match=r"a\.dcm says that its pixels take|pixels of a\.dcm cannot be read"
    ):
        load_volume(tmp_path / "a.dcm")


def test_values_that_are_not_hu_are_said(write_dicom_slice: Writer, tmp_path: Path) -> None:
    zero = np.zeros((2, 2), dtype=np.int16)
    for k, tags in enumerate(
        [{"RescaleType": "MGML"}, {"RescaleIntercept": None}, {"LossyImageCompression": "01"}, {}]
    ):
        write_dicom_slice(tmp_path / str(k) / "1.dcm", zero, (0, 0, 0), **tags)
        write_dicom_slice(tmp_path / str(k) / "2.dcm", zero, (0, 0, 2), **tags)
    found = [load_volume(tmp_path / str(k)).metadata["warnings"] for k in range(4)]
    assert "its values are MGML, not HU" in found[0][0]
    assert "taken as HU" in found[1][0]
    assert "compressed with loss" in found[2][0]
    assert found[3] == []
