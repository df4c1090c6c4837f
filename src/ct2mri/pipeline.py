"""What a trained system is, on disk and in use: a plan, and stages that follow one another.

A pipeline folder is all that is needed to translate:

    pipeline.json   format_version, name, stages, facts for the model card
    plan.json       how a source becomes network input, and what the results mean
    KIND/           a folder for each stage, named by its kind: slices, latents, or that of a baseline
    vqvae/          beside latents, its latent space
    README.md       the model card
"""

import hashlib
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
from torch import Tensor

from ct2mri import __version__
from ct2mri.data.plan import Plan, Split
from ct2mri.data.replay import prepare_source, restore_to_input, to_target_spread, to_target_units
from ct2mri.data.volume import Volume
from ct2mri.devices import choose_device
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.files import atomic_folder, atomic_path, require_name, write_json
from ct2mri.hub import resolve_pretrained
from ct2mri.marking import safety_sentence, short_description, short_spread_description, units
from ct2mri.model_card import model_card
from ct2mri.options.choices import InferencePrecision, Sampler
from ct2mri.pipeline_facts import FACTS, FORMAT_VERSION, read_facts
from ct2mri.room import room_for
from ct2mri.samples import RunningMean, Samples
from ct2mri.stage_files import weights_hash
from ct2mri.stages import STAGES, Condition, Execution, OnStep, Stage, check_batch_size, load_stage


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
        self._share(Execution(precision="auto"))

    def __repr__(self) -> str:
        """Name, stages and modalities."""
        kinds = " and ".join(stage.kind for stage in self.stages)
        source, target = self.plan.source_modality, self.plan.target_modality
        return f"TranslationPipeline({self.name}: {source} to {target} by {kinds}, on {self.device})"

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

    def _share(self, execution: Execution) -> None:
        """Have the stages compute in one way."""
        self.execution = execution
        for stage in self.stages:
            stage.execution = execution

    def compute_with(
        self,
        *,
        max_memory: str | int | None = None,
        precision: InferencePrecision = "auto",
        batch_size: int | None = None,
        compile: bool = False,
    ) -> Self:
        """Say how to compute from now on.

        Args:
            max_memory: in words (`8GiB`) or bytes, at most so much of the memory of the device that computes;
                on a CPU, of what the process holds in all. None: what is free.
            precision: `32`; `bf16`, less exact and on newer hardware faster; `auto`: bf16 on CUDA devices
                that have it, else 32.
            batch_size: slices that go through a network together, at most; None: as many as are of use.
            compile: compile the networks (torch.compile): the first volume takes minutes more, further ones
                less time, whatever their sizes.

        Raises:
            RequestError: a value is not allowed.
        """
        check_batch_size(batch_size)
        self._share(Execution.of(max_memory, precision))
        for stage in self.stages:
            stage.batch_size = batch_size
            stage.compile(compile)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        weights: dict[str, Tensor] = self.stages[0].networks[0].state_dict()
        return next(iter(weights.values())).device

    def with_plan(self, plan: Plan) -> "TranslationPipeline":
        """The same stages with another plan, which compute as they did."""
        other = TranslationPipeline(plan, self.stages, self.card)
        other._share(self.execution)
        return other

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

        for given in (source, mask):
            if not (given is None or isinstance(given, Volume)):  # of callers whose types nobody checks
                raise TypeError(f"A Volume is needed, as load_volume gives it; got {type(given).__name__}.")
        self.check(num_inference_steps=num_inference_steps, sampler=sampler, samples=samples)
        with room_for(source, self.plan, self.execution, self.device):
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
            body, grid = prepared.mask, prepared.grid
            del prepared  # its windows are large, and not needed any more
            outside = restore_to_input(body.astype(np.float32), grid, source, 0).array <= 0.5

            def restored(array: NDArray[np.float32], mark: str, fill: float) -> Volume:
                volume = restore_to_input(array, grid, source, fill)
                volume.array[outside] = fill
                volume.metadata["description"] = mark
                return volume

            mark, fill = short_description(self.plan), self.plan.target_fill

            return TranslationResult(
                volume=restored(to_target_units(drawn.mean, self.plan), mark, fill),
                draft=None
                if drawn.draft is None
                else restored(to_target_units(drawn.draft, self.plan), mark, fill),
                spread=None
                if drawn.spread is None
                else restored(
                    to_target_spread(drawn.spread, self.plan), short_spread_description(self.plan), 0
                ),
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
        self.execution.remarks.clear()
        means = [RunningMean() for _ in self.stages]
        for number in range(samples):
            noise = SeededNoise(seed + number)
            # Copied only where it is a file's own memory, as of a prepared case.
            condition: Condition = {"source": torch.from_numpy(np.require(source, np.float32, "W"))}
            body = None if mask is None else torch.from_numpy(np.require(mask, np.bool_, "W"))[None]
            if body is not None:
                condition = {**condition, "body": body}
            for order, stage in enumerate(self.stages):
                last = order == len(self.stages) - 1
                if last and body is not None:  # results are air outside the body, whatever is drawn there
                    condition = {**condition, "wanted": body}
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
                means[order].add(array, spread=last and samples > 1)
        return Samples(
            mean=means[-1].mean(),
            draft=means[-2].mean() if len(means) > 1 else None,
            spread=means[-1].spread() if samples > 1 else None,
            remarks=list(self.execution.remarks),
        )

    def standing_warnings(self, drawn: Samples) -> list[str]:
        """What is to be known of a result, whatever the source: a sentence each."""
        found = [*(f"Assumed: {assumption}" for assumption in self.plan.assumptions), *drawn.remarks]
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
        facts = read_facts(folder)
        plan = Plan.read(folder / "plan.json")
        stages = [load_stage(folder / kind, chosen, kind=kind) for kind in facts["stages"]]
        return cls(plan, stages, {**facts["card"], "name": facts["name"]})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline into a folder of its own, whole or not at all; an older pipeline is replaced.

        The plan is written without the patients of its split, since models are shared.

        Raises:
            RequestError: the folder holds something else, beside an older pipeline or instead of it.
        """
        folder = Path(folder)
        require_name(folder)
        if folder.exists() and not (folder / FACTS).is_file() and (folder.is_file() or any(folder.iterdir())):
            raise RequestError(
                f"{folder} holds something other than a pipeline, which would be lost; "
                "give a new or empty folder."
            )
        ours = {FACTS, "plan.json", "README.md", "vqvae", *STAGES}
        if folder.exists() and (others := sorted({path.name for path in folder.iterdir()} - ours)):
            raise RequestError(
                f"{folder} holds {others[0]} beside its pipeline, which would be lost; move it away, or give "
                "another folder."
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


def _over_samples(on_step: OnStep | None, number: int, samples: int) -> OnStep | None:
    """Tells progress over all samples."""
    if on_step is None:
        return None
    tell: Callable[[str, int, int], None] = on_step
    return lambda stage, step, total: tell(stage, number * total + step, samples * total)
