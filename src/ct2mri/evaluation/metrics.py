"""How far a predicted volume lies from the true one; every number carries its settings.

All measures are taken volume by volume inside a mask, and voxels outside the mask have no influence on any
of them. SSIM is computed here, with scipy's filters, since torchmetrics knows neither sample covariances nor
scikit-image's borders, and so cannot give the values that the field compares; scikit-image is the oracle of
the tests.
"""

from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct2mri.errors import RequestError

Array = NDArray[np.float64]

Metric = Literal["mae", "rmse", "nmse", "psnr", "ssim"]
METRICS: tuple[Metric, ...] = ("mae", "rmse", "nmse", "psnr", "ssim")
SSIM_WINDOW = 7
SSIM_K1, SSIM_K2 = 0.01, 0.03

# Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", 2003.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SMALLEST_AXIS = 97


class Scores(TypedDict):
    """The numbers of one volume, ready for JSON.

    Attributes:
        mae, rmse: in units of the normalised images.
        nmse: squared error over squared target, without unit.
        psnr: dB.
        ssim: without unit.
        voxels: voxels in the mask.
        notes: for each number that is `None`, why.
        settings: what the numbers depend on.
    """

    mae: float | None
    rmse: float | None
    nmse: float | None
    psnr: float | None
    ssim: float | None
    voxels: int
    notes: dict[str, str]
    settings: dict[str, Any]


def evaluate_volumes(
    prediction: NDArray[Any],
    target: NDArray[Any],
    mask: NDArray[Any],
    data_range: float = 1.0,
    *,
    normalisation: str = "none",
    mask_name: str = "given",
) -> Scores:
    """MAE, RMSE, NMSE, PSNR and SSIM of one volume inside a mask. Nothing is clipped.

    Args:
        prediction: (i, j, k).
        target: (i, j, k).
        mask: (i, j, k); voxels above 0 count.
        data_range: the peak of PSNR and the range of SSIM.
        normalisation: what was done to the images before, in words; kept in the settings.
        mask_name: what the mask is, in words; kept in the settings.

    Raises:
        RequestError: the shapes differ, or a voxel inside the mask is not finite.
    """
    if not prediction.shape == target.shape == mask.shape:
        raise RequestError(
            f"Prediction, target and mask need the same shape, got {prediction.shape}, {target.shape} and "
            f"{mask.shape}."
        )
    inside = mask > 0
    window = ssim_window(target.shape)
    scores = Scores(
        mae=None,
        rmse=None,
        nmse=None,
        psnr=None,
        ssim=None,
        voxels=int(inside.sum()),
        notes={},
        settings=_settings(data_range, normalisation, mask_name, window),
    )
    if not inside.any():
        scores["notes"] = dict.fromkeys(METRICS, "not defined: the mask is empty")
        return scores
    predicted, true = prediction[inside].astype(np.float64), target[inside].astype(np.float64)
    for name, values in (("prediction", predicted), ("target", true)):
        if not np.isfinite(values).all():
            raise RequestError(
                f"The {name} holds {int((~np.isfinite(values)).sum())} voxels inside the mask that are not "
                "finite; repair the image or leave them out of the mask."
            )
    error = predicted - true
    mean_square = float(np.mean(error**2))
    scores["mae"] = float(np.mean(np.abs(error)))
    scores["rmse"] = float(np.sqrt(mean_square))
    if true.any():
        scores["nmse"] = float(np.sum(error**2) / np.sum(true**2))
    else:
        scores["notes"]["nmse"] = "not defined: the target is zero everywhere in the mask"
    if mean_square > 0:
        scores["psnr"] = float(10 * np.log10(data_range**2 / mean_square))
    else:
        scores["notes"]["psnr"] = "identical"
    if window.count(1) < len(window):
        scores["ssim"] = _masked_ssim(prediction, target, inside, data_range, window)
    else:
        scores["notes"]["ssim"] = f"not defined: no axis has {SSIM_WINDOW} voxels"
    return scores


def noise_floor(target: NDArray[Any], mask: NDArray[Any], data_range: float = 1.0) -> Scores:
    """The scores of the target moved by one voxel against itself, mean over the axes that it can move along.

    A system whose numbers lie near these is as good as the registration allows to tell.

    Args:
        target: (i, j, k).
        mask: (i, j, k); voxels above 0 count.
        data_range: as for `evaluate_volumes`.
    """
    moved = []
    for axis in (axis for axis, size in enumerate(target.shape) if size > 1):
        neighbours = np.arange(1, target.shape[axis] + 1)
        both = (mask > 0) & (np.take(mask, neighbours, axis=axis, mode="clip") > 0)
        neighbour = np.take(target, neighbours, axis=axis, mode="clip")
        moved.append(evaluate_volumes(neighbour, target, both, data_range))
    floor = evaluate_volumes(target, target, mask, data_range)
    for name in METRICS:
        values = [value for scores in moved if (value := scores[name]) is not None]
        floor[name] = float(np.mean(values)) if values else None
        if values:
            floor["notes"].pop(name, None)
    return floor


def ssim_window(shape: tuple[int, ...]) -> list[int]:
    """Voxels of the SSIM window along each axis: 7, or 1 along an axis shorter than that: slices stay 2D."""
    return [SSIM_WINDOW if size >= SSIM_WINDOW else 1 for size in shape]


def ssim_map(prediction: Array, target: Array, data_range: float, window: list[int]) -> Array:
    """Local SSIM, one value a voxel (Wang et al. 2004, equation 13), with a uniform window.

    Sample covariances, K1 = 0.01, K2 = 0.03, borders reflected: scikit-image's defaults.

    Args:
        prediction: (i, j, k), float64.
        target: (i, j, k), float64.
        data_range: the width of the range of values.
        window: voxels along each axis, odd.
    """
    count = int(np.prod(window))
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    mean_p, mean_t, variance_p, variance_t, covariance = _local_moments(
        prediction, target, window, count / (count - 1)
    )
    luminance = (2 * mean_p * mean_t + c1) / (mean_p**2 + mean_t**2 + c1)
    result: Array = luminance * (2 * covariance + c2) / (variance_p + variance_t + c2)
    return result


def synthrad_metrics(
    prediction: NDArray[Any], target: NDArray[Any], mask: NDArray[Any], year: Literal[2023, 2025]
) -> dict[str, float | None]:
    """The numbers of the SynthRAD challenges, for a predicted CT.

    2023 gives `mae`, `psnr`, `ssim`; 2025 gives `mae`, `psnr`, `ms_ssim`. MAE is not clipped; the others clip
    to [−1024, 3000] HU (2023) or [−1024, 3071] HU (2025). A number that is not defined is `None`.

    Args:
        prediction: (i, j, k), HU.
        target: (i, j, k), HU.
        mask: (i, j, k); voxels above 0 count.
        year: which challenge.
    """
    low, high = -1024.0, 3000.0 if year == 2023 else 3071.0
    peak = high - low
    inside = mask > 0
    predicted, true = prediction.astype(np.float64), target.astype(np.float64)
    similarity = "ssim" if year == 2023 else "ms_ssim"
    if not inside.any():
        return {"mae": None, "psnr": None, similarity: None}
    mae = float(np.abs(predicted - true)[inside].mean())
    predicted, true = predicted.clip(low, high), true.clip(low, high)
    mean_square = float(np.mean((predicted - true)[inside] ** 2))
    psnr = float(10 * np.log10(peak**2 / mean_square)) if mean_square > 0 else None
    predicted, true = np.where(inside, predicted, low) - low, np.where(inside, true, low) - low
    if year == 2023:
        cropped = ssim_map(predicted, true, peak, [7, 7, 7])[3:-3, 3:-3, 3:-3]
        inside = inside[3:-3, 3:-3, 3:-3]
        return {"mae": mae, "psnr": psnr, "ssim": float(cropped[inside].mean()) if inside.any() else None}
    return {"mae": mae, "psnr": psnr, "ms_ssim": _synthrad_ms_ssim(predicted, true, inside, peak)}


def _settings(data_range: float, normalisation: str, mask_name: str, window: list[int]) -> dict[str, Any]:
    """What the numbers of `evaluate_volumes` depend on."""
    axes = sum(size > 1 for size in window)
    ssim = (
        f"mean over the mask of the local SSIM, both images 0 outside the mask; uniform window of "
        f"{'×'.join(map(str, window))} voxels, sample covariance, borders reflected, "
        f"K1 = {SSIM_K1}, K2 = {SSIM_K2}"
    )
    if axes < len(window):
        ssim += f" ({axes}D: an axis with fewer than {SSIM_WINDOW} voxels is not averaged over)"
    return {
        "data_range": data_range,
        "normalisation": normalisation,
        "clipping": "none",
        "mask": mask_name,
        "dims": len(window),
        "mae": "mean absolute error over the mask",
        "rmse": "root of the mean squared error over the mask",
        "nmse": "sum of squared errors over sum of squared target values, over the mask",
        "psnr": "10 log10(data_range² / mean squared error over the mask), dB",
        "ssim": ssim,
        "ssim_window": window,
        "ssim_dims": axes,
    }


def _masked_ssim(
    prediction: NDArray[Any],
    target: NDArray[Any],
    inside: NDArray[np.bool_],
    data_range: float,
    window: list[int],
) -> float:
    """Mean of the SSIM map over the mask, both images being 0 outside it."""
    # The mask's box with half a window around it gives the same map inside the mask, in less memory.
    box = tuple(
        slice(max(found.start - size // 2, 0), found.stop + size // 2)
        for found, size in zip(ndimage.find_objects(inside.astype(np.uint8))[0], window, strict=True)
    )
    inside = inside[box]
    images = [np.where(inside, image[box], 0).astype(np.float64) for image in (prediction, target)]
    return float(ssim_map(images[0], images[1], data_range, window)[inside].mean())


def _local_moments(
    x: Array, y: Array, window: list[int], correction: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Means, variances and covariance in a uniform window around each voxel; variances times `correction`."""

    def mean(image: Array) -> Array:
        filtered: Array = ndimage.uniform_filter(image, window)
        return filtered

    mean_x, mean_y = mean(x), mean(y)
    return (
        mean_x,
        mean_y,
        correction * (mean(x * x) - mean_x * mean_x),
        correction * (mean(y * y) - mean_y * mean_y),
        correction * (mean(x * y) - mean_x * mean_y),
    )


def _synthrad_ms_ssim(x: Array, y: Array, inside: NDArray[np.bool_], peak: float) -> float | None:
    """Multi-scale SSIM as the SynthRAD2025 evaluation computes it.

    It differs from Wang et al. 2003 in that luminance is weighted at every scale, and voxel by voxel: kept,
    since the challenge's published scores depend on it.
    """
    padding = []
    for size in x.shape:
        missing = max(MS_SSIM_SMALLEST_AXIS - size, 0)
        padding.append((missing // 2, missing - missing // 2))
    x, y = np.pad(x, padding, mode="edge"), np.pad(y, padding, mode="edge")
    inside = np.pad(inside, padding, mode="edge")
    c1, c2 = (SSIM_K1 * peak) ** 2, (SSIM_K2 * peak) ** 2
    score = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale > 0:
            x, y, inside = _halve(x), _halve(y), inside[::2, ::2, ::2]
        mean_x, mean_y, variance_x, variance_y, covariance = _local_moments(x, y, [7, 7, 7], 343 / 342)
        deviations = np.sqrt(variance_x.clip(0)) * np.sqrt(variance_y.clip(0))
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        contrast = (2 * deviations + c2) / (variance_x + variance_y + c2)
        structure = (covariance + c2 / 2) / (deviations + c2 / 2)
        local = luminance.clip(0) ** weight * contrast.clip(0) ** weight * structure.clip(0) ** weight
        counted = inside[3:-3, 3:-3, 3:-3]
        if not counted.any():
            return None
        score *= float(local[3:-3, 3:-3, 3:-3][counted].mean().clip(0, 1))
    return score


def _halve(image: Array) -> Array:
    """Mean over voxels i−1 and i along each axis (zero before the first), then every second voxel."""
    for axis in range(image.ndim):
        before = np.zeros_like(image)
        after: list[slice] = [slice(None)] * image.ndim
        kept: list[slice] = [slice(None)] * image.ndim
        after[axis], kept[axis] = slice(1, None), slice(None, -1)
        before[tuple(after)] = image[tuple(kept)]
        image = (image + before) / 2
    halved: Array = image[::2, ::2, ::2]
    return halved
