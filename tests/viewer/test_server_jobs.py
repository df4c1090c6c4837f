"""Translations through the server: real models, at their smallest, in a real worker process."""

import io
import json
import os
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from serving import PATIENCE, Serving, serving

import tiny
from ct2mri.data.geometry import from_sitk
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.marking import safety_sentence, short_description, units
from ct2mri.models.lookup import LookupTable
from ct2mri.pipeline import TranslationPipeline
from ct2mri.stages import LookupStage
from ct2mri.viewer.client import ViewerClient

MODELS = ("both", "slices", "table")
SLOW = 1000
"""Steps that take so long that a job can be cancelled amid them."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A model, another one without a 3D stage, a CT, its truth, and what is no CT."""
    root = tmp_path_factory.mktemp("jobs")
    tiny.pipeline().save_pretrained(root / "both")
    tiny.pipeline(latents=None).save_pretrained(root / "slices")
    ends = torch.tensor([-1.0, 1.0])
    table = LookupStage(LookupTable.of(ends, ends), channel=0)
    TranslationPipeline(tiny.plan(), [table], {"name": "table"}).save_pretrained(root / "table")
    ct = tiny.ct()
    save_volume(ct, root / "given" / "a_ct.nii.gz")
    save_volume(ct.with_array(np.where(ct.array > -300, 150.0, 0.0)), root / "given" / "a_mr.nii.gz")
    save_volume(ct.with_array(np.abs(ct.array) / 3), root / "given" / "b_ct.nii.gz")
    return root


@pytest.fixture(scope="module")
def server(files):
    with serving(
        files / "results", str(files / "given"), "--models", *(str(files / name) for name in MODELS)
    ) as running:
        running.until("/api/status", lambda status: not status["initial"]["pending"])
        yield running


def volume(server: Serving, name: str) -> str:
    return next(str(each["id"]) for each in server.get("/api/volumes") if each["name"] == name)


def model(server: Serving, number: int = 0) -> str:
    return str(server.get("/api/models")[number]["id"])


def submit(server: Serving, name: str = "a_ct", **settings: Any) -> str:
    return str(
        server.post("/api/jobs", {"volume": volume(server, name), "model": model(server), **settings})["id"]
    )


def data(server: Serving, identifier: str) -> Any:
    return nibabel.Nifti1Image.from_bytes(server.client.get(f"/api/volumes/{identifier}/data.nii").content)


def test_models_are_told_without_loading_them(server):
    both, slices, _ = server.get("/api/models")
    assert both["stages"] == ["slices", "latents"] and slices["stages"] == ["slices"]
    assert both["hash"] == tiny.pipeline().hash
    assert (both["steps"], both["max_steps"]) == (2, 1000)
    assert both["safety"] == safety_sentence(tiny.plan()) and both["units"] == units(tiny.plan())


def test_a_translation_is_what_the_pipeline_makes(server, files):
    job = submit(server, seed=3, samples=2, steps=3, sampler="ddpm")
    told = list(server.events(job))
    assert told[-1]["state"] == "done" and told[-1]["fraction"] == 1
    fractions = [record["fraction"] for record in told]
    assert fractions == sorted(fractions)
    assert {record["stage"] for record in told if record["total"]} <= {"slices", "latents"}
    assert all(record["step"] <= record["total"] for record in told)
    record = server.get(f"/api/jobs/{job}")
    assert record["started"] and record["ended"] and record["detail"] is None
    expected = tiny.pipeline().translate(
        load_volume(files / "given" / "a_ct.nii.gz"), seed=3, samples=2, num_inference_steps=3, sampler="ddpm"
    )
    assert record["warnings"] == expected.warnings
    for base, wanted in (("result", expected.volume), ("draft", expected.draft), ("spread", expected.spread)):
        image = data(server, record["results"][base])
        assert np.allclose(image.get_fdata(), wanted.array, atol=1e-3)
        assert np.allclose(image.affine, wanted.affine)
        facts = server.get(f"/api/volumes/{record['results'][base]}")
        assert (facts["role"], facts["job"], facts["group"]) == (base, job, "a")
        made = facts["made"]
        assert (made["model"], made["seed"], made["steps"], made["samples"]) == ("tiny", 3, 3, 2)
        assert made["safety"] == safety_sentence(tiny.plan())
    assert b"SYNTHETIC MR" in data(server, record["results"]["result"]).header["descrip"].item()


def test_the_error_is_made_where_the_truth_is_there(server, files):
    record = server.done(submit(server))
    result, error = (
        data(server, record["results"]["result"]).get_fdata(),
        data(server, record["results"]["error"]).get_fdata(),
    )
    truth = load_volume(files / "given" / "a_mr.nii.gz").array.astype(np.float64)
    body = result > result.min()
    gain = (truth[body] @ result[body]) / (truth[body] @ truth[body])
    assert np.allclose(error[body], result[body] - gain * truth[body], atol=1e-3)
    assert not error[~body].any()
    again = server.post(
        f"/api/volumes/{record['results']['result']}/error", {"target": volume(server, "a_mr")}
    )["id"]
    made = server.until(f"/api/uploads/{again}", lambda upload: upload["state"] != "reading")
    assert np.allclose(data(server, made["volume"]).get_fdata(), error)


def test_downloads(server):
    job = server.done(submit(server, seed=5))
    result = job["results"]["result"]
    expected = data(server, result)

    def download(**query: Any) -> bytes:
        answer = server.client.get(f"/api/volumes/{result}/download", params=query)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-disposition"].startswith('attachment; filename="ct2mri-result-')
        return answer.content

    assert np.array_equal(nibabel.Nifti1Image.from_bytes(download()).get_fdata(), expected.get_fdata())
    (server.results / "x.nrrd").write_bytes(download(format="nrrd"))
    image = SimpleITK.ReadImage(str(server.results / "x.nrrd"))
    assert image.GetMetaData("Comment") == short_description(tiny.plan())
    assert np.array_equal(from_sitk(image, {}).array, expected.get_fdata())
    sidecar = json.loads(download(format="sidecar"))
    assert (sidecar["seed"], sidecar["safety"]) == (5, safety_sentence(tiny.plan()))
    with zipfile.ZipFile(io.BytesIO(download(format="dicom"))) as archive:
        images = [name for name in archive.namelist() if name.endswith(".dcm")]
        header = pydicom.dcmread(io.BytesIO(archive.read(images[0])))
        facts = json.loads(archive.read("synthetic.json"))
    assert len(images) == expected.shape[2]
    assert "SYNTHETIC MR from CT" in header.SeriesDescription and "seed 5" in header.DerivationDescription
    assert facts["patient"] == "made up: the source is no DICOM" and facts["images"] == len(images)
    source = server.client.get(f"/api/volumes/{volume(server, 'a_ct')}/download", params={"format": "dicom"})
    assert source.status_code == 422 and "what jobs made" in source.json()["detail"]


def test_a_result_of_dicom_belongs_to_its_patient(server, write_dicom_slice, tmp_path):
    ct = tiny.ct(affine=np.diag([3.0, 3.0, 3.0, 1.0]))
    for k in range(ct.spatial_shape[2]):
        stored = (ct.array[:, :, k].T + 1024).clip(0).astype(np.uint16)
        write_dicom_slice(
            tmp_path / f"{k}.dcm",
            stored,
            (0, 0, 3 * k),
            PixelSpacing=[3, 3],
            StudyInstanceUID="1.2.77",
            PatientID="Secret-1",
        )
    files = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    source = server.send(files, kind="dicom")["volume"]
    job = server.done(server.post("/api/jobs", {"volume": source, "model": model(server, 1)})["id"])
    assert job["state"] == "done", job
    for anonymize, patient, study in ((False, "Secret-1", True), (True, "", False)):
        answer = server.client.get(
            f"/api/volumes/{job['results']['result']}/download",
            params={"format": "dicom", "anonymize": anonymize},
        )
        assert "secret" not in str(answer.headers).lower()
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            header = pydicom.dcmread(io.BytesIO(archive.read("synthetic/synthetic-00001.dcm")))
            assert ("source" in json.loads(archive.read("synthetic.json"))) is not anonymize
        assert (patient in str(header.PatientID)) and (header.StudyInstanceUID == "1.2.77") is study
    assert "Secret" not in server.log.read_text()


def test_a_model_without_a_trained_weight_translates_too(server):
    record = server.done(submit(server, model=model(server, 2)))
    assert record["state"] == "done" and record["results"]["result"]


def test_what_cannot_be_translated_fails_in_a_sentence(server):
    job = server.done(submit(server, "b_ct"))
    assert job["state"] == "failed" and job["results"] is None
    assert "looks like an MR or is not in HU" in job["detail"] and "\n" not in job["detail"]
    assert server.done(submit(server))["state"] == "done"  # and the next one is done


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"volume": "nowhere"}, 404, "no such volume"),
        ({"model": "nowhere"}, 404, "no such model"),
        ({"mask": "nowhere"}, 404, "no such volume"),
        ({"steps": 0}, 422, "steps"),
        ({"steps": 1001}, 422, "steps"),
        ({"samples": 0}, 422, "samples"),
        ({"seed": -1}, 422, "seed"),
        ({"seed": "one"}, 422, "seed"),
        ({"sampler": "euler"}, 422, "sampler"),
        ({"extra": 1}, 422, "extra"),
    ],
)
def test_requests_that_cannot_be_done(server, change, status, words):
    request = {"volume": volume(server, "a_ct"), "model": model(server), **change}
    answer = server.client.post("/api/jobs", json=request)
    assert answer.status_code == status
    assert words in answer.json()["detail"] and set(answer.json()) == {"detail"}


def test_one_at_a_time_and_cancelling(server):
    running, waiting = submit(server, steps=SLOW, samples=8), submit(server, steps=SLOW)
    server.until(f"/api/jobs/{running}", lambda job: job["step"] > 0)
    assert server.get(f"/api/jobs/{waiting}")["state"] == "queued"
    status = server.get("/api/status")
    assert status["busy"] and status["queue_length"] == 1 and status["device"] == "cpu"
    assert server.client.delete(f"/api/volumes/{volume(server, 'a_ct')}").status_code == 409
    assert server.client.delete(f"/api/jobs/{waiting}").json()["state"] == "cancelled"
    assert server.client.delete(f"/api/jobs/{running}").status_code == 202
    ended = server.done(running)
    assert (ended["state"], ended["results"], ended["detail"]) == ("cancelled", None, None)
    assert [path.name for path in (server.results / "jobs" / running).iterdir()] == ["job.json"]
    assert server.done(submit(server))["state"] == "done"


def test_a_job_that_has_ended_is_forgotten_with_what_it_made(server):
    job = server.done(submit(server))
    assert server.client.delete(f"/api/jobs/{job['id']}").status_code == 202
    assert server.client.get(f"/api/jobs/{job['id']}").status_code == 404
    assert server.client.get(f"/api/jobs/{job['id']}/events").status_code == 404
    assert server.client.get(f"/api/volumes/{job['results']['result']}").status_code == 404
    assert not (server.results / "jobs" / job["id"]).exists()


def worker_of(server: Serving) -> int:
    """The process that has torch loaded."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        children += (task / "children").read_text().split()
    (worker,) = {int(child) for child in children if "libtorch" in Path(f"/proc/{child}/maps").read_text()}
    return worker


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Processes are found in /proc.")
def test_a_worker_that_dies_fails_its_job_alone(server):
    job, after = submit(server, steps=SLOW, samples=8), submit(server)
    server.until(f"/api/jobs/{job}", lambda record: record["step"] > 0)
    os.kill(worker_of(server), signal.SIGKILL)
    assert "ended from outside or crashed (by SIGKILL)" in server.done(job)["detail"]
    assert server.done(after)["state"] == "done"


def test_a_job_that_cannot_be_written_down_does_not_wait_for_ever(server):
    """As on a disk that is full."""
    server.done(submit(server))  # makes the folder of jobs
    jobs = server.results / "jobs"
    jobs.rename(jobs.with_name("away"))
    jobs.write_text("in the way of a folder")
    request = {"volume": volume(server, "a_ct"), "model": model(server, 2), "seed": 77}
    assert server.client.post("/api/jobs", json=request).status_code == 500
    jobs.unlink()
    jobs.with_name("away").rename(jobs)
    assert not [job for job in server.get("/api/jobs") if job["seed"] == 77]


def test_the_queue_goes_on_where_an_end_cannot_be_written_down(server):
    job = submit(server, steps=SLOW, samples=8)
    server.until(f"/api/jobs/{job}", lambda record: record["step"] > 0)
    record = server.results / "jobs" / job / "job.json"
    record.unlink()
    (record / "in the way").mkdir(parents=True)
    server.client.delete(f"/api/jobs/{job}")
    after = submit(server)
    assert server.done(after)["state"] == "done"
    ended = server.get(f"/api/jobs/{job}")
    assert ended["state"] == "cancelled"
    assert ended["detail"].startswith("How this job ended could not be written into the results folder (Is a")


def test_the_client_of_the_docs(server, files, tmp_path):
    viewer = ViewerClient(server.address)
    ct = viewer.upload(files / "given" / "a_ct.nii.gz")
    job = viewer.wait(viewer.translate(ct, seed=3))
    viewer.download(job["results"]["result"], tmp_path / "mr.nii")
    expected = tiny.pipeline()(load_volume(files / "given" / "a_ct.nii.gz"), seed=3)
    assert np.allclose(load_volume(tmp_path / "mr.nii").array, expected.array, atol=1e-3)
    assert ct in [each["id"] for each in viewer.volumes()]
    assert job["id"] in [each["id"] for each in viewer.jobs()]
    failing = viewer.translate(volume(server, "b_ct"))
    with pytest.raises(RequestError, match="looks like an MR"):
        viewer.wait(failing)
    with pytest.raises(RequestError, match="no such volume"):
        viewer.download("nowhere", tmp_path / "no.nii")
    assert not (tmp_path / "no.nii").exists()
    with pytest.raises(RequestError, match="needs the token"):
        ViewerClient(f"{server.base}/?token=wrong-wrong-wrong").models()
    with pytest.raises(RequestError, match="give the whole of it"):
        ViewerClient(server.base)


def test_a_restart_lists_what_was_done_and_what_was_not(files, tmp_path):
    results, given = tmp_path / "results", str(files / "given" / "a_ct.nii.gz")
    arguments = (given, "--models", str(files / "both"))
    with serving(results, *arguments) as first:
        first.until("/api/status", lambda status: not status["initial"]["pending"])
        done = first.done(submit(first))
        cut, waiting = submit(first, steps=SLOW, samples=8), submit(first)
        first.until(f"/api/jobs/{cut}", lambda job: job["step"] > 0)
        begun = time.monotonic()
    assert time.monotonic() - begun < PATIENCE  # ended by itself, although a job was at work
    assert first.process.returncode == 0
    assert not (results / ".viewer-work").exists()
    with serving(results, "--models", str(files / "both")) as second:
        jobs = {job["id"]: job for job in second.get("/api/jobs")}
        assert jobs[done["id"]] == done
        for job in (cut, waiting):
            assert (jobs[job]["state"], jobs[job]["results"]) == ("failed", None)
            assert jobs[job]["detail"] == "The viewer ended before this job did; start it again."
        initial = second.get("/api/status")["initial"]["volumes"]
        assert {done["results"]["result"], done["volume"]} <= set(initial)
        again = second.done(
            second.post("/api/jobs", {"volume": done["volume"], "model": model(second)})["id"]
        )
        one, other = (data(second, job["results"]["result"]).get_fdata() for job in (done, again))
        assert np.array_equal(one, other)


def test_a_results_folder_reaches_nothing_outside_itself(files, tmp_path):
    """Not even one that somebody else has made."""
    outside = tmp_path / "outside"
    save_volume(load_volume(files / "given" / "a_ct.nii.gz"), outside / "source.nii")
    results = tmp_path / "results"
    with serving(results, str(files / "given" / "a_ct.nii.gz"), "--models", str(files / "table")) as first:
        first.until("/api/status", lambda status: not status["initial"]["pending"])
        job = first.done(submit(first))
    for path in (
        results / "jobs" / job["id"] / "job.json",
        results / "jobs" / job["id"] / "result.volume.json",
    ):
        facts = json.loads(path.read_text())
        facts |= {"id": "../../outside", "state": "running"} if "id" in facts else {}
        facts |= {"base": "../../../outside/source"} if "base" in facts else {}
        path.write_text(json.dumps(facts))
    with serving(results, "--models", str(files / "table")) as second:
        assert second.get("/api/jobs") == []
        assert [each["role"] for each in second.get("/api/volumes")] == ["source"]
    assert [path.name for path in outside.iterdir()] == ["source.nii"]


def test_patients_of_different_days_are_different_cases(files, tmp_path):
    """Their files may be called alike and lie on one grid, as those of many data sets do."""
    ct, truth = (load_volume(files / "given" / f"a_{name}.nii.gz") for name in ("ct", "mr"))
    for patient, change in (("p1", 0.0), ("p2", 3.0)):
        save_volume(ct.with_array(ct.array + change), tmp_path / patient / "ct.nii.gz")
        save_volume(truth.with_array(truth.array + change), tmp_path / patient / "mr.nii.gz")

    def view(*patients: str) -> Any:
        given = [str(tmp_path / patient / f"{name}.nii.gz") for patient in patients for name in ("ct", "mr")]
        return serving(tmp_path / "results", *given, "--models", str(files / "table"))

    def cases(server: Serving) -> dict[str, list[str]]:
        server.until("/api/status", lambda status: not status["initial"]["pending"])
        found: dict[str, list[str]] = {}
        for each in server.get("/api/volumes"):
            found.setdefault(each["group"], []).append(each["role"])
        return {case: sorted(roles) for case, roles in found.items()}

    mine = ["error", "result", "source", "target"]
    with view("p1") as first:
        assert cases(first) == {"given": ["source", "target"]}
        first.done(submit(first, "ct"))
        assert cases(first) == {"given": mine}
    with view("p2") as second:
        assert cases(second) == {"given": ["error", "result", "source"], "given 2": ["source", "target"]}
        source = next(
            v["id"] for v in second.get("/api/volumes") if (v["group"], v["role"]) == ("given 2", "source")
        )
        second.done(second.post("/api/jobs", {"volume": source, "model": model(second)})["id"])
        assert cases(second) == {"given": ["error", "result", "source"], "given 2": mine}
    with view("p1") as third:  # the case that it was
        assert cases(third) == {"given": mine, "given 2": ["error", "result", "source"]}
    with view("p1", "p2") as both:  # one case, in which nothing tells whose truth is whose
        assert cases(both)["given"] == sorted([*mine, "target"])
        job = both.done(submit(both, "ct"))
        assert (job["state"], job["results"]["error"]) == ("done", None)


def test_volumes_keep_their_exact_place(server):
    record = server.done(submit(server))
    source = load_volume(server.results.parent / "given" / "a_ct.nii.gz")
    kept = json.loads((server.results / "jobs" / record["id"] / "result.volume.json").read_text())
    assert np.array_equal(kept["affine"], source.affine)
    assert isinstance(source, Volume)
