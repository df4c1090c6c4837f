"""Writing kept volumes in other formats, for download; called in a process of its own."""

import json
import zipfile
from pathlib import Path
from typing import Any

from ct2mri.data.io import save_volume
from ct2mri.data.plan import Plan
from ct2mri.dicom_results import dicom_facts, save_result_series
from ct2mri.files import read_json
from ct2mri.marking import short_description, short_spread_description
from ct2mri.viewer.reading import load_kept
from ct2mri.viewer.stored import StoredVolume

PLAN = "plan.json"


def write_nrrd(folder: Path, base: str, output: Path) -> None:
    """Write a kept volume as NRRD; a synthetic one is marked as such."""
    stored = StoredVolume.of(folder, base)
    description = None
    if stored.described.job is not None:
        plan = Plan.read(folder / PLAN)
        spread = stored.described.role == "spread"
        description = short_spread_description(plan) if spread else short_description(plan)
    save_volume(load_kept(folder, base), output, description)


def write_dicom_zip(folder: Path, base: str, output: Path, anonymize: bool) -> None:
    """Write a job's result as `ct2mri translate --format dicom` does: a zip of the series and its sidecar.

    Raises:
        RequestError: DICOM is not written for its modality, or cannot hold its grid.
    """
    volume, plan = load_kept(folder, base), Plan.read(folder / PLAN)
    sidecar: dict[str, Any] = read_json(folder / f"{base}.json")
    facts = {
        **sidecar,
        **dicom_facts(volume, plan, anonymize),
        "dicom": {"anonymized": anonymize},
        "uncertainty": None,
    }
    if anonymize:
        del facts["source"]  # the name of a source's file may name the patient
    series = output.with_name("synthetic")
    save_result_series(volume, series, plan, facts, anonymize)
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(series.iterdir()):
            archive.write(path, f"{series.name}/{path.name}")
        archive.writestr(f"{series.name}.json", json.dumps(facts, indent=2) + "\n")
