"""The tables in the overview folders of the SynthRAD data sets: how each patient's images were acquired.

An overview folder (`overview`, `overviews`) lies beside the patients' folders and holds workbooks
(`1_brain_train.xlsx`, `1_AB_train_parameters.xlsx`) with one sheet a modality (`CT`, `MR` or `MRI`, `CBCT`),
one row a patient under the heading `ID`, and columns named by DICOM keywords. What the headers did not tell
reads `empty` or `-`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydicom

from ct2mri.data.dicom_facts import FACT_KEYWORDS, series_facts
from ct2mri.data.layouts.cases import visible_folders
from ct2mri.data.layouts.naming import same_modality

_MISSING = {"", "-", "empty", "none", "nan", "n/a"}
_KEYWORDS = ("SeriesDescription", *FACT_KEYWORDS)
_MODALITIES = ("ct", "mr", "cbct")
# What a row tells of a scan; the rest of `series_facts` is told by no column.
_TOLD = ("kvp", "manufacturer", "slice_thickness", "mr_contrast")

Tables = dict[str, dict[str, dict[str, Any]]]
"""Patient → modality (`ct`, `mr`, `cbct`) → facts, as `DicomSeries.facts` has them."""


def read_tables(patients: Iterable[Path]) -> tuple[Tables, list[str]]:
    """Read the tables that lie beside some patients' folders.

    Args:
        patients: the patients' folders.

    Returns:
        What they tell, and a sentence for each workbook that cannot be read.
    """
    tables: Tables = defaultdict(dict)
    problems = []
    for folder in sorted({patient.parent for patient in patients}):
        overviews = [sub for sub in visible_folders(folder) if sub.name.lower().startswith("overview")]
        for path in sorted(file for overview in overviews for file in overview.glob("[!.~]*.xlsx")):
            try:
                sheets = _sheets(path)
            except Exception as error:  # openpyxl raises whatever its parsing stumbles over
                problems.append(
                    f"The table {path.name} cannot be read ({type(error).__name__}), so what it tells of the "
                    "acquisitions is not known."
                )
                continue
            for modality, rows in sheets.items():
                for row in rows:
                    if (patient := row.pop("ID", None)) is not None:
                        tables[patient][modality] = _facts(row, modality)
    return dict(tables), problems


def _sheets(path: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of a workbook's sheets by modality: column → what stands there, without empty cells."""
    import openpyxl

    sheets = {}
    workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        for sheet in workbook.worksheets:
            modality = next((word for word in _MODALITIES if same_modality(sheet.title.strip(), word)), None)
            if modality is None:
                continue
            lines = sheet.iter_rows(values_only=True)
            headings = [str(cell).strip() for cell in next(lines, ())]
            sheets[modality] = [
                {
                    heading: text
                    for heading, cell in zip(headings, line, strict=False)
                    if (text := str(cell).strip()).lower() not in _MISSING
                }
                for line in lines
            ]
    finally:
        workbook.close()
    return sheets


def _facts(row: dict[str, str], modality: str) -> dict[str, Any]:
    """What a row tells, read as the header that it was copied from."""
    header = pydicom.Dataset()
    header.Modality = "MR" if modality == "mr" else "CT"
    with pydicom.config.disable_value_validation():
        for keyword in _KEYWORDS:
            if keyword in row:
                # Values of several parts were written as Python shows them: ['GR', 'IR'].
                parts = re.findall(r"'([^']*)'", row[keyword]) or [row[keyword]]
                try:
                    setattr(header, keyword, parts if len(parts) > 1 else parts[0])
                except (TypeError, ValueError, AttributeError):  # no value of the keyword's kind
                    continue
        facts = series_facts(header)
    return {key: facts[key] for key in _TOLD if facts[key] is not None}
