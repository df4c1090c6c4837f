"""A training that was stopped goes on exactly where it was, and a NaN ruins nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tiny import Tiny

from ct2mri.data.datasets import SliceDataset
from ct2mri.errors import RequestError, TrainingDivergedError
from ct2mri.training.fit import train_baseline, train_latents, train_slices, train_vqvae
from ct2mri.training.module import StageModule
from ct2mri.training.slices import SliceModule, SlicesValidation
from ct2mri.training.supervisor import Supervisor, Validation

TRAIN = """
import json, sys
from pathlib import Path
from ct2mri.options.training import TrainSlicesOptions
from ct2mri.training.fit import train_slices
options = json.loads(sys.argv[1])
options["data"], options["output_dir"] = Path(options["data"]), Path(options["output_dir"])
train_slices(TrainSlicesOptions(**options))
"""


class Stopped(Exception):
    """Stands for whatever stops a training in its tracks."""


def stop_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """The training stops before it looks at that batch, counted from 0."""
    original = StageModule.training_step

    def training_step(self: StageModule, batch_: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if int(batch_["key"][0, 0]) == batch:
            raise Stopped
        return original(self, batch_, batch_idx)

    monkeypatch.setattr(StageModule, "training_step", training_step)


def logged(table: Path) -> list[dict[str, str]]:
    """The rows of a log, without what the clock says."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name not in ("seconds", "waiting")} for row in rows]


def same(run: Path, other: Path) -> bool:
    """Whether two runs logged the very same numbers and ended in the very same state."""
    for name in ("train.csv", "validation.csv"):
        assert logged(run / name) == logged(other / name)
    states = [torch.load(r / "last.ckpt", weights_only=True) for r in (run, other)]
    for part in ("state_dict", "current_model_state"):
        if part in states[0]:
            assert all(torch.equal(states[0][part][n], states[1][part][n]) for n in states[0][part])
    moments = [state["optimizer_states"][0]["state"] for state in states]
    assert all(torch.equal(moments[0][n]["exp_avg_sq"], moments[1][n]["exp_avg_sq"]) for n in moments[0])
    files = [(r / "best" / "model.safetensors").read_bytes() for r in (run, other)]
    return files[0] == files[1]


def test_slices_go_on_bit_for_bit(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within an epoch, between two batches whose gradients are added up, some steps after a save."""
    given = {"max_steps": 12, "validate_every": 4, "accumulate": 2}
    train_slices(tiny.slices(tmp_path / "whole", **given))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 15)
        train_slices(tiny.slices(tmp_path / "cut", **given))
    assert len((tmp_path / "cut" / "train.csv").read_text().splitlines()) == 1 + 7
    train_slices(tiny.slices(tmp_path / "cut", **given))
    assert same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_goes_on_bit_for_bit(tiny: Tiny, tmp_path: Path, how: signal.Signals) -> None:
    options = tiny.slices(tmp_path / "cut", max_steps=4000, validate_every=5, orientations=["axial"])
    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()
    }
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, json.dumps(plain)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        # Where the tests run in the background, they and what they start ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    table = tmp_path / "cut" / "train.csv"
    deadline = time.monotonic() + 300
    while not (table.exists() and len(table.read_text().splitlines()) > 13):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(60) == (-signal.SIGKILL if how == signal.SIGKILL else 128 + how)
    steps = len(table.read_text().splitlines())
    assert 13 < steps < 4000, "else it was killed too early or too late to show anything"

    # Both are stopped soon after, since nothing is learnt from all of the steps.
    given = {"max_steps": 4000, "validate_every": 5, "orientations": ["axial"]}
    last = 5 * (steps // 5) + 10
    for run in ("cut", "whole"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            stop_at(patch, last)
            train_slices(tiny.slices(tmp_path / run, **given))
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_process_told_to_end_in_a_validation_does_not_look_done(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Supervisor._validate

    def told(self: Supervisor, trainer: Any, module: StageModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, module)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Supervisor, "_validate", told)
        train_slices(tiny.slices(tmp_path / "run"))
    assert ended.value.code == 128 + signal.SIGTERM
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_vqvae_goes_on_bit_for_bit(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"max_steps": 8, "validate_every": 3, "learning_rate": 3e-3}
    train_vqvae(tiny.vqvae(tmp_path / "whole", **given))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 5)
        train_vqvae(tiny.vqvae(tmp_path / "cut", **given))
    train_vqvae(tiny.vqvae(tmp_path / "cut", **given))
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_latents_go_on_bit_for_bit(
    tiny: Tiny, vqvae_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"max_steps": 8, "validate_every": 3, "batch_size": 2}
    train_latents(tiny.latents(tmp_path / "whole", vqvae_run, **given))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, 5)
        train_latents(tiny.latents(tmp_path / "cut", vqvae_run, **given))
    train_latents(tiny.latents(tmp_path / "cut", vqvae_run, **given))
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_can_be_made_longer(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_slices(tiny.slices(tmp_path / "long", max_steps=9, decay="constant"))
    train_slices(tiny.slices(tmp_path / "short", decay="constant"))
    train_slices(tiny.slices(tmp_path / "short", decay="constant"))
    assert "is trained already: 6 of 6 steps" in capsys.readouterr().out
    train_slices(tiny.slices(tmp_path / "short", max_steps=9, decay="constant"))
    assert same(tmp_path / "long", tmp_path / "short")


def test_memory_that_runs_out_in_the_last_validation_costs_that_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_slices(tiny.slices(tmp_path / "whole"))
    original = SlicesValidation.__call__
    validated = []

    def runs_out_at_the_end(self: SlicesValidation, module: SliceModule) -> Validation:
        validated.append(module)
        if len(validated) == 2:
            raise MemoryError
        return original(self, module)

    run = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(SlicesValidation, "__call__", runs_out_at_the_end)
        with pytest.raises(RequestError, match="ran out in the validation at step 6"):
            train_slices(tiny.slices(run))
    assert not json.loads((run / "run.json").read_text())["finished"]
    train_slices(tiny.slices(run))
    assert json.loads((run / "run.json").read_text())["finished"]
    assert same(tmp_path / "whole", run)


def test_a_finished_run_without_its_checkpoint_is_kept(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state is the largest file, and the first that is deleted where the disk is full."""
    run = tmp_path / "run"
    train_slices(tiny.slices(run))
    (run / "last.ckpt").unlink()
    weights = (run / "best" / "model.safetensors").read_bytes()
    train_slices(tiny.slices(run))
    assert "is trained already: 6 of 6 steps" in capsys.readouterr().out
    with pytest.raises(RequestError, match=r"was finished after 6 steps, and .*last\.ckpt"):
        train_slices(tiny.slices(run, max_steps=9))
    for kind in ("regression", "mean"):
        with pytest.raises(RequestError, match="holds a run of `train slices`"):
            train_baseline(tiny.baseline(run, kind))
    assert (run / "best" / "model.safetensors").read_bytes() == weights


def test_an_unfinished_run_is_not_taken_for_the_place_of_another(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_slices(tiny.slices(run, max_steps=3))
    (run / "best").rename(tmp_path / "away")
    with pytest.raises(RequestError, match="holds a run of `train slices`"):
        train_baseline(tiny.baseline(run, "mean"))
    assert (run / "last.ckpt").is_file()


def test_a_run_anew_leaves_no_fold_of_the_one_before(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_slices(tiny.slices(run, folds=2, max_steps=3))
    assert (run / "folds.json").is_file() and (run / "fold-1").is_dir()
    train_slices(tiny.slices(run, folds=0, max_steps=3, resume="never"))
    assert not (run / "folds.json").exists() and not list(run.glob("fold-*"))


def test_a_run_of_its_own_that_is_called_a_fold_is_left(tiny: Tiny, tmp_path: Path) -> None:
    for _ in range(2):
        train_baseline(tiny.baseline(tmp_path / "fold-1", "mean"))
        train_baseline(tiny.baseline(tmp_path, "mean", resume="never"))
    assert (tmp_path / "fold-1" / "best").is_dir()


def test_a_negative_seed_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--seed is a number from 0 upward, got -1"):
        train_slices(tiny.slices(tmp_path / "run", seed=-1))
    assert not (tmp_path / "run").exists()


def test_workers_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    train_slices(tiny.slices(tmp_path / "none"))
    train_slices(tiny.slices(tmp_path / "two", workers=2))
    assert same(tmp_path / "none", tmp_path / "two")


def test_other_options_are_refused_and_never_starts_anew(tiny: Tiny, vqvae_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_slices(tiny.slices(run))
    with pytest.raises(RequestError, match=r"was started with --learning_rate 0\.0002, now it is 0\.01"):
        train_slices(tiny.slices(run, learning_rate=0.01, max_steps=9))
    with pytest.raises(RequestError, match="holds a run of `train slices`"):
        train_latents(tiny.latents(run, vqvae_run))
    train_slices(tiny.slices(run, learning_rate=0.01, resume="never", max_steps=3))
    assert len((run / "train.csv").read_text().splitlines()) == 1 + 3
    (run / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(RequestError, match=r"last\.ckpt is damaged"):
        train_slices(tiny.slices(run, learning_rate=0.01, max_steps=9))


@pytest.mark.parametrize("name", ["pictures", "best", "cases"])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_of_something_else_is_left_as_it_is(
    tiny: Tiny, tmp_path: Path, name: str, resume: str
) -> None:
    photo = tmp_path / name / "photo.png"
    photo.parent.mkdir()
    photo.write_bytes(b"of the family")
    with pytest.raises(RequestError, match=f"holds {name} and is no run of `ct2mri train`"):
        train_slices(tiny.slices(tmp_path, resume=resume))
    with pytest.raises(RequestError, match=f"holds {name} and is no run of `ct2mri train`"):
        train_baseline(tiny.baseline(tmp_path, "mean", resume=resume))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [photo]


def test_a_nan_stops_the_run_and_ruins_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clean = tmp_path / "run", tmp_path / "clean"
    original = SliceDataset.__getitem__

    def poisoned(self: SliceDataset, request: object) -> dict[str, torch.Tensor]:
        item = original(self, request)  # type: ignore[arg-type]
        if request.batch == 4:  # type: ignore[attr-defined]
            item["source"][:] = torch.nan
        return item

    with monkeypatch.context() as patch:
        patch.setattr(SliceDataset, "__getitem__", poisoned)
        with pytest.raises(
            TrainingDivergedError, match=r"stopped at step 5: the loss was nan.*stopped-at-step-5"
        ):
            train_slices(tiny.slices(run))
    state = torch.load(run / "stopped-at-step-5.ckpt", weights_only=True)
    assert state["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["current_model_state"].values())
    train_slices(tiny.slices(run))
    train_slices(tiny.slices(clean))
    assert same(run, clean)
