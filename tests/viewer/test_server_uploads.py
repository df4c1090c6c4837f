"""Volumes that are sent: what becomes of them, and what is refused."""

import gzip
import io
import json
import os
import stat
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from serving import PATIENCE, Serving, serving

from ct2mri.data.geometry import from_sitk
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.viewer.bounded import run_bounded
from ct2mri.viewer.reading import load_kept
from ct2mri.viewer.stored import Described

OBLIQUE = np.array(
    [
        [-3 * np.cos(0.35), 0, 3 * np.sin(0.35), 40],
        [0, -3, 0, 25],
        [3 * np.sin(0.35), 0, 3 * np.cos(0.35), -30],
        [0, 0, 0, 1],
    ]
)
LIMIT = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("uploads")
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text("{}")
    with serving(root / "results", str(root / "run"), "--upload_limit", str(LIMIT / 2**30)) as running:
        yield running


@pytest.fixture
def ct() -> Volume:
    array = np.random.default_rng(0).normal(0, 300, (12, 14, 9)).clip(-1000, 2000)
    return Volume(np.rint(array).astype(np.float32), OBLIQUE)


@pytest.fixture
def series(tmp_path: Path, write_dicom_slice: Any) -> dict[str, bytes]:
    """A DICOM series of a patient with a name, by file name."""
    rng = np.random.default_rng(1)
    for k in range(6):
        stored = rng.integers(0, 3000, (10, 12)).astype(np.uint16)
        write_dicom_slice(
            tmp_path / "series" / f"Secret_{k}.dcm",
            stored,
            (0, 0, 2 * k),
            SeriesDescription="Head routine",
            PatientID="Hidden-77",
            KVP=120,
        )
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "series").iterdir())}


def shown(server: Serving, volume: str) -> Any:
    """The image that the page gets."""
    answer = server.client.get(f"/api/volumes/{volume}/data.nii")
    assert answer.status_code == 200
    return nibabel.Nifti1Image.from_bytes(answer.content)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_a_volume_arrives_whole(server, ct, tmp_path, suffix):
    save_volume(ct, tmp_path / f"x{suffix}")
    content = (tmp_path / f"x{suffix}").read_bytes()
    upload = server.send({f"Head of today{suffix}": content}, name=f"Head of today{suffix}")
    assert upload["state"] == "done", upload
    assert upload["received"] == len(content)
    record = server.get(f"/api/volumes/{upload['volume']}")
    assert record["name"] == "Head of today"
    assert (record["shape"], record["role"], record["modality"]) == ([12, 14, 9], "source", "CT")
    assert record["units"] == "HU"
    image = shown(server, upload["volume"])
    assert image.get_data_dtype() == np.int16  # whole numbers
    assert np.array_equal(image.get_fdata(), ct.array)
    assert np.allclose(image.affine, ct.affine, atol=1e-5)
    kept = load_kept(server.results / "volumes" / upload["volume"].removesuffix("-source"), "source")
    assert np.array_equal(kept.array, ct.array)
    read = load_volume(tmp_path / f"x{suffix}")
    assert np.array_equal(kept.affine, read.affine)  # to the last bit, where NIfTI keeps 32


def test_values_with_fractions_keep_them(server, ct, tmp_path):
    mr = ct.with_array(np.abs(ct.array) / 7)
    save_volume(mr, tmp_path / "mr.nii.gz")
    upload = server.send({"mr.nii.gz": (tmp_path / "mr.nii.gz").read_bytes()})
    assert np.array_equal(shown(server, upload["volume"]).get_fdata(dtype=np.float32), mr.array)
    assert server.get(f"/api/volumes/{upload['volume']}")["modality"] is None


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize("way", ["files", "zip"])
def test_a_series_arrives_and_its_patient_is_not_named(server, series, tmp_path, way):
    if way == "files":
        others = {".hidden": b"x", "DICOMDIR": b"x"}
        upload = server.send({**others, **series}, kind="dicom", name="/home/me/Secret^Name/CT")
    else:
        upload = server.send(
            {"Secret.zip": zipped({f"Secret/{n}": c for n, c in series.items()})}, name="Secret.zip"
        )
    assert upload["state"] == "done", upload
    record = server.get(f"/api/volumes/{upload['volume']}")
    assert (record["name"], record["modality"], record["shape"]) == ("CT, Head routine", "CT", [12, 10, 6])
    expected = load_volume(tmp_path / "series")
    assert np.array_equal(shown(server, upload["volume"]).get_fdata(), expected.array)
    told = json.dumps([server.get("/api/volumes"), server.get(f"/api/uploads/{upload['id']}")])
    for secret in ("Secret", "Hidden"):
        assert secret.lower() not in told.lower()
        assert secret not in server.log.read_text()
        assert not [p for p in server.results.rglob("*") if secret in p.name]
    # What a translation needs of the source is kept: facts of the scan, and whom results belong to.
    kept = load_kept(server.results / "volumes" / upload["volume"].removesuffix("-source"), "source")
    assert kept.metadata["kvp"] == expected.metadata["kvp"] == 120
    origin, before = kept.metadata["dicom"], expected.metadata["dicom"]
    assert str(origin.header.PatientName) == "Secret^Name"
    assert origin.sop_instance_uids == before.sop_instance_uids
    assert origin.header == before.header


def test_a_description_with_the_patients_name_is_not_shown(server, series, tmp_path, write_dicom_slice):
    for k in range(3):
        write_dicom_slice(
            tmp_path / "n" / f"{k}.dcm",
            np.ones((8, 8), np.uint16) * k,
            (0, 0, k),
            SeriesDescription="CT of SECRET",
        )
    files = {p.name: p.read_bytes() for p in sorted((tmp_path / "n").iterdir())}
    upload = server.send(files, kind="dicom", name="name of secret")
    assert server.get(f"/api/volumes/{upload['volume']}")["name"] == "CT series"


def failed(upload: dict[str, Any]) -> str:
    assert upload["state"] == "failed" and upload["volume"] is None, upload
    sentence = str(upload["detail"])
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_what_cannot_be_read_is_refused_in_a_sentence(server, series, tmp_path):
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        entry = zipfile.ZipInfo("a.dcm")
        entry.external_attr = (0o777 | stat.S_IFLNK) << 16
        archive.writestr(entry, "/etc/passwd")
    nifti = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_bytes()
    bomb = io.BytesIO()
    with gzip.open(bomb, "wb") as file:
        file.write(nifti + bytes(50 * 2**20))
    cases = {
        "a.zip": (link.getvalue(), "symbolic link"),
        "b.zip": (zipped({"../a.dcm": b"x"}), "lead out of it"),
        "c.zip": (zipped({"a.txt": b"x"}), "holds no DICOM image"),
        "d.nii.gz": (bomb.getvalue(), "unpacks to more than its header says"),
        "e.nii": (nifti[:40] + b"\3\0" + b"\x90\x06" * 3 + nifti[48:], "voxels"),
        "f.dcm": (b"no dicom", "holds no DICOM image"),
        "g.nrrd": (b"NRRD0004\ndata file: /etc/passwd\nsizes: 4 4 4\n\n", "refers to another file"),
    }
    for name, (content, words) in cases.items():
        assert words in failed(server.send({name: content})), name
    assert "holds no DICOM image" in failed(server.send({"a": b"x", "b": b"y"}, kind="dicom"))
    deadline = time.monotonic() + PATIENCE
    while left := [name for *_, names in os.walk(server.results / ".viewer-work") for name in names]:
        # Said to have failed, the last one may still be being cleared away.
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)


def test_names_are_never_paths(server, ct, tmp_path):
    save_volume(ct, tmp_path / "x.nii")
    content = (tmp_path / "x.nii").read_bytes()
    for name in (
        "../../../evil-name.nii",
        "/etc/evil-name.nii",
        "C:\\evil-name.nii",
        "a/b/../evil-name.nii",
        "evil-name\n\x1b[31m.nii",
    ):
        upload = server.send({name: content}, name=name)
        assert upload["state"] == "done", upload
        shown_name = server.get(f"/api/volumes/{upload['volume']}")["name"]
        assert "evil-name" in shown_name and shown_name.isprintable() and "/" not in shown_name
    assert not list(tmp_path.parent.rglob("*evil-name*"))
    assert not list(server.results.rglob("*evil-name*"))


def begin(server: Serving, kind: str = "file") -> str:
    identifier: str = server.post("/api/uploads", {"name": "x", "kind": kind})["id"]
    return identifier


def put(server: Serving, upload: str, content: Any, name: str = "a.nii") -> Any:
    return server.client.put(f"/api/uploads/{upload}/files", params={"name": name}, content=content)


def test_size_is_bounded_whether_it_is_told_beforehand_or_not(server):
    upload = begin(server)
    assert put(server, upload, bytes(LIMIT + 1)).status_code == 413
    assert server.get(f"/api/uploads/{upload}")["files"] == 0
    endless = (bytes(65536) for _ in range(10_000))
    answer = put(server, upload, endless)
    assert answer.status_code == 413 and "1 MiB" in answer.json()["detail"]
    assert server.get(f"/api/uploads/{upload}")["state"] == "failed"
    series = begin(server, "dicom")
    for expected in (200, 200, 413):
        assert put(server, series, bytes(int(LIMIT * 0.4))).status_code == expected


def test_uploads_keep_to_their_order(server):
    upload = begin(server)
    assert server.client.post(f"/api/uploads/{upload}/finish").status_code == 409  # nothing has come
    assert put(server, upload, b"x", "a.exe").status_code == 422
    assert put(server, upload, b"x").status_code == 200
    assert put(server, upload, b"x").status_code == 409  # one file is all of it
    assert server.client.delete(f"/api/uploads/{upload}").status_code == 204
    assert server.client.get(f"/api/uploads/{upload}").status_code == 404
    assert put(server, upload, b"x").status_code == 404
    assert server.client.post("/api/uploads", json={"name": "x", "kind": "other"}).status_code == 422
    assert (
        server.client.post("/api/uploads", json={"name": "x", "kind": "file", "more": 1}).status_code == 422
    )


def test_too_many_open_uploads_are_refused(server):
    opened = []
    while (
        answer := server.client.post("/api/uploads", json={"name": "x", "kind": "file"})
    ).status_code == 201:
        opened.append(answer.json()["id"])
        assert len(opened) < 100
    assert answer.status_code == 429 and "finish or delete" in answer.json()["detail"]
    for upload in opened:
        server.client.delete(f"/api/uploads/{upload}")


def test_a_volume_is_deleted_with_its_files(server, series):
    upload = server.send(series, kind="dicom")
    folder = server.results / "volumes" / upload["volume"].removesuffix("-source")
    assert folder.is_dir()
    assert server.client.delete(f"/api/volumes/{upload['volume']}").status_code == 204
    assert not folder.exists()
    assert server.client.get(f"/api/volumes/{upload['volume']}/data.nii").status_code == 404


def spin(folder: Path, described: Described) -> None:
    while True:
        pass


def hoard(folder: Path, described: Described) -> None:
    np.ones(2**30, np.float64)


def explode(folder: Path, described: Described) -> None:
    raise ValueError("the name of the patient")


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("spin", "not read within 5 seconds"),
        ("hoard", "more memory than is allowed"),
        ("explode", "unforeseen ValueError"),
    ],
)
def test_reading_is_bounded(tmp_path, work, words):
    described = Described(name="x", group="x", role="source")
    with pytest.raises(RequestError, match=words) as refused:
        run_bounded(
            f"{__name__}:{work}",
            tmp_path,
            described,
            seconds=5 if work == "spin" else 300,
            memory=4 * 2**30,
            scratch=tmp_path,
            stop=threading.Event(),
        )
    assert "patient" not in str(refused.value)


def test_a_reading_process_that_dies_is_told(tmp_path):
    with pytest.raises(RequestError, match="ended the reading process"):
        run_bounded("os:abort", seconds=300, memory=None, scratch=tmp_path, stop=threading.Event())


def test_reading_ends_with_the_viewer(tmp_path):
    stop = threading.Event()
    threading.Timer(1, stop.set).start()
    with pytest.raises(RequestError, match="viewer ended"):
        run_bounded(f"{__name__}:spin", tmp_path, None, seconds=300, memory=None, scratch=tmp_path, stop=stop)


def test_itk_and_nibabel_agree_on_what_is_shown(server, tmp_path):
    """An image with turned axes from ITK, through the server, lies where ITK says."""
    image = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetDirection((0, 1, 0, 0, 0, 1, 1, 0, 0))
    image.SetSpacing((1.5, 2.5, 3.5))
    image.SetOrigin((10, 20, 30))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    upload = server.send({"a.mha": (tmp_path / "a.mha").read_bytes()})
    assert np.allclose(shown(server, upload["volume"]).affine, from_sitk(image, {}).affine)
