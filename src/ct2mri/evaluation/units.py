"""What the values of a prediction mean, as the sidecar beside it tells."""

from pathlib import Path
from typing import Any

from ct2mri.data.io import volume_stem
from ct2mri.data.plan import Plan
from ct2mri.errors import RequestError
from ct2mri.sidecars import read_sidecar


def target_range_of(prediction: Path, case_id: str, plan: Plan) -> tuple[tuple[float, float], list[str]]:
    """The values of a data set's prediction that stand for the ends of its scale, and what to say of them.

    Args:
        prediction: its file or folder.
        case_id: its case.
        plan: of the data set, by which values are meant where no sidecar tells.

    Raises:
        RequestError: it was drawn in units or by a rule of scaling that are not those of the data set.
    """
    told = _plan_beside(prediction)
    names = ["target_units", "target_scaling"]
    names += ["target_percentile"] if plan.target_scaling == "percentile" else []
    for name in names:
        wanted = getattr(plan, name)
        if told.get(name, wanted) != wanted:
            raise RequestError(
                f"Case {case_id}: by its sidecar, {prediction.name} was drawn with {name} {told[name]}, and "
                f"the data set was prepared with {wanted}, so that values do not mean the same; give "
                "predictions of a model whose plan agrees."
            )
    low, high = told.get("target_range", plan.target_range)
    if plan.target_units == "HU" or (low, high) == plan.target_range:
        return plan.target_range, []
    return (low, high), [
        f"By its sidecar, the prediction is on the scale of another plan than the data set's: {low:.6g} to "
        f"{high:.6g} of it map to 0 and 1, not {plan.target_range[0]:.6g} to {plan.target_range[1]:.6g}."
    ]


def _plan_beside(prediction: Path) -> dict[str, Any]:
    """The plan that a prediction was drawn with; empty where no sidecar tells."""
    plan = read_sidecar(prediction.with_name(f"{volume_stem(prediction)}.json")).get("plan")
    return plan if isinstance(plan, dict) else {}
