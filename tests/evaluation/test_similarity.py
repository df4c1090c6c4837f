import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import entropy, pearsonr
from skimage.measure import block_reduce
from skimage.metrics import normalized_mutual_information, structural_similarity
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ct2mri.evaluation.masked import halve, halve_mask, masked_mean, working_box
from ct2mri.evaluation.metrics import evaluate_slices, evaluate_volumes
from ct2mri.evaluation.perceptual import gradient_deviations
from ct2mri.evaluation.similarity import (
    MS_SSIM_WEIGHTS,
    cross_correlation,
    ms_ssim_hindrance,
    mutual_information,
)
from ct2mri.evaluation.similarity import structural_similarity as ours


def make_images(shape, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    target = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    target = (target - target.min()) / np.ptp(target)
    return target + noise * rng.standard_normal(shape), target


def test_ms_ssim_is_scikit_images_maps_at_five_scales():
    """Luminance is 1 in scikit-image's map where K1 is huge: what is left is contrast times structure."""
    x, y = make_images((112, 112))
    mask = np.zeros(x.shape, bool)
    mask[10:101, 5:100] = True
    expected, a, b, inside = 1.0, np.where(mask, x, 0), np.where(mask, y, 0), mask
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale > 0:
            a, b = block_reduce(a, 2, np.mean), block_reduce(b, 2, np.mean)
            inside = block_reduce(inside.astype(float), 2, np.mean) >= 0.5
        k1 = 0.01 if scale == 4 else 1e8
        _, full = structural_similarity(a, b, data_range=1.0, K1=k1, full=True)
        expected *= full[inside].mean() ** weight
    got = evaluate_volumes(x[..., None], y[..., None], mask[..., None])["ms_ssim"]
    assert got == pytest.approx(expected, rel=1e-6)


def test_ms_ssim_is_torchmetrics_where_borders_do_not_matter():
    """torchmetrics leaves out a border that is 1 here, and takes population covariances: both are undone."""
    x, y = np.zeros((2, 208, 208))
    x[48:160, 48:160], y[48:160, 48:160] = make_images((112, 112))
    population = 0.03 / np.sqrt(49 / 48)
    expected = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        size = 208 // 2**scale
        one_scale = multiscale_structural_similarity_index_measure(
            torch.from_numpy(x)[None, None],
            torch.from_numpy(y)[None, None],
            gaussian_kernel=False,
            kernel_size=7,
            data_range=1.0,
            k2=population,
            betas=tuple(float(s == scale) for s in range(5)),
        ).item()
        inner, whole = (size - 6) ** 2, size**2
        expected *= ((one_scale * inner + whole - inner) / whole) ** weight
    got = ours(x, y, np.ones(x.shape, bool), 1.0)[1][0]
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((97, 97, 97), None),
        ((96, 120, 120), "an axis has 96 voxels"),
        ((1, 97, 97), None),
        ((6, 97, 97), None),
        ((7, 97, 97), "an axis has 7 voxels"),
        ((5, 5, 1), "no axis has 7 voxels"),
    ],
)
def test_ms_ssim_is_not_defined_where_an_axis_is_too_short(shape, why):
    reason = ms_ssim_hindrance(shape)
    assert reason is None if why is None else why in reason


def test_ms_ssim_of_the_shortest_axes_that_are_allowed():
    x, y = make_images((97, 98))
    scores = evaluate_volumes(x[None], y[None], np.ones((1, 97, 98)))
    assert 0.3 < scores["ms_ssim"] < 1
    slices = evaluate_slices(*(np.stack([a, a[::-1]]) for a in (x, y)), np.ones((2, 97, 98)), 0)
    assert slices["values"]["ms_ssim"] == pytest.approx(scores["ms_ssim"], rel=0.05)
    small = np.zeros((1, 97, 98))
    small[0, 51, 53] = 1
    lost = evaluate_volumes(x[None], y[None], small)
    assert lost["ms_ssim"] is None and "too small for the coarsest scale" in lost["notes"]["ms_ssim"]


def test_a_small_mask_in_a_large_image_is_measured_as_on_the_whole_image():
    x, y = make_images((230, 221))
    mask = np.zeros(x.shape, bool)
    mask[150:170, 130:149] = True
    a, b = np.where(mask, x, 0), np.where(mask, y, 0)
    whole = [of[0] for of in ours(a, b, mask, 1.0)]
    boxed = evaluate_volumes(x[..., None], y[..., None], mask[..., None])
    assert [boxed["ssim"], boxed["ms_ssim"]] == pytest.approx(whole, rel=1e-9)
    box = working_box(mask, [True, True], 48, 16, 97)
    assert box[0] == slice(96, 224) and box[1] == slice(80, 208)


@pytest.mark.parametrize("place", [slice(0, 30), slice(-30, None), slice(-1, None)])
@pytest.mark.parametrize("shape", [(120, 110), (97, 130), (49, 49)])
def test_a_thin_mask_at_the_border_of_a_large_image_is_measured_as_on_the_whole_image(shape, place):
    x, y = make_images((*shape, 1))
    mask = np.zeros(x.shape, bool)
    mask[place, 5:] = True
    a, b = np.where(mask, x, 0), np.where(mask, y, 0)
    whole = {"ms_ssim": ours(a, b, mask, 1.0)[1][0], "ms_gmsd": gradient_deviations(a, b, mask, 1.0)[1][0]}
    assert np.isfinite(list(whole.values())).tolist() == [min(shape) >= 97, True]
    scores = evaluate_volumes(x, y, mask)
    for name, number in whole.items():
        assert scores[name] == (pytest.approx(number, rel=1e-9) if np.isfinite(number) else None)


def test_cross_correlation_is_pearsons():
    x, y = make_images((9, 10, 11))
    mask = np.random.default_rng(1).uniform(size=x.shape) < 0.6
    assert cross_correlation(x, y, mask)[0] == pytest.approx(pearsonr(x[mask], y[mask]).statistic)
    assert cross_correlation(3 - 2 * x, y, mask)[0] == pytest.approx(-pearsonr(x[mask], y[mask]).statistic)
    of_slices = cross_correlation(x, y, mask, axis=1)
    for j in range(10):
        inside = mask[:, j]
        assert of_slices[j] == pytest.approx(pearsonr(x[:, j][inside], y[:, j][inside]).statistic)
    x[:, 4] = 0.1
    of_slices = cross_correlation(x, y, mask, axis=1)
    assert np.isnan(of_slices[4]) and np.isfinite(np.delete(of_slices, 4)).all()


def test_mutual_information_is_that_of_the_joint_histogram():
    x, y = make_images((20, 21, 22))
    mask = np.random.default_rng(1).uniform(size=x.shape) < 0.6
    joint = np.histogram2d(x[mask], y[mask], bins=32)[0]
    of_x, of_y, both = (entropy(of.ravel()) for of in (joint.sum(axis=1), joint.sum(axis=0), joint))
    got = mutual_information(x, y, mask)[0]
    assert got == pytest.approx(of_x + of_y - both, rel=1e-9)
    ratio = normalized_mutual_information(x[mask], y[mask], bins=32)
    assert (got + both) / both == pytest.approx(ratio, rel=1e-9)


def test_mutual_information_of_gaussians_is_known():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 100, 100, 30))
    inside = np.ones(a.shape, bool)
    x, y = a, 0.8 * a + 0.6 * b
    assert mutual_information(x, y, inside)[0] == pytest.approx(-0.5 * np.log(1 - 0.8**2), abs=0.03)
    assert mutual_information(a, b, inside)[0] < 0.01
    assert mutual_information(-x, y, inside)[0] == pytest.approx(
        mutual_information(x, y, inside)[0], abs=0.01
    )


def test_halves_of_odd_axes_repeat_the_last_plane():
    image = np.arange(5.0)[:, None] * np.ones((1, 3))
    np.testing.assert_allclose(halve(image, [True, False])[:, 0], [0.5, 2.5, 4])
    assert halve(image, [True, True]).shape == (3, 2)
    inside = np.array([[1, 0, 0], [1, 0, 1]], bool)
    np.testing.assert_array_equal(halve_mask(inside, [True, True]), [[True, True]])


def test_the_mean_of_an_empty_mask_is_no_number():
    values = np.ones((2, 3))
    inside = np.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(masked_mean(values, inside, 0), [1, np.nan])
    assert np.isnan(masked_mean(values, ~np.ones_like(inside))[0])
