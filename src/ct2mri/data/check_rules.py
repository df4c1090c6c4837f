"""Judging what `check_case` measured: what is wrong with one case, a sentence each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ct2mri.data.check_case import BONE_HU, FAR_MM, FEW_VALUES, Measured, PairFacts, VolumeFacts

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# HU by which the air may miss -1000: scanners differ by some tens, CBCT and lost intercepts by more.
_AIR_OFF, _AIR_WRONG = 60.0, 200.0
_SOFT_HU = (-200.0, 200.0)  # the median of a body lies between fat and muscle
_LEAST_BONE = 0.001  # share of the body above 300 HU
_BONE_TOP = 1200.0  # HU that dense bone exceeds; a CT that ends below was cut

# Share of the body at a volume's highest value, beyond which it was cut off there.
_CUT_OFF = 0.002

_THICK_MM, _FINE_MM = 6.0, 0.2
_UNEVEN = 5.0  # greatest over least voxel edge
_OBLIQUE_DEG = 20.0
_SMALL_LITRES = 0.2

_HARDLY_SEEN, _PARTLY_SEEN, _WHOLLY_SEEN = 0.05, 0.8, 0.995
# Shifts within what the measurement and a careful registration leave; a single plane of a pair that was
# turned in space shows other anatomy and tells less.
_SHIFTED_MM, _SHIFTED_PIXELS = 2.5, 4.0
_MORE_INFORMATION = 1.03  # at the best place over that where it lies, for a shift to count
# Beyond this the mirror image fits better, below its inverse worse; between, who knows. Volumes of a patient
# reach 1.25 and more, those of strangers or symmetric bodies up to 1.05; a picture shows less of either.
_MIRRORED, _MIRRORED_PICTURE = 1.1, 1.05
_EDGES_APART_MM = 5.0


@dataclass(frozen=True)
class Finding:
    """Something to know about a case or a data set, in one sentence."""

    severity: Severity
    text: str


@dataclass(frozen=True)
class CaseReport:
    """What is known of one case.

    Attributes:
        case_id: its name.
        patient_id: whose it is; None where the case could not be read.
        centre: where it was scanned; None where nobody said.
        split: its side of the split; None where there is none.
        measured: None where it could not be read.
        findings: worst first.
        thumbnail: JPEG of source, target and both; None where nothing can be shown.
    """

    case_id: str
    patient_id: str | None
    centre: str | None
    split: str | None
    measured: Measured | None
    findings: list[Finding] = field(default_factory=list)
    thumbnail: bytes | None = None

    @property
    def worst(self) -> Severity | None:
        """The worst severity among the findings."""
        present = {finding.severity for finding in self.findings}
        return next((severity for severity in SEVERITIES if severity in present), None)


def hand(pair: PairFacts) -> Literal["same", "mirrored", "cannot tell"]:
    """Whether the two volumes of a pair agree on which side is right."""
    margin = _MIRRORED_PICTURE if pair.body_litres is None else _MIRRORED
    if pair.mirrored_fit is None or 1 / margin <= pair.mirrored_fit <= margin:
        return "cannot tell"
    return "mirrored" if pair.mirrored_fit > 1 else "same"


def worst_first(reports: Iterable[CaseReport]) -> list[CaseReport]:
    """Reports by severity, then by how many findings of it, then by name."""

    def key(report: CaseReport) -> tuple[int, int, str]:
        if report.worst is None:
            return len(SEVERITIES), 0, report.case_id
        count = sum(finding.severity == report.worst for finding in report.findings)
        return SEVERITIES.index(report.worst), -count, report.case_id

    return sorted(reports, key=key)


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Findings, worst first, otherwise as they came."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


# One case


def judge_case(measured: Measured, *, is_picture: bool) -> list[Finding]:
    """What is wrong with one case by itself.

    Args:
        measured: the case.
        is_picture: whether it is a pair of pictures, whose voxels have no true size.
    """
    source, target = measured.source, measured.target
    findings = judge_volume(source, "source", is_picture=is_picture)
    findings += judge_volume(target, "target", is_picture=is_picture)
    if source.shows_nothing or target.shows_nothing:
        return sorted_findings(findings)
    if source.digest == target.digest:
        findings.append(
            Finding("error", "Source and target are the same image, voxel for voxel; replace one of them.")
        )
    elif measured.pair is None:
        findings.append(
            Finding("error", "No body was found in the source; give a volume that shows one, or a mask.")
        )
    else:
        findings += judge_pair(measured.pair, is_picture=is_picture)
    return sorted_findings(findings)


def judge_volume(facts: VolumeFacts, role: str, *, is_picture: bool) -> list[Finding]:
    """What is wrong with one volume of a pair."""
    name = f"The {role} ({facts.name})"
    found = [Finding("warning", f"{name}: {sentence}") for sentence in facts.warnings]
    if facts.broken:
        text = f"{name} has {facts.broken} voxels that are NaN or infinite; repair it or leave it out."
        found.append(Finding("error", text))
    if facts.shows_nothing:
        value = "no number" if facts.lowest is None else f"{facts.lowest:g}"
        found.append(Finding("error", f"{name} shows nothing: every voxel is {value}; export it again."))
        return found
    if facts.blank_slices:
        text = (
            f"{name} has {facts.blank_slices} blank slices between slices that show something; look whether "
            "slices got lost in the export."
        )
        found.append(Finding("warning", text))
    if facts.distinct < FEW_VALUES and not facts.in_hu:
        text = f"{name} has only {facts.distinct} different values; take it before it was coarsened."
        found.append(Finding("warning", text))
    found += _judge_hu(facts, name) if facts.in_hu else _judge_relative(facts, name)
    if not is_picture:
        found += _judge_grid(facts, name)
    if facts.told.get("cbct") and facts.modality.lower() != "cbct":
        text = (
            f"{name} is a cone-beam CT by its header: its values are no reliable HU, and a model of it does "
            "not fit CTs; ask for it as cbct if it is meant."
        )
        found.append(Finding("warning", text))
    return found


def _judge_hu(facts: VolumeFacts, name: str) -> list[Finding]:
    if facts.not_hu is not None:
        return [Finding("error", f"{name}: {facts.not_hu}")]
    found = []
    if facts.air_hu is not None and abs(facts.air_hu + 1000) > _AIR_OFF:
        text = (
            f"{name} has its air at {facts.air_hu:.0f} HU instead of about -1000; look at its rescale slope "
            "and intercept, and whether it is a cone-beam CT."
        )
        found.append(Finding("error" if abs(facts.air_hu + 1000) > _AIR_WRONG else "warning", text))
    low, high = _SOFT_HU
    if facts.soft_hu is not None and not low < facts.soft_hu < high:
        text = (
            f"{name} has a median of {facts.soft_hu:.0f} HU in the body, where soft tissue lies within "
            f"{low:.0f} and {high:.0f}; look whether its values are HU."
        )
        found.append(Finding("warning", text))
    if facts.highest is not None and facts.at_highest > _CUT_OFF and facts.highest < _BONE_TOP:
        text = (
            f"{name} was cut off at {facts.highest:.0f} HU ({100 * facts.at_highest:.1f} % of the body have "
            "that very value), so bone is lost; export it without a window."
        )
        found.append(Finding("error" if facts.highest < BONE_HU else "warning", text))
    elif facts.bone_share is not None and facts.bone_share < _LEAST_BONE:
        text = (
            f"{name} shows no bone: {100 * facts.bone_share:.2f} % of the body lie above {BONE_HU:.0f} HU; "
            "look whether its values are HU."
        )
        found.append(Finding("warning", text))
    return found


def _judge_relative(facts: VolumeFacts, name: str) -> list[Finding]:
    if facts.at_highest <= _CUT_OFF:
        return []
    text = (
        f"{name} is cut off at {facts.highest:g}: {100 * facts.at_highest:.1f} % of the body have that very "
        "value; take it before it was clipped."
    )
    return [Finding("warning", text)]


def _judge_grid(facts: VolumeFacts, name: str) -> list[Finding]:
    found = []
    edges = sorted(edge for edge, size in zip(facts.spacing, facts.shape, strict=True) if size > 1)
    spoken = "×".join(f"{edge:.3g}" for edge in facts.spacing)
    if edges and (edges[-1] > _THICK_MM or edges[0] < _FINE_MM):
        text = f"{name} has voxels of {spoken} mm; look whether the header's spacing is right."
        found.append(Finding("warning", text))
    elif edges and edges[-1] > _UNEVEN * edges[0]:
        found.append(Finding("note", f"{name} has very uneven voxels ({spoken} mm)."))
    if facts.oblique_deg > _OBLIQUE_DEG:
        text = (
            f"{name} lies {facts.oblique_deg:.0f}° oblique to the patient's axes, as scanned or registered."
        )
        found.append(Finding("note", text))
    return found


def judge_pair(pair: PairFacts, *, is_picture: bool) -> list[Finding]:
    """What is wrong with how the two volumes of a pair lie on one another."""
    found = []
    if pair.body_litres is not None and pair.body_litres < _SMALL_LITRES:
        text = f"The body that was found measures only {pair.body_litres:.2g} litres; look at it."
        found.append(Finding("warning", text))
    seen = f"The target shows {100 * pair.seen_share:.0f} % of the source's body"
    if pair.seen_share < _HARDLY_SEEN:
        text = (
            f"{seen}: the two do not overlap in space, so they are of different patients or frames of "
            "reference, or must be registered first."
        )
        return [*found, Finding("error", text)]
    if pair.seen_share < _PARTLY_SEEN:
        found.append(Finding("warning", f"{seen}; nothing is learned where it shows nothing."))
    elif pair.seen_share < _WHOLLY_SEEN:
        found.append(Finding("note", f"{seen}."))
    place = _judge_place(pair, is_picture)
    return found if place is None else [*found, place]


def _judge_place(pair: PairFacts, is_picture: bool) -> Finding | None:
    """The likeliest reason for which a pair does not lie as it should."""
    unit, least = ("pixels", _SHIFTED_PIXELS) if is_picture else ("mm", _SHIFTED_MM)
    if pair.turned:
        how, ratio = next(iter(pair.turned.items()))
        return Finding(
            "error",
            f"The target fits {_percent(ratio)} better turned over {how}: the header of source or target "
            "gives the wrong direction there; correct its orientation.",
        )
    if pair.mirrored_fit is not None and hand(pair) == "mirrored":
        return Finding(
            "error",
            f"Left and right differ: the target's mirror image fits {_percent(pair.mirrored_fit)} better "
            "than the target; find out which of the two was flipped, and leave the case out until then.",
        )
    if pair.shift_mm is None or pair.direction_mm is None or pair.shift_gain is None:
        return Finding("warning", "How well the pair is registered cannot be told; look at the picture.")
    if pair.shift_mm > least and pair.shift_gain > _MORE_INFORMATION:
        return Finding(
            "error" if pair.shift_mm > FAR_MM else "warning",
            f"The target lies {pair.shift_mm:.1f} {unit} from where it fits best "
            f"({_direction(pair.direction_mm)}); register the pair, e.g. `prepare --register rigid`.",
        )
    if pair.edge_distance_mm is not None and pair.edge_distance_mm > _EDGES_APART_MM:
        return Finding(
            "warning",
            f"The outlines of source and target are {pair.edge_distance_mm:.1f} {unit} apart on average, "
            "though no shift or turn fits better: the patient was deformed in between, or it is another one.",
        )
    return None


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):.0f} % (mutual information)"


def _direction(direction: Sequence[float]) -> str:
    """The greatest parts of a shift to the right, front and top, in words."""
    words = (("right", "left"), ("front", "back"), ("top", "feet"))
    greatest = max(abs(part) for part in direction)
    parts = [
        f"{abs(part):.1f} to the {names[part < 0]}"
        for part, names in zip(direction, words, strict=True)
        if abs(part) > 0.3 * greatest
    ]
    return ", ".join(parts) if greatest > 1 else "turned"
