"""What there is to look at: status, models, runs, reports."""

from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from ct2mri.viewer.records import ID_PATTERN, ModelRecord, ReportRecord, RunRecord, RunSummary, Status
from ct2mri.viewer.security import REPORT_POLICY
from ct2mri.viewer.state import Viewer

Id = Annotated[str, PathParameter(pattern=ID_PATTERN)]


def looking_routes(viewer: Viewer) -> APIRouter:
    """The addresses of what can be looked at, volumes aside."""
    routes = APIRouter(prefix="/api")

    @routes.get("/status", tags=["viewer"])
    def status() -> Status:
        """How the viewer stands, and what it was started with."""
        return viewer.status()

    @routes.get("/models", tags=["jobs"])
    def models() -> list[ModelRecord]:
        """The models that jobs can use, the suggested one first."""
        return viewer.models.records()

    @routes.get("/runs", tags=["runs"])
    def runs() -> list[RunSummary]:
        """The training runs that the viewer was given."""
        return viewer.runs.summaries()

    @routes.get("/runs/{run_id}", tags=["runs"])
    def run(run_id: Id) -> RunRecord:
        """Curves and pictures of a run, as its files are now."""
        return viewer.runs.record(run_id)

    @routes.get(
        "/runs/{run_id}/pictures/{name}",
        tags=["runs"],
        response_class=FileResponse,
        responses={200: {"content": {"image/png": {}}}},
    )
    def picture(run_id: Id, name: str) -> FileResponse:
        """A validation picture."""
        return FileResponse(viewer.runs.picture(run_id, name), media_type="image/png")

    @routes.get("/reports", tags=["reports"])
    def reports() -> list[ReportRecord]:
        """The pages of `evaluate`, `compare` and `check` that the viewer was given."""
        return viewer.reports.records()

    @routes.get(
        "/reports/{report_id}",
        tags=["reports"],
        response_class=FileResponse,
        responses={200: {"content": {"text/html": {}}}},
    )
    def report(report_id: Id) -> FileResponse:
        """Such a page, shut off from the viewer and from any network."""
        return FileResponse(
            viewer.reports.page(report_id),
            media_type="text/html; charset=utf-8",
            headers={"Content-Security-Policy": REPORT_POLICY},
        )

    return routes
