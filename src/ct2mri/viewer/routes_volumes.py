"""Volumes: their upload, their list, their voxels."""

import shutil
from contextlib import suppress
from typing import Annotated

import anyio
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from ct2mri.errors import RequestError
from ct2mri.viewer.failures import ApiError
from ct2mri.viewer.library import Entry
from ct2mri.viewer.records import DownloadFormat, ErrorRequest, UploadRecord, UploadRequest, VolumeRecord
from ct2mri.viewer.routes_looking import Id
from ct2mri.viewer.state import Viewer
from ct2mri.viewer.uploads import Incoming

_BUFFER = 2**20
_MOST_DRAINED = 256 * 2**20


class _LargeFile(FileResponse):
    """A file in pieces so large that sending is not held up by fetching the next one."""

    chunk_size = 4 * 2**20


def volume_routes(viewer: Viewer) -> APIRouter:
    """The addresses of volumes and uploads."""
    routes = APIRouter(prefix="/api")
    library, uploads = viewer.library, viewer.uploads

    @routes.get("/volumes", tags=["volumes"])
    def volumes() -> list[VolumeRecord]:
        """All volumes that can be looked at."""
        return [entry.record() for entry in library.entries()]

    @routes.get("/volumes/{volume_id}", tags=["volumes"])
    def volume(volume_id: Id) -> VolumeRecord:
        """One volume's facts."""
        return library[volume_id].record()

    @routes.get(
        "/volumes/{volume_id}/data.nii",
        tags=["volumes"],
        response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    def data(volume_id: Id) -> FileResponse:
        """One volume's voxels as NIfTI, 16 bit where they are whole numbers."""
        return _LargeFile(library[volume_id].data, media_type="application/octet-stream")

    @routes.get(
        "/volumes/{volume_id}/download",
        tags=["volumes"],
        response_class=FileResponse,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    def download(volume_id: Id, format: DownloadFormat = "nifti", anonymize: bool = False) -> FileResponse:
        """A volume as a file: NIfTI or NRRD; a job's result also as a zip of a DICOM series, or its sidecar.

        In DICOM, the patient is that of the source, unless `anonymize` leaves the patient out.
        """
        return _download(viewer, library[volume_id], format, anonymize)

    @routes.post("/volumes/{volume_id}/error", tags=["volumes"], status_code=202)
    def error(volume_id: Id, request: ErrorRequest) -> UploadRecord:
        """Make the error of a result against the truth: result − gain × truth inside the body."""
        return uploads.error(library[volume_id], library[request.target])

    @routes.delete("/volumes/{volume_id}", tags=["volumes"], status_code=204)
    def delete_volume(volume_id: Id) -> None:
        """Delete a volume and its files from the results folder; files that it was read from stay."""
        viewer.jobs.remove_volume(volume_id)

    @routes.post("/uploads", tags=["uploads"], status_code=201)
    def new_upload(request: UploadRequest) -> UploadRecord:
        """Begin an upload."""
        return uploads.new(request.name, request.kind)

    @routes.put(
        "/uploads/{upload_id}/files",
        tags=["uploads"],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def put_file(
        upload_id: Id, name: Annotated[str, Query(min_length=1, max_length=255)], request: Request
    ) -> UploadRecord:
        """Send a file, as the body; of its name only the suffix is used."""
        length = request.headers.get("content-length", "")
        try:
            incoming = await anyio.to_thread.run_sync(
                uploads.receive, upload_id, name, int(length) if length.isdecimal() else None
            )
        except (ApiError, RequestError):
            await _drain(request)
            raise
        try:
            await _store(request, incoming)
        except BaseException as error:
            uploads.drop(upload_id)
            if isinstance(error, ApiError):
                await _drain(request)
            raise
        finally:
            incoming.close()
        return uploads.record(upload_id)

    @routes.post("/uploads/{upload_id}/finish", tags=["uploads"], status_code=202)
    def finish(upload_id: Id) -> UploadRecord:
        """Read what was sent; the upload's state tells how that goes."""
        return uploads.finish(upload_id)

    @routes.get("/uploads/{upload_id}", tags=["uploads"])
    def upload(upload_id: Id) -> UploadRecord:
        """How an upload stands."""
        return uploads.record(upload_id)

    @routes.delete("/uploads/{upload_id}", tags=["uploads"], status_code=204)
    def delete_upload(upload_id: Id) -> None:
        """Drop an upload that is open, or forget one that has ended; its volume stays."""
        uploads.delete(upload_id)

    @routes.post("/demo", tags=["uploads"], status_code=202)
    def demo() -> UploadRecord:
        """Draw the phantom that the starter model has not seen: a CT and its true MR."""
        return uploads.demo()

    return routes


def _download(viewer: Viewer, entry: Entry, format: DownloadFormat, anonymize: bool) -> FileResponse:
    if format not in entry.record().downloads:
        raise RequestError(
            f"This volume cannot be had as {format}, which is for what jobs made; take nifti or nrrd."
        )
    name = f"ct2mri-{entry.stored.described.role}-{entry.id}"  # says nothing of the patient
    if format == "nifti":
        return _LargeFile(entry.data, filename=f"{name}.nii")
    if format == "sidecar":
        return FileResponse(entry.sidecar, filename=f"{name}.json", media_type="application/json")
    scratch = viewer.library.new_folder()
    try:
        if format == "nrrd":
            file = scratch / f"{name}.nrrd"
            viewer.uploads.export("write_nrrd", entry, file)
        else:
            file = scratch / f"{name}.zip"
            viewer.uploads.export("write_dicom_zip", entry, file, anonymize)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return FileResponse(
        file,
        filename=file.name,
        media_type="application/octet-stream",
        background=BackgroundTask(shutil.rmtree, scratch, ignore_errors=True),
    )


async def _store(request: Request, incoming: Incoming) -> None:
    buffer = bytearray()
    try:
        async for chunk in request.stream():
            buffer += chunk
            if len(buffer) >= _BUFFER:
                await anyio.to_thread.run_sync(incoming.write, bytes(buffer))
                buffer.clear()
        await anyio.to_thread.run_sync(incoming.write, bytes(buffer))
    except ClientDisconnect as error:
        raise ApiError("The file did not come whole; upload it again.") from error


async def _drain(request: Request) -> None:
    """Let what is still on its way come to nothing: a client hears no answer while it sends."""
    drained = 0
    with suppress(ClientDisconnect):
        async for chunk in request.stream():
            drained += len(chunk)
            if drained > _MOST_DRAINED:
                return
