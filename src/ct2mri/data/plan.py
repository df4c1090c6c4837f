"""The plan of a data set: how volumes are brought to the networks, and who is trained on.

`prepare` decides a plan, a person can read and edit it as `plan.json`, `translate` replays it on new volumes
(`ct2mri.data.replay`).
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ct2mri.data.intensity import AIR_HU
from ct2mri.data.plan_checks import check_source, check_target, check_words
from ct2mri.data.plan_format import FORMAT_VERSION, checked_fields, of_this_version
from ct2mri.errors import RequestError
from ct2mri.files import write_json

SourceUnits = Literal["HU", "grey", "relative"]
TargetUnits = Literal["HU", "relative"]
TargetScaling = Literal["percentile", "zscore", "window"]
Registration = Literal["none", "rigid"]

# Settings that a data set and a model must share for one to be used with the other.
MUST_AGREE = (
    "source_windows",
    "source_units",
    "source_percentile",
    "target_units",
    "target_scaling",
    "target_percentile",
    "target_window",
    "enhance_contrast",
)

# Settings that change no voxel of a result: whom the plan was made from, and what warnings go by.
_BESIDE_RESULTS = ("format_version", "anatomy", "registration", "split", "fingerprint", "assumptions")

# Deviations from the mean that a target scaled by z-score has at −1 and +1.
ZSCORE_REACH = 3.0

_IN_HU = ("ct", "cbct")
# Neither in HU nor magnetic resonance; any other word names an MR or one of its contrasts (t1, flair, …).
_NOT_MR = ("pet", "pt", "spect", "nm", "us")


def modality_in_hu(name: str) -> bool:
    """Whether the voxels of a modality (its word in any case) are Hounsfield units."""
    return name.lower() in _IN_HU


def modality_is_mr(name: str) -> bool:
    """Whether a modality's word (in any case) names magnetic resonance: `mr`, or a contrast such as `t1`."""
    return not modality_in_hu(name) and name.lower() not in _NOT_MR


@dataclass(frozen=True)
class Split:
    """Which patients are trained on, validated on and held out.

    Raises:
        RequestError: a side is no list of identifiers, or a patient is named twice.
    """

    seed: int
    train: list[str]
    validation: list[str]
    test: list[str]

    def __post_init__(self) -> None:
        side_of: dict[str, str] = {}
        for side in ("train", "validation", "test"):
            patients = getattr(self, side)
            if not isinstance(patients, list) or not all(isinstance(name, str) for name in patients):
                raise RequestError(
                    f"The {side} of the split is {patients!r}; give a list of patient identifiers in quotes, "
                    "or [] for nobody."
                )
            for patient_id in patients:
                if patient_id in side_of:
                    other = side_of[patient_id]
                    where = f"twice under {side}" if other == side else f"under {other} and under {side}"
                    raise RequestError(
                        f"Patient {patient_id} is {where} of the split; a patient belongs to one side, once: "
                        f"remove one of the two."
                    )
                side_of[patient_id] = side

    def side(self, patient_id: str) -> Literal["train", "validation", "test"] | None:
        """The side a patient is on, or None."""
        if patient_id in self.train:
            return "train"
        if patient_id in self.validation:
            return "validation"
        return "test" if patient_id in self.test else None

    @property
    def patient_ids(self) -> list[str]:
        """Everybody in the split."""
        return [*self.train, *self.validation, *self.test]


@dataclass(frozen=True)
class Fingerprint:
    """What the training cases look like; a CT outside these ranges gets a warning.

    Every range is [smallest, largest] over the training cases. Axes are in RAS order.

    Attributes:
        cases: training cases measured.
        spacing_mm: per axis, voxel edge of the source files.
        body_size_mm: per axis, edge of the box around the body.
        body_area_cm2: median area of the body over its axial slices; None for single slices.
        hu_percentiles: "1", "50" and "99" → range of that percentile in the body; None where not in HU.
        tissue_fractions: "air", "fat", "soft_tissue", "bone" → range of the share of the body; None likewise.
        contrast_share: share given contrast agent among the cases whose header tells; None: none does.
        looks_like: anatomy that most cases look like; None where they do not agree or cannot tell.
    """

    cases: int
    spacing_mm: list[list[float]]
    body_size_mm: list[list[float]]
    body_area_cm2: list[float] | None
    hu_percentiles: dict[str, list[float]] | None
    tissue_fractions: dict[str, list[float]] | None
    contrast_share: float | None
    looks_like: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How volumes become network input, and what the results mean.

    Attributes:
        source_modality: what is translated from.
        target_modality: what is translated to.
        source_units: "HU"; "grey" for pictures scaled one by one; "relative": each volume divided by its own
            `source_percentile`, for modalities whose values have no units (MR).
        source_percentile: percentile of the positive values inside the body that becomes 1 where the source
            is "relative"; None otherwise.
        anatomy: name of the anatomy, or None where nobody said.
        spacing: voxel edges of the working grid in mm along R, A, S; None: each case's own.
        crop_margin_mm: space kept around the body; None: no cropping.
        source_windows: [low, high] of each condition channel, in the source's units; low maps to −1, high to
            1, clipped.
        body_threshold: source value above which a voxel may be body; None: the whole image is, and where the
            source is "relative" Otsu's threshold of each volume is taken.
        remove_table: fill the source with `source_fill` outside the body.
        target_units: "HU", or "relative": on the median scale of the training cases.
        target_scaling: "percentile": 0 and a percentile of each target map to −1 and 1; "zscore": its mean
            minus and plus 3 standard deviations do; "window": the same two values for all.
        target_percentile: that percentile, inside the body; also the upper end of what is contrast-enhanced.
        target_window: for "window", the two values that map to −1 and 1; None otherwise.
        target_range: what −1 and 1 mean in results: the median over the training cases of the values that
            were mapped to them, or the window.
        enhance_contrast: enhance each target's local contrast (CLAHE); results keep it.
        bias_correction: correct the shading of MR volumes (N4), source and target.
        registration: how pairs were brought together.
        split: who is trained on.
        fingerprint: what the training cases look like; None where they are not known.
        assumptions: what was assumed rather than measured, a sentence each, shown at each use.

    Raises:
        RequestError: a value is not allowed, or contradicts another.
    """

    format_version: int = FORMAT_VERSION
    source_modality: str = "ct"
    target_modality: str = "mr"
    source_units: SourceUnits = "HU"
    source_percentile: float | None = None
    anatomy: str | None = None
    spacing: tuple[float, float, float] | None
    crop_margin_mm: float | None
    source_windows: list[list[float]]
    body_threshold: float | None
    remove_table: bool = False
    target_units: TargetUnits = "relative"
    target_scaling: TargetScaling = "percentile"
    target_percentile: float
    target_window: list[float] | None = None
    target_range: tuple[float, float]
    enhance_contrast: bool = False
    bias_correction: bool = False
    registration: Registration = "none"
    split: Split
    fingerprint: Fingerprint | None
    assumptions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise RequestError(
                f"The plan has format_version {self.format_version}, this program writes {FORMAT_VERSION}."
            )
        for name, allowed in _WORDS.items():
            if (value := getattr(self, name)) not in allowed:
                raise RequestError(f"The plan's {name} is {value!r}; {_any_of(allowed)} is allowed.")
        for name in ("remove_table", "enhance_contrast", "bias_correction"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"The plan's {name} is {getattr(self, name)!r}; true or false is allowed.")
        check_words(self)
        check_source(self)
        check_target(self)
        if self.bias_correction and not (
            modality_is_mr(self.source_modality) or modality_is_mr(self.target_modality)
        ):
            raise RequestError(
                f"The plan's bias_correction is for MR, and it translates {self.source_modality} into "
                f"{self.target_modality}; set it to false."
            )

    @property
    def channels(self) -> int:
        """Condition channels: one a window."""
        return len(self.source_windows)

    @property
    def source_fill(self) -> float:
        """Source value outside the field of view: air."""
        return AIR_HU if self.source_units == "HU" else 0.0

    @property
    def target_fill(self) -> float:
        """Value of results outside the body: air."""
        return AIR_HU if self.target_units == "HU" else 0.0

    @property
    def decisive(self) -> dict[str, Any]:
        """What results depend on: all fields but those of `_BESIDE_RESULTS`, as JSON holds them."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _BESIDE_RESULTS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def write(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """Read what `write` wrote, or a person edited.

        Raises:
            RequestError: no such file, not JSON, fields missing or unknown, or a value that is not allowed.
        """
        path = Path(path)
        if not path.is_file():
            raise RequestError(f"There is no plan at {path}; `ct2mri prepare` writes one (plan.json).")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RequestError(
                f"{path} is not readable as JSON ({error}); repair it or prepare again."
            ) from error
        try:
            return cls.from_dict(content)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, content: Any) -> "Plan":
        """The plan in a dictionary as JSON holds it.

        Raises:
            RequestError: fields are missing or unknown, or a value is not allowed.
        """
        content = of_this_version(content, [f.name for f in fields(cls)])
        content = checked_fields(cls, content, "The plan")
        content["split"] = Split(**checked_fields(Split, content["split"], "The plan's split"))
        if content["fingerprint"] is not None:
            content["fingerprint"] = Fingerprint(
                **checked_fields(Fingerprint, content["fingerprint"], "The plan's fingerprint")
            )
        try:
            if content["spacing"] is not None:
                content["spacing"] = tuple(float(edge) for edge in content["spacing"])
            content["source_windows"] = [[float(low), float(high)] for low, high in content["source_windows"]]
            content["target_percentile"] = float(content["target_percentile"])
            low, high = content["target_range"]
            content["target_range"] = (float(low), float(high))
            if content["target_window"] is not None:
                low, high = content["target_window"]
                content["target_window"] = [float(low), float(high)]
            for name in ("crop_margin_mm", "body_threshold", "source_percentile"):
                content[name] = None if content[name] is None else float(content[name])
        except (TypeError, ValueError) as error:
            raise RequestError(f"A number of the plan cannot be read as one ({error}); repair it.") from error
        return cls(**content)


# Fields whose value is one of a few words.
_WORDS = {
    "source_units": get_args(SourceUnits),
    "target_units": get_args(TargetUnits),
    "target_scaling": get_args(TargetScaling),
    "registration": get_args(Registration),
}


def _any_of(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + " or " + words[-1]
