"""Translating many volumes: shared out among processes, each volume by one of them, and none twice.

Which process does which volume depends on their names and the number of processes alone, so that processes
need not agree on anything while they work, on whatever machine they are. What a process that died leaves
undone is done by the next run of the same command.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tqdm import tqdm

from ct2mri import __version__
from ct2mri.data.workers import over_cases
from ct2mri.errors import RequestError
from ct2mri.files import write_json
from ct2mri.options.translation import TranslateOptions
from ct2mri.pipeline import TranslationPipeline
from ct2mri.processes import cores, group, place
from ct2mri.translation_jobs import Job, do_job, tell

SUMMARY = "translate-summary"


@dataclass(frozen=True)
class Share:
    """One of `count` shares of the work; `number` counts from 0."""

    number: int
    count: int
    together: bool
    """Whether the others were started with this one, and wait for it in the end."""


def share_of(options: TranslateOptions) -> Share:
    """Which share of several volumes this process has to do.

    Raises:
        RequestError: `--share` is no share, or there are two ways of sharing at once.
    """
    here = place()
    if options.processes < 0:
        raise RequestError(
            f"--processes is {options.processes}; give the number of processes, 0 for none beside this."
        )
    if here.world_size > 1:
        if options.processes > 0 or options.share is not None:
            raise RequestError(
                f"torchrun or srun started {here.world_size} processes, which share the CTs among "
                "themselves; leave out --processes and --share."
            )
        return Share(here.rank, here.world_size, together=True)
    if options.share is None:
        return Share(0, 1, together=False)
    found = re.fullmatch(r"(\d+)/(\d+)", options.share)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise RequestError(
            f"--share is I/N, the I-th of N shares with I from 1 to N, e.g. 3/16, got {options.share}; an "
            "array of SLURM that counts from 1 (--array=1-16) gives it as --share $SLURM_ARRAY_TASK_ID/16."
        )
    return Share(int(found[1]) - 1, int(found[2]), together=False)


def do_all(
    jobs: Sequence[Job],
    pipeline: TranslationPipeline,
    settings: dict[str, Any],
    options: TranslateOptions,
    share: Share,
    load: Callable[[TranslateOptions], TranslationPipeline],
) -> None:
    """Do what is not done yet of this process's share; a job that fails does not stop the others.

    Args:
        jobs: all of them, in the same order in each process.
        pipeline: what to do them with in this process.
        settings: of `settings_of`.
        options: of the request.
        share: which of the jobs are this process's own.
        load: makes the pipeline in another process.

    Raises:
        RequestError: some failed.
        ProcessDiedError: one of the processes that were started together ended early.
    """
    if not share.together:
        name = SUMMARY if share.count == 1 else f"{SUMMARY}-{share.number + 1}-of-{share.count}"
        _conclude(_do_share(jobs, pipeline, settings, options, share, load), options, f"{name}.json")
        return
    with group() as others:
        found = others.gather(_do_share(jobs, pipeline, settings, options, share, load))
    done = Done(
        translated=sum(each.translated for each in found),
        done_before=sum(each.done_before for each in found),
        failed={name: why for each in found for name, why in each.failed.items()},
    )
    _conclude(done, options, f"{SUMMARY}.json", speaks=share.number == 0)


@dataclass(frozen=True)
class Done:
    """How many jobs were done now and before, and why others could not be, by name."""

    translated: int
    done_before: int
    failed: dict[str, str]


def _conclude(done: Done, options: TranslateOptions, name: str, *, speaks: bool = True) -> None:
    summary = options.output / name
    failed = done.failed
    if speaks:
        write_json(
            summary,
            {
                "translated": done.translated,
                "done_before": done.done_before,
                "failed": failed,
                "ct2mri": __version__,
            },
        )
        print(
            f"{done.translated} translated, {done.done_before} done before, {len(failed)} failed; "
            f"{options.output}"
        )
    if failed:
        raise RequestError(
            f"{len(failed)} of {done.translated + done.done_before + len(failed)} could not be translated "
            f"({', '.join(failed)}): {summary} tells why, and the same command goes on with them."
        )


def _do_share(
    jobs: Sequence[Job],
    pipeline: TranslationPipeline,
    settings: dict[str, Any],
    options: TranslateOptions,
    share: Share,
    load: Callable[[TranslateOptions], TranslationPipeline],
) -> Done:
    shown = not share.together or share.number == 0
    mine = jobs[share.number :: share.count]
    # Sources that were moved are read to tell that they are the same.
    looked_at = tqdm(mine, desc="look what is done", unit="volume", leave=False, delay=2, disable=not shown)
    todo = [job for job in looked_at if options.overwrite or not job.is_done(settings)]
    failed: dict[str, str] = {}
    for job in todo:
        job.sweep()
    if options.processes > 0:
        work = _Work(load, options, settings)
        for job, result in over_cases(work, todo, options.processes, "translate", "--processes"):
            if isinstance(result, RequestError):
                failed[job.name] = str(result)
                tell(f"FAILED {job.name}: {result}")
    else:
        for number, job in enumerate(todo):
            try:
                _do(job, pipeline, settings, f"{number + 1}/{len(todo)} ", bar=shown)
            except RequestError as error:
                failed[job.name] = str(error)
                tell(f"FAILED {job.name}: {error}")
    return Done(len(todo) - len(failed), len(mine) - len(todo), failed)


def _do(
    job: Job, pipeline: TranslationPipeline, settings: dict[str, Any], number: str = "", *, bar: bool
) -> None:
    """Do a job; what may befall one volume and not the others becomes a `RequestError`."""
    try:
        do_job(job, pipeline, settings, number, bar=bar)
    except (RuntimeError, MemoryError) as error:
        raise RequestError(" ".join(str(error).split()) or type(error).__name__) from error


@dataclass
class _Work:
    """What a worker process does with its jobs; unpickled once there, so that it loads the pipeline once.

    Attributes:
        load: makes the pipeline.
        options: of the request.
        settings: of `settings_of`.
    """

    load: Callable[[TranslateOptions], TranslationPipeline]
    options: TranslateOptions
    settings: dict[str, Any]

    @cached_property
    def pipeline(self) -> TranslationPipeline:
        """What the jobs are done with; the workers share the cores."""
        torch.set_num_threads(max(1, cores() // self.options.processes))
        return self.load(self.options)

    def __call__(self, job: Job) -> None:
        _do(job, self.pipeline, self.settings, bar=False)
