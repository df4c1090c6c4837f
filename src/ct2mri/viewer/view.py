"""`ct2mri view`: look at volumes, translate and compare them in the browser."""

import logging
import os
import socket
import sys
import webbrowser
from contextlib import ExitStack, suppress
from pathlib import Path

import uvicorn
from filelock import FileLock, Timeout

from ct2mri.errors import RequestError
from ct2mri.hub import resolve_pretrained
from ct2mri.options.evaluation import ViewOptions
from ct2mri.viewer.app import create_app
from ct2mri.viewer.archives import SUFFIXES
from ct2mri.viewer.door import door
from ct2mri.viewer.given import recognise
from ct2mri.viewer.jobs import Jobs
from ct2mri.viewer.library import Library
from ct2mri.viewer.models import Models, starter
from ct2mri.viewer.records import Limits
from ct2mri.viewer.reports import Reports
from ct2mri.viewer.runs import Runs
from ct2mri.viewer.security import Gate, is_loopback, new_token
from ct2mri.viewer.state import InitialVolumes, Viewer
from ct2mri.viewer.uploads import Uploads

SHORTEST_TOKEN = 16
_MOST_VOXELS = 2**29  # 512 × 512 × 2048
_MOST_FILES = 10_000
_READING_SECONDS = 300.0
_LEAST_READING_BYTES, _MOST_READING_BYTES = 4 * 2**30, 8 * 2**30


def view(options: ViewOptions) -> None:
    """Serve the page until it is interrupted.

    Raises:
        RequestError: what was given cannot be shown, the address cannot be listened on, the results folder is
            in use, or others could reach the server without a token.
    """
    token = _token(options)
    given = recognise(options.inputs or [])
    models = Models([starter()] if not options.models else [resolve_pretrained(m) for m in options.models])
    lock = _lock(options.results)
    with lock, _listen(options.host, options.port) as listening:
        library = Library(options.results)
        limits = Limits(
            upload_bytes=int(options.upload_limit * 2**30),
            files=_MOST_FILES,
            voxels=_MOST_VOXELS,
            unpacked_bytes=int(options.upload_limit * 2**30),
            reading_seconds=_READING_SECONDS,
            suffixes=list(SUFFIXES),
        )
        uploads = Uploads(library, limits, _reading_memory())
        viewer = Viewer(
            library=library,
            uploads=uploads,
            models=models,
            jobs=Jobs(library, models, options.device),
            runs=Runs(given.runs),
            reports=Reports(given.reports),
            initial=InitialVolumes(given, library, uploads),
            limits=limits,
            results=options.results,
        )
        serve(viewer, listening, options.host, token, not options.no_browser)


def _reading_memory() -> int:
    """Bytes that a reading process may take: half of the machine's, within bounds."""
    if sys.platform == "win32":
        return _MOST_READING_BYTES
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(max(there // 2, _LEAST_READING_BYTES), _MOST_READING_BYTES)


def _token(options: ViewOptions) -> str:
    if options.token is None:
        if not is_loopback(options.host):
            raise RequestError(
                f"--host {options.host} lets other machines reach the viewer, its volumes and its results, "
                "unencrypted; give a --token that they must bring, or leave out --host."
            )
        return new_token()
    plain = options.token.isascii() and options.token.replace("-", "").replace("_", "").isalnum()
    if len(options.token) < SHORTEST_TOKEN or not plain:
        raise RequestError(
            f"--token is a secret of {SHORTEST_TOKEN} characters or more, letters, digits, - and _; "
            "give a longer or plainer one."
        )
    return options.token


def _lock(results: Path) -> FileLock:
    if not results.exists():
        results.mkdir(parents=True, mode=0o700)  # patients' data are not for other users of the machine
    lock = FileLock(results / ".viewer-lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(
            f"Another viewer works in {results}; use that one, or give another folder with --results."
        ) from error
    return lock


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"Nothing can listen on {host}, port {port} ({getattr(error, 'strerror', None) or error}); "
            "give another --host or --port (0: a free one)."
        ) from error
    listening.listen(128)
    return listening


class _Server(uvicorn.Server):
    """Ends the answers that follow jobs before it waits for answers to end."""

    def __init__(self, config: uvicorn.Config, viewer: Viewer) -> None:
        super().__init__(config)
        self._viewer = viewer

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        self._viewer.jobs.end_watching()
        await super().shutdown(sockets)


def serve(viewer: Viewer, listening: socket.socket, host: str, token: str, browser: bool) -> None:
    """Answer on a socket until interrupted."""
    port = int(listening.getsockname()[1])
    hosts = {host.lower()}
    if is_loopback(host):
        hosts |= {"127.0.0.1", "localhost", "::1"}
    everywhere = host in ("0.0.0.0", "::")
    if everywhere:
        hosts |= {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    named = socket.gethostname() if everywhere else host
    address = f"http://{f'[{named}]' if ':' in named else named}:{port}/?token={token}"

    while_serving = ExitStack()

    def ready() -> None:
        print(f"The viewer is at {address}", flush=True)
        print(f"Results are kept in {viewer.results}. Ctrl-C ends it.", flush=True)
        if not is_loopback(host):
            print(
                "Other machines can reach it: whoever has the token sees all volumes, and so does the "
                "network between, since nothing is encrypted.",
                flush=True,
            )
        if browser:
            webbrowser.open(while_serving.enter_context(door(viewer.results, address)))

    app = Gate(
        create_app(viewer, ready), token=token, port=port, hosts=frozenset(hosts), any_address=everywhere
    )
    config = uvicorn.Config(
        app,
        log_level=logging.WARNING,
        access_log=False,  # addresses hold the token once
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=3,
    )
    with while_serving, suppress(KeyboardInterrupt):  # the way to end it
        _Server(config, viewer).run([listening])
