"""Measuring one pair of volumes: what each is like, and how the two lie on one another.

Nothing here says whether that is good; `check_rules` does.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.alignment import agreement
from ct2mri.data.check_fit import CoarsePair, Fit, can_be_turned, coarser, compared, fit, shrunk
from ct2mri.data.geometry import resample, to_canonical
from ct2mri.data.plausibility import require_ct
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError

# HU. Air in a CT lies near -1000; padding around a round field of view far below, foam and fat above.
_AIR_HU = (-1500.0, -500.0)
BONE_HU = 300.0

_FEW_AIR_VOXELS = 200
FEW_VALUES = 64

# Shift in mm beyond which a pair does not lie where it should, so that it is worth trying whether the target
# fits turned over in other ways than left-right; and how much better it must fit then.
FAR_MM = 5.0
_MUCH_BETTER = 1.2

_TURNS: dict[str, tuple[int, ...]] = {
    "front-back": (1,),
    "head-foot": (2,),
    "left-right and front-back": (0, 1),
    "left-right and head-foot": (0, 2),
    "front-back and head-foot": (1, 2),
    "along all three axes": (0, 1, 2),
}
_LIKELY_TURNS = 3
_EDGE_MM = 1.5  # what volumes are thinned out to before their outlines are compared


@dataclass(frozen=True)
class VolumeFacts:
    """What one volume of a pair is like.

    Attributes:
        name: its file's name, or its role.
        modality: the word it was asked for by.
        in_hu: whether its values are meant to be HU.
        shape: voxels along i, j, k.
        spacing: voxel edges in mm.
        orientation: nearest anatomical directions of i, j, k.
        oblique_deg: greatest angle between a voxel axis and the nearest axis of the patient.
        lowest, highest: extreme values; None where no voxel is a number.
        broken: voxels that are NaN or infinite.
        distinct: different values, counted up to 64.
        at_highest: share of the body's voxels that have the very highest value.
        blank_slices: planes of one value between planes that show something.
        not_hu: why the values cannot be HU; None where they may be, or are not meant to be.
        air_hu: median value of the air around or in the body; None where there is none, or not in HU.
        soft_hu: median value of the body; None where not in HU.
        bone_share: share of the body above 300 HU; None where not in HU.
        digest: of the voxels, the same however the file orders and packs them.
        told: what the header said (`kvp`, `contrast_agent`, `mr_contrast`, …).
        warnings: sentences of the file's reader.
    """

    name: str
    modality: str
    in_hu: bool
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    oblique_deg: float
    lowest: float | None
    highest: float | None
    broken: int
    distinct: int
    at_highest: float
    blank_slices: int
    not_hu: str | None
    air_hu: float | None
    soft_hu: float | None
    bone_share: float | None
    digest: str
    told: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def shows_nothing(self) -> bool:
        """Whether all voxels are one value, or none is a number."""
        return self.lowest is None or self.lowest == self.highest


@dataclass(frozen=True)
class PairFacts:
    """How the two volumes of a pair lie on one another.

    Attributes:
        body_litres: volume of the body; None for pictures.
        seen_share: share of the body inside the target's field of view.
        edge_distance_mm: mean distance between the outlines of the body; None where it cannot be measured.
        mutual_information: nats, as the pair lies.
        shift_mm: how far from where it fits best the target lies; None where nothing can be compared.
        direction_mm: that shift to the right, to the front, upwards.
        shift_gain: mutual information at the best place over that where the target lies.
        information: mutual information at the best place, in nats.
        mirrored_fit: the same for the target mirrored left-right, over `information`: above 1 the mirror
            image fits better; None where it cannot be told.
        turned: another way in which the target fits much better turned over: how → how much better.
    """

    body_litres: float | None
    seen_share: float
    edge_distance_mm: float | None
    mutual_information: float
    shift_mm: float | None
    direction_mm: tuple[float, float, float] | None
    shift_gain: float | None
    information: float | None
    mirrored_fit: float | None
    turned: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One pair, measured; `pair` is None where one of the two shows nothing, or there is no body."""

    source: VolumeFacts
    target: VolumeFacts
    pair: PairFacts | None

    @property
    def in_units(self) -> VolumeFacts | None:
        """The volume in HU; the source, where both are."""
        return next((facts for facts in (self.source, self.target) if facts.in_hu), None)


@dataclass(frozen=True, eq=False)
class Pair:
    """One pair as it was read.

    Attributes:
        source: source volume.
        target: target volume, on any grid.
        mask: the body (above 0.5), where it is known.
        valid: where the target was measured (above 0.5), where that is known better than by its grid.
        names: what to call source and target.
        modalities: the words they were asked for by.
        in_hu: whether each is meant to be in HU.
        windowed: whether the source was cut to a window, so that its extreme values say nothing.
    """

    source: Volume
    target: Volume
    mask: Volume | None
    valid: Volume | None
    names: tuple[str, str]
    modalities: tuple[str, str]
    in_hu: tuple[bool, bool]
    windowed: bool = False


def measure(pair: Pair) -> tuple[Measured, CoarsePair | None]:
    """Measure a pair.

    Returns:
        What was measured, and the two volumes on one coarse grid with the body found in them (None where one
        shows nothing).
    """
    source, target = as_meant(pair.source, pair.in_hu[0]), as_meant(pair.target, pair.in_hu[1])
    constant = any(np.ptp(volume.array) == 0 for volume in (source, target))
    thin = shrunk(source, _EDGE_MM), shrunk(target, _EDGE_MM)
    coarse = None if constant else compared(*thin, pair.mask, pair.valid)
    facts = [
        _volume_facts(original, repaired, shrunk(few, 2 * _EDGE_MM), coarse, name, modality, in_hu, windowed)
        for original, repaired, few, name, modality, in_hu, windowed in zip(
            (pair.source, pair.target),
            (source, target),
            thin,
            pair.names,
            pair.modalities,
            pair.in_hu,
            (pair.windowed, False),
            strict=True,
        )
    ]
    if coarse is None or not coarse.body.any():
        return Measured(facts[0], facts[1], None), coarse
    is_picture = 1 in source.spatial_shape
    return Measured(facts[0], facts[1], _pair_facts(*thin, coarse, is_picture)), coarse


def as_meant(volume: Volume, in_hu: bool) -> Volume:
    """The volume without voxels that are not numbers, and with its HU brought back from an offset of 1024.

    One fault should not hide the others.
    """
    array = volume.array
    finite = np.isfinite(array)
    if not finite.all():
        floor = float(array[finite].min()) if finite.any() else 0.0
        array = np.where(finite, array, np.float32(floor))
    if in_hu and offset_by_1024(array):
        array = array - np.float32(1024)
    metadata = {**volume.metadata, "modality": "CT" if in_hu else volume.metadata.get("modality", "MR")}
    return Volume(array, volume.affine, metadata)


def offset_by_1024(array: NDArray[np.float32]) -> bool:
    """Whether air lies near 0 and soft tissue near 1024, as in a CT without its rescale intercept."""
    return "offset by +1024" in (_why_not_hu(Volume(array, np.eye(4))) or "")


def _why_not_hu(volume: Volume) -> str | None:
    try:
        require_ct(Volume(volume.array, volume.affine))
    except RequestError as error:
        return str(error)
    return None


def _volume_facts(
    original: Volume,
    repaired: Volume,
    thin: Volume,
    coarse: CoarsePair | None,
    name: str,
    modality: str,
    in_hu: bool,
    windowed: bool,
) -> VolumeFacts:
    array = original.array
    finite = np.isfinite(array)
    values = array[finite]
    lowest, highest = (float(values.min()), float(values.max())) if values.size else (None, None)
    body = _body_on(thin, coarse)
    inside = thin.array[body]
    in_body = array[_body_on(original, coarse)] if coarse is not None else values
    checked = in_hu and not windowed and values.size > 0
    not_hu = _why_not_hu(original.with_array(np.where(finite, array, values.min()))) if checked else None
    air = thin.array[(thin.array > _AIR_HU[0]) & (thin.array < _AIR_HU[1])]
    return VolumeFacts(
        name=name,
        modality=modality,
        in_hu=in_hu,
        shape=original.spatial_shape,
        spacing=original.spacing,
        orientation=original.orientation,
        oblique_deg=_oblique_deg(original),
        lowest=lowest,
        highest=highest,
        broken=int(array.size - values.size),
        distinct=min(FEW_VALUES, len(np.unique(values[:: max(1, values.size // 200_000)]))),
        at_highest=0.0 if windowed or not in_body.size else float(np.mean(in_body == highest)),
        blank_slices=_blank_slices(repaired.array),
        not_hu=not_hu,
        air_hu=float(np.median(air)) if in_hu and not windowed and air.size > _FEW_AIR_VOXELS else None,
        soft_hu=float(np.median(inside)) if in_hu and inside.size else None,
        bone_share=float(np.mean(inside > BONE_HU)) if in_hu and inside.size else None,
        digest=_digest(repaired),
        told={
            key: value
            for key, value in original.metadata.items()
            if key
            in ("kvp", "kernel", "contrast_agent", "cbct", "mr_contrast", "manufacturer", "slice_thickness")
            and value is not None
        },
        warnings=list(original.metadata.get("warnings", [])),
    )


def _body_on(volume: Volume, coarse: CoarsePair | None) -> NDArray[np.bool_]:
    """The body on a volume's own grid."""
    if coarse is None:
        return np.zeros(volume.spatial_shape, dtype=bool)
    body = Volume(coarse.body.astype(np.float32), coarse.grid.affine)
    return resample(body, volume.grid, interpolation="nearest", fill=0).array > 0.5


def _oblique_deg(volume: Volume) -> float:
    directions = volume.affine[:3, :3] / np.array(volume.spacing)
    return float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), 0, 1))).max())


def _blank_slices(array: NDArray[np.float32]) -> int:
    """Planes of one value between planes that show something, along the axis with the most of them."""
    if 1 in array.shape:
        return 0
    counts = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        shows = np.flatnonzero(np.ptp(array, axis=others) > 0)
        counts.append(int(shows[-1] - shows[0] + 1 - shows.size) if shows.size else 0)
    return max(counts)


def _digest(volume: Volume) -> str:
    """A digest of the voxels in RAS order."""
    array = to_canonical(volume)[0].array + np.float32(0)  # −0 becomes 0
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _pair_facts(source: Volume, target: Volume, coarse: CoarsePair, is_picture: bool) -> PairFacts:
    as_it_is = fit(coarse, move=False)
    best = _better(fit(coarse), as_it_is)
    mirror = fit(coarse, (0,)) if best and can_be_turned(coarse, 0) else None
    turned: dict[str, float] = {}
    if best and (best.shift_mm > FAR_MM or (mirror and mirror.information > best.information)):
        # Before anything is said, the target gets the start that its mirror images have.
        best = _better(best, fit(coarse, from_middle=True)) or best
        turned = _turned(coarse, max(best.information, mirror.information if mirror else 0.0))
    gain = best.information / as_it_is.information if best and as_it_is else None
    lying = agreement(source, target)
    voxel = float(np.prod(coarse.grid.spacing))
    return PairFacts(
        body_litres=None if is_picture else float(np.count_nonzero(coarse.body) * voxel / 1e6),
        seen_share=float(np.mean(coarse.seen[coarse.body])),
        edge_distance_mm=lying.edge_distance_mm,
        mutual_information=lying.mutual_information,
        shift_mm=best.shift_mm if best else None,
        direction_mm=best.direction_mm if best else None,
        shift_gain=gain,
        information=best.information if best else None,
        mirrored_fit=mirror.information / best.information if mirror and best else None,
        turned=turned,
    )


def _better(*fits: Fit | None) -> Fit | None:
    """The best fit; the search for one may end at a worse place than it began at."""
    return max((each for each in fits if each), key=lambda each: each.information, default=None)


def _turned(pair: CoarsePair, level: float) -> dict[str, float]:
    """The way to turn the target over that fits best, if much better than as it is or mirrored left-right.

    The likeliest ways are found on a coarser grid, where the search ends at a wrong place now and then, and
    compared on the pair's own.

    Args:
        pair: the pair.
        level: mutual information of the target as it is, or mirrored left-right, where it fits best.
    """
    ways = {how: flips for how, flips in _TURNS.items() if all(can_be_turned(pair, axis) for axis in flips)}
    rough = coarser(pair)
    first = {how: fitted.information for how, flips in ways.items() if (fitted := fit(rough, flips))}
    likely = sorted(first, key=lambda how: -first[how])[:_LIKELY_TURNS]
    rivals = {how: fitted.information for how in likely if (fitted := fit(pair, ways[how]))}
    if not rivals:
        return {}
    how = max(rivals, key=lambda name: rivals[name])
    return {how: rivals[how] / level} if rivals[how] > _MUCH_BETTER * level else {}
