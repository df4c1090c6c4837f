"""The model card of a pipeline folder: what the model is, what it was made from, and what it is not for."""

from collections.abc import Mapping, Sequence
from typing import Any

from ct2mri.data.plan import ZSCORE_REACH, Plan
from ct2mri.stages import Stage


def model_card(
    card: Mapping[str, Any],
    plan: Plan,
    stages: Sequence[Stage],
    safety_sentence: str,
    units: str,
) -> str:
    """The card as Markdown.

    Args:
        card: `name`, optionally `description` (a paragraph), `license`, `stability` (what
            `ct2mri stability` found), and any other facts.
        plan: the pipeline's plan.
        stages: the pipeline's stages.
        safety_sentence: what every result is marked with.
        units: what the values of a result mean.
    """
    tags = f"tags: [medical-imaging, {plan.source_modality.lower()}, {plan.target_modality.lower()}]"
    front = ["library_name: ct2mri", "pipeline_tag: image-to-image", tags]
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
        f"ct2mri translate my_{source.lower()}.nii.gz -o my_{target.lower()}.nii.gz --model THIS_FOLDER",
        "```",
        "",
        "## Stages",
        "",
        *[f"- {stage.description()}" for stage in stages],
        "",
        "## Source and result",
        "",
        *[f"- {fact}" for fact in _plan_facts(plan, units)],
    ]
    if plan.assumptions:
        lines += ["", "## Assumed, not known", "", *[f"- {sentence}" for sentence in plan.assumptions]]
    if "stability" in card:
        lines += ["", "## Stability", "", *_stability(card["stability"])]
    shown = ("name", "description", "license", "stability")
    others = {key: value for key, value in card.items() if key not in shown}
    if others:
        lines += ["", "## More", "", *[f"- {_words(key)}: {_value(value)}" for key, value in others.items()]]
    return "\n".join(lines) + "\n"


def _plan_facts(plan: Plan, units: str) -> list[str]:
    windows = ", ".join(f"{low:g} to {high:g}" for low, high in plan.source_windows)
    per = {
        "HU": "in HU",
        "grey": "in grey",
        "relative": f"in units of each volume's percentile {plan.source_percentile or 0:g} inside the body",
    }
    facts = [
        f"Anatomy: {plan.anatomy or 'not stated'}",
        f"Source windows {per[plan.source_units]}: {windows}",
    ]
    spacing = "each case's own" if plan.spacing is None else " × ".join(f"{edge:g}" for edge in plan.spacing)
    facts.append(f"Voxels of the working grid in mm: {spacing}")
    low, high = plan.target_range
    meant = {
        "percentile": f"percentile {plan.target_percentile:g} inside the body lies near {high:.4g}",
        "zscore": f"the mean minus and plus {ZSCORE_REACH:g} deviations inside the body lie near {low:.4g} "
        f"and {high:.4g}",
        "window": f"trained on {low:g} to {high:g}, what lies beyond was clipped",
    }
    facts.append(f"Values of a result: {units}; {meant[plan.target_scaling]}")
    if plan.remove_table:
        facts.append("Outside the body the source is filled with air, so that no table is seen")
    if plan.bias_correction:
        facts.append("The shading of MR volumes is corrected (N4)")
    if plan.registration != "none":
        facts.append(f"Training pairs were registered: {plan.registration}")
    if plan.fingerprint is not None:
        facts.append(f"Training cases: {plan.fingerprint.cases}")
    return facts


def _stability(found: Mapping[str, Any]) -> list[str]:
    """What `ct2mri stability` found, foremost whether the model hallucinates under small changes."""
    steps, samples = found["num_inference_steps"], found["samples"]
    sentence = f"**{found['sentence']}**" if found["hallucinates"] else str(found["sentence"])
    return [
        f"{sentence} Measured with {steps} step{'s' * (steps != 1)} and {samples} "
        f"sample{'s' * (samples != 1)} a result; the rule: {found['rule']}.",
        "",
        "| change of the source | altered share of the interior |",
        "|---|---|",
        *[
            f"| {change} | {'not defined' if share is None else f'{share:.2%}'} |"
            for change, share in found["altered"].items()
        ],
    ]


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, Mapping):
        return str(value)
    named = {_words(str(key)).lower(): part for key, part in value.items()}
    if all(isinstance(part, Mapping) for part in named.values()):
        return "; ".join(f"{name}: {_value(part)}" for name, part in named.items())
    return ", ".join(
        f"{name} ({_value(part)})" if isinstance(part, Mapping) else f"{name} {_value(part)}"
        for name, part in named.items()
    )
