"""`ct2mri export`: trained stages become one pipeline folder, which is all that `translate` needs."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from ct2mri import __version__
from ct2mri.data.plan import Plan
from ct2mri.errors import RequestError
from ct2mri.files import read_json
from ct2mri.models.pretrained import WEIGHTS
from ct2mri.options.translation import ExportOptions
from ct2mri.pipeline import TranslationPipeline
from ct2mri.pipeline_facts import FACTS
from ct2mri.stage_files import file_hash, weights_hash
from ct2mri.stages import LatentsStage, SlicesStage, Stage, load_stage, load_vqvae


def export(options: ExportOptions) -> None:
    """Put the best weights of runs together, after making sure that they belong together.

    Raises:
        RequestError: a run is missing or of another stage, or the stages were not trained for one another.
    """
    if options.baseline is not None:
        stages, plan, runs = _baseline(options, options.baseline)
    else:
        stages, plan, runs = _slices_and_latents(options)
    card = {
        "name": options.name or options.output.resolve().name,
        **({} if options.description is None else {"description": options.description}),
        "made_with": f"ct2mri {__version__}",
        "training": {stage: facts for run in runs for stage, facts in _run_facts(run).items()},
    }
    if options.half:
        for stage in stages:
            for network in stage.networks:
                network.halve()
    pipeline = TranslationPipeline(plan, stages, card)
    replaced = (options.output / FACTS).is_file()
    pipeline.save_pretrained(options.output)
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file()) / 1e6
    kinds = " and ".join(stage.kind for stage in pipeline.stages)
    source, target = (name.upper() for name in (pipeline.plan.source_modality, pipeline.plan.target_modality))
    print(
        f"{options.output}: {kinds}, {size:.1f} MB{', in place of the model that was there' * replaced}; "
        f"`ct2mri translate {source} -o {target} --model {options.output}` uses it."
    )


def _baseline(options: ExportOptions, run: Path) -> tuple[list[Stage], Plan, list[Path]]:
    """The one stage of a baseline, its plan and its run, which may be of any kind."""
    if others := [name for name in ("slices", "vqvae", "latents") if getattr(options, name) is not None]:
        raise RequestError(f"A baseline is a model of its own: give --baseline alone, without --{others[0]}.")
    stage = load_stage(run / "best")
    return [stage], Plan.read(run / "plan.json"), [run]


def _slices_and_latents(options: ExportOptions) -> tuple[list[Stage], Plan, list[Path]]:
    """The stages of MD-DGA that are given, their plan and their runs, after making sure that they fit."""
    if options.slices is None and options.latents is None:
        raise RequestError(
            "A model needs the run of a stage that draws: give --slices RUN, --latents RUN or both, "
            "or --baseline RUN."
        )
    if options.vqvae is not None and options.latents is None:
        raise RequestError("--vqvae is the latent space of the 3D stage: give --latents RUN too.")
    plans: dict[Path, Plan] = {}
    slices = latents = None
    if options.slices is not None:
        slices = SlicesStage.load_stage(options.slices / "best")
        plans[options.slices] = Plan.read(options.slices / "plan.json")
    if options.latents is not None:
        latents = LatentsStage.load_stage(options.latents / "best", vqvae=options.latents / "vqvae")
        plans[options.latents] = Plan.read(options.latents / "plan.json")
        if options.vqvae is not None:
            _require_its_vqvae(latents, options.latents, options.vqvae)
        if "draft" in latents.condition:
            if slices is None or options.slices is None:
                raise RequestError(
                    f"{options.latents} refines drafts, so the model that draws them is needed; "
                    "give --slices RUN too."
                )
            _draft_as_trained(slices, options.slices, latents, options.latents)
    _require_one_plan(plans)
    runs = [run for run in (options.slices, options.vqvae, options.latents) if run is not None]
    return [stage for stage in (slices, latents) if stage is not None], next(iter(plans.values())), runs


def _require_its_vqvae(latents: LatentsStage, latents_run: Path, vqvae_run: Path) -> None:
    if weights_hash(load_vqvae(vqvae_run / "best")) != weights_hash(latents.vqvae):
        raise RequestError(
            f"{latents_run} was trained in the latent space of another VQ-VAE than {vqvae_run}; give the one "
            "that it was trained with, or leave out --vqvae to take the copy that the run kept."
        )


def _require_one_plan(plans: dict[Path, Plan]) -> None:
    (first_run, first), *others = plans.items()
    for run, plan in others:
        different = [f.name for f in fields(Plan) if getattr(plan, f.name) != getattr(first, f.name)]
        if different:
            raise RequestError(
                f"{first_run} and {run} were trained with plans that differ in {', '.join(different)}; "
                "train both on one data set."
            )


def _draft_as_trained(
    slices: SlicesStage, slices_run: Path, latents: LatentsStage, latents_run: Path
) -> None:
    """Make the slices stage draw drafts as the latents stage saw them in training."""
    facts = latents.draft
    if facts["model"] != file_hash(slices_run / "best" / WEIGHTS):
        raise RequestError(
            f"{latents_run} was trained on drafts of another model than {slices_run}; give the run that they "
            "came from, or draft with this one and train the latents stage again."
        )
    slices.sampler = facts["sampler"]
    slices.num_inference_steps = facts["num_inference_steps"]
    slices.orientations = tuple(facts["orientations"])


def _run_facts(run: Path) -> dict[str, Any]:
    """What the model card tells of a run: nothing of the machine's paths."""
    path = run / "run.json"
    if not path.is_file():
        raise RequestError(f"{run} is no run folder of `ct2mri train`, since it holds no run.json; give one.")
    facts = read_json(path)
    told = {name: facts[name] for name in ("steps", "best", "seed") if name in facts}
    kind = facts["options"].get("kind")
    return {facts["stage"] if kind is None else f"{facts['stage']} {kind}": told}
