"""Whether a volume is a CT at all, and whether it is one like those that a model was made for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.intensity import AIR_HU
from ct2mri.data.plan import Fingerprint, Plan, SourceUnits
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

Anatomy = Literal["head", "trunk"]

# HU above which a voxel may be body: between air and foam on one side, fat and skin on the other.
BODY_THRESHOLD = -300.0

# Voxel edge in mm at which volumes are measured: a look costs little, and spacing matters little.
_MEASURING_MM = 3.0

_AXES = ("left-right", "front-back", "head-foot")
_SPOKEN: dict[Anatomy, str] = {"head": "a head", "trunk": "a trunk (chest, abdomen or pelvis)"}
_MADE_FOR: dict[Anatomy, str] = {"head": "heads", "trunk": "trunks (chest, abdomen or pelvis)"}
_ANATOMY_OF_NAME: dict[str, Anatomy] = {
    "head": "head",
    "brain": "head",
    "chest": "trunk",
    "thorax": "trunk",
    "abdomen": "trunk",
    "pelvis": "trunk",
    "trunk": "trunk",
}


def require_ct(volume: Volume) -> None:
    """Refuse what cannot be a CT in Hounsfield units.

    Raises:
        RequestError: another modality by its header, voxels that are not numbers, an offset of 1024 HU, or
            no voxel below −200 HU.
    """
    modality = volume.metadata.get("modality")
    if modality not in (None, "CT"):
        raise RequestError(f"The file's header says that its modality is {modality}; give a CT.")
    require_finite(volume)
    array = volume.array
    lowest = float(array.min())
    if lowest >= -200:
        if _is_offset(array):
            raise RequestError(
                f"The CT is not in HU but offset by +1024 (air lies near {np.percentile(array, 2):.0f} "
                "instead of -1000, soft tissue near +1050); subtract 1024 from its voxels."
            )
        raise RequestError(
            f"No voxel lies below -200 HU (the lowest is {lowest:.4g}), so this looks like an MR or is not "
            "in HU; give a CT in Hounsfield units, where air is near -1000."
        )


def require_no_ct(volume: Volume) -> None:
    """Refuse a CT where a modality whose values have no units is wanted.

    Raises:
        RequestError: a CT by its header or by its values, or voxels that are not numbers.
    """
    if volume.metadata.get("modality") == "CT":
        raise RequestError("The file's header says that its modality is CT; give the other modality.")
    require_finite(volume)
    if np.count_nonzero(volume.array < -500) > 0.01 * volume.array.size:
        raise RequestError(
            f"Values go down to {volume.array.min():.4g}, as in a CT in Hounsfield units; give the other "
            "modality, where air is near 0."
        )


def require_source(volume: Volume, plan: Plan) -> None:
    """Refuse what cannot be of a plan's source modality.

    Raises:
        RequestError: as `require_ct` where the source is in HU, as `require_no_ct` where it has no units.
    """
    if plan.source_units == "HU":
        require_ct(volume)
    elif plan.source_units == "relative":
        try:
            require_no_ct(volume)
        except RequestError as error:
            raise RequestError(
                f"{error} The model translates {plan.source_modality.upper()} into "
                f"{plan.target_modality.upper()}."
            ) from error
    else:
        require_finite(volume)


def require_finite(volume: Volume) -> None:
    """Refuse a volume with voxels that are not numbers.

    Raises:
        RequestError: some are NaN or infinite.
    """
    broken = volume.array.size - int(np.count_nonzero(np.isfinite(volume.array)))
    if broken:
        raise RequestError(
            f"{broken} of {volume.array.size} voxels are NaN or infinite; repair the volume or leave it out."
        )


def _is_offset(array: NDArray[np.float32]) -> bool:
    """Whether air lies near 0 and soft tissue near 1024, as in files that leave out the rescale intercept."""
    air = np.count_nonzero(np.abs(array) < 200)
    above = array[array > 500]
    # Fat to muscle; bone is the rest. An MR's values spread more widely.
    soft = np.count_nonzero((above > 874) & (above < 1214))
    return bool(air > 0.01 * array.size and soft > 0.5 * above.size)


@dataclass(frozen=True)
class SourceFacts:
    """What one source volume looks like; axes in RAS order, lengths in mm.

    Attributes:
        spacing: voxel edges of the file.
        body_size: edges of the box around the body.
        body_area_cm2: median area of the body over axial slices; None for a coronal or sagittal picture.
        hu_percentiles: "1", "50", "99" → HU in the body; None where not in HU.
        tissue_fractions: "air", "fat", "soft_tissue", "bone" → share of the body; None where not in HU.
        contrast_agent: whether contrast agent was given; None where the header does not say.
        looks_like: the anatomy; None where it cannot be told.
    """

    spacing: tuple[float, float, float]
    body_size: tuple[float, float, float]
    body_area_cm2: float | None
    hu_percentiles: dict[str, float] | None
    tissue_fractions: dict[str, float] | None
    contrast_agent: bool | None
    looks_like: Anatomy | None


def measure_source(volume: Volume, units: SourceUnits, mask: Volume | None = None) -> SourceFacts:
    """Measure a source volume.

    Args:
        volume: the source on its own grid, finite.
        units: of its values.
        mask: the body (above 0.5) on any grid; without one it is found by threshold, except in pictures.

    Raises:
        RequestError: no body was found.
    """
    from ct2mri.data.geometry import grid_with_spacing, resample, to_canonical
    from ct2mri.data.intensity import body_mask, otsu_threshold

    in_hu = units == "HU"
    canonical, _ = to_canonical(volume)
    edge_i, edge_j, edge_k = (max(edge, _MEASURING_MM) for edge in canonical.spacing)
    grid = grid_with_spacing(canonical.grid, (edge_i, edge_j, edge_k))
    coarse = resample(canonical, grid, fill=AIR_HU if in_hu else 0)
    if mask is not None:
        body = resample(mask, grid, interpolation="nearest", fill=0).array > 0.5
    elif in_hu:
        body = body_mask(coarse.array, coarse.spacing, BODY_THRESHOLD)
    elif units == "relative":
        body = body_mask(coarse.array, coarse.spacing, otsu_threshold(coarse.array))
    else:
        body = np.ones(coarse.spatial_shape, dtype=bool)
    if not body.any():
        raise RequestError(
            f"No body was found (nothing thick {'lies above' if in_hu else 'stands out from the air'}"
            f"{f' {BODY_THRESHOLD:g} HU' if in_hu else ''}, or the mask is empty); "
            "give a volume that shows one."
        )
    extent = []
    for axis, edge in enumerate(coarse.spacing):
        inside = np.flatnonzero(body.any(axis=tuple(a for a in range(3) if a != axis)))
        extent.append(float((inside[-1] - inside[0] + 1) * edge))
    areas = _areas_cm2(body, coarse.spacing)
    is_axial = min(body.shape[:2]) > 1
    values = coarse.array[body]
    contrast = volume.metadata.get("contrast_agent")
    return SourceFacts(
        spacing=canonical.spacing,
        body_size=(extent[0], extent[1], extent[2]),
        body_area_cm2=float(np.median(areas[areas > 0])) if is_axial else None,
        hu_percentiles={p: float(np.percentile(values, float(p))) for p in ("1", "50", "99")}
        if in_hu
        else None,
        tissue_fractions=_tissue_fractions(values) if in_hu else None,
        contrast_agent=contrast if isinstance(contrast, bool) else None,
        looks_like=_looks_like(coarse.array, body, coarse.spacing) if in_hu and is_axial else None,
    )


def _areas_cm2(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Area of a mask in each axial slice."""
    return np.asarray(mask.sum(axis=(0, 1)) * (spacing[0] * spacing[1] / 100), dtype=np.float64)


def _tissue_fractions(values: NDArray[np.float32]) -> dict[str, float]:
    """Shares of body voxels by HU."""
    edges = {"air": (-np.inf, -300), "fat": (-300, -30), "soft_tissue": (-30, 250), "bone": (250, np.inf)}
    return {name: float(np.mean((values >= low) & (values < high))) for name, (low, high) in edges.items()}


def _looks_like(
    hu: NDArray[np.float32], body: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> Anatomy | None:
    """Tell a head from a trunk by the bone around it.

    In an axial slice of a head, bone lies in every direction near the skin; in a slice of a trunk, ribs or
    hip bones leave wide gaps, and the slice is larger. Needs no right sign of any axis.

    Args:
        hu: (i, j, k) in RAS order.
        body: the body.
        spacing: voxel edges in mm.
    """
    areas = _areas_cm2(body, spacing)
    shown = np.flatnonzero(areas > 20)
    skull_slices = trunk_slices = 0
    for k in shown:
        around, share = _bone_around(hu[:, :, k] > 150, body[:, :, k], spacing[:2])
        if around >= 0.85 and share >= 0.07 and areas[k] < 450:
            skull_slices += 1
        elif areas[k] > 320:
            trunk_slices += 1
    # A head shows at least 4 cm of skull; a thinner slab counts by the larger part of its slices.
    enough = min(40 / spacing[2], 0.5 * len(shown))
    if skull_slices and skull_slices >= max(enough, trunk_slices):
        return "head"
    if trunk_slices and trunk_slices >= enough:
        return "trunk"
    return None


def _bone_around(
    bone: NDArray[np.bool_], body: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[float, float]:
    """Bone in one slice: the share of directions with bone in the outer half, and of the body's area."""
    inside = np.argwhere(body) * spacing
    offsets = np.argwhere(bone & body) * spacing - inside.mean(axis=0)
    share = len(offsets) / len(inside)
    radius = np.sqrt(len(inside) * spacing[0] * spacing[1] / np.pi)
    outer = offsets[np.hypot(offsets[:, 0], offsets[:, 1]) > 0.5 * radius]
    directions = np.floor((np.arctan2(outer[:, 1], outer[:, 0]) / (2 * np.pi) + 0.5) * 36).astype(int) % 36
    return len(np.unique(directions)) / 36, share


def fingerprint(facts: Sequence[SourceFacts]) -> Fingerprint:
    """Ranges over the training cases' facts."""

    def over_cases(values: Sequence[float]) -> list[float]:
        return [round(min(values), 4), round(max(values), 4)]

    percentiles = [f.hu_percentiles for f in facts if f.hu_percentiles is not None]
    fractions = [f.tissue_fractions for f in facts if f.tissue_fractions is not None]
    areas = [f.body_area_cm2 for f in facts if f.body_area_cm2 is not None]
    contrast = [f.contrast_agent for f in facts if f.contrast_agent is not None]
    hu = {p: over_cases([c[p] for c in percentiles]) for p in percentiles[0]} if percentiles else None
    tissues = {t: over_cases([c[t] for c in fractions]) for t in fractions[0]} if fractions else None
    looks, votes = Counter(f.looks_like for f in facts).most_common(1)[0]
    return Fingerprint(
        cases=len(facts),
        spacing_mm=[over_cases([f.spacing[axis] for f in facts]) for axis in range(3)],
        body_size_mm=[over_cases([f.body_size[axis] for f in facts]) for axis in range(3)],
        body_area_cm2=over_cases(areas) if areas else None,
        hu_percentiles=hu,
        tissue_fractions=tissues,
        contrast_share=sum(contrast) / len(contrast) if contrast else None,
        looks_like=looks if looks is not None and votes > len(facts) / 2 else None,
    )


def source_warnings(volume: Volume, plan: Plan, mask: Volume | None = None) -> list[str]:
    """In what a source volume lies outside what a plan's training cases looked like, a sentence each.

    Args:
        volume: the source on its own grid; finite.
        plan: the plan, whose fingerprint holds the training cases' ranges.
        mask: the body, where one is given.
    """
    try:
        facts = measure_source(volume, plan.source_units, mask)
    except RequestError as error:
        return [str(error)]
    warnings = []
    made_for = _made_for(plan)
    if facts.looks_like is not None and made_for is not None and facts.looks_like != made_for:
        warnings.append(
            f"This CT looks like {_SPOKEN[facts.looks_like]}; the model was made for {_MADE_FOR[made_for]}: "
            "its result will be wrong."
        )
    if plan.source_units == "grey":
        low, high = plan.source_windows[0]
        if volume.array.min() < low or volume.array.max() > high:
            warnings.append(
                f"Values run from {volume.array.min():.4g} to {volume.array.max():.4g}; the model was "
                f"trained on pictures of grey values from {low:g} to {high:g}."
            )
    trained = plan.fingerprint
    if trained is None:
        return warnings
    spacing = _outside(facts.spacing, trained.spacing_mm, below=2.0, above=1.5)
    if spacing:
        warnings.append(f"Spacing: voxels measure {spacing}.")
    size = _outside(facts.body_size, trained.body_size_mm, below=1.25, above=1.25)
    if size:
        warnings.append(f"Field of view: the body that is shown measures {size}.")
    if facts.body_area_cm2 is not None and trained.body_area_cm2 is not None:
        low, high = trained.body_area_cm2
        if facts.body_area_cm2 > 1.5 * high or facts.body_area_cm2 < low / 1.5:
            warnings.append(
                f"Size: the body's cross-section is {facts.body_area_cm2:.0f} cm², in training "
                f"{_range(low, high)} cm²."
            )
    if facts.hu_percentiles is not None and trained.hu_percentiles is not None:
        # Tolerances in HU: the median moves little between people, the densest bone more.
        for p, tolerance in (("50", 60.0), ("99", 700.0)):
            low, high = trained.hu_percentiles[p]
            value = facts.hu_percentiles[p]
            if value > high + tolerance or value < low - tolerance:
                warnings.append(
                    f"HU: percentile {p} inside the body is {value:.0f} HU, in training "
                    f"{_range(low, high)} HU; check that the volume is a CT in HU, without metal."
                )
    if facts.contrast_agent and not trained.contrast_share:
        known = (
            "no training case had it"
            if trained.contrast_share == 0
            else "whether training cases had it is unknown"
        )
        warnings.append(f"Contrast agent was given, says the header; {known}.")
    return warnings


def _made_for(plan: Plan) -> Anatomy | None:
    """The anatomy that a plan's model is for: by its name, else by what its training cases looked like."""
    if plan.anatomy is not None and plan.anatomy.lower() in _ANATOMY_OF_NAME:
        return _ANATOMY_OF_NAME[plan.anatomy.lower()]
    if plan.fingerprint is not None:
        return _ANATOMY_OF_NAME.get(plan.fingerprint.looks_like or "")
    return None


def _outside(
    values: Sequence[float], ranges: Sequence[Sequence[float]], *, below: float, above: float
) -> str | None:
    """The lengths in mm that lie outside their ranges by more than the given factors, in words."""
    said = [
        f"{value:.3g} mm {name} (in training {_range(low, high)})"
        for name, value, (low, high) in zip(_AXES, values, ranges, strict=True)
        if value > above * high or value < low / below
    ]
    return ", ".join(said) or None


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
