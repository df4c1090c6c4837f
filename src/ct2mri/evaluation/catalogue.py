"""The names of all measures: how to head a column, in which unit, and which way is better.

A name is a path: `ssim` of the volume, `axial.ssim` of the slices, `continuity.axial.ratio`,
`edges.median_mm`, `regions.bone.mae`, `labels.3.dice`, `synthrad2025.ms_ssim`, `uncertainty.inside_95`.
"""

from dataclasses import asdict, dataclass
from typing import Literal

Better = Literal["lower", "higher", "near 0", "near 0.5", "near 0.8", "near 0.95", "near 1", "neither"]

_MEASURES: dict[str, tuple[str, str, Better]] = {
    "mae": ("MAE", "image", "lower"),
    "rmse": ("RMSE", "image", "lower"),
    "nmse": ("NMSE", "", "lower"),
    "psnr": ("PSNR", "dB", "higher"),
    "ssim": ("SSIM", "", "higher"),
    "ms_ssim": ("MS-SSIM", "", "higher"),
    "ncc": ("NCC", "", "higher"),
    "mutual_information": ("MI", "nats", "higher"),
    "gmsd": ("GMSD", "", "lower"),
    "ms_gmsd": ("MS-GMSD", "", "lower"),
    "bias": ("bias", "image", "near 0"),
    "ratio": ("change ratio", "", "near 1"),
    "log_ratio": ("log change ratio", "", "near 0"),
    "error": ("error of the change", "", "lower"),
    "uneven": ("unevenness", "", "lower"),
    "brightness": ("brightness jumps", "", "lower"),
    "median_mm": ("from the CT's edges, median", "mm", "lower"),
    "p95_mm": ("95th percentile", "mm", "lower"),
    "truth_median_mm": ("the truth's, median", "mm", "neither"),
    "against_truth_mm": ("from the truth's, median", "mm", "lower"),
    "found": ("share found", "", "higher"),
    "dice": ("Dice", "", "higher"),
    "volume_ml": ("volume", "ml", "neither"),
    "true_volume_ml": ("true volume", "ml", "neither"),
    "rank_correlation": ("rank correlation of spread and error", "", "higher"),
    "spread_ratio": ("expected over actual error", "", "near 1"),
    "inside_50": ("truth inside the 50 % interval", "", "near 0.5"),
    "inside_80": ("truth inside the 80 % interval", "", "near 0.8"),
    "inside_95": ("truth inside the 95 % interval", "", "near 0.95"),
}


@dataclass(frozen=True)
class Measure:
    """What a name stands for.

    Attributes:
        group: the path before the measure, "" for the volume.
        label: heading.
        unit: "" where there is none; "image" became "HU" or "".
        better: which way is better.
    """

    group: str
    label: str
    unit: str
    better: Better

    def to_json(self) -> dict[str, str]:
        """As a dictionary."""
        return asdict(self)


def describe(name: str, in_hu: bool) -> Measure:
    """What a measure's name stands for."""
    group, _, last = name.rpartition(".")
    label, unit, better = _MEASURES[last]
    if unit == "image":
        unit = "HU" if in_hu or group.startswith("synthrad") else ""
    return Measure(group, label, unit, better)


def digits(name: str, value: float, in_hu: bool = False) -> str:
    """A number as a table shows it."""
    unit = describe(name, in_hu).unit
    if unit in ("dB", "mm"):
        return f"{value:.2f}"
    return f"{value:.1f}" if unit in ("HU", "ml") else f"{value:.4f}"
