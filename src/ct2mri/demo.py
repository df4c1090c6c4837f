"""`ct2mri demo`: the main job at once, on what the package ships."""

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct2mri.data.intensity import body_mask, target_reference
from ct2mri.data.io import load_volume, save_volume
from ct2mri.data.phantom import FIRST_UNSEEN_SEED, draw_phantom
from ct2mri.data.plan import Plan
from ct2mri.data.plausibility import BODY_THRESHOLD, require_ct
from ct2mri.data.volume import Volume
from ct2mri.errors import require_seed
from ct2mri.evaluation.metrics import Scores, evaluate_volumes, noise_floor
from ct2mri.evaluation.pictures import picture_sheet
from ct2mri.evaluation.tables import format_scores, format_table
from ct2mri.files import require_place, write_json
from ct2mri.options.translation import DemoOptions, TranslateOptions
from ct2mri.pipeline import TranslationPipeline, TranslationResult, starter_folder
from ct2mri.translation_jobs import Job, do_job, settings_of


def demo(options: DemoOptions) -> None:
    """Translate a phantom CT that the starter model has never seen, and the user's own CT where there is one.

    Raises:
        RequestError: the user's CT cannot be read or is no CT, the device is not there, or the seed is
            negative.
    """
    require_seed(options.seed)  # with a negative one, the phantom might be one that the model has seen
    require_place(options.output)
    ct = None if options.ct is None else load_volume(options.ct)
    if ct is not None:
        require_ct(ct)
    pipeline = TranslationPipeline.from_pretrained(starter_folder(), options.device)
    start = time.perf_counter()
    show_phantom(pipeline, options.output / "phantom", options)
    if ct is not None and options.ct is not None:
        show_ct(pipeline, ct, options.ct.name, options.output / "your_ct", options)
    print(
        f"\nDone in {time.perf_counter() - start:.0f} s. Look at {options.output / 'phantom' / 'sheet.png'}"
    )


def show_phantom(pipeline: TranslationPipeline, folder: Path, options: DemoOptions) -> dict[str, Scores]:
    """Draw a phantom that no model has seen, translate its CT, and compare with its MR.

    Writes ct.nii.gz and mr.nii.gz (the pair), synthetic_mr.nii.gz with its sidecar, sheet.png, numbers.json.

    Returns:
        what `compare` measured.
    """
    seed = FIRST_UNSEEN_SEED + options.seed
    print(f"Drawing the digital head of seed {seed} ...")
    phantom = draw_phantom("head", seed)
    save_volume(phantom.ct, folder / "ct.nii.gz", description="Digital phantom, CT in HU")
    save_volume(phantom.mr, folder / "mr.nii.gz", description="Digital phantom, T1-weighted MR")
    result = _translate(pipeline, phantom.ct, f"phantom of seed {seed}", folder, options)
    plan = pipeline.plan
    body = body_mask(phantom.ct.array, phantom.ct.spacing, BODY_THRESHOLD)
    reference = target_reference(phantom.mr.array, body, plan.target_percentile)
    scores = compare(result, phantom.mr, phantom.ct, body, plan)
    picture_sheet(
        folder / "sheet.png",
        phantom.ct,
        result.volume,
        draft=result.draft,
        truth=phantom.mr.with_array(phantom.mr.array * np.float32(plan.target_range[1] / reference)),
        title=f"Digital phantom that the model has not seen (seed {seed})",
        facts=_facts(pipeline, options),
    )
    write_json(folder / "numbers.json", {"model": pipeline.name, "phantom_seed": seed, "scores": scores})
    print()
    print(format_table([(name, format_scores(of)) for name, of in scores.items()]))
    print("Inside the body, 1 being the brightest tissue; higher PSNR and SSIM, lower errors are better.")
    return scores


def show_ct(pipeline: TranslationPipeline, ct: Volume, name: str, folder: Path, options: DemoOptions) -> None:
    """Translate a CT; writes synthetic_mr.nii.gz with its sidecar, and sheet.png."""
    result = _translate(pipeline, ct, name, folder, options)
    picture_sheet(
        folder / "sheet.png",
        ct,
        result.volume,
        draft=result.draft,
        title=f"{name}: CT to synthetic MR",
        facts=_facts(pipeline, options),
    )
    print(f"Look at {folder / 'sheet.png'}")


def compare(
    result: TranslationResult, truth: Volume, ct: Volume, body: NDArray[np.bool_], plan: Plan
) -> dict[str, Scores]:
    """Measure a result against the truth inside the body, beside images that cost nothing.

    The result is divided by the upper end of the plan's target range and the truth by its own percentile,
    nothing is fitted. The others are fitted to the truth, which flatters them: the constant image is its
    median, the CT is clipped to the plan's first window and gets the gain and offset of least squares.

    Returns:
        scores of "result", "draft" (where there is one), "CT rescaled", "constant image" and "noise floor"
        (the truth moved by one voxel against itself).
    """
    target = truth.array / np.float32(target_reference(truth.array, body, plan.target_percentile))
    low, high = plan.source_windows[0]
    clipped = np.clip(ct.array, low, high).astype(np.float64)
    gain, offset = np.polyfit(clipped[body], target[body], 1)
    own_scale = (
        "divided by the upper end of the plan's target_range; the truth by its own "
        f"{plan.target_percentile:g}th percentile inside the body; nothing fitted"
    )
    images: dict[str, tuple[NDArray[np.float64] | NDArray[np.float32], str]] = {
        "result": (result.volume.array / np.float32(plan.target_range[1]), own_scale),
    }
    if result.draft is not None:
        images["draft"] = (result.draft.array / np.float32(plan.target_range[1]), own_scale)
    images["CT rescaled"] = (
        gain * clipped + offset,
        f"CT clipped to {low:g} to {high:g} HU, gain and offset by least squares inside the body",
    )
    median = float(np.median(target[body]))
    images["constant image"] = (np.full(target.shape, median), "the truth's median inside the body")
    scores = {
        name: evaluate_volumes(
            image, target, body, normalisation=words, mask_name="the body, found in the CT"
        )
        for name, (image, words) in images.items()
    }
    scores["noise floor"] = noise_floor(target, body)
    return scores


def _translate(
    pipeline: TranslationPipeline, ct: Volume, name: str, folder: Path, options: DemoOptions
) -> TranslationResult:
    """Translate as `ct2mri translate` does, with the model's own settings."""
    output = folder / "synthetic_mr.nii.gz"
    request = TranslateOptions(output=output, seed=options.seed, device=options.device)
    job = Job(
        name,
        output,
        None,
        lambda pipeline, on_step: pipeline.translate(ct, seed=options.seed, on_step=on_step),
        pipeline.plan,
        {"source": name},
    )
    return do_job(job, pipeline, settings_of(pipeline, request, pipeline.plan))


def _facts(pipeline: TranslationPipeline, options: DemoOptions) -> str:
    """What the result was made with, for a picture."""
    steps = ", ".join(
        f"{stage.kind} {stage.num_inference_steps} step{'s' * (stage.num_inference_steps > 1)}"
        for stage in pipeline.stages
    )
    return f"model: {pipeline.name}   ·   seed {options.seed}   ·   {steps}"
