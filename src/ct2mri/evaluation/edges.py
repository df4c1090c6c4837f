"""How far a prediction's edges lie from the CT's, in mm.

At points on the CT's edges the image is read along the edge's normal; its own edge is the steepest place
nearby. The truth's edges do not lie exactly on the CT's either (registration, chemical shift, two edges close
together), so that its displacement, and the prediction's against it at the same points, are measured too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct2mri.evaluation.masked import Array, Mask

SMOOTHING_MM = 1.0
SMALLEST_SMOOTHING = 0.8
REACH_MM = 4.0
STEP_MM = 0.25
CT_EDGE_SHARE = 0.2
IMAGE_EDGE = 0.02
PEAK_SHARE = 0.5
MOST_POINTS = 10_000
FEWEST_POINTS = 50

SETTINGS = {
    "points": f"CT voxels where the gradient is steepest along its direction and over {CT_EDGE_SHARE:g} of "
    f"its 99th percentile, over {REACH_MM:g} mm inside the mask; at most about {MOST_POINTS}",
    "smoothing": f"Gaussian of {SMOOTHING_MM:g} mm, at least {SMALLEST_SMOOTHING:g} voxels, "
    "of the mask's voxels alone",
    "edge": f"the place nearest to the CT's edge, up to {REACH_MM:g} mm along its normal, where the image is "
    f"steeper than beside it, over {PEAK_SHARE:g} of the steepest there and over {IMAGE_EDGE:g} data ranges "
    "a mm",
    "median_mm": "median distance of the prediction's edges from the CT's",
    "p95_mm": "95th percentile of it",
    "truth_median_mm": "the same median for the truth: what registration and anatomy leave",
    "against_truth_mm": "median distance between the prediction's and the truth's edges at the same points",
    "found": "share of the truth's edges at which the prediction has an edge as well",
}
NAMES = ("median_mm", "p95_mm", "truth_median_mm", "against_truth_mm", "found")


@dataclass(frozen=True, eq=False)
class EdgePoints:
    """Points on the edges of a CT.

    Attributes:
        places: (points, 3), voxel coordinates.
        normals: (points, 3), direction of the steepest ascent in voxels a mm.
        offsets: (points,), mm along the normal from `places` to the CT's edge itself.
        sigma: smoothing along each axis in voxels.
    """

    places: Array
    normals: Array
    offsets: Array
    sigma: list[float]


def find_edges(ct: NDArray[Any], inside: Mask, spacing: tuple[float, float, float]) -> EdgePoints:
    """Points on the edges of a CT, deep enough inside the mask that nothing outside has an influence.

    Args:
        ct: (i, j, k), in any units.
        inside: the mask.
        spacing: voxel edges in mm.
    """
    sigma = [
        max(SMOOTHING_MM / edge, SMALLEST_SMOOTHING) if n > 1 else 0.0
        for edge, n in zip(spacing, ct.shape, strict=True)
    ]
    deep = inside
    if not inside.all():
        deep = ndimage.distance_transform_edt(inside, sampling=spacing) > REACH_MM
    smooth = _smoothed(ct, inside, sigma)
    gradient = np.stack(
        [
            np.gradient(smooth, edge, axis=axis) if smooth.shape[axis] > 1 else np.zeros_like(smooth)
            for axis, edge in enumerate(spacing)
        ]
    )
    magnitude = np.sqrt((gradient**2).sum(axis=0))
    empty = EdgePoints(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), sigma)
    if not deep.any() or not (highest := float(np.percentile(magnitude[deep], 99))) > 0:
        return empty
    found = deep & (magnitude >= CT_EDGE_SHARE * highest)
    places = np.argwhere(found).astype(np.float64)
    steepness = magnitude[found]
    normals = (gradient[:, found] / steepness).T / np.array(spacing)
    step = min(edge for edge, n in zip(spacing, ct.shape, strict=True) if n > 1)
    before, after = (
        ndimage.map_coordinates(magnitude, (places + sign * step * normals).T, order=1, mode="nearest")
        for sign in (-1, 1)
    )
    ridge = (steepness >= before) & (steepness > after)
    every = max(1, -(-int(ridge.sum()) // MOST_POINTS))
    places, normals = places[ridge][::every], normals[ridge][::every]
    before, here, after = before[ridge][::every], steepness[ridge][::every], after[ridge][::every]
    return EdgePoints(places, normals, _vertex(before, here, after) * step, sigma)


def edge_displacements(image: NDArray[Any], inside: Mask, points: EdgePoints, data_range: float) -> Array:
    """Signed distance in mm of an image's edge from the CT's at each point, (points,); NaN where it has none.

    Positive: towards the CT's denser side.

    Args:
        image: (i, j, k).
        inside: the mask.
        points: of `find_edges`.
        data_range: the width of the range of the image's values.
    """
    if not len(points.places):
        return np.empty(0)
    smooth = _smoothed(image, inside, points.sigma)
    along = np.arange(-REACH_MM - STEP_MM, REACH_MM + 1.5 * STEP_MM, STEP_MM)
    at = points.places[:, None] + (points.offsets[:, None] + along)[..., None] * points.normals[:, None]
    profile = ndimage.map_coordinates(smooth, at.reshape(-1, 3).T, order=3, mode="nearest")
    steep = np.abs(np.gradient(profile.reshape(len(at), len(along)), STEP_MM, axis=1))
    # Linear interpolation makes stairs of the slope; a mean over three steps takes them away.
    steep = ndimage.uniform_filter1d(steep, 3, axis=1)
    inner = steep[:, 1:-1]
    threshold = np.maximum(PEAK_SHARE * inner.max(axis=1), IMAGE_EDGE * data_range)
    peak = (inner >= steep[:, :-2]) & (inner > steep[:, 2:]) & (inner >= threshold[:, None])
    distance = np.where(peak, np.abs(along[1:-1]), np.inf)
    best = distance.argmin(axis=1)
    rows = np.arange(len(best))
    shift = _vertex(steep[rows, best], steep[rows, best + 1], steep[rows, best + 2]) * STEP_MM
    displacements: Array = np.where(np.isfinite(distance[rows, best]), along[1:-1][best] + shift, np.nan)
    return displacements


def compare_edges(prediction: Array, target: Array) -> tuple[dict[str, float | None], dict[str, str]]:
    """What `SETTINGS` explains, from the displacements of both images, and why a number is None."""
    values: dict[str, float | None] = dict.fromkeys(NAMES)
    if len(target) < FEWEST_POINTS:
        found = f"the CT has {len(target)} edge points deep inside the mask"
        reason = f"not defined: {found}, fewer than {FEWEST_POINTS}"
        return values, dict.fromkeys(NAMES, reason)
    notes = {}
    of_both = np.isfinite(prediction) & np.isfinite(target)
    for names, chosen, reason in [
        (
            ("median_mm", "p95_mm"),
            np.abs(prediction[np.isfinite(prediction)]),
            "the prediction has no edges there",
        ),
        (("truth_median_mm",), np.abs(target[np.isfinite(target)]), "the truth has no edges there"),
        (("against_truth_mm",), np.abs(prediction - target)[of_both], "there is no point with both edges"),
    ]:
        for name in names:
            if chosen.size:
                values[name] = float(np.percentile(chosen, 95 if name == "p95_mm" else 50))
            else:
                notes[name] = f"not defined: {reason}"
    if np.isfinite(target).any():
        values["found"] = float(of_both.sum() / np.isfinite(target).sum())
    else:
        notes["found"] = "not defined: the truth has no edges there"
    return values, notes


def _smoothed(image: NDArray[Any], inside: Mask, sigma: list[float]) -> Array:
    """Weighted means of the mask's voxels alone: the mask's own border makes no edge."""

    def blur(values: Array) -> Array:
        blurred: Array = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3)
        return blurred

    weight = blur(inside.astype(np.float64))
    sums = blur(np.where(inside, image, 0).astype(np.float64))
    # Rounding leaves weights of 1e-17 where no voxel of the mask is in reach.
    return np.divide(sums, weight, out=np.zeros_like(sums), where=weight > 1e-9)


def _vertex(before: Array, here: Array, after: Array) -> Array:
    """Where the parabola through three equally spaced values is highest, in steps from the middle one."""
    bend = before - 2 * here + after
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex: Array = np.where(bend < 0, 0.5 * (before - after) / bend, 0)
    return vertex.clip(-0.5, 0.5)
