"""The models that jobs can use: what their folders tell, read without loading a network."""

import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from ct2mri.data.plan import Plan
from ct2mri.errors import RequestError
from ct2mri.marking import safety_sentence, units
from ct2mri.options.choices import Sampler
from ct2mri.viewer.failures import NotThereError
from ct2mri.viewer.records import ModelRecord


class Models:
    """Model folders, by identifier.

    Args:
        folders: pipeline folders, the first of which is the one to suggest.

    Raises:
        RequestError: one of them is no model.
    """

    def __init__(self, folders: list[Path]) -> None:
        self._folders: dict[str, Path] = {}
        self._records: dict[str, ModelRecord] = {}
        for folder in folders:
            record = model_record(folder)
            self._folders[record.id] = folder
            self._records[record.id] = record

    def records(self) -> list[ModelRecord]:
        """What the API tells of them."""
        return list(self._records.values())

    def __getitem__(self, model_id: str) -> ModelRecord:
        if model_id not in self._records:
            raise NotThereError("There is no such model; /api/models lists those there are.")
        return self._records[model_id]

    def folder(self, model_id: str) -> Path:
        """Where a model lies."""
        return self._folders[self[model_id].id]


def model_record(folder: Path) -> ModelRecord:
    """What a pipeline folder tells of its model.

    Raises:
        RequestError: it is no pipeline folder, or damaged.
    """
    try:
        facts = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
        kinds = [str(kind) for kind in facts["stages"]]
        last = json.loads((folder / kinds[-1] / "stage.json").read_text(encoding="utf-8"))
        name, weights = str(facts["name"]), str(facts["hash"])
        noise: dict[str, Any] | None = last.get("noise")
        bridge: dict[str, Any] | None = last.get("bridge")
        steps = int(last["num_inference_steps"]) if noise or bridge else 1
        most = int(bridge["num_train_timesteps"]) if bridge else _most_steps(noise)
    except FileNotFoundError as error:
        raise RequestError(
            f"{folder} is no model folder; give one that `ct2mri export` or `import-published` wrote."
        ) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError) as error:
        raise RequestError(f"The model in {folder} is damaged; copy or export it again.") from error
    plan = Plan.read(folder / "plan.json")
    return ModelRecord(
        id=hashlib.sha256(os.fsencode(folder.resolve()) + f"\n{weights}".encode()).hexdigest()[:16],
        name=name,
        hash=weights,
        source_modality=plan.source_modality,
        target_modality=plan.target_modality,
        units=units(plan),
        steps=steps,
        max_steps=most,
        stages=kinds,
        samplers=_samplers(noise),
        warnings=[f"Assumed: {assumption}" for assumption in plan.assumptions],
        safety=safety_sentence(plan),
    )


def _most_steps(noise: dict[str, Any] | None) -> int:
    """As `ct2mri.diffusion.check_steps` allows, which needs torch."""
    if not noise:
        return 1
    restart = noise.get("restart_timestep")
    return int(noise["num_train_timesteps"]) if restart is None else int(restart) + 2


def _samplers(noise: dict[str, Any] | None) -> list[Sampler]:
    """As `ct2mri.diffusion.check_sampler` allows."""
    if not noise:
        return []
    restarts = noise.get("restart_timestep") is not None
    return [sampler for sampler in get_args(Sampler) if not (restarts and sampler == "renoise")]


def starter() -> Path:
    """The folder of the starter model, as `ct2mri.pipeline.starter_folder` finds it, which needs torch."""
    return Path(str(files("ct2mri"))) / "starter" / "model"
