import json
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

from ct2mri.errors import RequestError
from ct2mri.evaluation.metrics import METRICS, evaluate_volumes, synthrad_metrics

REFERENCE = Path(__file__).parents[1] / "reference"


def make_pair(shape, seed=0):
    """A smooth target, a prediction near it, and a mask with a ragged edge."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.2, 1.0, shape).cumsum(axis=0) / shape[0]
    prediction = target + 0.1 * rng.standard_normal(shape)
    mask = rng.uniform(size=shape) < 0.7
    return prediction, target, mask


def test_point_wise_metrics_agree_with_scikit_image():
    prediction, target, mask = make_pair((13, 12, 11))
    scores = evaluate_volumes(prediction, target, mask, data_range=1.5)
    true, predicted = target[mask], prediction[mask]
    assert scores["psnr"] == pytest.approx(
        peak_signal_noise_ratio(true, predicted, data_range=1.5), rel=1e-12
    )
    assert scores["nmse"] == pytest.approx(normalized_root_mse(true, predicted) ** 2, rel=1e-12)
    assert scores["mae"] == pytest.approx(np.abs(predicted - true).mean(), rel=1e-12)
    assert scores["rmse"] == pytest.approx(np.sqrt(((predicted - true) ** 2).mean()), rel=1e-12)
    assert scores["voxels"] == mask.sum()


@pytest.mark.parametrize("shape", [(13, 12, 11), (7, 7, 7), (20, 8, 9)])
def test_ssim_is_scikit_images_map_averaged_over_the_mask(shape):
    prediction, target, mask = make_pair(shape)
    mask[: shape[0] // 2, :, :2] = False  # so that the mask's box is smaller than the volume
    _, full = structural_similarity(
        np.where(mask, target, 0), np.where(mask, prediction, 0), data_range=1.5, full=True
    )
    scores = evaluate_volumes(prediction, target, mask, data_range=1.5)
    assert scores["ssim"] == pytest.approx(full[mask].mean(), abs=1e-9)
    assert scores["settings"]["ssim_dims"] == 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_small_mask_far_inside_gives_the_same_ssim_as_the_whole_map(axis):
    prediction, target, _ = make_pair((24, 23, 22))
    mask = np.zeros(target.shape, bool)
    mask[(slice(None),) * axis + (slice(9, 11),)] = True
    mask[:5] = mask[:, -4:] = False
    _, full = structural_similarity(
        np.where(mask, target, 0), np.where(mask, prediction, 0), data_range=1, full=True
    )
    assert evaluate_volumes(prediction, target, mask)["ssim"] == pytest.approx(full[mask].mean(), abs=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_measured_in_two_dimensions_and_says_so(axis):
    prediction, target, mask = (np.expand_dims(a[:, :, 0], axis) for a in make_pair((16, 15, 1)))
    _, full = structural_similarity(
        np.where(mask, target, 0).squeeze(), np.where(mask, prediction, 0).squeeze(), data_range=1, full=True
    )
    scores = evaluate_volumes(prediction, target, mask)
    assert scores["ssim"] == pytest.approx(full[mask.squeeze()].mean(), abs=1e-9)
    assert scores["settings"]["ssim_dims"] == 2
    assert scores["settings"]["ssim_window"][axis] == 1
    assert "2D" in scores["settings"]["ssim"]


def test_voxels_outside_the_mask_have_no_influence():
    prediction, target, mask = make_pair((14, 13, 12))
    expected = evaluate_volumes(prediction, target, mask)
    changed, other = prediction.copy(), target.copy()
    changed[~mask], other[~mask] = np.nan, 1e6
    assert evaluate_volumes(changed, other, mask) == expected


def test_float32_images_give_the_numbers_of_float64_ones():
    prediction, target, mask = make_pair((14, 13, 12))
    single = evaluate_volumes(prediction.astype(np.float32), target.astype(np.float32), mask)
    double = evaluate_volumes(prediction, target, mask)
    for name in METRICS:
        assert single[name] == pytest.approx(double[name], rel=1e-5)


def test_identical_volumes_are_called_identical_not_infinite():
    _, target, mask = make_pair((9, 9, 9))
    scores = evaluate_volumes(target, target, mask)
    assert scores["psnr"] is None and scores["notes"] == {"psnr": "identical"}
    assert scores["ssim"] == pytest.approx(1.0) and scores["mae"] == 0.0
    json.dumps(scores, allow_nan=False)


def test_what_is_not_defined_says_why():
    prediction, target, mask = make_pair((9, 9, 9))
    empty = evaluate_volumes(prediction, target, np.zeros_like(mask))
    assert all(empty[name] is None and "mask is empty" in empty["notes"][name] for name in METRICS)
    assert evaluate_volumes(prediction, np.zeros_like(target), mask)["notes"].keys() == {"nmse"}
    tiny = evaluate_volumes(prediction[:3, :3, :3], target[:3, :3, :3], mask[:3, :3, :3])
    assert tiny["ssim"] is None and "no axis has 7 voxels" in tiny["notes"]["ssim"]
    json.dumps([empty, tiny], allow_nan=False)


def test_bad_input_is_refused():
    prediction, target, mask = make_pair((9, 9, 9))
    with pytest.raises(RequestError, match="same shape"):
        evaluate_volumes(prediction[1:], target, mask)
    prediction[mask] = np.nan
    with pytest.raises(RequestError, match="not finite"):
        evaluate_volumes(prediction, target, mask)


@pytest.mark.parametrize("name", ["synthrad_metrics", "synthrad_metrics_hard"])
def test_synthrad_metrics_agree_with_the_organisers(name):
    with np.load(REFERENCE / f"{name}.npz") as facts:
        arrays = facts["prediction"], facts["target"], facts["mask"]
        of_2023, of_2025 = synthrad_metrics(*arrays, 2023), synthrad_metrics(*arrays, 2025)
        for got, expected in [
            (of_2023["mae"], facts["mae"]),
            (of_2025["mae"], facts["mae"]),
            (of_2023["psnr"], facts["psnr2023"]),
            (of_2023["ssim"], facts["ssim2023"]),
            (of_2025["psnr"], facts["psnr2025"]),
            (of_2025["ms_ssim"], facts["ms_ssim2025"][1]),
        ]:
            assert got == pytest.approx(float(expected), rel=1e-6)


def test_synthrad_metrics_of_an_empty_mask_are_not_defined():
    ct = np.zeros((10, 10, 10))
    assert synthrad_metrics(ct, ct, ct, 2025) == {"mae": None, "psnr": None, "ms_ssim": None}
    assert synthrad_metrics(ct, ct, ct, 2023) == {"mae": None, "psnr": None, "ssim": None}
