"""Recognising what the viewer is given; runs and reports as they are served."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import serving

import tiny
from ct2mri.data.io import save_volume
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.marking import short_description, short_spread_description
from ct2mri.training.log import Table
from ct2mri.viewer.failures import NotThereError
from ct2mri.viewer.given import MOST_VOLUMES, group_of, recognise, role_of
from ct2mri.viewer.models import Models
from ct2mri.viewer.reports import Reports
from ct2mri.viewer.runs import MOST_ROWS, Runs


def touch(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "group", "role"),
    [
        ("001_ct.nii.gz", "001", "source"),
        ("mr_001.nii.gz", "001", "target"),
        ("001_synthetic_mr.nii.gz", "001", "result"),
        ("001-draft-mr.nii", "001", "draft"),
        ("001.mha", "001", "other"),
        ("synthetic_mr.nii.gz", "case", "result"),
        ("mr.nrrd", "case", "target"),
        ("uncertainty.nii.gz", "case", "spread"),
        ("error.nii.gz", "case", "error"),
        ("mask.nii.gz", "case", "mask"),
        ("Head.of.today_CT.nii.gz", "Head_of_today", "source"),
        ("Mercury.nii", "Mercury", "other"),
    ],
)
def test_names_tell_case_and_role(tmp_path, name, group, role):
    path = touch(tmp_path / "case" / name)
    assert (group_of(path), role_of(path)) == (group, role)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_the_mark_in_a_header_tells_more_than_a_name(tmp_path, suffix):
    for name, description, role in (
        ("my_mr", short_description(tiny.plan()), "result"),
        ("other_mr", None, "target"),
        ("mr_spread_of_what", short_spread_description(tiny.plan()), "spread"),
        ("my_draft", short_description(tiny.plan()), "draft"),
    ):
        path = tmp_path / f"{name}{suffix}"
        save_volume(Volume(np.zeros((4, 5, 6), np.float32), np.eye(4)), path, description)
        assert role_of(path) == role
    (tmp_path / f"cut_mr{suffix}").write_bytes(b"\x1f\x8b\x08\x00 no more")
    assert role_of(tmp_path / f"cut_mr{suffix}") == "target"


def test_a_sidecar_tells_more_than_a_name(tmp_path):
    path = touch(tmp_path / "p7.nii.gz")
    touch(tmp_path / "p7.json", json.dumps({"safety": "SYNTHETIC", "content": "synthetic MR volume"}))
    assert role_of(path) == "result"
    touch(tmp_path / "p7.json", json.dumps({"anything": 1}))
    assert role_of(path) == "other"
    touch(tmp_path / "p7.json", "{")
    assert role_of(path) == "other"


def test_a_folder_of_volumes_is_sorted_by_case(tmp_path):
    for name in ("b_mr.nii", "a_ct.nii", "b_ct.nii", "a_mr.nii", ".hidden.nii", "notes.txt"):
        touch(tmp_path / name)
    given = recognise([tmp_path])
    assert [(v.path.name, v.described.group) for v in given.volumes] == [
        ("a_ct.nii", "a"), ("a_mr.nii", "a"), ("b_ct.nii", "b"), ("b_mr.nii", "b"),
    ]  # fmt: skip
    assert len({volume.id for volume in given.volumes}) == 4


def test_files_given_one_by_one_are_one_case(tmp_path):
    paths = [touch(tmp_path / "x" / "one.nii"), touch(tmp_path / "y" / "other.nii")]
    assert {volume.described.group for volume in recognise([*paths, paths[0]]).volumes} == {"given"}
    assert len(recognise([*paths, paths[0]]).volumes) == 2


def test_a_folder_for_each_case_and_dicom(tmp_path, write_dicom_slice):
    touch(tmp_path / "p1" / "ct.nii.gz")
    touch(tmp_path / "p1" / "synthetic_mr.nii.gz")
    write_dicom_slice(tmp_path / "p2" / "slice", np.zeros((4, 4), np.uint16))
    given = recognise([tmp_path])
    assert [(v.path.name, v.described.group, v.described.role) for v in given.volumes] == [
        ("ct.nii.gz", "p1", "source"), ("synthetic_mr.nii.gz", "p1", "result"), ("p2", "p2", "other"),
    ]  # fmt: skip
    assert [v.path for v in recognise([tmp_path / "p2"]).volumes] == [tmp_path / "p2"]


def test_runs_and_reports(tmp_path):
    touch(tmp_path / "runs" / "slices" / "run.json", "{}")
    touch(tmp_path / "runs" / "vqvae" / "run.json", "{}")
    report = touch(tmp_path / "report" / "evaluation.html")
    assert [path.name for path in recognise([tmp_path / "runs"]).runs] == ["slices", "vqvae"]
    assert recognise([tmp_path / "runs" / "slices"]).runs == [tmp_path / "runs" / "slices"]
    assert recognise([tmp_path / "report"]).reports == recognise([report]).reports == [report]


def test_what_cannot_be_shown(tmp_path):
    touch(tmp_path / "empty" / "notes.txt")
    for path in (tmp_path / "empty", tmp_path / "empty" / "notes.txt", tmp_path / "nowhere"):
        with pytest.raises(RequestError) as refused:
            recognise([path])
        assert "\n" not in str(refused.value)


def test_a_large_folder_is_shown_in_part(tmp_path):
    for number in range(MOST_VOLUMES + 7):
        touch(tmp_path / f"{number:03d}.nii")
    given = recognise([tmp_path])
    assert (len(given.volumes), given.left_out) == (MOST_VOLUMES, 7)


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "slices"
    facts = {"stage": "slices", "options": {"max_steps": 5000}, "finished": False}
    touch(folder / "run.json", json.dumps(facts))
    for step in (100, 200):
        path = folder / "pictures" / f"step-{step:07d}-axial.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), step, np.uint8)).save(path)
    touch(folder / "pictures" / "other.png")
    return folder


def only(runs: Runs) -> Any:
    (summary,) = runs.summaries()
    return runs.record(summary.id)


def test_a_run_is_followed_while_it_trains(run):
    runs, train = Runs([run]), Table(run / "train.csv", 0)
    assert (only(runs).step, only(runs).train.rows) == (0, [])
    train.add(1, {"loss": 0.5, "rate": 1e-4})
    train.add(2, {"loss": float("nan"), "rate": 1e-4})
    record = only(runs)
    assert (record.stage, record.step, record.max_steps, record.finished) == ("slices", 2, 5000, False)
    assert record.train.columns == ["step", "loss", "rate"]
    assert record.train.rows == [[1, 0.5, 1e-4], [2, None, 1e-4]]
    with (run / "train.csv").open("a") as file:
        file.write("3,0.2")  # half a row
    assert only(runs).step == 2 and len(only(runs).train.rows) == 2
    assert [(picture.step, picture.name) for picture in record.pictures] == [(100, "axial"), (200, "axial")]
    touch(run / "run.json", json.dumps({"stage": "slices", "finished": True, "options": {"max_steps": 5000}}))
    assert only(runs).finished


def test_long_tables_are_averaged(run):
    train = Table(run / "train.csv", 0)
    steps = 2 * MOST_ROWS + 1
    for step in range(1, steps + 1):
        train.add(step, {"loss": float(step % 2)})
    table = only(Runs([run])).train
    assert table.every == 3 and len(table.rows) == -(-steps // 3) <= MOST_ROWS
    assert table.rows[0] == [3, pytest.approx(2 / 3)] and table.rows[-1][0] == steps


@pytest.mark.parametrize(
    "content", ["", "\n", "step,loss\n", "step,loss\n1\n", "a", "\x00\n", "step,loss\n1,2,3\nx,y\n"]
)
def test_damaged_tables_do_not_stop_the_page(run, content):
    touch(run / "train.csv", content)
    touch(run / "run.json", "[]")
    record = only(Runs([run]))
    assert all(len(row) == len(record.train.columns) for row in record.train.rows)
    assert record.stage == "unknown"


@pytest.mark.parametrize(
    "name", ["../run.json", "other.png", "step-0000100-axial.png/..", "", "step-0000300-axial.png"]
)
def test_pictures_are_those_of_the_run(run, name):
    runs = Runs([run])
    with pytest.raises(NotThereError):
        runs.picture(only(runs).id, name)


def test_all_of_it_is_served(run, tmp_path):
    Table(run / "train.csv", 0).add(1, {"loss": 0.5})
    report = touch(tmp_path / "report" / "comparison.html", "<!doctype html><script>1</script>").parent
    case = tmp_path / "case"
    array = np.zeros((4, 5, 6), np.float32)
    array[1:3] = 100
    save_volume(Volume(array, np.eye(4)), case / "synthetic_mr.nii.gz")
    save_volume(Volume(array * 2, np.eye(4)), case / "mr.nii.gz")
    touch(case / "ct.nii.gz", "damaged")
    with serving(tmp_path / "results", str(run), str(report), str(case)) as server:
        status = server.until("/api/status", lambda now: not now["initial"]["pending"])["initial"]
        assert [failed["name"] for failed in status["failed"]] == ["ct"]
        assert "damaged" in status["failed"][0]["detail"]
        roles = [server.get(f"/api/volumes/{volume}")["role"] for volume in status["volumes"]]
        assert roles == ["target", "result", "error"]
        record = server.get(f"/api/runs/{status['run']}")
        picture = server.client.get(record["pictures"][0]["url"])
        assert picture.headers["content-type"] == "image/png"
        assert np.asarray(Image.open(run / "pictures" / "step-0000100-axial.png")).size == 64
        assert picture.content == (run / "pictures" / "step-0000100-axial.png").read_bytes()
        (listed,) = server.get("/api/reports")
        assert (listed["kind"], listed["id"]) == ("comparison", status["report"])
        page = server.client.get(listed["url"])
        assert page.text.endswith("<script>1</script>")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts;") and "frame-ancestors 'self'" in policy
        assert "allow-same-origin" not in policy and "connect-src" not in policy
        docs = server.client.get("/api/docs").text
        assert "POST /api/jobs" in docs and "<script" not in docs and "http://" not in docs
        assert server.client.get("/static/css/api.css").status_code == 200


def test_a_given_file_may_be_written_anew_or_go_while_it_is_looked_at(tmp_path):
    volume = Volume(np.arange(120, dtype=np.float32).reshape(4, 5, 6), np.eye(4))
    for name in ("a", "b"):
        save_volume(volume, tmp_path / f"{name}_mr.nii.gz")
    given = [str(tmp_path / f"{name}_mr.nii.gz") for name in ("a", "b")]
    with serving(tmp_path / "results", *given) as server:
        status = server.until("/api/status", lambda now: not now["initial"]["pending"])["initial"]
        assert len(status["volumes"]) == 2
        save_volume(volume.with_array(volume.array * 2), tmp_path / "a_mr.nii.gz")
        (tmp_path / "b_mr.nii.gz").unlink()
        assert server.get("/api/status")["initial"] == status


@pytest.mark.skipif(sys.platform != "linux", reason="Other systems know no such names.")
def test_a_name_that_is_no_text_is_shown_as_far_as_it_is(tmp_path):
    volume = Volume(np.arange(120, dtype=np.float32).reshape(4, 5, 6), np.eye(4))
    save_volume(volume, tmp_path / "case" / "mr.nii.gz")
    (tmp_path / "case" / "mr.nii.gz").rename(tmp_path / "case" / os.fsdecode(b"mr_Zo\xeb.nii.gz"))
    with serving(tmp_path / "results", str(tmp_path / "case")) as server:
        server.until("/api/status", lambda now: not now["initial"]["pending"])
        (shown,) = server.get("/api/volumes")
        assert (shown["name"], shown["group"], shown["role"]) == ("mr_Zo?", "Zo?", "target")


@pytest.mark.skipif(sys.platform != "linux", reason="Other systems know no such names.")
def test_a_place_whose_name_is_no_text_is_as_good_as_another(tmp_path, monkeypatch):
    (place := tmp_path / os.fsdecode(b"Zo\xeb")).mkdir()
    monkeypatch.chdir(place)
    tiny.pipeline(latents=None).save_pretrained("model")
    assert Models([Path("model")]).records()[0].name == "tiny"
    touch(Path("runs/slices/run.json"), "{}")
    assert Runs([Path("runs/slices")]).summaries()[0].name == "slices"
    touch(Path("report/check.html"))
    assert Reports([Path("report/check.html")]).records()[0].name == "report"


def test_a_series_whose_images_are_others_is_another_one(tmp_path, write_dicom_slice):
    def identifier() -> str:
        return recognise([tmp_path / "series"]).volumes[0].id

    (tmp_path / "series").mkdir()
    for k in range(2):
        write_dicom_slice(tmp_path / "series" / f"{k}.dcm", np.zeros((4, 5), np.int16), (0, 0, k))
    before = identifier()
    assert identifier() == before
    write_dicom_slice(tmp_path / "series" / "1.dcm", np.ones((4, 5), np.int16), (0, 0, 1))
    assert identifier() != before
