"""The model card of a pipeline folder: what the model is, what it was made from, and what it is not for."""

from collections.abc import Mapping, Sequence
from typing import Any

from ct2mri.data.plan import Plan
from ct2mri.stages import LatentsStage, SlicesStage


def model_card(
    card: Mapping[str, Any],
    plan: Plan,
    stages: Sequence[SlicesStage | LatentsStage],
    safety_sentence: str,
    units: str,
) -> str:
    """The card as Markdown.

    Args:
        card: `name`, optionally `description` (a paragraph) and `license`, and any other facts.
        plan: the pipeline's plan.
        stages: the pipeline's stages.
        safety_sentence: what every result is marked with.
        units: what the values of a result mean.
    """
    front = ["library_name: ct2mri", "pipeline_tag: image-to-image", "tags: [medical-imaging, ct, mr]"]
    if "license" in card:
        front.append(f"license: {card['license']}")
    source, target = plan.source_modality.upper(), plan.target_modality.upper()
    lines = ["---", *front, "---", "", f"# {card['name']}", ""]
    if "description" in card:
        lines += [str(card["description"]), ""]
    lines += [
        f"Translates {source} volumes into {target} volumes with ct2mri. No medical device.",
        "",
        f"**{safety_sentence}**",
        "",
        "```bash",
        "ct2mri translate my_ct.nii.gz -o my_mr.nii.gz --model THIS_FOLDER",
        "```",
        "",
        "## Stages",
        "",
        *[f"- {_stage(stage)}" for stage in stages],
        "",
        "## Source and result",
        "",
        *[f"- {fact}" for fact in _plan_facts(plan, units)],
    ]
    if plan.assumptions:
        lines += ["", "## Assumed, not known", "", *[f"- {sentence}" for sentence in plan.assumptions]]
    others = {key: value for key, value in card.items() if key not in ("name", "description", "license")}
    if others:
        lines += ["", "## More", "", *[f"- {_words(key)}: {_value(value)}" for key, value in others.items()]]
    return "\n".join(lines) + "\n"


def _stage(stage: SlicesStage | LatentsStage) -> str:
    millions = sum(parameter.numel() for parameter in stage.network.parameters()) / 1e6
    return (
        f"{stage.kind}: scalable U-Net of {millions:.3g} million parameters, {stage.noise.prediction_type}, "
        f"sampler {stage.sampler}, {stage.num_inference_steps} step(s) unless others are asked for"
    )


def _plan_facts(plan: Plan, units: str) -> list[str]:
    windows = ", ".join(f"{low:g} to {high:g}" for low, high in plan.source_windows)
    facts = [f"Anatomy: {plan.anatomy or 'not stated'}", f"Source windows in {plan.source_units}: {windows}"]
    spacing = "each case's own" if plan.spacing is None else " × ".join(f"{edge:g}" for edge in plan.spacing)
    facts.append(f"Voxels of the working grid in mm: {spacing}")
    facts.append(
        f"Values of a result: {units}; percentile {plan.target_percentile:g} inside the body lies near "
        f"{plan.target_range[1]:.4g}"
    )
    if plan.fingerprint is not None:
        facts.append(f"Training cases: {plan.fingerprint.cases}")
    return facts


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key)).lower()} {_value(part)}" for key, part in value.items())
    return str(value)
