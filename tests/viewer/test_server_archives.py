"""Files that lie about themselves are refused by what their first bytes say, in one sentence."""

import gzip
import io
import stat
import struct
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from ct2mri.errors import RequestError
from ct2mri.viewer.archives import SUFFIXES, check_file, check_zip, suffix_of

VOXELS = 10_000
UNPACKED = 2**20


def refusal(path: Path, voxels: int = VOXELS) -> str:
    with pytest.raises(RequestError) as refused:
        check_file(path, voxels, UNPACKED)
    sentence = str(refused.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def array(shape=(9, 10, 11)) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)


def nifti(shape=(9, 10, 11), kind=nibabel.Nifti1Image) -> bytes:
    return kind(array(shape), np.eye(4)).to_bytes()


def claims(content: bytes, *shape: int) -> bytes:
    """The same file, whose header says another shape."""
    return content[:40] + struct.pack("<4h", 3, *shape) + content[48:]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_honest_files_pass(tmp_path, kind):
    plain = write(tmp_path / "a.nii", nifti(kind=kind))
    assert check_file(plain, VOXELS, UNPACKED) == plain
    packed = write(tmp_path / "b.nii.gz", gzip.compress(nifti(kind=kind)))
    unpacked = check_file(packed, VOXELS, UNPACKED)
    assert unpacked == tmp_path / "b.nii"
    assert unpacked.read_bytes() == plain.read_bytes()
    for suffix in ("mha", "nrrd"):
        for packing in (True, False):
            path = tmp_path / f"c.{suffix}"
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array()), str(path), useCompression=packing)
            assert check_file(path, VOXELS, UNPACKED) == path
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("series/1.dcm", b"x" * 1000)
    check_file(tmp_path / "d.zip", VOXELS, UNPACKED)


def test_headers_of_ten_gigabytes_over_a_kilobyte(tmp_path):
    lying = claims(nifti()[:1376], 1700, 1700, 900)
    for name, content in (("a.nii", lying), ("b.nii.gz", gzip.compress(lying))):
        path = write(tmp_path / name, content)
        assert "1700 × 1700 × 900 voxels" in refusal(path)
        assert "damaged or cut short" in refusal(path, voxels=2**40)
    meta = "NDims = 3\nDimSize = 1700 1700 900\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    path = write(tmp_path / "c.mha", meta.encode() + bytes(1000))
    assert "1700 × 1700 × 900 voxels" in refusal(path)
    assert "damaged or cut short" in refusal(path, voxels=2**40)
    nrrd = "NRRD0004\ntype: float\ndimension: 3\nsizes: 1700 1700 900\nencoding: raw\n\n"
    path = write(tmp_path / "d.nrrd", nrrd.encode() + bytes(1000))
    assert "1700 × 1700 × 900 voxels" in refusal(path)
    assert "damaged or cut short" in refusal(path, voxels=2**40)


def test_a_gzip_that_unpacks_to_more_than_its_header_says(tmp_path):
    bomb = io.BytesIO()
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(nifti())
        for _ in range(64):
            file.write(bytes(2**20))
    path = write(tmp_path / "bomb.nii.gz", bomb.getvalue())
    assert "unpacks to more than its header says" in refusal(path)
    assert (tmp_path / "bomb.nii").stat().st_size < 4 * 2**20


@pytest.mark.parametrize("cut", [0, 10, 100, 2000])
def test_files_that_were_cut_short(tmp_path, cut):
    packed = gzip.compress(nifti())
    refusal(write(tmp_path / "a.nii.gz", packed[:cut]))
    refusal(write(tmp_path / "a.nii", nifti()[:cut]))


def test_headers_that_name_another_file(tmp_path):
    """The voxels of such a volume would be any file that the server may read."""
    secret = write(tmp_path / "secret", b"s" * 990)
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 9 10 11\nElementType = MET_UCHAR\nElementDataFile = {}\n"
    nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 9 10 11\nencoding: raw\n{}: {}\n\n"
    for name in (str(secret), "secret", "LIST", "../secret"):
        assert "another file" in refusal(write(tmp_path / "a.mha", meta.format(name).encode()))
        for field in ("data file", "datafile", "Data File"):
            assert "another file" in refusal(write(tmp_path / "a.nrrd", nrrd.format(field, name).encode()))
    # Neither at the end of many other fields, nor after the voxels' fields were said to be here.
    many = "".join(f"Field{i} = x\n" for i in range(100))
    assert "another file" in refusal(write(tmp_path / "b.mha", (many + meta.format(secret)).encode()))


def test_headers_that_name_another_file_in_words_that_only_itk_understands(tmp_path):
    """Case, separators, ends of lines and long headers, where ITK would find the other file."""
    secret = write(tmp_path / "secret", b"s" * 990)
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 9 10 11\nElementType = MET_UCHAR\n"
    for fields in (
        f"elementdatafile = LOCAL\nElementDataFile = {secret}\n",
        f"ElementDataFile : {secret}\nElementDataFile = LOCAL\n",
    ):
        path = write(tmp_path / "a.mha", (meta + fields).encode() + bytes(990))
        assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).max() == ord("s")
        assert "another file" in refusal(path)
    # The word may lie across the pieces in which a file is looked through.
    ahead = (meta + "ElementDataFile = LOCAL\n").encode()
    for gap in range(2**20 - 16, 2**20 + 2):
        path = write(tmp_path / "b.mha", ahead + bytes(gap - len(ahead)) + b"ElementDataFile")
        assert "another file" in refusal(path)
    nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 9 10 11\nencoding: raw\n"
    comments = f"# {'x' * 1000}\n" * 1100
    for fields, words in (
        (f"# x\rdata file: {secret}\n\n", "another file"),
        (f"{comments}data file: {secret}\n\n", "more than 1.0 MiB"),
    ):
        path = write(tmp_path / "a.nrrd", (nrrd + fields).encode() + bytes(990))
        assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).max() == ord("s")
        assert words in refusal(path)


def zipped(path: Path, names: list[str], content: bytes = b"x", mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (mode or 0o644 | stat.S_IFREG) << 16
            archive.writestr(entry, content)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../evil.dcm",
        "a/../../evil.dcm",
        "/etc/evil.dcm",
        "C:/evil.dcm",
        "..\\evil.dcm",
        "C:\\evil.dcm",
        "a/..",
    ],
)
def test_zips_that_lead_elsewhere(tmp_path, name):
    assert "lead out of it" in refusal(zipped(tmp_path / "a.zip", ["fine.dcm", name]))


def test_zips_with_links(tmp_path):
    path = zipped(tmp_path / "a.zip", ["link.dcm"], b"/etc/passwd", 0o777 | stat.S_IFLNK)
    assert "symbolic link" in refusal(path)


def test_zip_bombs(tmp_path):
    bomb = zipped(tmp_path / "large.zip", ["a.dcm", "b.dcm"], bytes(2**20))
    assert "unpacks to 2.0 MiB" in refusal(bomb)
    check_zip(bomb, 2 * 2**20)
    dense = zipped(tmp_path / "dense.zip", ["a.dcm"], bytes(80 * 2**20))
    with pytest.raises(RequestError, match="200 times its size"):
        check_zip(dense, 2**40)
    many = zipped(tmp_path / "many.zip", [f"{n}.dcm" for n in range(200)])
    with pytest.raises(RequestError, match="holds 200 files"):
        check_zip(many, UNPACKED, members=100)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + bytes(17), b"no zip at all" * 100])
def test_damaged_zips(tmp_path, content):
    assert "damaged" in refusal(write(tmp_path / "a.zip", content))


@pytest.mark.parametrize("name", ["", "a", "a.exe", "a.nii.exe", "nii", "a.gz", "a.mhd", "../../etc/passwd"])
def test_unknown_kinds(name):
    with pytest.raises(RequestError):
        suffix_of(name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_known_kinds(suffix):
    assert suffix_of(f"A Name.with.dots{suffix.upper()}") == suffix


@settings(deadline=None)
@given(
    st.sampled_from([".nii", ".nii.gz", ".mha", ".nrrd", ".zip"]), st.binary(max_size=700), st.integers(0, 3)
)
def test_no_bytes_end_in_anything_but_a_sentence(tmp_path_factory, suffix, content, start):
    begins = [b"", nifti()[:352], b"NRRD0004\n", b"NDims = 3\nDimSize = "][start]
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_bytes(begins + content)
    try:
        check_file(path, VOXELS, UNPACKED)
    except RequestError as error:
        assert str(error).endswith(".")
