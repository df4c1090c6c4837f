"""`ct2mri stability`: how much a model's results change with what says nothing of the anatomy.

FOLDER/stability.json   every number, with its settings, and what they say of the model
FOLDER/stability.csv    a line a CT and change
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ct2mri import __version__
from ct2mri.data.cases import PreparedDataset
from ct2mri.data.io import load_volume
from ct2mri.data.replay import prepare_source, restore_to_input
from ct2mri.data.volume import Volume
from ct2mri.errors import RequestError
from ct2mri.evaluation.changes import SEED, Change, changes_for
from ct2mri.evaluation.matching import Role, find_cases
from ct2mri.evaluation.stability import (
    MEASURES,
    REPORT,
    SETTINGS,
    STABILITY_FORMAT_VERSION,
    Results,
    measure_change,
    read_stability,
    verdict,
)
from ct2mri.evaluation.stability_report import format_stability
from ct2mri.evaluation.statistics import SETTINGS as STATISTICS
from ct2mri.evaluation.statistics import summarise_patients
from ct2mri.files import atomic_path, require_place, write_json
from ct2mri.options.evaluation import StabilityOptions
from ct2mri.pipeline import TranslationPipeline, starter_folder
from ct2mri.pipeline_facts import FACTS
from ct2mri.translation_inputs import Inputs


def stability(options: StabilityOptions) -> None:
    """Translate each CT as it is and after each small change, compare, print a table, and write a report.

    CTs that the report holds already are not translated again.

    Raises:
        RequestError: there is no CT, none of the data set's split, a setting is not allowed, the report was
            made with other settings or of other CTs, or the model's card cannot be written.
    """
    if options.card and (options.model is None or not (Path(options.model) / FACTS).is_file()):
        raise RequestError(
            "--card writes into the model's folder, so --model must be one on this computer; "
            f"got {options.model or 'none'}."
        )
    require_place(options.output)
    pipeline = TranslationPipeline.from_pretrained(
        starter_folder() if options.model is None else options.model, options.device
    )
    pipeline.compute_with(
        max_memory=options.max_memory,
        precision=options.precision,
        batch_size=options.batch_size,
        compile=options.compile,
    )
    pipeline.check(num_inference_steps=options.steps, sampler=options.sampler, samples=options.samples)
    sources, patient_of = _sources(options, pipeline)
    changes = changes_for(pipeline.plan)
    request = _request(options, pipeline)
    done = _done(options.output / REPORT, request)
    report: dict[str, Any] = {}
    total = len(changes) + 1
    with tqdm(total=len(sources) * total, unit="translation", leave=False) as bar:
        for case_id, path in sources.items():
            inputs = Inputs(path)
            if case_id not in done:
                bar.set_description(case_id)
                facts = inputs.facts()
                done[case_id] = {
                    "inputs": facts,
                    **_case(pipeline, options, load_volume(path), changes, bar),
                }
            elif different := inputs.difference(done[case_id]["inputs"]):
                raise RequestError(
                    f"{options.output / REPORT} holds {case_id} as measured of {different}; "
                    "give another output folder."
                )
            else:
                bar.update(total)
            report = _report(pipeline, request, changes, done, patient_of)
            write_json(options.output / REPORT, report)
    _write_csv(options.output / "stability.csv", report)
    print(format_stability(report))
    for sentence in dict.fromkeys(sentence for case in report["cases"] for sentence in case["warnings"]):
        print(f"Warning: {sentence}")
    print(f"Written: {options.output / REPORT} and stability.csv")
    if options.card:
        pipeline.card["stability"] = _for_card(report)
        pipeline.write_card(Path(str(options.model)))
        print(f"The model's card says so too: {Path(str(options.model)) / 'README.md'}")


def _sources(
    options: StabilityOptions, pipeline: TranslationPipeline
) -> tuple[dict[str, Path], dict[str, str]]:
    """Case → its source's file, and case → patient where a data set tells."""
    if not options.input.exists():
        raise RequestError(f"There is no file or folder {options.input}; give a CT or a folder of CTs.")
    role: Role = "image" if pipeline.plan.source_units == "relative" else "source"
    if options.data is None:
        found = find_cases(options.input, role)
        return found, {case_id: case_id for case_id in found}
    dataset = PreparedDataset(options.data)
    wanted = {case_id: dataset.case(case_id).patient_id for case_id in dataset.case_ids(options.split)}
    found = find_cases(options.input, role, wanted)
    chosen = {case_id: path for case_id, path in found.items() if case_id in wanted}
    if not chosen:
        raise RequestError(
            f"{options.input} holds none of the {options.split} cases of {options.data} "
            f"({', '.join(sorted(wanted)[:3]) or 'there is none'}); give the folder that it was made from, "
            "or another --split."
        )
    return chosen, wanted


def _request(options: StabilityOptions, pipeline: TranslationPipeline) -> dict[str, Any]:
    """What the numbers depend on beside the sources."""
    last = pipeline.stages[-1]
    return {
        "model": {"name": pipeline.name, "hash": pipeline.hash},
        "plan": pipeline.plan.decisive,
        "num_inference_steps": last.num_inference_steps if options.steps is None else options.steps,
        "sampler": options.sampler or last.sampler,
        "seed": options.seed,
        "samples": options.samples,
        "precision": pipeline.execution.facts(pipeline.device)["precision"],
        "split": None if options.data is None else options.split,
    }


def _done(path: Path, request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Case → what was measured before.

    Raises:
        RequestError: it was measured with other settings.
    """
    if not path.exists():
        return {}
    before = read_stability(path)
    if different := [name for name, value in request.items() if before["request"].get(name) != value]:
        raise RequestError(
            f"{path} was made with another {different[0].replace('_', ' ')}; give another output folder."
        )
    return {case["case_id"]: case for case in before["cases"]}


def _case(
    pipeline: TranslationPipeline,
    options: StabilityOptions,
    source: Volume,
    changes: Sequence[Change],
    bar: Any,
) -> dict[str, Any]:
    """What each change does to the result of one source."""
    plan = pipeline.plan
    in_hu = plan.target_units == "HU"
    low, high = plan.target_range

    def result(volume: Volume, seed: int) -> tuple[NDArray[np.float32], list[str]]:
        translated = pipeline.translate(
            volume,
            num_inference_steps=options.steps,
            sampler=options.sampler,
            seed=seed,
            samples=options.samples,
        )
        bar.update()
        array = translated.volume.array
        if not in_hu:
            array = (array - np.float32(low)) / np.float32(high - low)
        return array, translated.warnings

    unchanged, warnings = result(source, options.seed)
    prepared = prepare_source(source, plan)
    body = restore_to_input(prepared.mask.astype(np.float32), prepared.grid, source, 0).array > 0.5
    results = Results(
        unchanged=unchanged,
        body=body,
        spacing=source.spacing,
        in_hu=in_hu,
        data_range=high - low if in_hu else 1.0,
        zero=plan.target_fill if in_hu else 0.0,
    )
    values, notes = {}, {}
    for change in changes:
        changed = change.apply(source)
        # Sample n has the seed + n, so the next seed that no sample had is behind the last one.
        seed = options.seed + options.samples if change.name == SEED else options.seed
        after = change.undo(source.with_array(result(changed, seed)[0])).array
        seen = change.seen(source.spatial_shape)
        difference = np.abs(change.undo(changed).array - source.array)[body & seen]
        source_change = None if change.name == SEED or not difference.size else float(difference.mean())
        values[change.name], notes[change.name] = measure_change(results, after, seen, source_change)
    return {
        "spacing": list(source.spacing),
        "voxels": int(body.sum()),
        "values": values,
        "notes": notes,
        "warnings": warnings,
    }


def _report(
    pipeline: TranslationPipeline,
    request: Mapping[str, Any],
    changes: Sequence[Change],
    done: Mapping[str, Mapping[str, Any]],
    patient_of: Mapping[str, str],
) -> dict[str, Any]:
    """What is written: docs/evaluation.md explains its fields."""
    plan = pipeline.plan
    low, high = plan.target_range
    patients = {case_id: patient_of.get(case_id, case_id) for case_id in done}
    words = {change.name: change.words for change in changes}
    summary = {
        name: {
            measure: summarise_patients(
                {case_id: case["values"][name][measure] for case_id, case in done.items()}, patients
            ).to_json()
            for measure in MEASURES
        }
        for name in words
    }
    return {
        "format_version": STABILITY_FORMAT_VERSION,
        "ct2mri": __version__,
        "request": dict(request),
        "in_hu": plan.target_units == "HU",
        "source_in_hu": plan.source_units == "HU",
        "data_range": high - low,
        "changes": words,
        "settings": SETTINGS,
        "statistics": {name: STATISTICS[name] for name in ("unit", "interval")},
        "cases": [
            {**case, "case_id": case_id, "patient_id": patients[case_id]} for case_id, case in done.items()
        ],
        "summary": summary,
        "verdict": verdict(summary, words),
    }


def _for_card(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's card keeps: the finding, and how it was made."""
    steps = report["request"]["num_inference_steps"]
    return {
        **report["verdict"],
        "altered": {report["changes"][name]: of["altered"]["mean"] for name, of in report["summary"].items()},
        "patients": len({case["patient_id"] for case in report["cases"]}),
        "num_inference_steps": steps,
        "samples": report["request"]["samples"],
        "rule": SETTINGS["rule"],
    }


def _write_csv(path: Path, report: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "patient_id", "change", *MEASURES, "notes"])
        writer.writerows(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[list[Any]]:
    """One line a case and change."""
    for case in report["cases"]:
        for name, values in case["values"].items():
            notes = "; ".join(f"{measure}: {note}" for measure, note in case["notes"][name].items())
            yield [case["case_id"], case["patient_id"], name, *(values[m] for m in MEASURES), notes]
