"""Doing and writing translations: marked volumes with their sidecars, whole or not at all, and once."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ct2mri import __version__
from ct2mri.data.dicom_write import count_images, require_replaceable
from ct2mri.data.io import save_volume, volume_stem
from ct2mri.data.plan import Plan
from ct2mri.dicom_results import dicom_facts, save_result_series
from ct2mri.errors import RequestError
from ct2mri.files import atomic_path, read_json, sweep, write_json
from ct2mri.marking import safety_sentence, short_description, short_spread_description, units
from ct2mri.options.translation import TranslateOptions
from ct2mri.pipeline import TranslationPipeline, TranslationResult
from ct2mri.stages import OnStep


@dataclass
class Job:
    """One volume to translate.

    Attributes:
        name: shown on the progress bar.
        output: the volume to write, or the folder of a DICOM series.
        uncertainty: the spread to write, or None.
        run: does the work; takes the pipeline and a function that is told of progress. Where the source came
            as DICOM, the metadata of the result's volume hold its `dicom`. It can be pickled, so that another
            process can do the job.
        plan: what the result means.
        facts: of the sidecar: what it was translated from.
        dicom: the output is a DICOM series.
        anonymize: without the patient.
    """

    name: str
    output: Path
    uncertainty: Path | None
    run: Callable[[TranslationPipeline, OnStep], TranslationResult]
    plan: Plan
    facts: dict[str, Any] = field(default_factory=dict)
    dicom: bool = False
    anonymize: bool = False

    @property
    def sidecar(self) -> Path:
        """The JSON beside the output."""
        return sidecar_of(self.output, self.dicom)

    def is_done(self, settings: dict[str, Any]) -> bool:
        """Whether everything was written before, with these settings.

        Raises:
            RequestError: it was written with others, or what stands in its place is none of ours.
        """
        before: Any = None
        if self.sidecar.exists():
            try:
                before = dict(read_json(self.sidecar))
            except (OSError, ValueError, TypeError):
                before = {}
            # Volumes and series of one name share the sidecar's.
            if (before.get("dicom") is None) == self.dicom:
                raise RequestError(
                    f"{self.sidecar} belongs to a result of another format; "
                    "give another output folder, or --overwrite to replace it."
                )
        if not self._is_whole(before):
            if self.dicom:
                require_replaceable(self.output)
            return False
        different = [name for name, value in settings.items() if before.get(name) != value]
        if different:
            raise RequestError(
                f"{self.output} was written with another {different[0].replace('_', ' ')}; "
                "give another output folder, or --overwrite to replace it."
            )
        return True

    def sweep(self) -> None:
        """Remove what a process that was killed left half-written beside the outputs."""
        for path in (self.output, self.sidecar):
            sweep(path)
        if self.uncertainty is not None:
            sweep(self.uncertainty)
            sweep(sidecar_of(self.uncertainty))

    def _is_whole(self, before: dict[str, Any] | None) -> bool:
        """Whether all files are there; `before` is what the sidecar holds, None where there is none."""
        if before is None or (self.uncertainty is not None and not self.uncertainty.exists()):
            return False
        if not self.dicom:
            return self.output.exists()
        return count_images(self.output) == before.get("images")


def sidecar_of(output: Path, dicom: bool = False) -> Path:
    """The JSON beside a volume file, or (`dicom`) beside the folder of a series."""
    return output.with_name(f"{output.name if dicom else volume_stem(output)}.json")


class _Progress:
    """A bar that shows one stage of one volume at a time, with the time it has left."""

    def __init__(self, name: str, shown: bool) -> None:
        self.name = name
        self.shown = shown
        self.stage = ""
        self.bar: tqdm[Any] | None = None

    def __call__(self, stage: str, step: int, total: int) -> None:
        bar = self.bar
        if bar is None or stage != self.stage:
            self.close()
            self.stage = stage
            bar = tqdm(
                desc=f"{self.name}: {stage}",
                total=total,
                initial=step - 1,
                unit="step",
                leave=False,
                disable=not self.shown,
            )
            self.bar = bar
        bar.update(step - int(bar.n))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def do_job(
    job: Job, pipeline: TranslationPipeline, settings: dict[str, Any], number: str = "", *, bar: bool = True
) -> TranslationResult:
    """Translate, mark and write one volume, all its files or none.

    Args:
        job: what to do.
        pipeline: what to do it with.
        settings: of `settings_of`, for the sidecar.
        number: shown before the name on the progress bar.
        bar: whether to show one.
    """
    if job.dicom:
        require_replaceable(job.output)
    start = time.perf_counter()
    progress = _Progress(f"{number}{job.name}", bar)
    try:
        result = job.run(pipeline, progress)
    finally:
        progress.close()
    for sentence in result.warnings:
        tell(f"WARNING, {job.name}: {sentence}")
    synthetic = f"synthetic {job.plan.target_modality.upper()}"
    facts = {
        "safety": safety_sentence(job.plan),
        "units": units(job.plan),
        **job.facts,
        **settings,
        **(dicom_facts(result.volume, job.plan, job.anonymize) if job.dicom else {}),
        "uncertainty": None if job.uncertainty is None else job.uncertainty.name,
        "computed": pipeline.execution.facts(pipeline.device),
        "warnings": result.warnings,
        "ct2mri": __version__,
    }
    spread = result.spread if job.uncertainty is not None else None
    with ExitStack() as stack:
        # These get their names when the last of the volumes is written.
        write_json(stack.enter_context(atomic_path(job.sidecar)), {"content": f"{synthetic} volume", **facts})
        if job.uncertainty is not None and spread is not None:
            write_json(
                stack.enter_context(atomic_path(sidecar_of(job.uncertainty))),
                {"content": f"standard deviation over samples of a {synthetic} volume", **facts},
            )
            save_volume(
                spread,
                stack.enter_context(atomic_path(job.uncertainty)),
                description=short_spread_description(job.plan),
            )
        if job.dicom:
            save_result_series(result.volume, job.output, job.plan, facts, job.anonymize)
        else:
            save_volume(result.volume, job.output, description=short_description(job.plan))
    written = f"{job.output} and {job.uncertainty}" if job.uncertainty is not None else f"{job.output}"
    if job.dicom:
        written += f", patient {facts['patient']}"
    print(f"{written}: {synthetic} in {units(job.plan)}, {time.perf_counter() - start:.1f} s")
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
        "dicom": {"anonymized": options.anonymize} if options.format == "dicom" else None,
    }


def tell(sentence: str) -> None:
    """Say something on standard error, above the progress bar."""
    tqdm.write(sentence, file=sys.stderr)
