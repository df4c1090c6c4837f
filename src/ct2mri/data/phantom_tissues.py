"""What the tissues of the digital phantoms are to a CT scanner and to a spoiled-gradient-echo sequence."""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Tissue(IntEnum):
    """The labels of a phantom's tissue map."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    CORTICAL_BONE = 4
    DIPLOE = 5
    YELLOW_MARROW = 6
    RED_MARROW = 7
    CSF = 8
    GREY_MATTER = 9
    WHITE_MATTER = 10
    DEEP_GREY = 11
    BRAIN_STEM = 12
    VITREOUS = 13
    LENS = 14
    DURA = 15
    BLOOD = 16
    MUCOSA = 17
    GLAND = 18
    CARTILAGE = 19
    TOOTH = 20
    URINE = 21
    PROSTATE = 22
    UTERUS = 23
    BOWEL_CONTENT = 24
    GAS = 25


@dataclass(frozen=True)
class TissueRanges:
    """Ranges that a case's tissue values are drawn from: HU, proton density, T1 and T2* in ms."""

    hu: tuple[float, float]
    proton_density: float
    t1: tuple[float, float]
    t2_star: tuple[float, float]


NO_SIGNAL = (1.0, 1.0)
RANGES: dict[Tissue, TissueRanges] = {
    Tissue.AIR: TissueRanges((-1000, -1000), 0.0, NO_SIGNAL, NO_SIGNAL),
    Tissue.SKIN: TissueRanges((25, 65), 0.70, (800, 900), (13, 17)),
    Tissue.FAT: TissueRanges((-115, -85), 0.95, (255, 355), (36, 44)),
    Tissue.MUSCLE: TissueRanges((47, 63), 0.78, (870, 1030), (24, 36)),
    Tissue.CORTICAL_BONE: TissueRanges((1000, 1600), 0.15, (230, 270), (0.32, 0.58)),
    Tissue.DIPLOE: TissueRanges((320, 650), 0.85, (310, 350), (9, 11)),
    Tissue.YELLOW_MARROW: TissueRanges((110, 300), 0.85, (310, 350), (9, 11)),
    Tissue.RED_MARROW: TissueRanges((120, 330), 0.80, (520, 580), (9, 11)),
    Tissue.CSF: TissueRanges((3, 12), 1.0, (3600, 4500), (700, 900)),
    Tissue.GREY_MATTER: TissueRanges((36, 42), 0.82, (960, 1110), (76, 92)),
    Tissue.WHITE_MATTER: TissueRanges((27, 33), 0.70, (600, 700), (60, 72)),
    # Iron and myelin: deep nuclei lie between the cortex and white matter.
    Tissue.DEEP_GREY: TissueRanges((35, 40), 0.78, (830, 930), (50, 62)),
    Tissue.BRAIN_STEM: TissueRanges((29, 35), 0.73, (700, 790), (58, 70)),
    Tissue.VITREOUS: TissueRanges((2, 12), 1.0, (3700, 4500), (700, 900)),
    Tissue.LENS: TissueRanges((70, 100), 0.70, (1000, 1200), (20, 30)),
    Tissue.DURA: TissueRanges((45, 65), 0.55, (850, 1000), (10, 16)),
    Tissue.BLOOD: TissueRanges((42, 58), 0.85, (1350, 1530), (70, 90)),
    Tissue.MUCOSA: TissueRanges((25, 50), 0.88, (1000, 1200), (35, 50)),
    Tissue.GLAND: TissueRanges((-20, 35), 0.85, (600, 750), (30, 40)),
    Tissue.CARTILAGE: TissueRanges((80, 130), 0.70, (950, 1100), (12, 20)),
    Tissue.TOOTH: TissueRanges((1800, 2500), 0.05, (230, 270), (0.3, 0.5)),
    Tissue.URINE: TissueRanges((2, 13), 1.0, (3200, 3800), (450, 550)),
    Tissue.PROSTATE: TissueRanges((32, 48), 0.85, (1170, 1430), (50, 60)),
    Tissue.UTERUS: TissueRanges((42, 58), 0.85, (1220, 1380), (45, 55)),
    Tissue.BOWEL_CONTENT: TissueRanges((5, 45), 0.80, (800, 1500), (20, 40)),
    Tissue.GAS: TissueRanges((-1000, -880), 0.0, NO_SIGNAL, NO_SIGNAL),
}


@dataclass(frozen=True)
class Sequence:
    """A spoiled gradient echo: repetition and echo time in ms, flip angle in degrees."""

    repetition_time: float
    echo_time: float
    flip_angle: float

    def signal(self, proton_density: float, t1: float, t2_star: float) -> float:
        """Steady-state signal, S = PD · sin α · (1 − E1) / (1 − cos α · E1) · exp(−TE / T2*)."""
        e1 = math.exp(-self.repetition_time / t1)
        angle = math.radians(self.flip_angle)
        steady_state = math.sin(angle) * (1 - e1) / (1 - math.cos(angle) * e1)
        return proton_density * steady_state * math.exp(-self.echo_time / t2_star)


@dataclass(frozen=True)
class TissueValues:
    """One case's HU and MR signal (white matter = 1) per tissue, indexed by label."""

    hu: dict[Tissue, float]
    signal: dict[Tissue, float]


def draw_sequence(rng: np.random.Generator) -> Sequence:
    """A T1-weighted sequence at 1.5 T as hospitals use it; fat and water stay in phase (4.6 ms)."""
    return Sequence(rng.uniform(18, 30), rng.uniform(4.4, 4.8), rng.uniform(22, 30))


def draw_values(rng: np.random.Generator, sequence: Sequence, ct_noise: float) -> TissueValues:
    """Draw one case's tissue values.

    Args:
        rng: source of the case's randomness.
        sequence: what the MR signals are computed for.
        ct_noise: deviation of the CT's noise in HU, 3 or more. The contrast of grey against white matter
            is at most that: otherwise a model learns an eyesight that no scanner has.
    """
    hu, signal = {}, {}
    for tissue, ranges in RANGES.items():
        hu[tissue] = float(rng.uniform(*ranges.hu))
        signal[tissue] = sequence.signal(
            ranges.proton_density, float(rng.uniform(*ranges.t1)), float(rng.uniform(*ranges.t2_star))
        )
    white = hu[Tissue.WHITE_MATTER]
    contrast = min(hu[Tissue.GREY_MATTER] - white, ct_noise)
    middle = (hu[Tissue.GREY_MATTER] + white) / 2
    # Both move towards their middle, but stay in their ranges, between which lie 3 HU.
    grey = max(min(middle - contrast / 2, 33.0) + contrast, 36.0)
    hu[Tissue.GREY_MATTER], hu[Tissue.WHITE_MATTER] = grey, grey - contrast
    hu[Tissue.DEEP_GREY] = hu[Tissue.GREY_MATTER] - 0.1 * contrast
    hu[Tissue.BRAIN_STEM] = hu[Tissue.WHITE_MATTER] + 0.3 * contrast
    unit = signal[Tissue.WHITE_MATTER]
    return TissueValues(hu, {tissue: value / unit for tissue, value in signal.items()})
