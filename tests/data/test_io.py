import gzip
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from ct2mri import Volume, load_volume, save_volume
from ct2mri.data.io import files_of, find_volumes, is_volume_path, volume_stem
from ct2mri.errors import RequestError

SUFFIXES = [".nii", ".nii.gz", ".mha", ".nrrd"]


def oblique_affine() -> np.ndarray:
    """Oblique, left-handed, anisotropic."""
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    affine[:3, :3] = rotation @ np.diag([-0.7, 1.3, 2.5])
    affine[:3, 3] = [-101.5, 37.25, 12.125]
    return affine


def sheared_affine() -> np.ndarray:
    affine = oblique_affine()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    return affine


@pytest.fixture
def volume() -> Volume:
    return Volume(np.random.default_rng(0).normal(0, 500, (5, 6, 7)), oblique_affine())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("affine", [oblique_affine(), sheared_affine(), np.diag([-1.0, -1, 1, 1])])
def test_formats_round_trip(suffix: str, affine: np.ndarray, tmp_path: Path) -> None:
    volume = Volume(np.random.default_rng(0).normal(0, 500, (5, 6, 1)), affine)
    path = tmp_path / "new folder" / f"a.volume{suffix}"
    save_volume(volume, path)
    loaded = load_volume(path)
    assert np.array_equal(loaded.array, volume.array)
    assert loaded.grid.matches(volume.grid, tolerance_mm=1e-4)
    assert loaded.metadata == {"path": str(path), "warnings": []}
    assert list(path.parent.iterdir()) == [path]


def test_a_landmark_lies_at_one_place_in_every_format(volume: Volume, tmp_path: Path) -> None:
    """Checked with each format's own library, not with ours."""
    index = (4, 2, 6)
    expected = (volume.affine @ [*index, 1])[:3]
    for suffix in SUFFIXES:
        path = tmp_path / f"a{suffix}"
        save_volume(volume, path)
        image = SimpleITK.ReadImage(str(path))
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose([-left, -posterior, superior], expected, atol=1e-3)
        assert image.GetPixel(index) == volume.array[index]
        if suffix.startswith(".nii"):
            nifti = nibabel.load(path)
            for affine in (nifti.affine, nifti.get_sform(), nifti.get_qform()):
                assert np.allclose((affine @ [*index, 1])[:3], expected, atol=1e-3)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz"])
def test_files_of_other_tools_agree_across_formats(suffix: str, tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((0.5, 1.5, 3))
    image.SetOrigin((10, 20, 30))
    image.SetDirection(Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix().ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = load_volume(tmp_path / f"a{suffix}")
    assert volume.array[3, 1, 0] == 7
    left, posterior, superior = image.TransformIndexToPhysicalPoint((3, 1, 0))
    expected = [-left, -posterior, superior]
    assert np.allclose((volume.affine @ [3, 1, 0, 1])[:3], expected, atol=1e-4)


def test_mhd_with_its_data_file(volume: Volume, tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.ones((2, 3, 4), dtype=np.float32))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mhd"))
    assert load_volume(tmp_path / "a.mhd").spatial_shape == (4, 3, 2)
    (tmp_path / "a.raw").unlink()
    with pytest.raises(RequestError, match=r"a\.mhd cannot be read.*missing"):
        load_volume(tmp_path / "a.mhd")


MHD = "NDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\nElementSpacing = 1 2 3\nElementDataFile = "
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nspacings: 1 2 3\nencoding: raw\n"


@pytest.mark.parametrize(
    ("name", "header", "voxels"),
    [
        ("a.mhd", MHD + "other voxels.raw\n", ["other voxels.raw"]),
        ("a.mha", MHD + "folder/ü.bin\n", ["folder/ü.bin"]),
        ("a.mhd", MHD + "LIST\nk0\nk1\nk2\nk3\n", ["k0", "k1", "k2", "k3"]),
        ("a.mhd", MHD + "k%d 0 3 1\n", ["k0", "k1", "k2", "k3"]),
        ("a.nrrd", NRRD + "data file: other.raw\n\n", ["other.raw"]),
        ("a.nrrd", NRRD + "data file: LIST\nk0\nk1\nk2\nk3\n", ["k0", "k1", "k2", "k3"]),
    ],
)
def test_the_files_of_a_volume_are_those_that_its_header_names(
    name: str, header: str, voxels: list[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(header)
    path.with_suffix(".json").write_text("a note beside it, which is no part of it")
    for number, other in enumerate(voxels):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(
            bytes(range(24 // len(voxels) * number, 24 // len(voxels) * (number + 1)))
        )
    np.testing.assert_array_equal(load_volume(path).array.ravel(order="F"), range(24))
    assert sorted(files_of(path)) == sorted([path, *(tmp_path / other for other in voxels)])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_volume_of_one_file_is_that_file(suffix: str, volume: Volume, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save_volume(volume, path)
    assert files_of(path) == [path]


def test_nifti_header_of_a_result(volume: Volume, tmp_path: Path) -> None:
    save_volume(volume, tmp_path / "a.nii.gz", description="SYNTHETIC MR — " + "x" * 100)
    header = nibabel.load(tmp_path / "a.nii.gz").header
    description = header["descrip"].item().decode()
    assert description.startswith("SYNTHETIC MR ? x")
    assert len(description) == 79
    assert header.get_xyzt_units()[0] == "mm"
    assert header["sform_code"] == header["qform_code"] == 1
    save_volume(Volume(volume.array, sheared_affine()), tmp_path / "b.nii.gz")
    header = nibabel.load(tmp_path / "b.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (1, 0)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_itk_formats_keep_the_description(suffix: str, volume: Volume, tmp_path: Path) -> None:
    save_volume(volume, tmp_path / f"a{suffix}", description="SYNTHETIC MR, generated from CT")
    assert b"SYNTHETIC MR, generated from CT" in (tmp_path / f"a{suffix}").read_bytes()[:2000]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masks_are_bytes(suffix: str, volume: Volume, tmp_path: Path) -> None:
    mask = Volume(volume.array > 0, volume.affine)
    save_volume(mask, tmp_path / f"a{suffix}", dtype="uint8")
    assert SimpleITK.ReadImage(str(tmp_path / f"a{suffix}")).GetPixelID() == SimpleITK.sitkUInt8
    assert np.array_equal(load_volume(tmp_path / f"a{suffix}").array, mask.array)
    with pytest.raises(ValueError, match="whole numbers"):
        save_volume(volume, tmp_path / f"b{suffix}", dtype="uint8")


def test_scaled_integers_are_honoured(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(2.5, -1024)
    image.to_filename(tmp_path / "a.nii")
    assert load_volume(tmp_path / "a.nii").array[0, 0, 1] == 2.5 * image.get_fdata()[0, 0, 1] - 1024


def test_nifti_2_and_big_endian(tmp_path: Path) -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    nibabel.Nifti2Image(array, np.eye(4)).to_filename(tmp_path / "a.nii")
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.Nifti1Image(array, np.eye(4), header).to_filename(tmp_path / "b.nii.gz")
    for name in ("a.nii", "b.nii.gz"):
        assert np.array_equal(load_volume(tmp_path / name).array, array)


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1)
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    assert np.array_equal(load_volume(tmp_path / "a.nii.gz").array, array[..., 0])


def test_nifti_units_other_than_mm(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), dtype=np.float32), np.diag([500.0, 500, 2000, 1]))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "a.nii")
    assert load_volume(tmp_path / "a.nii").spacing == pytest.approx((0.5, 0.5, 2))


def test_nifti_without_orientation_warns(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), dtype=np.float32), None)
    image.header.set_zooms((1, 2, 3))
    image.to_filename(tmp_path / "a.nii")
    volume = load_volume(tmp_path / "a.nii")
    assert volume.spacing == (1, 2, 3)
    assert "does not say how its voxels lie" in volume.metadata["warnings"][0]


def test_sform_and_qform_that_disagree_warn(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((20, 20, 20), dtype=np.float32), np.eye(4))
    image.set_sform(np.diag([-1.0, 1, 1, 1]), code=1)
    image.set_qform(np.eye(4), code=1)
    image.to_filename(tmp_path / "a.nii")
    volume = load_volume(tmp_path / "a.nii")
    assert volume.orientation == "LAS"
    assert "disagree" in volume.metadata["warnings"][0]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_a_quaternion_longer_than_one_is_read_as_the_reference_does(kind, endianness, tmp_path: Path) -> None:
    """Of a turn by half a circle, rounding alone makes it so; nifti1_io.c then brings it to length one."""
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec(np.pi * np.array([0.6, 0, 0.8])).as_matrix() * [1.5, 2, 2.5]
    for name, sform, warnings in (("q.nii", None, 0), ("s.nii.gz", turned, 0), ("other.nii", np.eye(4), 1)):
        image = kind(np.arange(24.0).reshape(2, 3, 4), None, kind.header_class(endianness=endianness))
        image.set_qform(turned, code=1)
        image.set_sform(sform, code=0 if sform is None else 1)
        content = image.to_bytes()
        header = kind.header_class(content[: kind.header_class.sizeof_hdr])
        header["quatern_b"], header["quatern_d"] = 0.600003, 0.800004
        content = header.binaryblock + content[len(header.binaryblock) :]
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        volume = load_volume(tmp_path / name)
        np.testing.assert_allclose(volume.affine, turned if sform is None else sform, atol=1e-5)
        np.testing.assert_array_equal(volume.array.ravel(), range(24))
        assert len(volume.metadata["warnings"]) == warnings


def test_voxels_that_would_begin_inside_the_header_are_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), dtype=np.int16), np.eye(4))
    content = bytearray(image.to_bytes())
    content[108:112] = bytes(4)  # vox_offset
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(RequestError, match=r"a\.nii cannot be read as NIfTI.*begin inside its header"):
        load_volume(tmp_path / "a.nii")


def test_nrrd_without_space_warns(tmp_path: Path) -> None:
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nspacings: 1 2 3\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    volume = load_volume(tmp_path / "a.nrrd")
    assert volume.spacing == (1, 2, 3)
    assert "“space” is missing" in volume.metadata["warnings"][0]


@pytest.mark.parametrize(
    ("space", "warned"),
    [("scanner-xyz", 1), ("3D-right-handed", 1), ("left-posterior-superior", 0), ("RAS", 0), ("LAS", 0)],
)
def test_nrrd_in_a_space_that_is_not_the_patients_warns(space: str, warned: int, tmp_path: Path) -> None:
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nspace: {space}\nsizes: 2 2 2\nencoding: raw\n"
    header += "space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (1,2,3)\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    warnings = load_volume(tmp_path / "a.nrrd").metadata["warnings"]
    assert len(warnings) == warned and all("left and right may be swapped" in text for text in warnings)


def test_nrrd_in_other_spaces(tmp_path: Path) -> None:
    header = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 2 2\n"
        "space directions: (1,0,0) (0.5,1,0) (0,0,2)\nkinds: domain domain domain\nencoding: raw\n"
        "space origin: (1,2,3)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    assert np.allclose(
        load_volume(tmp_path / "a.nrrd").affine, [[1, 0.5, 0, 1], [0, 1, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]]
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no file or folder .*gone\.nii\.gz"):
        load_volume(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize("name", ["a.png", "a.hdr", "a"])
def test_an_unknown_format_is_named_with_the_known(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(RequestError, match=r"format of a.* is unknown; allowed are NIfTI"):
        load_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".mhd"])
@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 2, 3)])
def test_other_than_three_axes_is_refused(suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.Image(shape, SimpleITK.sitkInt16), str(tmp_path / f"a{suffix}"))
    with pytest.raises(RequestError, match=f"a{suffix} has {len(shape)} axes .*three axes"):
        load_volume(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_complex_numbers_are_refused(suffix: str, tmp_path: Path) -> None:
    SimpleITK.WriteImage(
        SimpleITK.Image((2, 3, 4), SimpleITK.sitkComplexFloat32), str(tmp_path / f"a{suffix}")
    )
    with pytest.raises(RequestError, match="several numbers per voxel"):
        load_volume(tmp_path / f"a{suffix}")


def test_colours_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(colour, np.eye(4)).to_filename(tmp_path / "a.nii")
    SimpleITK.WriteImage(SimpleITK.Image([2, 3, 4], SimpleITK.sitkVectorUInt8, 3), str(tmp_path / "a.mha"))
    for name in ("a.nii", "a.mha"):
        with pytest.raises(RequestError, match="several numbers per voxel"):
            load_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_refused(
    suffix: str, kept: float, volume: Volume, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{suffix}"
    save_volume(volume, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(RequestError, match=rf"^a{suffix} cannot be read.*damaged.*cut short"):
        load_volume(path)
    assert capfd.readouterr().err == ""
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_damaged_compression_is_refused(volume: Volume, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    save_volume(volume, path)
    whole = path.read_bytes()
    for changed in (len(whole) // 2, len(whole) - 6):  # the second in the checksum alone
        damaged = bytearray(whole)
        damaged[changed] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match="cannot be read as NIfTI"):
            load_volume(path)
    path.write_bytes(gzip.compress(b"no NIfTI at all" * 100))
    with pytest.raises(RequestError, match="cannot be read as NIfTI"):
        load_volume(path)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".dcm", ".zip"])
@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_is_at_worst_a_refusal(
    suffix: str, volume: Volume, write_dicom_slice, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    write_dicom_slice(tmp_path / "1.dcm", np.arange(900, dtype=np.int16).reshape(30, 30))
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(tmp_path / "1.dcm", "1.dcm")
    elif suffix == ".dcm":
        shutil.copy(tmp_path / "1.dcm", path)
    else:
        save_volume(volume, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for turn in range(120):
        damaged = bytearray(whole)
        if turn % 3 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        elif turn % 3 == 1:
            damaged = bytearray(rng.bytes(rng.integers(2000)))
        else:
            for place in rng.integers(0, min(800, len(whole)), 3):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_volume(path)
        except RequestError as error:
            refused += 1
            assert path.name in str(error)
            assert "\n" not in str(error)
    assert refused > 60


def test_an_affine_that_cannot_be_inverted_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), dtype=np.float32), np.eye(4))
    image.set_sform(np.diag([1.0, 1, 0, 1]), code=1)
    image.to_filename(tmp_path / "a.nii")
    header = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace: RAS\nsizes: 2 2 2\n"
        "space directions: (1,0,0) (1,0,0) (0,0,2)\nencoding: raw\nspace origin: (1,2,3)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(8))
    for name in ("a.nii", "a.nrrd"):
        with pytest.raises(RequestError, match=rf"{name}.*cannot be inverted"):
            load_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.mhd", "a", "a.dcm"])
def test_only_known_formats_are_written(name: str, volume: Volume, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"allowed suffixes are \.nii\.gz, \.nii, \.mha, \.nrrd"):
        save_volume(volume, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_file_alone(suffix: str, volume: Volume, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save_volume(volume, path)
    before = path.read_bytes()
    program = f"""
import resource, signal
import numpy as np
from ct2mri import Volume, save_volume
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_volume(Volume(np.random.default_rng(0).normal(size=(40, 40, 40)), np.eye(4)), {str(path)!r})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path} could not be written")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("x/a.nii.gz", "a"),
        ("a.b.NII.GZ", "a.b"),
        ("a.nrrd", "a"),
        ("a.dcm", "a"),
        ("a.zip", "a"),
        ("1.2.840", "1.2.840"),
        ("case.v2", "case.v2"),
    ],
)
def test_stem(name: str, stem: str) -> None:
    assert volume_stem(name) == stem


def test_volumes_are_found_in_a_folder(volume: Volume, write_dicom_slice, tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", "c.nrrd"):
        save_volume(volume, tmp_path / name)
    shutil.copy(tmp_path / "b.nii.gz", tmp_path / ".hidden.nii.gz")
    (tmp_path / "notes.txt").write_text("notes")
    write_dicom_slice(tmp_path / "series" / "study" / "IM1", np.zeros((2, 2), dtype=np.int16))
    save_volume(volume, tmp_path / "others" / "d.nii.gz")
    assert [path.name for path in find_volumes(tmp_path)] == ["a.mha", "b.nii.gz", "c.nrrd", "series"]
    assert is_volume_path(tmp_path / "a.mha")
    assert is_volume_path(tmp_path / "series" / "study")
    assert is_volume_path(tmp_path / "series" / "study" / "IM1")
    assert not is_volume_path(tmp_path)
    assert not is_volume_path(tmp_path / "notes.txt")
    assert not is_volume_path(tmp_path / "gone.mha")
    with pytest.raises(RequestError, match="no folder"):
        find_volumes(tmp_path / "gone")


def test_real_files_load(shared_data: Path) -> None:
    head = load_volume(shared_data / "real_ct" / "head.nii.gz")
    assert head.spatial_shape == (256, 256, 108)
    assert head.orientation == "LPS"
    assert head.spacing == pytest.approx((0.957, 0.957, 1.5), abs=1e-3)
    abdomen = load_volume(shared_data / "real_ct" / "abdomen_pelvis.nii.gz")
    assert abdomen.spatial_shape == (122, 101, 112)
    assert abdomen.orientation == "RAS"
    assert -1300 < abdomen.array.min() < -1000
