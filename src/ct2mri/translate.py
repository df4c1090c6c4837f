"""`ct2mri translate`: a CT, a folder of CTs, or a prepared data set's held-out cases become MR volumes."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ct2mri import __version__
from ct2mri.data.cases import PreparedDataset
from ct2mri.data.io import (
    find_volumes,
    is_volume_path,
    load_volume,
    require_writable,
    save_volume,
    volume_stem,
)
from ct2mri.data.plan import Plan
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.files import atomic_path, read_json, write_json
from ct2mri.options import TranslateOptions
from ct2mri.pipeline import (
    SAFETY_SENTENCE,
    UNITS,
    TranslationPipeline,
    TranslationResult,
    starter_folder,
    to_target_spread,
    to_target_units,
)
from ct2mri.stages import check_batch_size

# NIfTI keeps 79 characters.
DESCRIPTION = "SYNTHETIC MR from CT, not acquired. Research only, no diagnosis. ct2mri"
SPREAD_DESCRIPTION = "SYNTHETIC MR from CT: spread over samples. Research only, no diagnosis. ct2mri"
SUMMARY = "translate-summary.json"
SUFFIX = ".nii.gz"


def translate(options: TranslateOptions) -> None:
    """Translate one CT into a file, or several into a folder.

    Raises:
        RequestError: the request contradicts itself, a file cannot be read or is no CT; of several CTs, some
            could not be translated (the others are).
    """
    if (options.input is None) == (options.data is None):
        raise RequestError("Give what to translate once: either a CT or a folder of CTs, or --data DATASET.")
    if options.uncertainty is not None and options.samples < 2:
        raise RequestError(
            "--uncertainty is the spread over samples and needs --samples of at least 2, "
            f"got {options.samples}."
        )
    check_batch_size(options.batch_size)
    if options.data is not None:
        _translate_dataset(options, options.data)
    else:
        assert options.input is not None
        if not options.input.exists():
            raise RequestError(f"There is no file or folder {options.input}; give a CT or a folder of CTs.")
        if options.input.is_dir() and not is_volume_path(options.input):
            _translate_cohort(options, options.input)
        else:
            _translate_file(options, options.input)


@dataclass
class Job:
    """One volume to translate.

    Attributes:
        name: shown on the progress bar.
        output: the volume to write.
        uncertainty: the spread to write, or None.
        run: does the work; takes a function that is told of progress.
        facts: of the sidecar: what it was translated from.
    """

    name: str
    output: Path
    uncertainty: Path | None
    run: Callable[[Callable[[str, int, int], None]], TranslationResult]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def sidecar(self) -> Path:
        """The JSON beside the volume."""
        return _sidecar(self.output)

    def is_done(self, settings: dict[str, Any]) -> bool:
        """Whether everything was written before, with these settings.

        Raises:
            RequestError: it was written with others.
        """
        if not all(p.exists() for p in (self.output, self.sidecar, self.uncertainty) if p is not None):
            return False
        try:
            before = read_json(self.sidecar)
            different = [name for name, value in settings.items() if before.get(name) != value]
        except (OSError, ValueError, AttributeError):
            different = list(settings)
        if different:
            raise RequestError(
                f"{self.output} was written with another {different[0].replace('_', ' ')}; "
                "give another output folder, or --overwrite to replace it."
            )
        return True


def _translate_file(options: TranslateOptions, source: Path) -> None:
    require_writable(options.output)
    if options.uncertainty is not None:
        require_writable(options.uncertainty)
        if options.uncertainty.resolve() == options.output.resolve():
            raise RequestError(f"--output and --uncertainty are both {options.output}; give two names.")
    if not options.overwrite:
        for path in (options.output, _sidecar(options.output), options.uncertainty):
            if path is not None and path.exists():
                raise RequestError(f"{path} exists; give another name, or --overwrite to replace it.")
    mask = None if options.mask is None else load_volume(options.mask)
    ct = load_volume(source)
    pipeline = _load_pipeline(options)
    job = Job(
        source.name,
        options.output,
        options.uncertainty,
        lambda on_step: _run(pipeline, options, ct, mask, on_step),
        {"source": source.name},
    )
    do_job(job, settings_of(pipeline, options, pipeline.plan))


def _translate_cohort(options: TranslateOptions, folder: Path) -> None:
    if options.mask is not None:
        raise RequestError("--mask is the body of one CT; for a folder of CTs, translate them one by one.")
    _require_folders(options, f"{folder} is a folder of CTs")
    if options.output.resolve() == folder.resolve():
        raise RequestError(f"Results would lie among their CTs in {folder}; give another output folder.")
    sources = find_cts(folder)
    pipeline = _load_pipeline(options)

    def job(name: str, source: Path) -> Job:
        def run(on_step: Callable[[str, int, int], None]) -> TranslationResult:
            try:
                ct = load_volume(source)
            except OSError as error:  # this file cannot be read, others may
                raise RequestError(f"{source} cannot be read ({error.strerror}).") from error
            return _run(pipeline, options, ct, None, on_step)

        return Job(name, *_outputs(options, name), run, {"source": source.name})

    _do_all(
        [job(name, source) for name, source in sources.items()],
        settings_of(pipeline, options, pipeline.plan),
        options,
    )


def _translate_dataset(options: TranslateOptions, root: Path) -> None:
    if options.mask is not None or options.plan is not None:
        raise RequestError(
            "--mask and --plan go with a CT; a prepared data set has its own body masks and its own plan."
        )
    _require_folders(options, f"{root} is a data set")
    dataset = PreparedDataset(root)
    case_ids = dataset.case_ids(options.split)
    if not case_ids:
        raise RequestError(
            f"{root} has no case in its {options.split} split; give another --split, "
            "or prepare it with another one."
        )
    pipeline = _load_pipeline(options)
    different = [
        name
        for name in ("source_windows", "source_units", "target_percentile")
        if getattr(dataset.plan, name) != getattr(pipeline.plan, name)
    ]
    if different:
        name = different[0]
        raise RequestError(
            f"{root} was prepared with {name} {getattr(dataset.plan, name)}, the model was trained with "
            f"{getattr(pipeline.plan, name)}; prepare the data with the model's plan (--plan)."
        )

    def job(case_id: str) -> Job:
        def run(on_step: Callable[[str, int, int], None]) -> TranslationResult:
            return _run_case(pipeline, options, dataset, case_id, on_step)

        return Job(
            case_id,
            *_outputs(options, case_id),
            run,
            {"case_id": case_id},
        )

    _do_all([job(case_id) for case_id in case_ids], settings_of(pipeline, options, dataset.plan), options)


def find_cts(folder: Path) -> dict[str, Path]:
    """The CTs of a cohort by name: volumes right inside a folder, and `ct.*` in its subfolders.

    Raises:
        RequestError: there is none, or two would have results of one name.
    """
    found: dict[str, Path] = {}
    volumes = [(volume_stem(path), path) for path in find_volumes(folder)]
    for patient in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not patient.name.startswith(".") and not any(path == patient for _, path in volumes):
            volumes += [
                (patient.name, path) for path in find_volumes(patient) if volume_stem(path).lower() == "ct"
            ]
    for name, path in volumes:
        if name in found:
            raise RequestError(
                f"{found[name]} and {path} would both become {name}{SUFFIX}; rename or move one of them."
            )
        found[name] = path
    if not found:
        raise RequestError(
            f"{folder} holds no CT: neither volumes (.nii, .nii.gz, .mha, .mhd, .nrrd, .zip), nor DICOM, nor "
            "subfolders with a ct file; give the folder that does."
        )
    return found


def _require_folders(options: TranslateOptions, why: str) -> None:
    for name, path in (("output", options.output), ("uncertainty", options.uncertainty)):
        if path is not None and (path.is_file() or volume_stem(path) != path.name):
            raise RequestError(f"{why}, so --{name} must be a folder; {path} is a file name.")
    if options.uncertainty is not None and options.uncertainty.resolve() == options.output.resolve():
        raise RequestError(f"--output and --uncertainty are both {options.output}; give two folders.")


def _outputs(options: TranslateOptions, name: str) -> tuple[Path, Path | None]:
    uncertainty = None if options.uncertainty is None else options.uncertainty / f"{name}{SUFFIX}"
    return options.output / f"{name}{SUFFIX}", uncertainty


def _sidecar(volume: Path) -> Path:
    return volume.with_name(f"{volume_stem(volume)}.json")


def _load_pipeline(options: TranslateOptions) -> TranslationPipeline:
    """The model, with the settings of the request checked before any volume is worked on."""
    pipeline = TranslationPipeline.from_pretrained(
        starter_folder() if options.model is None else options.model, options.device
    )
    if options.plan is not None:
        pipeline = pipeline.with_plan(Plan.read(options.plan))
    if pipeline.slices is not None:
        pipeline.slices.batch_size = options.batch_size
    pipeline.check(num_inference_steps=options.steps, sampler=options.sampler, samples=options.samples)
    return pipeline


def _run(
    pipeline: TranslationPipeline,
    options: TranslateOptions,
    ct: Volume,
    mask: Volume | None,
    on_step: Callable[[str, int, int], None],
) -> TranslationResult:
    return pipeline.translate(
        ct,
        mask=mask,
        num_inference_steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        samples=options.samples,
        on_step=on_step,
    )


def _run_case(
    pipeline: TranslationPipeline,
    options: TranslateOptions,
    dataset: PreparedDataset,
    case_id: str,
    on_step: Callable[[str, int, int], None],
) -> TranslationResult:
    """Translate a prepared case on its own grid, in the units of the data set's plan."""
    case, plan = dataset.case(case_id), dataset.plan
    drawn = pipeline.sample(
        case.source,
        num_inference_steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        samples=options.samples,
        on_step=on_step,
    )

    def in_body(array: np.ndarray[Any, np.dtype[np.float32]]) -> Volume:
        return Volume(np.where(case.mask, array, np.float32(0)), case.affine)

    warnings = pipeline.standing_warnings(drawn)
    if plan.spacing != pipeline.plan.spacing:
        warnings.append(
            f"Spacing: the data set was prepared at {plan.spacing} mm, the model's plan says "
            f"{pipeline.plan.spacing}."
        )
    return TranslationResult(
        volume=in_body(to_target_units(drawn.mean, plan)),
        draft=None if drawn.draft is None else in_body(to_target_units(drawn.draft, plan)),
        spread=None if drawn.spread is None else in_body(to_target_spread(drawn.spread, plan)),
        warnings=warnings,
    )


class _Progress:
    """A bar that shows one stage of one volume at a time, with the time it has left."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stage = ""
        self.bar: tqdm[Any] | None = None

    def __call__(self, stage: str, step: int, total: int) -> None:
        bar = self.bar
        if bar is None or stage != self.stage:
            self.close()
            self.stage = stage
            bar = tqdm(desc=f"{self.name}: {stage}", total=total, initial=step - 1, unit="step", leave=False)
            self.bar = bar
        bar.update(step - int(bar.n))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _do_all(jobs: Sequence[Job], settings: dict[str, Any], options: TranslateOptions) -> None:
    """Do what is not done yet; a job that fails does not stop the others.

    Raises:
        RequestError: some failed.
    """
    is_done = [not options.overwrite and job.is_done(settings) for job in jobs]
    failed: dict[str, str] = {}
    done = 0
    for number, job in enumerate(jobs):
        if is_done[number]:
            continue
        try:
            do_job(job, settings, f"{number + 1}/{len(jobs)} ")
            done += 1
        except (RequestError, RuntimeError, MemoryError) as error:
            failed[job.name] = " ".join(str(error).split()) or type(error).__name__
            _tell(f"FAILED {job.name}: {failed[job.name]}")
    summary = options.output / SUMMARY
    write_json(
        summary,
        {"translated": done, "done_before": sum(is_done), "failed": failed, "ct2mri": __version__},
    )
    print(f"{done} translated, {sum(is_done)} done before, {len(failed)} failed; {options.output}")
    if failed:
        raise RequestError(
            f"{len(failed)} of {len(jobs)} could not be translated ({', '.join(failed)}): {summary} "
            "tells why, and the same command goes on with them."
        )


def do_job(job: Job, settings: dict[str, Any], place: str = "") -> TranslationResult:
    """Translate, mark and write one volume, all its files or none.

    Args:
        job: what to do.
        settings: of `settings_of`, for the sidecar.
        place: shown before the name on the progress bar.
    """
    start = time.perf_counter()
    progress = _Progress(f"{place}{job.name}")
    try:
        result = job.run(progress)
    finally:
        progress.close()
    for sentence in result.warnings:
        _tell(f"WARNING, {job.name}: {sentence}")
    facts = {
        "safety": SAFETY_SENTENCE,
        "units": UNITS,
        **job.facts,
        **settings,
        "uncertainty": None if job.uncertainty is None else job.uncertainty.name,
        "warnings": result.warnings,
        "ct2mri": __version__,
    }
    spread = result.spread if job.uncertainty is not None else None
    with ExitStack() as stack:
        # These get their names when the last of the volumes is written.
        write_json(stack.enter_context(atomic_path(job.sidecar)), {"content": "synthetic MR volume", **facts})
        if job.uncertainty is not None and spread is not None:
            write_json(
                stack.enter_context(atomic_path(_sidecar(job.uncertainty))),
                {"content": "standard deviation over samples of a synthetic MR volume", **facts},
            )
            save_volume(
                spread, stack.enter_context(atomic_path(job.uncertainty)), description=SPREAD_DESCRIPTION
            )
        save_volume(result.volume, job.output, description=DESCRIPTION)
    written = f"{job.output} and {job.uncertainty}" if job.uncertainty is not None else f"{job.output}"
    print(f"{written}: synthetic MR in arbitrary units, {time.perf_counter() - start:.1f} s")
    return result


def settings_of(pipeline: TranslationPipeline, options: TranslateOptions, plan: Plan) -> dict[str, Any]:
    """What a result depends on beside its source, as its sidecar tells it."""
    last = pipeline.stages[-1]
    spacing = None if plan.spacing is None else list(plan.spacing)
    return {
        "model": {"name": pipeline.name, "hash": pipeline.hash},
        "plan": {
            "spacing": spacing,
            "source_windows": plan.source_windows,
            "body_threshold": plan.body_threshold,
            "crop_margin_mm": plan.crop_margin_mm,
            "target_range": list(plan.target_range),
        },
        "seed": options.seed,
        "samples": options.samples,
        "num_inference_steps": last.num_inference_steps if options.steps is None else options.steps,
        "sampler": options.sampler or last.sampler,
        "earlier_stages": [
            {"stage": s.kind, "num_inference_steps": s.num_inference_steps, "sampler": s.sampler}
            for s in pipeline.stages[:-1]
        ],
    }


def _tell(sentence: str) -> None:
    """Say something on standard error, above the progress bar."""
    tqdm.write(sentence, file=sys.stderr)
