"""How results are marked: words that follow from what a plan translates."""

from ct2mri.data.plan import Plan
from ct2mri.data.volume import SYNTHETIC

# NIfTI keeps 79 characters of description: so many are left for each modality's word.
_LONGEST_WORD = 6


def safety_sentence(plan: Plan) -> str:
    """What every result is marked with."""
    return safety_sentence_of(plan.source_modality, plan.target_modality)


def safety_sentence_of(source: str, target: str) -> str:
    """What results of one modality made from another are marked with."""
    return (
        f"{SYNTHETIC} {target.upper()}, generated from {source.upper()}, not acquired. "
        "Lesions may be missing or invented. "
        "Research use only; not for diagnosis, contouring or dose planning."
    )


def units(plan: Plan) -> str:
    """What the values of a result mean."""
    if plan.target_units == "HU":
        return "Hounsfield units (HU), estimated"
    enhanced = ", local contrast enhanced (CLAHE)" if plan.enhance_contrast else ""
    return f"arbitrary {plan.target_modality.upper()} units on the training set's median scale{enhanced}"


def short_description(plan: Plan) -> str:
    """A safety sentence of at most 79 ASCII characters, as NIfTI headers hold it."""
    source, target = _short(plan.source_modality), _short(plan.target_modality)
    return f"{SYNTHETIC} {target} from {source}, not acquired. Research only, no diagnosis. ct2mri"


def short_spread_description(plan: Plan) -> str:
    """The same for the spread over samples of a result."""
    source, target = _short(plan.source_modality), _short(plan.target_modality)
    return f"Spread of {SYNTHETIC} {target} from {source}. Research only, no diagnosis. ct2mri"


def _short(name: str) -> str:
    return name.upper().encode("ascii", "replace").decode()[:_LONGEST_WORD]
