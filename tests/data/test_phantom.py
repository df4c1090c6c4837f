from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from ct2mri.data.io import load_volume
from ct2mri.data.phantom import _ATLASES, Anatomy, Phantom, _spacing, draw_phantom, write_phantoms
from ct2mri.data.phantom_tissues import RANGES, Sequence, Tissue, draw_sequence, draw_values
from ct2mri.errors import RequestError
from ct2mri.options.data import PhantomOptions

BRAIN = (Tissue.GREY_MATTER, Tissue.WHITE_MATTER, Tissue.DEEP_GREY, Tissue.BRAIN_STEM)
BONE = (Tissue.CORTICAL_BONE, Tissue.DIPLOE, Tissue.TOOTH)

# Signal relative to white matter at TR 25 ms, TE 4.6 ms, 30°, from the mean relaxation times of each tissue.
SIGNAL = {
    Tissue.SKIN: 0.63,
    Tissue.FAT: 2.25,
    Tissue.MUSCLE: 0.74,
    Tissue.CORTICAL_BONE: 0.0,
    Tissue.YELLOW_MARROW: 1.34,
    Tissue.RED_MARROW: 0.88,
    Tissue.CSF: 0.29,
    Tissue.GREY_MATTER: 0.80,
    Tissue.WHITE_MATTER: 1.0,
    Tissue.BLOOD: 0.63,
    Tissue.URINE: 0.34,
    Tissue.PROSTATE: 0.67,
    Tissue.UTERUS: 0.66,
    Tissue.AIR: 0.0,
}


@cache
def phantom(anatomy: Anatomy, seed: int, spacing: float) -> Phantom:
    return draw_phantom(anatomy, seed, spacing)


def core(labels: np.ndarray, tissue: Tissue) -> np.ndarray:
    """Voxels of a tissue whose neighbours are all of the same tissue."""
    return ndimage.binary_erosion(labels == tissue)


@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_same_seed_same_voxels(anatomy: Anatomy) -> None:
    first, again = phantom(anatomy, 11, 6.0), draw_phantom(anatomy, 11, 6.0)
    for one, two in ((first.ct, again.ct), (first.mr, again.mr), (first.labels, again.labels)):
        assert np.array_equal(one.array, two.array)
        assert np.array_equal(one.affine, two.affine)


@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_an_mr_without_noise_is_the_same_patient_and_the_mean_of_what_is_measured(anatomy: Anatomy) -> None:
    noisy, clean = phantom(anatomy, 11, 6.0), draw_phantom(anatomy, 11, 6.0, mr_noise=False)
    assert np.array_equal(clean.ct.array, noisy.ct.array)
    assert np.array_equal(clean.labels.array, noisy.labels.array)
    bright = clean.mr.array > np.percentile(clean.mr.array, 90)  # where Rician noise has next to no bias
    noise = (noisy.mr.array - clean.mr.array)[bright]
    deviation = noise.std() / np.percentile(clean.mr.array, 99)
    assert 0.005 < deviation < 0.08 and abs(noise.mean()) < 0.1 * noise.std()
    # Noise differs from voxel to voxel; what is left without it hardly does.
    change_of_noise = np.abs(np.diff(noisy.mr.array - clean.mr.array, axis=0)).mean()
    assert change_of_noise > 0.5 * noise.std()


def test_other_seeds_draw_other_people() -> None:
    one, two = phantom("head", 11, 6.0), phantom("head", 12, 6.0)
    shape = np.minimum(one.labels.spatial_shape, two.labels.spatial_shape)
    box = tuple(slice(0, n) for n in shape)
    assert (one.labels.array[box] != two.labels.array[box]).mean() > 0.1
    swapped = draw_phantom("head", (0, 1), 8.0), draw_phantom("head", (1, 0), 8.0)
    assert not np.array_equal(swapped[0].labels.array, swapped[1].labels.array)


@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_ct_and_mr_share_a_grid(anatomy: Anatomy) -> None:
    drawn = phantom(anatomy, 11, 6.0)
    assert drawn.ct.grid.matches(drawn.mr.grid, 0)
    assert drawn.ct.grid.matches(drawn.labels.grid, 0)
    assert drawn.ct.spacing == pytest.approx((6.0, 6.0, 6.0))
    assert drawn.ct.array.dtype == drawn.mr.array.dtype == np.float32
    assert np.isfinite(drawn.ct.array).all() and np.isfinite(drawn.mr.array).all()
    assert (drawn.ct.metadata["modality"], drawn.mr.metadata["modality"]) == ("CT", "MR")


def test_spacing_shows_the_same_person() -> None:
    litres = []
    for spacing in (3.0, (2.5, 2.5, 5.0)):
        drawn = draw_phantom("head", 4, spacing)
        litres.append(float(np.isin(drawn.labels.array, BRAIN).sum() * np.prod(drawn.labels.spacing)) / 1e6)
    assert litres[0] == pytest.approx(litres[1], rel=0.08)


def test_random_spacing_is_clinical() -> None:
    # Drawing twenty whole volumes at 1 mm would take minutes.
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    edges = np.array([_spacing(rng, _ATLASES["head"], None) for rng in rngs])
    assert (edges[:, 0] == edges[:, 1]).all()
    assert edges[:, 0].min() >= 1.0 and edges[:, 0].max() <= 1.3
    assert edges[:, 2].min() >= 1.0 and edges[:, 2].max() <= 2.5
    assert len(np.unique(edges[:, 2])) > 10


def test_signals_follow_the_table() -> None:
    sequence = Sequence(repetition_time=25, echo_time=4.6, flip_angle=30)

    def signal(tissue: Tissue) -> float:
        ranges = RANGES[tissue]
        return sequence.signal(
            ranges.proton_density, float(np.mean(ranges.t1)), float(np.mean(ranges.t2_star))
        )

    for tissue, expected in SIGNAL.items():
        assert signal(tissue) / signal(Tissue.WHITE_MATTER) == pytest.approx(expected, abs=0.06), tissue.name


def test_spoiled_gradient_echo_limits() -> None:
    # With full relaxation at 90° and no decay, the signal is the proton density.
    assert Sequence(1e6, 1e-6, 90).signal(0.7, 600, 60) == pytest.approx(0.7)
    # The Ernst angle gives the greatest signal: cos α = E1.
    ernst = float(np.degrees(np.arccos(np.exp(-25 / 650))))
    at_ernst = Sequence(25, 4.6, ernst).signal(0.7, 650, 60)
    assert at_ernst > Sequence(25, 4.6, ernst + 3).signal(0.7, 650, 60)
    assert at_ernst > Sequence(25, 4.6, ernst - 3).signal(0.7, 650, 60)


def test_grey_and_white_matter_stay_below_the_noise_of_ct() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        noise = float(rng.uniform(3, 15))
        hu = draw_values(rng, draw_sequence(rng), noise).hu
        assert 0 < hu[Tissue.GREY_MATTER] - hu[Tissue.WHITE_MATTER] <= noise + 1e-9
        for tissue in (Tissue.GREY_MATTER, Tissue.WHITE_MATTER):
            low, high = RANGES[tissue].hu
            assert low - 1e-6 <= hu[tissue] <= high + 1e-6


def test_measured_contrast_on_ct_is_below_its_noise() -> None:
    drawn = phantom("head", 4, 2.5)
    white = core(drawn.labels.array, Tissue.WHITE_MATTER)
    grey = drawn.labels.array == Tissue.DEEP_GREY
    noise = drawn.ct.array[white].std()
    assert 2.5 < noise < 17
    assert abs(drawn.ct.array[grey].mean() - drawn.ct.array[white].mean()) <= noise


@pytest.mark.parametrize(
    ("anatomy", "tissues"),
    [
        ("head", [Tissue.WHITE_MATTER, Tissue.CSF, Tissue.MUSCLE, Tissue.BRAIN_STEM, Tissue.VITREOUS]),
        ("pelvis", [Tissue.FAT, Tissue.MUSCLE, Tissue.URINE]),
    ],
)
def test_hu_of_tissues(anatomy: Anatomy, tissues: list[Tissue]) -> None:
    drawn = phantom(anatomy, 4, 2.5 if anatomy == "head" else 4.0)
    labels, ct = drawn.labels.array, drawn.ct.array
    for tissue in tissues:
        inside = ct[core(labels, tissue)]
        assert inside.size >= 20, tissue.name
        low, high = RANGES[tissue].hu
        # A few HU for mixed neighbours, what beam hardening leaves, and noise in small organs.
        assert low - 10 <= np.median(inside) <= high + 14, tissue.name
    far = ndimage.binary_erosion(labels == Tissue.AIR, iterations=3, border_value=1)
    assert np.median(ct[far]) == pytest.approx(-1000, abs=3)
    assert np.median(ct[labels == Tissue.CORTICAL_BONE]) > 500


@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_mr_ratios_in_the_image(anatomy: Anatomy) -> None:
    drawn = phantom(anatomy, 4, 2.5 if anatomy == "head" else 4.0)
    labels, mr = drawn.labels.array, drawn.mr.array
    reference, tissues = (
        (Tissue.WHITE_MATTER, [Tissue.CSF, Tissue.MUSCLE])
        if anatomy == "head"
        else (Tissue.MUSCLE, [Tissue.FAT, Tissue.URINE])
    )
    unit = np.median(mr[core(labels, reference)]) / SIGNAL[reference]
    for tissue in tissues:
        # The bias field alone reaches ±20 %, and relaxation times and the sequence differ per case.
        assert np.median(mr[core(labels, tissue)]) / unit == pytest.approx(SIGNAL[tissue], rel=0.4), (
            tissue.name
        )
    # Compact bone is black: below half of muscle even with mixed voxels.
    muscle = np.median(mr[core(labels, Tissue.MUSCLE)])
    assert np.percentile(mr[labels == Tissue.CORTICAL_BONE], 25) < 0.6 * muscle


def test_background_is_rayleigh_noise() -> None:
    drawn = phantom("head", 4, 2.5)
    air = ndimage.binary_erosion(drawn.labels.array == Tissue.AIR, iterations=3, border_value=1)
    background = drawn.mr.array[air]
    assert background.size > 5000
    assert background.min() >= 0
    # mean / deviation of a Rayleigh distribution
    assert background.mean() / background.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.05)
    white = np.median(drawn.mr.array[drawn.labels.array == Tissue.WHITE_MATTER])
    assert background.mean() < 0.1 * white


@pytest.mark.parametrize("seed", [0, 1, 4, 7])
def test_brain_volume_is_plausible(seed: int) -> None:
    drawn = phantom("head", seed, 2.5 if seed == 4 else 3.5)
    millilitres = np.isin(drawn.labels.array, BRAIN).sum() * np.prod(drawn.labels.spacing) / 1000
    assert 950 < millilitres < 1750


@pytest.mark.parametrize("seed", [4, 7])
def test_the_vault_closes_around_the_brain(seed: int) -> None:
    drawn = phantom("head", seed, 2.5 if seed == 4 else 3.5)
    labels = drawn.labels.array
    brain = np.isin(labels, BRAIN)
    middle = int(np.mean(np.nonzero(brain)[2]))  # below lie the canals of nerves and of the spinal cord
    open_space, _ = ndimage.label(~np.isin(labels[:, :, middle:], BONE))
    inside = np.unique(open_space[brain[:, :, middle:]])
    outside = np.unique(open_space[labels[:, :, middle:] == Tissue.AIR])
    top_is_in_view = not brain[:, :, -1].any()
    assert top_is_in_view
    largest = max(inside, key=lambda region: int((open_space == region).sum()))
    assert largest not in outside


def test_grey_matter_lies_around_white_matter_in_folds() -> None:
    drawn = phantom("head", 4, 2.5)
    labels = drawn.labels.array
    grey, white = labels == Tissue.GREY_MATTER, labels == Tissue.WHITE_MATTER
    assert 0.7 < grey.sum() / white.sum() < 3
    # A smooth ball of white matter would touch grey matter over far less than this share of its voxels.
    assert (white & ndimage.binary_dilation(grey)).sum() / white.sum() > 0.35


def test_head_has_its_parts() -> None:
    labels = phantom("head", 4, 2.5).labels.array
    present = set(np.unique(labels).astype(int))
    expected = {
        *BRAIN, *BONE, Tissue.SKIN, Tissue.FAT, Tissue.MUSCLE, Tissue.CSF, Tissue.VITREOUS, Tissue.AIR,
        Tissue.YELLOW_MARROW, Tissue.BLOOD, Tissue.MUCOSA, Tissue.GLAND, Tissue.DURA,
    }  # fmt: skip
    assert expected <= present
    body = ndimage.binary_fill_holes(labels != Tissue.AIR)
    assert (body & (labels == Tissue.AIR)).sum() > 500  # nose, sinuses, pharynx


def test_pelvis_has_its_parts() -> None:
    organs = set()
    for seed in (4, 11, 12, 13):
        labels = phantom("pelvis", seed, 4.0 if seed == 4 else 6.0).labels.array
        present = {Tissue(int(value)) for value in np.unique(labels)}
        assert {Tissue.URINE, Tissue.CORTICAL_BONE, Tissue.BOWEL_CONTENT, Tissue.FAT, Tissue.BLOOD} <= present
        assert (Tissue.PROSTATE in present) != (Tissue.UTERUS in present)
        organs |= present & {Tissue.PROSTATE, Tissue.UTERUS}
        # Both hips: bone lies far to either side of the middle.
        across = np.nonzero((labels == Tissue.CORTICAL_BONE).any(axis=(1, 2)))[0]
        assert (across.max() - across.min()) * (4.0 if seed == 4 else 6.0) > 220
    assert organs == {Tissue.PROSTATE, Tissue.UTERUS}


@pytest.mark.parametrize("anatomy", ["head", "pelvis"])
def test_written_phantoms_load_and_stay(
    anatomy: Anatomy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = PhantomOptions(
        output_dir=tmp_path / "raw", cases=2, anatomy=anatomy, spacing=8.0, seed=3, labels=True
    )
    write_phantoms(options)
    folders = sorted(folder.name for folder in options.output_dir.iterdir())
    assert folders == [f"{anatomy}-3-0000", f"{anatomy}-3-0001"]
    drawn = draw_phantom(anatomy, (3, 1), 8.0)
    folder = options.output_dir / f"{anatomy}-3-0001"
    for name, volume in (("ct", drawn.ct), ("mr", drawn.mr), ("labels", drawn.labels)):
        loaded = load_volume(folder / f"{name}.nii.gz")
        assert np.array_equal(loaded.array, volume.array)
        assert loaded.grid.matches(volume.grid)

    (options.output_dir / f"{anatomy}-3-0000" / "mr.nii.gz").unlink()
    kept = (folder / "ct.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    write_phantoms(options)
    assert "1 " in capsys.readouterr().out.split("phantoms written")[0]
    assert (options.output_dir / f"{anatomy}-3-0000" / "mr.nii.gz").is_file()
    assert (folder / "ct.nii.gz").stat().st_mtime_ns == kept


def test_the_noise_is_left_out_on_request_and_the_header_says_so(tmp_path: Path) -> None:
    options = PhantomOptions(output_dir=tmp_path, cases=1, anatomy="head", spacing=12.0, mr_noise=False)
    write_phantoms(options)
    loaded = load_volume(tmp_path / "head-0000" / "mr.nii.gz")
    assert np.array_equal(loaded.array, draw_phantom("head", (0, 0), 12.0, mr_noise=False).mr.array)
    header = nibabel.load(tmp_path / "head-0000" / "mr.nii.gz").header
    assert b"without noise" in header["descrip"].item()


def test_labels_are_written_on_request_only(tmp_path: Path) -> None:
    write_phantoms(PhantomOptions(output_dir=tmp_path, cases=1, anatomy="head", spacing=12.0))
    assert sorted(file.name for file in (tmp_path / "head-0000").iterdir()) == ["ct.nii.gz", "mr.nii.gz"]


def test_requests_that_cannot_be() -> None:
    with pytest.raises(RequestError, match="1 or more"):
        write_phantoms(PhantomOptions(output_dir=Path("never"), cases=0))
    with pytest.raises(RequestError, match="head, pelvis"):
        draw_phantom("knee", 0)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="0 upward"):
        draw_phantom("head", -1)
    for spacing in (0.05, -2.0, float("nan"), (2.0, 2.0, 50.0)):
        with pytest.raises(RequestError, match=r"0\.3 and 20 mm"):
            draw_phantom("head", 0, spacing)
    assert not Path("never").exists()
