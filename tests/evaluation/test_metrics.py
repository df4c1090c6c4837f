import json

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity

from ct2mri.errors import RequestError
from ct2mri.evaluation.metrics import METRICS, evaluate_slices, evaluate_volumes, noise_floor


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
        if name == "mutual_information":  # a value may fall on the other side of a bin's edge
            assert single[name] == pytest.approx(double[name], rel=1e-2)
        elif double[name] is not None:  # this small a volume has no MS-SSIM and no MS-GMSD
            assert single[name] == pytest.approx(double[name], rel=1e-5)


def test_identical_volumes_are_called_identical_not_infinite():
    _, target, mask = make_pair((9, 9, 9))
    scores = evaluate_volumes(target, target, mask)
    assert scores["psnr"] is None and scores["notes"]["psnr"] == "identical"
    assert scores["ssim"] == pytest.approx(1.0) and scores["mae"] == 0.0
    assert scores["ncc"] == pytest.approx(1.0) and scores["gmsd"] == pytest.approx(0, abs=1e-9)
    json.dumps(scores, allow_nan=False)


def test_what_is_not_defined_says_why():
    prediction, target, mask = make_pair((9, 9, 9))
    empty = evaluate_volumes(prediction, target, np.zeros_like(mask))
    assert all(empty[name] is None and "mask is empty" in empty["notes"][name] for name in METRICS)
    flat = evaluate_volumes(prediction, np.zeros_like(target), mask)
    assert flat["nmse"] is None and "zero everywhere" in flat["notes"]["nmse"]
    for name in ("ncc", "mutual_information"):
        assert flat[name] is None and "constant" in flat["notes"][name]
    assert flat["ms_ssim"] is None and "an axis has 9 voxels" in flat["notes"]["ms_ssim"]
    assert flat["ms_gmsd"] is None and "need 24" in flat["notes"]["ms_gmsd"]
    assert flat["psnr"] is not None and flat["ssim"] is not None and flat["gmsd"] is not None
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


def test_hu_count_from_air():
    prediction, target, mask = make_pair((14, 13, 12))
    expected = evaluate_volumes(prediction, target, mask, data_range=4)
    in_hu = evaluate_volumes(
        prediction * 1000 - 1024, target * 1000 - 1024, mask, data_range=4000, zero=-1024
    )
    for name in METRICS:
        factor = 1000 if name in ("mae", "rmse") else 1
        if expected[name] is not None and name != "mutual_information":
            assert in_hu[name] == pytest.approx(factor * expected[name], rel=1e-9)
    assert "-1024 outside the mask" in in_hu["settings"]["ssim"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_what_each_slice_alone_gives(axis):
    prediction, target, mask = make_pair((26, 27, 28))
    slices = evaluate_slices(prediction, target, mask, axis)
    alone = []
    for index in range(target.shape[axis]):
        cut = (slice(None),) * axis + (slice(index, index + 1),)
        alone.append(evaluate_volumes(prediction[cut], target[cut], mask[cut]))
    assert slices["slices"] == list(range(target.shape[axis]))
    for name in METRICS:
        if name in ("ms_ssim", "mutual_information"):
            continue
        assert slices["values"][name] == pytest.approx(np.mean([of[name] for of in alone]), rel=1e-9)
    assert slices["profiles"]["ssim"] == pytest.approx([of["ssim"] for of in alone], rel=1e-9)
    assert slices["values"]["ms_ssim"] is None and "need 97" in slices["notes"]["ms_ssim"]


def test_slices_with_little_of_the_mask_do_not_count():
    prediction, target, mask = make_pair((20, 20, 10))
    mask[:] = True
    mask[:, :, 3] = mask[:, :, 7] = False
    mask[4:6, 4:6, 7] = True  # 4 of 400 voxels
    slices = evaluate_slices(prediction, target, mask, 2)
    assert slices["slices"] == [0, 1, 2, 4, 5, 6, 8, 9] and len(slices["profiles"]["mae"]) == 8
    prediction[:, :, 5] = target[:, :, 5]
    slices = evaluate_slices(prediction, target, mask, 2)
    assert slices["profiles"]["psnr"][4] is None and np.isfinite(slices["values"]["psnr"])
    assert slices["notes"]["psnr"] == "identical, in 1 of 8 slices"
    nothing = evaluate_slices(prediction, target, np.zeros_like(mask), 2)
    assert nothing["slices"] == [] and set(nothing["values"].values()) == {None}
    assert all("mask is empty" in nothing["notes"][name] for name in METRICS)
    json.dumps([slices, nothing], allow_nan=False)


def test_blur_and_noise_and_shift_are_told_apart_from_the_truth():
    rng = np.random.default_rng(0)
    target = ndimage.gaussian_filter(rng.standard_normal((32, 32, 32)), 2)
    target = (target - target.min()) / np.ptp(target)
    mask = np.ones(target.shape, bool)
    noise = rng.standard_normal(target.shape)
    little, much = (evaluate_volumes(target + size * noise, target, mask) for size in (0.02, 0.1))
    blurred = evaluate_volumes(ndimage.gaussian_filter(target, 1.5), target, mask)
    floor = noise_floor(target, mask)
    for name, better in [("mae", -1), ("nmse", -1), ("psnr", 1), ("ssim", 1), ("ncc", 1), ("ms_gmsd", -1)]:
        assert better * little[name] > better * much[name]
        assert 0 != blurred[name] != floor[name]
    assert little["mutual_information"] > much["mutual_information"]
    assert floor["psnr"] == pytest.approx(
        np.mean([10 * np.log10(1 / np.mean(np.diff(target, axis=a) ** 2 * 31 / 32)) for a in range(3)]),
        rel=0.02,
    )
