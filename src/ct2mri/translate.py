"""`ct2mri translate`: a CT, a folder of CTs, or a prepared data set's held-out cases become MR volumes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ct2mri.data.cases import PreparedCase, PreparedDataset
from ct2mri.data.dicom_write import require_replaceable, straight_affine
from ct2mri.data.io import (
    find_volumes,
    is_volume_path,
    load_volume,
    nameless_warnings,
    require_writable,
    volume_stem,
)
from ct2mri.data.plan import MUST_AGREE, Plan
from ct2mri.data.replay import to_target_spread, to_target_units
from ct2mri.data.volume import Volume
from ct2mri.dicom_results import dicom_modality
from ct2mri.errors import RequestError
from ct2mri.files import require_place
from ct2mri.options.translation import TranslateOptions
from ct2mri.pipeline import (
    TranslationPipeline,
    TranslationResult,
    starter_folder,
)
from ct2mri.processes import place
from ct2mri.sidecars import read_sidecar
from ct2mri.stages import Execution, OnStep, check_batch_size
from ct2mri.translation_cohort import Share, do_all, share_of
from ct2mri.translation_inputs import Inputs, require_inputs_kept
from ct2mri.translation_jobs import Job, do_job, settings_of, sidecar_of

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
    _check_format(options)
    check_batch_size(options.batch_size)
    Execution.of(options.max_memory, options.precision)
    share = share_of(options)
    if options.data is not None:
        _translate_dataset(options, options.data, share)
    else:
        assert options.input is not None
        if not options.input.exists():
            raise RequestError(f"There is no file or folder {options.input}; give a CT or a folder of CTs.")
        if options.input.is_dir() and not is_volume_path(options.input):
            _translate_cohort(options, options.input, share)
        elif options.processes > 0 or share.count > 1:
            raise RequestError(
                f"{options.input} is one CT, which several processes cannot share; leave out --processes, "
                "--share and torchrun, or give a folder of CTs."
            )
        else:
            _translate_file(options, options.input)


def _check_format(options: TranslateOptions) -> None:
    if options.anonymize and options.format != "dicom":
        raise RequestError(
            "--anonymize leaves the patient out of DICOM results, and other formats name none; "
            "leave it out, or add --format dicom."
        )
    if options.format != "dicom":
        return
    output = options.output
    if output.is_file() or volume_stem(output) != output.name or not output.resolve().name:
        raise RequestError(f"--format dicom writes into a folder, and --output is {output}; name a folder.")
    place = output.resolve()
    if options.input is not None:
        given = options.input.resolve()
        if place == given or given in place.parents:
            raise RequestError(
                f"DICOM results in {output} would lie among the files of {options.input}; "
                "give an output folder elsewhere."
            )
    if options.uncertainty is not None and place in options.uncertainty.resolve().parents:
        raise RequestError(
            f"--uncertainty {options.uncertainty} would lie inside the DICOM results of {output}; "
            "give a place outside."
        )


def _check_file_name(options: TranslateOptions) -> None:
    output = options.output
    if output.is_dir() or not output.suffix:
        raise RequestError(
            f"--output {output} is no file name; give one with a suffix such as .nii.gz, "
            "or add --format dicom for a series in a folder."
        )
    require_writable(output)
    if options.format == "nifti" and not output.name.lower().endswith((".nii", ".nii.gz")):
        raise RequestError(
            f"--format nifti writes .nii or .nii.gz, and --output is {output}; change either of them."
        )


def _translate_file(options: TranslateOptions, source: Path) -> None:
    dicom = options.format == "dicom"
    if dicom:
        require_replaceable(options.output)
    else:
        _check_file_name(options)
    written = _written(options, options.output, options.uncertainty)
    if options.uncertainty is not None:
        require_writable(options.uncertainty)
        if options.uncertainty.resolve() == options.output.resolve():
            raise RequestError(f"--output and --uncertainty are both {options.output}; give two names.")
        if sidecar_of(options.uncertainty).resolve() == written[1].resolve():
            raise RequestError(
                f"--output {options.output} and --uncertainty {options.uncertainty} would both have the "
                f"sidecar {written[1]}; give names that differ in more than the suffix."
            )
    require_inputs_kept(written, [source, options.mask, options.plan])
    if not options.overwrite:
        for path in written:
            if path.exists() and not (path.is_dir() and not any(path.iterdir())):
                raise RequestError(f"{path} exists; give another name, or --overwrite to replace it.")
    require_place(options.output.parent)
    if options.uncertainty is not None:
        require_place(options.uncertainty.parent)
    mask = None if options.mask is None else load_volume(options.mask)
    ct = load_volume(source)
    pipeline = _load_pipeline(options)
    job = _job(
        options,
        source.name,
        (options.output, options.uncertainty),
        partial(_run, options, ct, mask),
        pipeline.plan,
        {"source": source.name},
        Inputs(source, options.mask),
    )
    do_job(job, pipeline, settings_of(pipeline, options, pipeline.plan))


def _job(
    options: TranslateOptions,
    name: str,
    outputs: tuple[Path, Path | None],
    run: Callable[[TranslationPipeline, OnStep], TranslationResult],
    plan: Plan,
    facts: dict[str, Any],
    inputs: Inputs,
) -> Job:
    # The name of a source's file may name the patient.
    facts = {} if options.anonymize else facts
    return Job(name, *outputs, run, plan, facts, inputs, options.format == "dicom", options.anonymize)


def _translate_cohort(options: TranslateOptions, folder: Path, share: Share) -> None:
    if options.mask is not None:
        raise RequestError("--mask is the body of one CT; for a folder of CTs, translate them one by one.")
    _require_folders(options, f"{folder} is a folder of CTs")
    for name, path in (("output", options.output), ("uncertainty", options.uncertainty)):
        if path is not None and path.resolve() == folder.resolve():  # of DICOM, more is refused already
            raise RequestError(f"Results would lie among their CTs in {folder}; give another --{name}.")
    sources = find_cts(folder, [path for path in (options.output, options.uncertainty) if path is not None])
    outputs = _outputs(options, sources, [*sources.values(), options.plan])
    pipeline = _load_pipeline(options)
    jobs = [
        _job(
            options,
            name,
            outputs[name],
            partial(_run_path, options, source),
            pipeline.plan,
            {"source": source.name},
            Inputs(source),
        )
        for name, source in sources.items()
    ]
    do_all(jobs, pipeline, settings_of(pipeline, options, pipeline.plan), options, share, load_pipeline)


def _translate_dataset(options: TranslateOptions, root: Path, share: Share) -> None:
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
    cases = [dataset.case(case_id) for case_id in case_ids]
    outputs = _outputs(options, case_ids, [*(case.folder for case in cases), root / "plan.json"])
    pipeline = _load_pipeline(options)
    different = [name for name in MUST_AGREE if getattr(dataset.plan, name) != getattr(pipeline.plan, name)]
    if different:
        name = different[0]
        raise RequestError(
            f"{root} was prepared with {name} {getattr(dataset.plan, name)}, the model was trained with "
            f"{getattr(pipeline.plan, name)}; prepare the data with the model's plan (--plan)."
        )

    jobs = [
        _job(
            options,
            case.case_id,
            outputs[case.case_id],
            partial(_run_case, options, case, dataset.plan),
            dataset.plan,
            {"case_id": case.case_id},
            Inputs(case.folder / "source.npy", case.folder / "mask.npy", case.affine),
        )
        for case in cases
    ]
    do_all(jobs, pipeline, settings_of(pipeline, options, dataset.plan), options, share, load_pipeline)


def find_cts(folder: Path, outputs: Sequence[Path] = ()) -> dict[str, Path]:
    """The CTs of a cohort by name: volumes right inside a folder, and `ct.*` in its subfolders.

    Args:
        folder: of the CTs.
        outputs: folders of results; where they lie in `folder`, an earlier result of `ct` is no CT.

    Raises:
        RequestError: there is none, or two would have results of one name.
    """
    found: dict[str, Path] = {}
    places = {output.resolve() for output in outputs}
    volumes = [(volume_stem(path), path) for path in find_volumes(folder)]
    for patient in sorted(path for path in folder.iterdir() if path.is_dir()):
        inside = [] if patient.name.startswith(".") else find_volumes(patient)
        if patient.resolve() in places:
            inside = [path for path in inside if not read_sidecar(sidecar_of(path))]
        if cts := [path for path in inside if volume_stem(path).lower() == "ct"]:
            # Where its images are DICOM, a patient's folder looks like a series itself.
            volumes = [(name, path) for name, path in volumes if path != patient]
            volumes += [(patient.name, path) for path in cts]
    for name, path in volumes:
        if name in found:
            raise RequestError(
                f"{found[name]} and {path} would both become {name}; rename or move one of them."
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
    for path in (options.output, options.uncertainty):
        if path is not None:
            require_place(path)


def _outputs(
    options: TranslateOptions, names: Iterable[str], inputs: Iterable[Path | None]
) -> dict[str, tuple[Path, Path | None]]:
    """Where results and their spreads go, by name; none over an input."""
    outputs: dict[str, tuple[Path, Path | None]] = {}
    for name in names:
        uncertainty = None if options.uncertainty is None else options.uncertainty / f"{name}{SUFFIX}"
        output = options.output / (name if options.format == "dicom" else f"{name}{SUFFIX}")
        outputs[name] = output, uncertainty
    written = (path for of_one in outputs.values() for path in _written(options, *of_one))
    require_inputs_kept(written, inputs)
    return outputs


def _written(options: TranslateOptions, output: Path, uncertainty: Path | None) -> list[Path]:
    """What a result and its spread take the place of, their sidecars among it."""
    written = [output, sidecar_of(output, options.format == "dicom")]
    return written if uncertainty is None else [*written, uncertainty, sidecar_of(uncertainty)]


def _load_pipeline(options: TranslateOptions) -> TranslationPipeline:
    """The model, to work with here, or only to check the request where other processes do the work."""
    return load_pipeline(replace(options, device="cpu") if options.processes > 0 else options)


def load_pipeline(options: TranslateOptions) -> TranslationPipeline:
    """The model, with the settings of the request checked before any volume is worked on."""
    pipeline = TranslationPipeline.from_pretrained(
        starter_folder() if options.model is None else options.model, options.device
    )
    if options.plan is not None:
        pipeline = pipeline.with_plan(Plan.read(options.plan))
    if options.format == "dicom":
        dicom_modality(pipeline.plan)
    pipeline.compute_with(
        max_memory=options.max_memory,
        precision=options.precision,
        batch_size=options.batch_size,
        compile=options.compile,
    )
    pipeline.execution.sharers = max(options.processes, place().local_world_size)
    pipeline.check(num_inference_steps=options.steps, sampler=options.sampler, samples=options.samples)
    return pipeline


def _run_path(
    options: TranslateOptions, source: Path, pipeline: TranslationPipeline, on_step: OnStep
) -> TranslationResult:
    try:
        ct = load_volume(source)
    except OSError as error:  # this file cannot be read, others may
        raise RequestError(f"{source} cannot be read ({error.strerror}).") from error
    return _run(options, ct, None, pipeline, on_step)


def _run(
    options: TranslateOptions,
    ct: Volume,
    mask: Volume | None,
    pipeline: TranslationPipeline,
    on_step: OnStep,
) -> TranslationResult:
    if options.format == "dicom":
        straight_affine(ct.grid)  # refuses what cannot be written before it is worked on
    if options.anonymize:
        ct.metadata["warnings"] = nameless_warnings(ct)
    result = pipeline.translate(
        ct,
        mask=mask,
        num_inference_steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        samples=options.samples,
        on_step=on_step,
    )
    if "dicom" in ct.metadata:
        result.volume.metadata["dicom"] = ct.metadata["dicom"]
    return result


def _run_case(
    options: TranslateOptions,
    case: PreparedCase,
    plan: Plan,
    pipeline: TranslationPipeline,
    on_step: OnStep,
) -> TranslationResult:
    """Translate a prepared case on its own grid, in the units of the data set's plan."""
    drawn = pipeline.sample(
        case.source,
        mask=case.mask,
        num_inference_steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        samples=options.samples,
        on_step=on_step,
    )

    def in_body(array: np.ndarray[Any, np.dtype[np.float32]], fill: float = plan.target_fill) -> Volume:
        return Volume(np.where(case.mask, array, np.float32(fill)), case.affine)

    warnings = pipeline.standing_warnings(drawn)
    if plan.spacing != pipeline.plan.spacing:
        warnings.append(
            f"Spacing: the data set was prepared at {plan.spacing} mm, the model's plan says "
            f"{pipeline.plan.spacing}."
        )
    return TranslationResult(
        volume=in_body(to_target_units(drawn.mean, plan)),
        draft=None if drawn.draft is None else in_body(to_target_units(drawn.draft, plan)),
        spread=None if drawn.spread is None else in_body(to_target_spread(drawn.spread, plan), 0),
        warnings=warnings,
    )
