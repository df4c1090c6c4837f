"""Translations: asking for one, following it, cancelling it."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from ct2mri.viewer.failures import NotThereError
from ct2mri.viewer.jobs import ENDED, Jobs
from ct2mri.viewer.records import JobRecord, JobRequest
from ct2mri.viewer.routes_looking import Id
from ct2mri.viewer.state import Viewer

_HEARTBEAT = 15.0
_PAUSE = 0.1
"""Seconds between two events of a job at least."""


def job_routes(viewer: Viewer) -> APIRouter:
    """The addresses of jobs."""
    routes = APIRouter(prefix="/api/jobs", tags=["jobs"])
    jobs = viewer.jobs

    @routes.post("", status_code=201)
    def submit(request: JobRequest) -> JobRecord:
        """Translate a volume, as soon as the device is free."""
        return jobs.submit(request)

    @routes.get("")
    def all_jobs() -> list[JobRecord]:
        """All jobs, the oldest first; those of earlier times too."""
        return jobs.records()

    @routes.get("/{job_id}")
    def one_job(job_id: Id) -> JobRecord:
        """What a job has come to."""
        return jobs.record(job_id)

    @routes.delete("/{job_id}", status_code=202)
    def cancel(job_id: Id) -> JobRecord:
        """Cancel a job; one that has ended is forgotten, and the volumes that it made are deleted."""
        record = jobs.record(job_id)
        if record.state in ENDED:
            jobs.forget(job_id)
            return record
        return jobs.cancel(job_id)

    @routes.get(
        "/{job_id}/events",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"text/event-stream": {}},
                "description": "a `job` event at each change, until it ends",
            }
        },
    )
    async def events(job_id: Id) -> StreamingResponse:
        """Follow a job: its record at each change and every 15 seconds, until it has ended."""
        jobs.record(job_id)
        return StreamingResponse(_events(jobs, job_id), media_type="text/event-stream")

    return routes


async def _events(jobs: Jobs, job_id: str) -> AsyncIterator[str]:
    try:
        with jobs.watching(job_id) as changed:
            while jobs.watched:
                changed.clear()
                record = jobs.record(job_id)
                yield f"event: job\ndata: {record.model_dump_json()}\n\n"
                if record.state in ENDED:
                    return
                await asyncio.sleep(_PAUSE)
                try:
                    await asyncio.wait_for(changed.wait(), _HEARTBEAT)
                except TimeoutError:
                    continue
    except NotThereError:  # it was forgotten
        return
