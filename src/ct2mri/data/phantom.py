"""Digital phantoms: random heads and pelvises as paired CT (HU) and T1-weighted MR."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from ct2mri.data.io import save_volume
from ct2mri.data.phantom_anatomy import Array, Canvas, Point, SmoothNoise
from ct2mri.data.phantom_head import BOX as HEAD_BOX
from ct2mri.data.phantom_head import MEAN_SIZE as HEAD_SIZE
from ct2mri.data.phantom_head import draw_head
from ct2mri.data.phantom_pelvis import BOX as PELVIS_BOX
from ct2mri.data.phantom_pelvis import draw_pelvis
from ct2mri.data.phantom_tissues import Tissue, draw_sequence, draw_values
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.files import atomic_folder
from ct2mri.options.data import PhantomOptions

Anatomy = Literal["head", "pelvis"]


@dataclass(frozen=True, eq=False)
class Phantom:
    """One digital patient; all three volumes lie on one grid.

    Attributes:
        ct: HU, air −1000.
        mr: T1-weighted signal in the arbitrary units of a random scanner gain.
        labels: the tissue with the greatest share of each voxel, numbered as in `Tissue`.
    """

    ct: Volume
    mr: Volume
    labels: Volume


@dataclass(frozen=True)
class _Atlas:
    """How an anatomy's template is laid into a scan.

    Attributes:
        low, high: corners of the body's box in template mm.
        cut: lowest and highest template z at which the scan may end below, and above.
        size: mean mm of a patient per template mm; size_spread: its relative deviation, also per axis.
        tilt: greatest rotation about x, y, z in degrees.
        margin: least and greatest air around the body in mm.
        plane, slices: ranges of the random voxel edge in the axial plane and across it in mm.
    """

    low: Point
    high: Point
    cut_below: tuple[float, float]
    cut_above: tuple[float, float]
    size: float
    size_spread: float
    tilt: Point
    margin: tuple[float, float]
    plane: tuple[float, float]
    slices: tuple[float, float]


FIRST_UNSEEN_SEED = 1_000_000
"""Models are trained on phantoms of small seeds; those from here on, none has seen."""

_ATLASES: dict[str, _Atlas] = {
    "head": _Atlas(
        low=HEAD_BOX[0],
        high=HEAD_BOX[1],
        cut_below=(-132, -84),
        cut_above=(80, 108),
        size=HEAD_SIZE,
        size_spread=0.035,
        tilt=(9, 5, 6),
        margin=(4, 22),
        plane=(1.0, 1.3),
        slices=(1.0, 2.5),
    ),
    "pelvis": _Atlas(
        low=PELVIS_BOX[0],
        high=PELVIS_BOX[1],
        cut_below=(-150, -90),
        cut_above=(100, 165),
        size=0.97,
        size_spread=0.035,
        tilt=(4, 3, 4),
        margin=(0, 20),
        plane=(1.2, 2.0),
        slices=(2.0, 3.5),
    ),
}


def draw_phantom(
    anatomy: Anatomy,
    seed: int | tuple[int, ...],
    spacing: float | tuple[float, float, float] | None = None,
    *,
    mr_noise: bool = True,
) -> Phantom:
    """Draw one patient.

    The anatomy depends on the seed alone: another spacing shows the same patient on another grid.

    Args:
        anatomy: part of the body.
        seed: number, or numbers, of the patient; the same seed gives the same voxels, bit for bit.
        spacing: voxel edges in mm; random as in clinical scans where not given.
        mr_noise: whether the MR has the noise of its measurement. Without, it is the MR that this one would
            be in the mean over many measurements, all else the same: what of it can be known.

    Raises:
        RequestError: an unknown anatomy, a negative seed, or a spacing that is not within 0.3 to 20 mm.
    """
    if anatomy not in _ATLASES:
        raise RequestError(f"There is no {anatomy!r} phantom; the anatomy is one of {', '.join(_ATLASES)}.")
    numbers = seed if isinstance(seed, tuple) else (seed,)
    if min(numbers) < 0:
        raise RequestError(f"The seed of a phantom is a number from 0 upward, got {seed}.")
    atlas = _ATLASES[anatomy]
    key = list(_ATLASES).index(anatomy)
    pose_rng, shape_rng, value_rng, ct_rng, mr_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence([key, *numbers]).spawn(5)
    )
    edges = _spacing(pose_rng, atlas, spacing)
    shape, affine, to_template = _pose(pose_rng, atlas, edges)
    ct_noise = _ct_noise(value_rng, edges)
    values = draw_values(value_rng, draw_sequence(value_rng), ct_noise)
    warp = [SmoothNoise(shape_rng, 95) for _ in range(3)], float(shape_rng.uniform(0.7, 1.7))
    canvas = Canvas(shape, to_template, values, warp)
    _DRAW[anatomy](canvas, shape_rng)
    ct = _scan_ct(ct_rng, canvas, edges, ct_noise)
    mr = _scan_mr(mr_rng, canvas, edges, mr_noise)
    return Phantom(
        ct=Volume(ct, affine, {"modality": "CT"}),
        mr=Volume(mr, affine, {"modality": "MR"}),
        labels=Volume(canvas.labels.astype(np.float32), affine),
    )


_DRAW = {"head": draw_head, "pelvis": draw_pelvis}


def write_phantoms(options: PhantomOptions) -> None:
    """Write patient folders OUT/head-0000/{ct,mr}.nii.gz; those that are there already stay.

    With another seed than 0 they are called OUT/head-SEED-0000, so that no two patients share a name.

    Raises:
        RequestError: fewer than one case, or what `draw_phantom` refuses.
    """
    if options.cases < 1:
        raise RequestError(f"The number of phantoms is 1 or more, got {options.cases}.")
    names = ["ct", "mr", "labels"] if options.labels else ["ct", "mr"]
    series = options.anatomy if options.seed == 0 else f"{options.anatomy}-{options.seed}"
    written = 0
    for case in tqdm(range(options.cases), desc=f"{options.anatomy} phantoms", unit="patient"):
        folder = options.output_dir / f"{series}-{case:04d}"
        if all((folder / f"{name}.nii.gz").is_file() for name in names):
            continue
        phantom = draw_phantom(
            options.anatomy, (options.seed, case), options.spacing, mr_noise=options.mr_noise
        )
        description = f"digital phantom, {options.anatomy}, seed {options.seed}, case {case}"
        if not options.mr_noise:
            description += ", MR without noise"
        with atomic_folder(folder) as temporary:
            save_volume(phantom.ct, temporary / "ct.nii.gz", description)
            save_volume(phantom.mr, temporary / "mr.nii.gz", description)
            if options.labels:
                save_volume(phantom.labels, temporary / "labels.nii.gz", description, "uint8")
        written += 1
    there = options.cases - written
    print(f"{written} {options.anatomy} phantoms written to {options.output_dir}, {there} were there before.")


def _spacing(
    rng: np.random.Generator, atlas: _Atlas, spacing: float | tuple[float, float, float] | None
) -> tuple[float, float, float]:
    """Voxel edges in mm."""
    plane, slices = round(rng.uniform(*atlas.plane), 3), round(rng.uniform(*atlas.slices), 2)
    if spacing is None:
        return plane, plane, slices
    edges = (spacing,) * 3 if isinstance(spacing, int | float) else spacing
    if not all(0.3 <= edge <= 20 for edge in edges):
        raise RequestError(f"The spacing of a phantom is within 0.3 and 20 mm, got {spacing}.")
    return float(edges[0]), float(edges[1]), float(edges[2])


def _pose(
    rng: np.random.Generator, atlas: _Atlas, edges: tuple[float, float, float]
) -> tuple[tuple[int, int, int], NDArray[np.float64], NDArray[np.float64]]:
    """A random size, place and tilt: shape of the grid, voxel → scanner mm, voxel → template mm."""
    scale = atlas.size * (1 + np.clip(rng.normal(0, atlas.size_spread), -0.05, 0.07))
    scales = scale * (1 + np.clip(rng.normal(0, atlas.size_spread, 3), -0.07, 0.07))
    angles = np.radians([rng.uniform(-limit, limit) for limit in atlas.tilt])
    low, high = np.array(atlas.low), np.array(atlas.high)
    below, above = rng.uniform(*atlas.cut_below), rng.uniform(*atlas.cut_above)
    margins = rng.uniform(*atlas.margin, size=(2, 2))
    offset = rng.uniform(-40, 40, size=3)

    first = np.array([*(low[:2] * scales[:2] - margins[0]), below * scales[2]])
    last = np.array([*(high[:2] * scales[:2] + margins[1]), above * scales[2]])
    counts = np.maximum(np.ceil((last - first) / np.array(edges)).astype(int), 1)
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = first + offset
    # Scanner mm → patient mm (without the scanner's offset) → tilted back → template mm.
    voxel_to_patient = np.diag([*edges, 1.0])
    voxel_to_patient[:3, 3] = first
    to_template = np.eye(4)
    to_template[:3, :3] = np.diag(1 / scales) @ _rotation(*angles)
    return (int(counts[0]), int(counts[1]), int(counts[2])), affine, to_template @ voxel_to_patient


def _rotation(about_x: float, about_y: float, about_z: float) -> NDArray[np.float64]:
    """Rotation matrix from three angles in radians."""
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(angle), np.sin(angle)) for angle in (about_x, about_y, about_z))
    rotate_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    rotate_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rotate_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation: NDArray[np.float64] = rotate_z @ rotate_y @ rotate_x
    return rotation


def _ct_noise(rng: np.random.Generator, edges: tuple[float, float, float]) -> float:
    """Deviation of the CT's noise in HU: 8–15 at 1 mm, 3–6 in thick slices with a soft kernel."""
    thick = float(np.clip((max(edges) - 1) / 1.5, 0, 1))
    return float(rng.uniform(8 - 5 * thick, 15 - 9 * thick))


def _scan_ct(
    rng: np.random.Generator, canvas: Canvas, edges: tuple[float, float, float], noise: float
) -> Array:
    """HU → blur by the point-spread function → cupping → correlated noise, in whole HU."""
    width = rng.uniform(0.35, 0.6)  # mm, deviation of the point-spread function
    hu = ndimage.gaussian_filter(canvas.hu, [width / edge for edge in edges], mode="nearest")
    hu += _cupping(rng, canvas, edges)
    grain = rng.standard_normal(hu.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(grain, [rng.uniform(0.5, 0.9)] * 2 + [0.3])
    hu += grain * np.float32(noise / grain.std())
    stored: Array = np.rint(np.clip(hu, -1024, 3071))  # scanners store whole numbers
    return stored


def _cupping(rng: np.random.Generator, canvas: Canvas, edges: tuple[float, float, float]) -> Array:
    """Beam hardening that its correction left: tissue near bone is a few HU brighter than far from it."""
    bone = np.isin(canvas.labels, [Tissue.CORTICAL_BONE, Tissue.TOOTH]).astype(np.float32)
    near: Array = ndimage.gaussian_filter(bone, [14 / edge for edge in edges], truncate=2.5)
    near[canvas.labels == Tissue.AIR] = 0
    near *= np.float32(rng.uniform(6, 18))
    return near


def _scan_mr(
    rng: np.random.Generator, canvas: Canvas, edges: tuple[float, float, float], noise: bool
) -> Array:
    """Signal → slice profile → bias field → Rician noise → scanner gain, in whole numbers."""
    width = rng.uniform(0.3, 0.5)
    signal = ndimage.gaussian_filter(canvas.signal, [width / edge for edge in edges], mode="nearest")
    signal *= _bias_field(rng, signal.shape)
    # White matter has signal 1; the noise of either channel is a share of it.
    deviation = np.float32(1 / rng.uniform(25, 60))
    if not noise:
        deviation = np.float32(0)  # still drawn, so that the gain is the same
    signal += deviation * rng.standard_normal(signal.shape, dtype=np.float32)
    other = deviation * rng.standard_normal(signal.shape, dtype=np.float32)
    gain = np.float32(np.exp(rng.uniform(np.log(300), np.log(4000))))
    stored: Array = np.rint(np.sqrt(signal * signal + other * other) * gain)
    return stored


def _bias_field(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Smooth receive sensitivity around 1, reaching ±10 to ±20 %."""
    i, j, k = (
        np.linspace(-1, 1, n, dtype=np.float32).reshape([-1 if a == b else 1 for b in range(3)])
        for a, n in enumerate(shape)
    )
    weights = rng.normal(0, 1, 9).astype(np.float32)
    terms = (i, j, k, i * j, j * k, i * k, i * i - 0.33, j * j - 0.33, k * k - 0.33)
    field = np.zeros(shape, dtype=np.float32)
    for weight, term in zip(weights, terms, strict=True):
        field += weight * term
    return 1 + field * np.float32(rng.uniform(0.10, 0.20) / np.abs(field).max())
