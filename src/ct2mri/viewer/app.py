"""The viewer's web application: what is asked for under which address."""

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ct2mri import __version__
from ct2mri.errors import RequestError
from ct2mri.viewer.api_page import api_page
from ct2mri.viewer.failures import ApiError
from ct2mri.viewer.records import Failure
from ct2mri.viewer.routes_jobs import job_routes
from ct2mri.viewer.routes_looking import looking_routes
from ct2mri.viewer.routes_volumes import volume_routes
from ct2mri.viewer.state import Viewer

STATIC = Path(__file__).parent / "static"

_DESCRIPTION = (
    "Volumes, translations and their progress. Each call brings the token, as the page's cookie or as "
    '`Authorization: Bearer TOKEN`; each error is `{"detail": "one sentence"}`.'
)
_ASK_AGAIN = "no-cache"
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": words}
    for status, words in {
        401: "no token",
        403: "from another site",
        404: "not there",
        409: "not as things stand",
        413: "too large",
        421: "another host's name",
        422: "not allowed as it was asked",
        429: "too many at once",
        507: "the disk is full",
    }.items()
}


class _Parts(StaticFiles):
    """The parts of the page; a browser asks each time whether they are still the same."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        """A part, or that it has not changed."""
        response = super().file_response(*arguments, **named)
        response.headers["Cache-Control"] = _ASK_AGAIN
        return response


def create_app(viewer: Viewer, on_start: Callable[[], None]) -> FastAPI:
    """The application around what the viewer knows; who may use it is checked outside (`security.Gate`).

    Args:
        viewer: what it serves.
        on_start: called when it is ready to answer.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        viewer.start()
        on_start()
        yield
        viewer.close()

    app = FastAPI(
        title="ct2mri viewer",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=_FAILURES,
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OSError, _system_error)
    app.add_exception_handler(Exception, _unforeseen)
    app.include_router(looking_routes(viewer))
    app.include_router(volume_routes(viewer))
    app.include_router(job_routes(viewer))

    @app.get("/api/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(
            STATIC / "index.html",
            media_type="text/html; charset=utf-8",
            headers={"Cache-Control": _ASK_AGAIN},
        )

    app.mount("/static", _Parts(directory=STATIC), name="static")
    return app


def _failure(status: int, sentence: str) -> JSONResponse:
    # What is quoted of a request may be no text that can be sent.
    return JSONResponse({"detail": sentence.encode("utf-8", "replace").decode()}, status)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _failure(error.status, str(error))


async def _request_error(_: Request, error: Exception) -> JSONResponse:
    return _failure(422, " ".join(str(error).split()))


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return _failure(422, f"{where or 'The body'}: {first['msg']}; /api/docs tells what is allowed.")


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    known = {404: "There is nothing under this address; /api/docs tells what there is."}
    response = _failure(error.status_code, known.get(error.status_code, f"{error.detail}."))
    response.headers.update(error.headers or {})
    return response


async def _system_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _failure(507, "The disk of the results folder is full; free some space.")
    raise error


async def _unforeseen(_: Request, error: Exception) -> JSONResponse:
    return _failure(500, f"An unforeseen {type(error).__name__} happened; the terminal tells more.")
