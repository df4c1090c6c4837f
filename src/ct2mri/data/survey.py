"""The look at every case before the plan is decided: can it be used, and what does it look like."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ct2mri.data.layouts import RawCase
from ct2mri.data.layouts.naming import with_agent
from ct2mri.data.pairs import check_pair
from ct2mri.data.plan import Plan, modality_is_mr
from ct2mri.data.plausibility import SourceFacts, measure_source
from ct2mri.data.volume import Volume
from ct2mri.data.workers import over_cases
from ct2mri.errors import RequestError
from ct2mri.options.data import RawDataOptions

# Holds the looks of a run that was cut off, a line each, so that the next one goes on.
LOOKS = ".unfinished-looks.jsonl"


@dataclass(frozen=True)
class Look:
    """What one look at a pair told.

    Attributes:
        facts: measures of the source.
        contrast: the target's MR contrast (e.g. "T1w"); None where nothing tells.
    """

    facts: SourceFacts
    contrast: str | None


def survey(
    cases: Sequence[RawCase], settings: Plan, plan_hash: str, folder: Path, workers: int | None
) -> tuple[dict[str, Look], dict[str, str]]:
    """Check and measure every case, several at a time; go on where a run was cut off.

    Args:
        cases: the pairs.
        settings: a plan of which only the split and what is measured are missing.
        plan_hash: a digest of what of the plan the looks depend on.
        folder: where the looks are kept until the data set is complete.
        workers: as for `over_cases`.

    Returns:
        Case identifier → look, and case identifier → why it cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOOKS
    known = _known_looks(path)
    keys = {case.case_id: [case.case_id, plan_hash, case.inputs()] for case in cases}
    looks = {name: look for name, key in keys.items() if (look := known.get(json.dumps(key))) is not None}
    left_out: dict[str, str] = {}
    todo = [case for case in cases if case.case_id not in looks]
    with path.open("a", encoding="utf-8") as file:
        for case, result in over_cases(partial(look_at, settings=settings), todo, workers, "look"):
            if isinstance(result, RequestError):
                left_out[case.case_id] = str(result)
                tqdm.write(f"{case.case_id}: LEFT OUT: {result}")
            else:
                looks[case.case_id] = result
                # A line break first: it ends a line that a kill tore off.
                file.write("\n" + json.dumps({"key": keys[case.case_id], "look": asdict(result)}))
                file.flush()
    return {case.case_id: looks[case.case_id] for case in cases if case.case_id in looks}, left_out


def _known_looks(path: Path) -> dict[str, Look]:
    """The looks of a run that was cut off, by their key as JSON."""
    known: dict[str, Look] = {}
    if not path.is_file():
        return known
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
            look = Look(_facts_from_json(content["look"]["facts"]), content["look"]["contrast"])
            known[json.dumps(content["key"])] = look
        except (ValueError, KeyError, TypeError):
            continue  # empty, torn off, or written by another version
    return known


def _facts_from_json(content: dict[str, Any]) -> SourceFacts:
    i, j, k = content.pop("spacing")
    size_i, size_j, size_k = content.pop("body_size")
    return SourceFacts(spacing=(i, j, k), body_size=(size_i, size_j, size_k), **content)


def look_at(case: RawCase, settings: Plan) -> Look:
    """Check and measure one case.

    Raises:
        RequestError: it cannot be used, with the reason.
    """
    source, target, mask = case.load()
    check_case(source, target, settings)
    contrast = target_contrast(case.facts, target.metadata, settings)
    return Look(measure_source(source, settings.source_units, mask), contrast)


def check_case(source: Volume, target: Volume, plan: Plan) -> None:
    """Refuse a pair that cannot be used, before it is registered.

    Raises:
        RequestError: with the reason.
    """
    if plan.registration != "none":
        # Where the two lie says nothing yet: their centres are laid on one another.
        target = Volume(target.array, target.affine.copy(), target.metadata)
        target.affine[:3, 3] += _centre(source) - _centre(target)
    check_pair(source, target, plan.source_units, plan.target_units)


def _centre(volume: Volume) -> NDArray[np.float64]:
    """World coordinates in mm of the middle of a volume."""
    middle = (np.array(volume.spatial_shape) - 1) / 2
    return np.asarray(volume.affine[:3, :3] @ middle + volume.affine[:3, 3])


def target_contrast(facts: Mapping[str, Any], header: Mapping[str, Any], plan: Plan) -> str | None:
    """The MR contrast of a target (e.g. "T1w"), as the layout or else its header tells; None: unknown."""
    if not modality_is_mr(plan.target_modality):
        return None
    if told := facts.get("target_contrast"):
        return str(told)
    guessed = header.get("mr_contrast")
    return with_agent(str(guessed), bool(header.get("contrast_agent"))) if guessed else None


def most_common(contrasts: Iterable[str | None]) -> str | None:
    """The contrast that most cases have, of several the first by name; None where none is known."""
    counts = Counter(contrast for contrast in contrasts if contrast is not None)
    return min(counts, key=lambda contrast: (-counts[contrast], contrast), default=None)


def refuse_unlike(contrast: str | None, wanted: str | None, options: RawDataOptions) -> None:
    """Refuse a case whose target has another MR contrast than the data set's, unless a series was chosen.

    A model of several contrasts would draw a mixture of them.

    Raises:
        RequestError: it has.
    """
    if options.target_series is None and contrast and wanted and contrast != wanted:
        raise RequestError(
            f"its target is {contrast} by its name or header, most others are {wanted}, and contrasts "
            "are not mixed unasked; make it part of another data set, or choose with --target_series"
        )
