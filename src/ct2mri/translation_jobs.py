"""Doing and writing translations: marked volumes with their sidecars, whole or not at all, and once."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from ct2mri.files import atomic_path, sweep, write_json
from ct2mri.marking import safety_sentence, short_description, short_spread_description, units
from ct2mri.options.translation import TranslateOptions
from ct2mri.pipeline import TranslationPipeline, TranslationResult
from ct2mri.sidecars import read_sidecar
from ct2mri.stages import OnStep
from ct2mri.translation_inputs import Inputs

_SPREAD_OF = "standard deviation over samples of a"
_ELSEWHERE = "give another output folder, or --overwrite to replace it."


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
        inputs: that, to tell it from others of its name; None where it lies in no file.
        dicom: the output is a DICOM series.
        anonymize: without the patient.
    """

    name: str
    output: Path
    uncertainty: Path | None
    run: Callable[[TranslationPipeline, OnStep], TranslationResult]
    plan: Plan
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs | None = None
    dicom: bool = False
    anonymize: bool = False

    @property
    def content(self) -> str:
        """What the sidecar calls the result."""
        return f"synthetic {self.plan.target_modality.upper()} volume"

    @property
    def sidecar(self) -> Path:
        """The JSON beside the output."""
        return sidecar_of(self.output, self.dicom)

    def is_done(self, settings: dict[str, Any]) -> bool:
        """Whether everything was written before, of the same inputs with these settings.

        Raises:
            RequestError: it was written of or with others, or what stands in its place is none of ours.
        """
        done = self._is_written(self.output, self.sidecar, {"content": self.content, **settings})
        if self.uncertainty is not None:
            # Asked in any case: if one of the two is not done, both are written.
            expected = {"content": f"{_SPREAD_OF} {self.content}", **settings}
            done &= self._is_written(self.uncertainty, sidecar_of(self.uncertainty), expected)
        return done

    def sweep(self) -> None:
        """Remove what a process that was killed left half-written beside the outputs."""
        for path in (self.output, self.sidecar):
            sweep(path)
        if self.uncertainty is not None:
            sweep(self.uncertainty)
            sweep(sidecar_of(self.uncertainty))

    def _is_written(self, output: Path, sidecar: Path, expected: dict[str, Any]) -> bool:
        """Whether one of the outputs is there, whole, with what is expected in its sidecar; as `is_done`."""
        series = self.dicom and output == self.output
        images = count_images(output) if series else int(output.exists())
        if sidecar.exists():
            before = _read_sidecar(sidecar)
            # Volumes and series of one name share the sidecar's.
            if (before.get("dicom") is None) == self.dicom:
                raise RequestError(f"{sidecar} belongs to a result of another format; {_ELSEWHERE}")
            if images:
                _require_same(output, before, expected)
                _require_made_of(output, before, self.inputs)
            if images == (before.get("images") if series else 1):
                return True
        elif images and not series:  # `do_job` never leaves a volume so
            raise RequestError(
                f"{output} has no sidecar {sidecar.name}, so nothing tells that it is a result; {_ELSEWHERE}"
            )
        if series:
            require_replaceable(output)
        return False


def _read_sidecar(path: Path) -> dict[str, Any]:
    """What `do_job` wrote beside a result.

    Raises:
        RequestError: it was written by something else.
    """
    facts = read_sidecar(path)
    if not facts:
        raise RequestError(f"{path} is no sidecar of a result and would be lost; {_ELSEWHERE}")
    return facts


def _require_same(output: Path, before: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise RequestError unless a sidecar holds all that is expected."""
    for name, value in expected.items():
        if before.get(name) != value:
            what = f"another {name.replace('_', ' ')}"
            if name == "plan":
                what = _other_plan(before.get(name), value)
            raise RequestError(f"{output} was written with {what}; {_ELSEWHERE}")


def _require_made_of(output: Path, before: dict[str, Any], inputs: Inputs | None) -> None:
    """Raise RequestError unless a sidecar tells that its result was made of these inputs."""
    if inputs is None:
        return
    told = before.get("inputs")
    if not isinstance(told, dict):
        raise RequestError(
            f"The sidecar of {output}, of an earlier version, does not tell which source it was made of; "
            f"{_ELSEWHERE}"
        )
    if different := inputs.difference(told):
        raise RequestError(f"{output} was made of {different}; {_ELSEWHERE}")


def _other_plan(before: Any, plan: dict[str, Any]) -> str:
    """How the plan in a sidecar differs from the present one."""
    before = before if isinstance(before, dict) else {}
    different = [name for name in before if name not in plan or before[name] != plan[name]]
    if different:
        return f"another plan ({', '.join(different)})"
    return "a plan that its sidecar, of an earlier version, tells only in part"


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
    inputs = None if job.inputs is None else job.inputs.facts()
    progress = _Progress(f"{number}{job.name}", bar)
    try:
        result = job.run(pipeline, progress)
    finally:
        progress.close()
    for sentence in result.warnings:
        tell(f"WARNING, {job.name}: {sentence}")
    facts = {
        "safety": safety_sentence(job.plan),
        "units": units(job.plan),
        **job.facts,
        "inputs": inputs,
        **settings,
        **(dicom_facts(result.volume, job.plan, job.anonymize) if job.dicom else {}),
        "uncertainty": None if job.uncertainty is None else job.uncertainty.name,
        "computed": pipeline.execution.facts(pipeline.device),
        "warnings": result.warnings,
        "ct2mri": __version__,
    }
    volumes = [] if job.dicom else [(job.output, result.volume, short_description(job.plan))]
    sidecars = [(job.sidecar, job.content)]
    if job.uncertainty is not None and result.spread is not None:
        volumes.append((job.uncertainty, result.spread, short_spread_description(job.plan)))
        sidecars.append((sidecar_of(job.uncertainty), f"{_SPREAD_OF} {job.content}"))
    with ExitStack() as stack:
        # Files get their names in the reverse order, sidecars first. Wherever a process is killed, a volume
        # without a sidecar is then none of ours, and a sidecar without its volume is of work to do again.
        for path, volume, description in volumes:
            save_volume(volume, stack.enter_context(atomic_path(path)), description=description)
        for path, content in sidecars:
            write_json(stack.enter_context(atomic_path(path)), {"content": content, **facts})
        if job.dicom:
            with _set_aside(job.sidecar, job.output):
                save_result_series(result.volume, job.output, job.plan, facts, job.anonymize)
        for path, *_ in volumes:  # an old volume never lies beside a new sidecar
            path.unlink(missing_ok=True)
    written = f"{job.output} and {job.uncertainty}" if job.uncertainty is not None else f"{job.output}"
    if job.dicom:
        written += f", patient {facts['patient']}"
    synthetic = f"synthetic {job.plan.target_modality.upper()}"
    print(f"{written}: {synthetic} in {units(job.plan)}, {time.perf_counter() - start:.1f} s")
    return result


@contextmanager
def _set_aside(sidecar: Path, series: Path) -> Iterator[None]:
    """While the block replaces a series, an older sidecar is away: it never lies beside another series.

    A folder cannot take its place together with a file. It is back where the block left the series as it was.
    """
    before, aside = _inode(series), sidecar.with_name(f".0-partial-{sidecar.name}")  # which `sweep` knows
    there = sidecar.exists()
    if there:
        sidecar.replace(aside)
    try:
        yield
    finally:
        if there and _inode(series) == before:
            aside.replace(sidecar)
        elif there:
            aside.unlink()


def _inode(folder: Path) -> int | None:
    return folder.stat().st_ino if folder.exists() else None


def settings_of(pipeline: TranslationPipeline, options: TranslateOptions, plan: Plan) -> dict[str, Any]:
    """What a result depends on beside its source, as its sidecar tells it."""
    last = pipeline.stages[-1]
    return {
        "model": {"name": pipeline.name, "hash": pipeline.hash},
        "plan": plan.decisive,
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
