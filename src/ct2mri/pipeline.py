"""What a trained system is, on disk and in use: a plan, and stages that follow one another.

A pipeline folder is all that is needed to translate:

    pipeline.json   format_version, name, stages, facts for the model card
    plan.json       how a source becomes network input, and what the results mean
    KIND/           a folder for each stage, named by its kind: slices, latents, or that of a baseline
    vqvae/          beside latents, its latent space
    README.md       the model card
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ct2mri import __version__
from ct2mri.data.plan import Plan, Split, prepare_source, restore_to_input
from ct2mri.data.volume import Volume
from ct2mri.devices import choose_device
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.files import atomic_folder, atomic_path, write_json
from ct2mri.hub import resolve_pretrained
from ct2mri.marking import safety_sentence, units
from ct2mri.model_card import model_card
from ct2mri.options import Sampler
from ct2mri.stage_files import weights_hash
from ct2mri.stages import Condition, OnStep, Stage, load_stage

FORMAT_VERSION = 1
FACTS = "pipeline.json"


@dataclass(frozen=True, eq=False)
class Samples:
    """What the stages drew, in the networks' units: float32 (i, j, k) on the working grid.

    Attributes:
        mean: over the samples, in [−1, 1].
        draft: mean of what the last stage refined; None with a single stage.
        spread: standard deviation over the samples; None with a single sample.
    """

    mean: NDArray[np.float32]
    draft: NDArray[np.float32] | None
    spread: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class TranslationResult:
    """A translated volume; all volumes are on the source's own grid, air outside the body.

    Attributes:
        volume: the result, in the units that `marking.units` tells.
        draft: what the last stage refined, in the same units; None with a single stage.
        spread: standard deviation over the samples, in the same units, 0 outside the body; None with a
            single sample.
        warnings: what the user should know of this result, a sentence each.
    """

    volume: Volume
    draft: Volume | None
    spread: Volume | None
    warnings: list[str]


class TranslationPipeline:
    """Translates volumes of one modality into another, as the plan says: CT into MR, for one.

    Args:
        plan: how a source volume becomes network input, and what the results mean.
        stages: in running order, each of another kind; each refines what the one before it drew.
        card: facts for the model card: `name`, and whatever else the reader should know.

    Raises:
        RequestError: there is no stage, or the stages fit neither the plan nor one another.
    """

    def __init__(
        self,
        plan: Plan,
        stages: Sequence[Stage],
        card: dict[str, Any] | None = None,
    ) -> None:
        kinds = [stage.kind for stage in stages]
        if not kinds or len(set(kinds)) < len(kinds):
            raise RequestError(
                f"A pipeline needs one stage or more, each of another kind; got {', '.join(kinds) or 'none'}."
            )
        for order, stage in enumerate(stages):
            stage.check_plan(plan.channels, drafted=order > 0)
        self.plan = plan
        self.stages = list(stages)
        self.card = {"name": "unnamed", **(card or {})}

    @property
    def name(self) -> str:
        """The model's name, shown on its results."""
        return str(self.card["name"])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the weights of all networks."""
        hashes = [weights_hash(network) for stage in self.stages for network in stage.networks]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    def to(self, device: str | torch.device) -> Self:
        """Move all networks: `auto`, `cpu`, `cuda` or `mps`."""
        chosen = choose_device(device) if isinstance(device, str) else device
        for stage in self.stages:
            stage.to(chosen)
        return self

    def with_plan(self, plan: Plan) -> "TranslationPipeline":
        """The same stages with another plan."""
        return TranslationPipeline(plan, self.stages, self.card)

    # --- use ---------------------------------------------------------------------------------------------

    def __call__(
        self,
        source: Volume,
        *,
        mask: Volume | None = None,
        num_inference_steps: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Volume:
        """Translate a volume; see `translate`. What the user should know is told as Python warnings."""
        result = self.translate(
            source,
            mask=mask,
            num_inference_steps=num_inference_steps,
            sampler=sampler,
            seed=seed,
            on_step=on_step,
        )
        for sentence in result.warnings:
            warnings.warn(sentence, stacklevel=2)
        return result.volume

    def translate(
        self,
        source: Volume,
        *,
        mask: Volume | None = None,
        num_inference_steps: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        samples: int = 1,
        on_step: OnStep | None = None,
    ) -> TranslationResult:
        """Translate a volume, on its own grid.

        Args:
            source: in HU, or in what units its modality has: the plan says.
            mask: the body (above 0.5), on any grid; without one it is found by threshold.
            num_inference_steps: steps of the last stage; by default its own. Earlier stages keep theirs,
                which the last one was trained with.
            sampler: of the last stage; by default its own.
            seed: of the noise; sample n has the seed `seed` + n.
            samples: how many to draw and average.
            on_step: told of progress; raising in it cancels.

        Raises:
            RequestError: the volume is not of the source modality, shows no body, or a setting is not
                allowed.
        """
        from ct2mri.data.plausibility import require_finite, require_source, source_warnings

        self.check(num_inference_steps=num_inference_steps, sampler=sampler, samples=samples)
        require_source(source, self.plan)
        if mask is not None:
            require_finite(mask)
        prepared = prepare_source(source, self.plan, mask)
        drawn = self.sample(
            prepared.array,
            mask=prepared.mask,
            num_inference_steps=num_inference_steps,
            sampler=sampler,
            seed=seed,
            samples=samples,
            on_step=on_step,
        )
        body = restore_to_input(prepared.mask.astype(np.float32), prepared.grid, source, 0).array > 0.5

        air = self.plan.target_fill

        def restored(array: NDArray[np.float32], fill: float = air) -> Volume:
            volume = restore_to_input(array, prepared.grid, source, fill)
            return volume.with_array(np.where(body, volume.array, np.float32(fill)))

        return TranslationResult(
            volume=restored(to_target_units(drawn.mean, self.plan)),
            draft=None if drawn.draft is None else restored(to_target_units(drawn.draft, self.plan)),
            spread=None if drawn.spread is None else restored(to_target_spread(drawn.spread, self.plan), 0),
            warnings=[
                *source.metadata.get("warnings", []),
                *source_warnings(source, self.plan, mask),
                *self.standing_warnings(drawn),
            ],
        )

    def check(
        self, *, num_inference_steps: int | None = None, sampler: Sampler | None = None, samples: int = 1
    ) -> None:
        """Raise RequestError unless the last stage can be sampled so."""
        self.stages[-1].chosen(sampler, num_inference_steps)
        if samples < 1:
            raise RequestError(f"--samples is at least 1, got {samples}.")

    def sample(
        self,
        source: NDArray[np.float32],
        *,
        mask: NDArray[np.bool_] | None = None,
        num_inference_steps: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        samples: int = 1,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Run the stages on prepared source windows, (C, i, j, k) in [−1, 1].

        `mask` is the body, (i, j, k), for stages that ask where it lies; the rest as in `translate`.
        """
        means: list[NDArray[np.float64]] = [np.zeros(source.shape[1:]) for _ in self.stages]
        squares = np.zeros(source.shape[1:])
        for number in range(samples):
            noise = SeededNoise(seed + number)
            condition: Condition = {"source": torch.from_numpy(np.array(source, dtype=np.float32))}
            if mask is not None:
                condition = {**condition, "body": torch.from_numpy(np.array(mask, dtype=np.float32))[None]}
            for order, stage in enumerate(self.stages):
                last = order == len(self.stages) - 1
                drawn = stage.sample(
                    condition,
                    noise,
                    _over_samples(on_step, number, samples),
                    sampler=sampler if last else None,
                    num_inference_steps=num_inference_steps if last else None,
                )
                condition = {**condition, "draft": drawn}
                array = drawn[0].numpy()
                if not np.isfinite(array).all():
                    raise RequestError(
                        f"The {stage.kind} stage of {self.name} drew numbers that are not finite; "
                        "its weights are damaged, or training went wrong: use another model."
                    )
                # Welford's running mean; after the last stage also the running sum of squared deviations.
                before = array - means[order]
                means[order] += before / (number + 1)
                if last:
                    squares += before * (array - means[order])
        return Samples(
            mean=means[-1].astype(np.float32),
            draft=means[-2].astype(np.float32) if len(means) > 1 else None,
            spread=np.sqrt(squares / (samples - 1)).astype(np.float32) if samples > 1 else None,
        )

    def standing_warnings(self, drawn: Samples) -> list[str]:
        """What is to be known of a result, whatever the source: a sentence each."""
        found = [f"Assumed: {assumption}" for assumption in self.plan.assumptions]
        if drawn.spread is not None and not drawn.spread.any():
            found.append(
                "All samples are alike, since nothing in them was left to chance: one step gives a network's "
                "mean estimate; a model that takes more steps shows a spread with them."
            )
        return found

    # --- on disk -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, device: str = "auto") -> Self:
        """Read a pipeline.

        Args:
            name_or_folder: a pipeline folder, or "owner/name" of one on the Hugging Face Hub.
            device: auto, cpu, cuda or mps.

        Raises:
            RequestError: there is no such pipeline, a part is missing, damaged or of a newer version, or the
                device is not there.
        """
        chosen = choose_device(device)
        folder = resolve_pretrained(name_or_folder)
        facts = _read_facts(folder)
        plan = Plan.read(folder / "plan.json")
        stages = [load_stage(folder / kind, chosen, kind=kind) for kind in facts["stages"]]
        return cls(plan, stages, {**facts["card"], "name": facts["name"]})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline into a folder of its own, whole or not at all; an older pipeline is replaced.

        The plan is written without the patients of its split, since models are shared.

        Raises:
            RequestError: the folder holds something else.
        """
        folder = Path(folder)
        if folder.exists() and not (folder / FACTS).is_file() and (folder.is_file() or any(folder.iterdir())):
            raise RequestError(
                f"{folder} holds something other than a pipeline, which would be lost; "
                "give a new or empty folder."
            )
        with atomic_folder(folder) as temporary:
            replace(self.plan, split=Split(self.plan.split.seed, [], [], [])).write(temporary / "plan.json")
            for stage in self.stages:
                stage.save_into(temporary)
            self.write_card(temporary)

    def write_card(self, folder: str | Path) -> None:
        """Write what a pipeline's folder tells of it, its facts and the model card; the rest stays."""
        folder = Path(folder)
        facts = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "stages": [stage.kind for stage in self.stages],
            "hash": self.hash,
            "ct2mri": __version__,
            "card": {key: value for key, value in self.card.items() if key != "name"},
        }
        card = model_card(self.card, self.plan, self.stages, safety_sentence(self.plan), units(self.plan))
        with atomic_path(folder / "README.md") as temporary:
            temporary.write_text(card, encoding="utf-8")
        write_json(folder / FACTS, facts)


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = int(facts["format_version"])
        if version > FORMAT_VERSION:
            raise RequestError(
                f"{path} has format_version {version}, this program reads up to {FORMAT_VERSION}; "
                "update ct2mri."
            )
        if not isinstance(facts["stages"], list) or not isinstance(facts["card"], dict):
            raise TypeError("stages is a list, card an object")
        if not all(isinstance(kind, str) and kind.isidentifier() for kind in facts["stages"]):
            raise TypeError("stages are names")
        facts["name"] = str(facts["name"])
    except FileNotFoundError as error:
        hint = (
            "this is the run of one stage, and `ct2mri export` makes a model of it"
            if (folder / "run.json").is_file()
            else "give a folder that `ct2mri export` wrote, or copy it again"
        )
        raise RequestError(f"{folder} is no model folder, since it holds no {FACTS}; {hint}.") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} is damaged ({error!r}); copy or export the model again.") from error
    result: dict[str, Any] = facts
    return result


def starter_folder() -> Path:
    """The pipeline folder that ships with the package.

    Raises:
        RequestError: this installation has none.
    """
    folder = Path(str(files("ct2mri"))) / "starter" / "model"
    if not (folder / FACTS).is_file():
        raise RequestError(
            "This installation holds no starter model; "
            "give a model with --model FOLDER or --model OWNER/NAME."
        )
    return folder


def to_target_units(scaled: NDArray[np.float32], plan: Plan) -> NDArray[np.float32]:
    """Target values, float32 and not below the plan's `target_fill`, of a volume in the networks' units."""
    from ct2mri.data.intensity import unscale_target

    return np.maximum(unscale_target(scaled, plan.target_range), np.float32(plan.target_fill))


def to_target_spread(scaled: NDArray[np.float32], plan: Plan) -> NDArray[np.float32]:
    """A spread, float32, in target units, of one in the networks' units."""
    low, high = plan.target_range
    return scaled * np.float32((high - low) / 2)


def _over_samples(on_step: OnStep | None, number: int, samples: int) -> OnStep | None:
    """Tells progress over all samples."""
    if on_step is None:
        return None
    tell: Callable[[str, int, int], None] = on_step
    return lambda stage, step, total: tell(stage, number * total + step, samples * total)
