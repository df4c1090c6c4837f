"""The pages that `evaluate`, `compare` and `check` wrote, to look at beside the volumes."""

import hashlib
import os
from pathlib import Path
from typing import Literal

from ct2mri.viewer.failures import NotThereError
from ct2mri.viewer.records import ReportRecord

PAGES: dict[str, Literal["evaluation", "comparison", "check"]] = {
    "evaluation.html": "evaluation",
    "comparison.html": "comparison",
    "check.html": "check",
}


class Reports:
    """The pages, by identifier.

    Args:
        pages: their files.
    """

    def __init__(self, pages: list[Path]) -> None:
        self._pages = {hashlib.sha256(os.fsencode(page.resolve())).hexdigest()[:16]: page for page in pages}

    def records(self) -> list[ReportRecord]:
        """What the API tells of them."""
        return [
            ReportRecord(
                id=key, name=page.parent.resolve().name, kind=PAGES[page.name], url=f"/api/reports/{key}"
            )
            for key, page in self._pages.items()
        ]

    def page(self, report_id: str) -> Path:
        """The file of a page.

        Raises:
            NotThereError: there is none.
        """
        page = self._pages.get(report_id)
        if page is None or not page.is_file():
            raise NotThereError("There is no such report; /api/reports lists those there are.")
        return page
