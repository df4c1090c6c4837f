"""Stages on disk: reading and writing their folders, and telling weights apart."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from ct2mri.errors import RequestError
from ct2mri.files import atomic_folder, write_json
from ct2mri.models.pretrained import CONFIG, WEIGHTS, PretrainedModel

FORMAT_VERSION = 1
STAGE_FACTS = "stage.json"

Kind = Literal["slices", "latents", "vqvae", "lookup", "mean", "bridge"]
_Network = TypeVar("_Network", bound=PretrainedModel)


def read_stage(folder: str | Path, kind: Kind) -> dict[str, Any]:
    """The facts of a stage's `stage.json`.

    Raises:
        RequestError: there is none, it is damaged or of a newer version, or of another kind of stage.
    """
    facts = _read(Path(folder), kind)
    if (got := facts.get("kind")) != kind:
        raise RequestError(
            f"{folder} holds a `{got}` stage; a `{kind}` stage was asked for: give a folder that holds one."
        )
    return facts


def stage_kind(folder: str | Path) -> str:
    """What kind of stage a folder holds.

    Raises:
        RequestError: there is no `stage.json`, or it is damaged or of a newer version.
    """
    return str(_read(Path(folder), Path(folder).name).get("kind"))


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / STAGE_FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(_without_stage(folder, name)) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError(f"{path} is damaged ({error}); copy or export the model again.") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("format_version"), int):
        raise RequestError(f"{path} is damaged (no format_version); copy or export the model again.")
    if facts["format_version"] > FORMAT_VERSION:
        raise RequestError(
            f"{path} has format_version {facts['format_version']}, this program reads up to "
            f"{FORMAT_VERSION}; update ct2mri."
        )
    return facts


def _without_stage(folder: Path, name: str) -> str:
    """Why there is no stage in a folder, and what to do."""
    if (folder / "best").is_dir():
        return f"There is no {folder / STAGE_FACTS}; this is a run, its stage is {folder / 'best'}."
    if folder.name == "best":  # of a run, as `draft`, `export` and `train latents` are given it
        run = folder.parent
        if (run / "pipeline.json").is_file():
            return f"{run} is a model; give the run folder of `ct2mri train` that it was exported from."
        if not (run / "run.json").is_file():
            return f"{run} is no run folder of `ct2mri train`, since it holds no run.json; give one."
        return f"{run} holds no validated weights yet (no {folder}); train on until its first validation."
    return (
        f"The `{name}` stage is missing: there is no {folder / STAGE_FACTS}; copy or export the model again."
    )


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over a network's weights: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def facts_of(folder: Path) -> Iterator[None]:
    """Turn the errors of making sense of a stage's facts into a sentence."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{folder / STAGE_FACTS} is damaged ({error!r}); copy or export the model again."
        ) from error


def save_network(network: PretrainedModel, kind: Kind, facts: dict[str, Any], folder: str | Path) -> None:
    """Write a stage's folder, whole or not at all.

    Args:
        network: becomes `config.json` and `model.safetensors`.
        kind: of the stage.
        facts: become `stage.json`.
        folder: to write; what it held is replaced.
    """
    with atomic_folder(folder) as temporary:
        network.save_pretrained(temporary)
        # safetensors writes for the owner alone; a model is there to be shared like any other file
        (temporary / WEIGHTS).chmod((temporary / CONFIG).stat().st_mode)
        write_json(temporary / STAGE_FACTS, {"format_version": FORMAT_VERSION, "kind": kind, **facts})


def load_network(kind: type[_Network], folder: Path, device: torch.device | str) -> _Network:
    """The network of a stage's folder.

    Raises:
        RequestError: a file is missing or damaged, or holds another network.
    """
    try:
        return kind.from_pretrained(folder, map_location=str(device))
    except (TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{folder / 'config.json'} is damaged ({error}); copy or export the model again."
        ) from error
