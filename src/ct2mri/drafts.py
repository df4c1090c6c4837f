"""`ct2mri draft`: the 2D model's target volumes for every case of a data set, the input of the 3D stage.

    DATASET/draft.json                what all drafts were drawn with; there only while all of them agree
    DATASET/cases/CASE_ID/draft.npy   the draft
    DATASET/cases/CASE_ID/draft.json  what this one was drawn with

Several processes that were started together (torchrun, srun) share the cases out.

A case that the main model was trained on is drafted by a fold's model that has not seen its patient: drafts
of seen cases are better than those of new ones, and a 3D stage that is trained on them learns to copy.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ct2mri.data.cases import PreparedCase, PreparedDataset
from ct2mri.data.plan import MUST_AGREE, Plan
from ct2mri.devices import choose_device
from ct2mri.diffusion import SeededNoise
from ct2mri.errors import RequestError
from ct2mri.files import read_json, write_json
from ct2mri.models.pretrained import WEIGHTS
from ct2mri.options.translation import DraftOptions
from ct2mri.processes import group, place
from ct2mri.stage_files import file_hash
from ct2mri.stages import Execution, SlicesStage, check_batch_size, check_sampling

RECORD = "draft.json"


def draft(options: DraftOptions) -> None:
    """Draft every case of a data set; cases that were drafted with the same settings are left as they are.

    Raises:
        RequestError: there is no such data set or model, they do not fit together, or the model would draft
            cases that it was trained on.
    """
    device = choose_device(options.device)
    execution = Execution.of(options.max_memory, options.precision)
    check_batch_size(options.batch_size)
    dataset = PreparedDataset(options.data)
    run = options.model
    main_model = run / "best"
    main = _load(main_model, device, options, execution)
    trained = Plan.read(run / "plan.json")
    for name in MUST_AGREE:
        if (ours := getattr(dataset.plan, name)) != (theirs := getattr(trained, name)):
            raise RequestError(
                f"{dataset.root} was prepared with {name} {ours}, {run} was trained with {theirs}; "
                f"prepare the data with --plan {run / 'plan.json'}."
            )
    settings: dict[str, Any] = {
        "sampler": options.sampler or main.sampler,
        "num_inference_steps": main.num_inference_steps if options.steps is None else options.steps,
        "seed": options.seed,
        "orientations": list(main.orientations),
    }
    check_sampling(settings["sampler"], settings["num_inference_steps"], main.noise)

    cases = [dataset.case(case_id) for case_id in dataset.case_ids()]
    models = _models(run, trained, cases)
    drafts_seen = [
        case.case_id
        for case in cases
        if models[case.case_id] == main_model and case.patient_id in trained.split.train
    ]
    if drafts_seen and not options.allow_seen:
        raise RequestError(
            f"{len(drafts_seen)} cases, e.g. {drafts_seen[0]}, would be drafted by the model trained on them "
            "and the 3D stage would learn to copy such drafts: train the slices stage with --folds 2, or say "
            "--allow_seen."
        )
    hashes = {folder: file_hash(folder / WEIGHTS) for folder in {main_model, *models.values()}}
    records = {case.case_id: {"model": hashes[models[case.case_id]], **settings} for case in cases}
    here = place()
    todo = [
        case for case in cases[here.rank :: here.world_size] if not _is_drafted(case, records[case.case_id])
    ]
    facts = {
        "model": hashes[main_model],
        "fold_models": sorted(digest for folder, digest in hashes.items() if folder != main_model),
        **settings,
        "out_of_fold": not drafts_seen,
    }
    if todo or _read(dataset.root / RECORD) != facts:
        # While some cases are drawn anew they differ from the others, and none must be trained on.
        (dataset.root / RECORD).unlink(missing_ok=True)

    todo.sort(key=lambda case: str(models[case.case_id]))  # each model is loaded once
    stage, loaded = main, main_model
    hidden = not todo or here.rank > 0
    with group() as others, tqdm(todo, unit="case", desc="draft", disable=hidden) as bar:
        for case in bar:
            if models[case.case_id] != loaded:
                loaded = models[case.case_id]
                stage = _load(loaded, device, options, execution)
            drawn = stage.sample(
                {"source": torch.from_numpy(np.array(case.source))},
                SeededNoise(options.seed),
                lambda _, step, total: bar.set_postfix_str(f"step {step}/{total}"),
                sampler=settings["sampler"],
                num_inference_steps=settings["num_inference_steps"],
            )
            if not torch.isfinite(drawn).all():
                raise RequestError(
                    f"{loaded} drew numbers that are not finite for case {case.case_id}; its training went "
                    "wrong: train it again."
                )
            for sentence in execution.remarks:
                tqdm.write(f"{case.case_id}: {sentence}", file=sys.stderr)
            execution.remarks.clear()
            (case.folder / RECORD).unlink(missing_ok=True)
            case.write_draft(drawn.numpy())
            write_json(case.folder / RECORD, records[case.case_id])
        drafted = sum(others.gather(len(todo)))
    if here.rank > 0:
        return
    write_json(dataset.root / RECORD, facts)
    print(
        f"{dataset.root}: {drafted} cases drafted, {len(cases) - drafted} done before "
        f"({settings['sampler']}, {settings['num_inference_steps']} steps); "
        + (
            f"{len(drafts_seen)} by the model that was trained on them."
            if drafts_seen
            else "none by a model that was trained on it."
        )
    )


def _load(folder: Path, device: torch.device, options: DraftOptions, execution: Execution) -> SlicesStage:
    stage = SlicesStage.load_stage(folder, device)
    stage.execution, stage.batch_size = execution, options.batch_size
    stage.compile(options.compile)
    return stage


def _models(run: Path, trained: Plan, cases: Sequence[PreparedCase]) -> dict[str, Path]:
    """The stage folder that drafts each case: a fold's that has not seen its patient, or the main."""
    folds: list[list[str]] = (_read(run / "folds.json") or {"folds": []})["folds"]
    unseen_by = {patient: run / f"fold-{number}" for number, fold in enumerate(folds) for patient in fold}
    models = {}
    for case in cases:
        fold = unseen_by.get(case.patient_id) if case.patient_id in trained.split.train else None
        models[case.case_id] = (run if fold is None else fold) / "best"
    for folder in sorted(set(models.values())):
        if not (folder / WEIGHTS).is_file():
            raise RequestError(
                f"{folder.parent} is not trained yet; the same `train slices` command goes on with it."
            )
    return models


def _is_drafted(case: PreparedCase, record: dict[str, Any]) -> bool:
    return case.draft is not None and _read(case.folder / RECORD) == record


def _read(path: Path) -> Any:
    """A JSON file's content; None where there is none."""
    return read_json(path) if path.is_file() else None
