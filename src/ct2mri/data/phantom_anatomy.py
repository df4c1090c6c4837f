"""The canvas that phantoms are painted on, and the shapes and noise that they are made of.

Anatomy is described in template millimetres (right, anterior, superior; for heads the origin is the
anterior commissure). A canvas knows at which template point each voxel lies, and tissues are painted on it
one over the other by the fraction of the voxel that a shape covers, so borders mix HU and signals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct2mri.data.phantom_tissues import Tissue, TissueValues

Array = NDArray[np.floating[Any]]
Point = tuple[float, float, float]


class SmoothNoise:
    """Random smooth function of template points: mean 0, deviation 1, the same at every voxel spacing.

    Args:
        rng: source of randomness.
        wavelength: typical length of one wave in mm.
        band_pass: leave out much longer waves, so that the function changes sign everywhere.
    """

    SIZE = 48  # lattice points along each axis; the function repeats after SIZE * step

    def __init__(self, rng: np.random.Generator, wavelength: float, *, band_pass: bool = False) -> None:
        self.step = wavelength / 7
        lattice = rng.standard_normal((self.SIZE,) * 3)
        smooth = ndimage.gaussian_filter(lattice, 7 / 5, mode="wrap")
        if band_pass:
            smooth /= smooth.std()
            wide = ndimage.gaussian_filter(lattice, 7 / 3.4, mode="wrap")
            smooth = smooth - wide / wide.std() * 0.8
        smooth -= smooth.mean()
        self.lattice: Array = (smooth / smooth.std()).astype(np.float32)

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """The function at points given by coordinates in mm, any one shape."""
        return _sample(self.lattice, self.step, x, y, z)

    def distance_to_zero(self, limit: float) -> "SignedDistance":
        """The signed distance in mm to the surfaces on which the function is zero, within ±`limit`."""
        gradient = np.zeros_like(self.lattice)
        for axis in range(3):
            rise = (np.roll(self.lattice, -1, axis) - np.roll(self.lattice, 1, axis)) / (2 * self.step)
            gradient += rise * rise
        # Where the function is flat the first-order distance has no bound; part of the mean slope gives one.
        slope = np.sqrt(gradient + 0.05 * gradient.mean())
        return SignedDistance(np.clip(self.lattice / slope, -limit, limit), self.step)


@dataclass(frozen=True)
class SignedDistance:
    """A signed distance in mm, kept on a repeating lattice."""

    lattice: Array
    step: float

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """The distance at points given by coordinates in mm, any one shape."""
        return _sample(self.lattice, self.step, x, y, z)


def _sample(lattice: Array, step: float, x: Array, y: Array, z: Array) -> Array:
    scale = np.float32(1 / step)
    points = np.stack([x * scale, y * scale, z * scale])
    values: Array = ndimage.map_coordinates(lattice, points, order=1, mode="grid-wrap", output=np.float32)
    return values


@dataclass(frozen=True)
class Region:
    """A box of a canvas's voxels, and the template point at each of them."""

    box: tuple[slice, slice, slice]
    x: Array
    y: Array
    z: Array

    def noise(self, noise: SmoothNoise | SignedDistance) -> Array:
        """The noise at the region's points."""
        return noise(self.x, self.y, self.z)


class Canvas:
    """Voxels that tissues are painted on.

    Args:
        shape: voxels along i, j, k.
        to_template: 4×4, voxel index → template point in mm.
        values: HU and signal of each tissue.
        warp: three noises that displace the template, and by how many mm.

    Attributes:
        hu, signal: what the scanners would measure without noise; labels: the tissue with the greatest share.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        to_template: NDArray[np.float64],
        values: TissueValues,
        warp: tuple[Sequence[SmoothNoise], float],
    ) -> None:
        self.values = values
        self.hu: Array = np.full(shape, values.hu[Tissue.AIR], dtype=np.float32)
        self.signal: Array = np.zeros(shape, dtype=np.float32)
        self.labels: NDArray[np.uint8] = np.zeros(shape, dtype=np.uint8)
        self.voxel = float(abs(np.linalg.det(to_template[:3, :3])) ** (1 / 3))
        self._to_index = np.linalg.inv(to_template)
        i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
        points = [
            (row[0] * i + row[1] * j + row[2] * k + row[3]).astype(np.float32) for row in to_template[:3]
        ]
        noises, amplitude = warp
        shifts = [noise(*points) * np.float32(amplitude) for noise in noises]
        self._margin = 3.5 * amplitude + self.voxel
        self._points = [point + shift for point, shift in zip(points, shifts, strict=True)]

    def region(self, low: Point, high: Point) -> Region:
        """The voxels that may lie between two corners of a template box (perhaps none)."""
        lows = np.minimum(np.array(low), np.array(high)) - self._margin
        highs = np.maximum(np.array(low), np.array(high)) + self._margin
        corners = np.array(np.meshgrid(*zip(lows, highs, strict=True), indexing="ij")).reshape(3, 8)
        indices = self._to_index[:3, :3] @ corners + self._to_index[:3, 3:]
        first = np.floor(indices.min(axis=1)).astype(int)
        last = np.ceil(indices.max(axis=1)).astype(int) + 1
        bounds = [
            slice(min(max(a, 0), n), min(max(b, 0), n))
            for a, b, n in zip(first, last, self.hu.shape, strict=True)
        ]
        box = (bounds[0], bounds[1], bounds[2])
        x, y, z = (points[box] for points in self._points)
        return Region(box, x, y, z)

    def around(self, centre: Point, radius: float) -> Region:
        """The voxels that may lie within `radius` mm of a point along each axis."""
        x, y, z = centre
        return self.region((x - radius, y - radius, z - radius), (x + radius, y + radius, z + radius))

    @property
    def whole(self) -> Region:
        """All voxels."""
        return Region((slice(None), slice(None), slice(None)), *self._points)

    def paint(self, region: Region, tissue: Tissue, distance: Array, *, share: Array | float = 1.0) -> None:
        """Paint a tissue over what is there where the signed `distance` in mm is below zero.

        A voxel that the border cuts takes the tissue's HU and signal by the fraction that it covers; `share`
        is a further fraction, for tissues that mix.
        """
        fraction = distance * np.float32(-1 / self.voxel)
        fraction += np.float32(0.5)
        np.clip(fraction, 0, 1, out=fraction)
        fraction *= np.float32(share) if isinstance(share, float) else share
        hu, signal, labels = self.hu[region.box], self.signal[region.box], self.labels[region.box]
        hu += fraction * (np.float32(self.values.hu[tissue]) - hu)
        signal += fraction * (np.float32(self.values.signal[tissue]) - signal)
        labels[fraction >= 0.5] = tissue

    def paint_bone(self, region: Region, distance: Array, cortex: Array | float, marrow: Tissue) -> None:
        """Paint a bone: a compact shell of `cortex` mm, filled with marrow."""
        self.paint(region, Tissue.CORTICAL_BONE, distance)
        self.paint(region, marrow, distance + np.float32(cortex))


def ellipsoid(region: Region, centre: Point, radii: Point, tilt: float = 0.0) -> Array:
    """Signed distance to an ellipsoid (first order), tilted about the x axis by `tilt` degrees."""
    x, y, z = (
        region.x - np.float32(centre[0]),
        region.y - np.float32(centre[1]),
        region.z - np.float32(centre[2]),
    )
    if tilt:
        cos, sin = np.float32(np.cos(np.radians(tilt))), np.float32(np.sin(np.radians(tilt)))
        y, z = cos * y + sin * z, cos * z - sin * y
    x, y, z = x / np.float32(radii[0]), y / np.float32(radii[1]), z / np.float32(radii[2])
    inside = np.sqrt(x * x + y * y + z * z)
    x, y, z = x / np.float32(radii[0]), y / np.float32(radii[1]), z / np.float32(radii[2])
    slope = np.sqrt(x * x + y * y + z * z)
    distance: Array = inside * (inside - 1) / (slope + np.float32(1e-6))
    return distance


def tube(
    region: Region, points: Sequence[Point], radii: Sequence[float], stretch: Point = (1, 1, 1)
) -> Array:
    """Signed distance to a tube along a polyline, with a radius at each point.

    `stretch` makes the cross-section oval: a tube of radius 5 and stretch (2, 1, 1) is 20 mm wide in x.
    """
    scale = np.array(stretch, dtype=np.float32)
    best: Array | None = None
    x, y, z = region.x / scale[0], region.y / scale[1], region.z / scale[2]
    nodes = np.array(points, dtype=np.float32) / scale
    for start, end, first, last in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True):
        along = end - start
        px, py, pz = x - start[0], y - start[1], z - start[2]
        part = (px * along[0] + py * along[1] + pz * along[2]) / np.float32(along @ along)
        np.clip(part, 0, 1, out=part)
        px -= part * along[0]
        py -= part * along[1]
        pz -= part * along[2]
        distance = np.sqrt(px * px + py * py + pz * pz) - (
            np.float32(first) + part * np.float32(last - first)
        )
        best = distance if best is None else np.minimum(best, distance)
    assert best is not None
    return best


def tube_region(canvas: Canvas, points: Sequence[Point], radius: float) -> Region:
    """The voxels that a tube along `points` may touch."""
    nodes = np.array(points)
    low, high = nodes.min(axis=0) - radius, nodes.max(axis=0) + radius
    return canvas.region((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def smooth_minimum(a: Array, b: Array, blend: float) -> Array:
    """Signed distance to the union of two shapes whose seam is rounded over `blend` mm."""
    seam = np.clip(np.float32(blend) - np.abs(a - b), 0, None)
    distance: Array = np.minimum(a, b) - seam * seam * np.float32(0.25 / blend)
    return distance


def smooth_maximum(a: Array, b: Array, blend: float) -> Array:
    """Signed distance to the intersection of two shapes whose edge is rounded over `blend` mm."""
    return -smooth_minimum(-a, -b, blend)


def hump(x: Array, y: Array, z: Array, centre: Point, radii: Point) -> Array:
    """A smooth bump: 1 at `centre`, falling off over `radii` mm."""
    bump: Array = np.exp(
        -(((x - centre[0]) / radii[0]) ** 2)
        - ((y - centre[1]) / radii[1]) ** 2
        - ((z - centre[2]) / radii[2]) ** 2
    ).astype(np.float32)
    return bump
