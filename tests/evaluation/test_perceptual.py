import numpy as np
import pytest
from scipy import ndimage, signal

from ct2mri.evaluation.metrics import evaluate_slices, evaluate_volumes
from ct2mri.evaluation.perceptual import GMS_CONSTANT, gradient_deviations

PREWITT = np.array([[1, 0, -1]] * 3) / 3


def make_images(shape=(64, 64), margin=8, seed=0):
    """Two alike images that are 0 in a margin, so that the treatment of borders makes no difference."""
    rng = np.random.default_rng(seed)
    y = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    y = (y - y.min()) / np.ptp(y)
    x = y + 0.05 * rng.standard_normal(shape)
    inner = tuple(slice(margin, -margin) for _ in shape)
    images = np.zeros((2, *shape))
    images[0][inner], images[1][inner] = x[inner], y[inner]
    return images


def similarity(x, y, masking):
    """Equation by equation, with two-dimensional convolutions."""
    of_x, of_y = (
        np.hypot(*(signal.convolve2d(image, kernel, mode="same") for kernel in (PREWITT, PREWITT.T)))
        for image in (x, y)
    )
    return ((2 - masking) * of_x * of_y + GMS_CONSTANT) / (
        of_x**2 + of_y**2 - masking * of_x * of_y + GMS_CONSTANT
    )


def block_mean(image):
    return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean(axis=(1, 3))


def test_both_deviations_follow_their_equations():
    x, y = make_images()
    gmsd, ms_gmsd = gradient_deviations(x, y, np.ones(x.shape, bool), 1.0)
    assert gmsd[0] == pytest.approx(similarity(block_mean(x), block_mean(y), 0).std(), rel=1e-9)
    total = 0
    for weight in (0.096, 0.596, 0.289, 0.019):
        total += weight * similarity(x, y, 0.5).var()
        x, y = block_mean(x), block_mean(y)
    assert ms_gmsd[0] == pytest.approx(np.sqrt(total), rel=1e-9)


def test_both_deviations_are_those_of_another_library():
    """Values of piq 0.8.0, `gmsd` and `multi_scale_gmsd`, of these images."""
    x, y = make_images()
    gmsd, ms_gmsd = gradient_deviations(x.clip(0, 1), y, np.ones(x.shape, bool), 1.0)
    assert gmsd[0] == pytest.approx(0.02226566013031091, rel=1e-6)
    assert ms_gmsd[0] == pytest.approx(0.03284305992324087, rel=1e-6)


def test_the_order_of_distortions():
    rng = np.random.default_rng(0)
    y = ndimage.gaussian_filter((rng.standard_normal((48, 48, 48)) > 1.0).astype(float), 0.7)
    inside = np.ones(y.shape, bool)
    noise = rng.standard_normal(y.shape)

    def distance(x):
        return gradient_deviations(x, y, inside, 1.0)[1][0]

    blurs = [distance(ndimage.gaussian_filter(y, sigma)) for sigma in (0.3, 0.7, 1.5)]
    noises = [distance(y + size * noise) for size in (0.01, 0.05, 0.2)]
    assert 0 < blurs[0] < blurs[1] < blurs[2] and 0 < noises[0] < noises[1] < noises[2]
    assert distance(y) == pytest.approx(0, abs=1e-9)
    assert distance(y + 0.3) == pytest.approx(0, abs=1e-9), "brightness alone is no edge"
    assert gradient_deviations(100 * (y + 0.05 * noise), 100 * y, inside, 100.0)[1][0] == pytest.approx(
        noises[1], rel=1e-9
    )


def test_slices_are_measured_in_two_dimensions_and_volumes_in_three():
    images = make_images((40, 40, 40))
    inside = np.ones(images[0].shape, bool)
    of_slices = evaluate_slices(*images, inside, 2)
    of_volume = evaluate_volumes(*images, inside)
    middle = evaluate_volumes(images[0][:, :, 20:21], images[1][:, :, 20:21], inside[:, :, 20:21])
    expected = gradient_deviations(images[0][:, :, 20], images[1][:, :, 20], inside[:, :, 20], 1.0)
    assert middle["ms_gmsd"] == pytest.approx(expected[1][0], rel=1e-9)
    assert "in 2D" in of_slices["settings"]["ms_gmsd"] and "in 3D" in of_volume["settings"]["ms_gmsd"]
    assert of_slices["values"]["ms_gmsd"] != pytest.approx(of_volume["ms_gmsd"], rel=1e-3)


def test_short_axes_have_fewer_scales_and_say_so():
    images = make_images((20, 40, 40), margin=2)
    scores = evaluate_volumes(*images, np.ones(images[0].shape))
    assert scores["gmsd"] > 0 and scores["ms_gmsd"] is None
    assert "an axis has 20 voxels" in scores["notes"]["ms_gmsd"]
