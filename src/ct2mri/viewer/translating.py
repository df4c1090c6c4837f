"""Translating kept volumes, in the worker process: as `ct2mri translate` does, and kept for the viewer."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ct2mri.data.io import save_volume
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.files import read_json, write_json
from ct2mri.marking import short_description
from ct2mri.options.translation import TranslateOptions
from ct2mri.pipeline import TranslationPipeline, TranslationResult
from ct2mri.stages import OnStep
from ct2mri.translation_jobs import Job, do_job, settings_of
from ct2mri.viewer.difference import write_error
from ct2mri.viewer.exporting import PLAN
from ct2mri.viewer.given import made_of
from ct2mri.viewer.reading import describe, load_kept
from ct2mri.viewer.stored import Described, VolumeRole
from ct2mri.viewer.worker import LOADING, PREPARING, WRITING, Task, Tell


class Translator:
    """Does tasks one after another; keeps the model of the last one."""

    def __init__(self) -> None:
        self._model: tuple[Path, str] | None = None
        self._pipeline: TranslationPipeline | None = None

    def forget(self) -> None:
        """Let go of the model, and of its memory."""
        self._model = self._pipeline = None

    def translate(self, task: Task, tell: Tell, on_device: Callable[[str], None]) -> list[str]:
        """Translate, and write result, draft and spread with their sidecars into the task's folder.

        Returns:
            What the user should know of the result.

        Raises:
            RequestError: the volume does not fit the model, or a setting is not allowed.
        """
        tell(LOADING, 0, 0)
        pipeline = self._loaded(task)
        on_device(str(pipeline.device))
        tell(PREPARING, 0, 0)
        source = load_kept(*task.source)
        mask = None if task.mask is None else load_kept(*task.mask)
        options = TranslateOptions(
            output=task.output / "result.nii",
            uncertainty=task.output / "spread.nii" if task.samples > 1 else None,
            steps=task.steps,
            sampler=task.sampler,
            seed=task.seed,
            samples=task.samples,
            device=task.device,
        )

        def run(pipeline: TranslationPipeline, _: OnStep) -> TranslationResult:
            result = pipeline.translate(
                source,
                mask=mask,
                num_inference_steps=task.steps,
                sampler=task.sampler,
                seed=task.seed,
                samples=task.samples,
                on_step=tell,
            )
            if "dicom" in source.metadata:
                result.volume.metadata["dicom"] = source.metadata["dicom"]
            tell(WRITING, 0, 0)
            return result

        facts = {"source": task.source_name}
        job = Job(task.job, options.output, options.uncertainty, run, pipeline.plan, facts)
        result = do_job(job, pipeline, settings_of(pipeline, options, pipeline.plan), bar=False)
        self._keep(task, result, pipeline)
        return result.warnings

    def _loaded(self, task: Task) -> TranslationPipeline:
        if self._pipeline is None or self._model != (task.model, task.device):
            self.forget()  # before the next one is loaded: two may not fit
            self._pipeline = TranslationPipeline.from_pretrained(task.model, task.device)
            self._model = (task.model, task.device)
        return self._pipeline

    def _keep(self, task: Task, result: TranslationResult, pipeline: TranslationPipeline) -> None:
        """What the viewer needs beside what `ct2mri translate` writes."""
        plan, folder = pipeline.plan, task.output
        plan.write(folder / PLAN)
        facts: dict[str, Any] = read_json(folder / "result.json")
        target = plan.target_modality.upper()
        if result.draft is not None:
            content = {**facts, "content": f"draft of a {facts['content']}", "uncertainty": None}
            write_json(folder / "draft.json", content)
            save_volume(result.draft, folder / "draft.nii", description=short_description(plan))
        made = made_of(facts)
        volumes: list[tuple[str, VolumeRole, str, Volume | None]] = [
            ("draft", "draft", f"Draft of the synthetic {target}", result.draft),
            ("spread", "spread", f"Spread of the synthetic {target} over samples", result.spread),
            ("result", "result", f"Synthetic {target}", result.volume),
        ]
        for base, role, name, volume in volumes:
            if volume is not None:
                described = Described(
                    name=name,
                    group=task.group,
                    role=role,
                    modality=target,
                    units=facts["units"],
                    job=task.job,
                    made=made,
                )
                describe(volume, folder, base, described)
        if task.truth is not None:
            described = Described(
                name=f"Error of the synthetic {target}",
                group=task.group,
                role="error",
                job=task.job,
                made=made,
            )
            with suppress(RequestError):  # without it, the result is as good
                in_hu = plan.target_units == "HU"
                write_error(result.volume, load_kept(*task.truth), in_hu, folder, described)
