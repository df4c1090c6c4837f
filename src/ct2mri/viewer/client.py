"""Using a viewer from a script: upload, translate, download. Needs nothing but Python's own library."""

import json
import shutil
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from ct2mri.errors import RequestError
from ct2mri.files import atomic_path
from ct2mri.viewer.archives import SUFFIXES

_PAUSE = 0.5


class ViewerClient:
    """A viewer that runs.

    Args:
        address: what `ct2mri view` printed, `http://127.0.0.1:PORT/?token=TOKEN`.
        timeout: seconds that an answer may take.

    Raises:
        RequestError: the address holds no token; from all methods also: the viewer cannot be reached, or
            refuses, with its sentence.
    """

    def __init__(self, address: str, timeout: float = 600) -> None:
        parts = urlsplit(address)
        tokens = parse_qs(parts.query).get("token")
        if parts.scheme != "http" or not parts.netloc or not tokens:
            raise RequestError(
                "The address of a viewer is http://HOST:PORT/?token=TOKEN, as `ct2mri view` prints it; "
                "give the whole of it."
            )
        self._base = f"http://{parts.netloc}"
        self._token = tokens[-1]
        self._timeout = timeout
        self._opener = build_opener(ProxyHandler({}))  # no proxy gets to see the token

    def models(self) -> list[dict[str, Any]]:
        """The models there are, the suggested one first."""
        found: list[dict[str, Any]] = self._json("GET", "/api/models")
        return found

    def volumes(self) -> list[dict[str, Any]]:
        """The volumes there are."""
        found: list[dict[str, Any]] = self._json("GET", "/api/volumes")
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs there are, those that ended too."""
        found: list[dict[str, Any]] = self._json("GET", "/api/jobs")
        return found

    def upload(self, path: str | Path) -> str:
        """Send a volume file, or a DICOM series as a zip or a folder; returns the volume's identifier."""
        path = Path(path)
        files = _series_files(path) if path.is_dir() else [path]
        kind = "dicom" if path.is_dir() else "file"
        upload = self._json("POST", "/api/uploads", {"name": path.name, "kind": kind})["id"]
        for number, file in enumerate(files, 1):
            # Of a name the server uses the suffix alone, and names may be patients': not for an address.
            suffix = next((s for s in (*SUFFIXES, ".mhd") if file.name.lower().endswith(s)), "")
            with file.open("rb") as body:
                self._json("PUT", f"/api/uploads/{upload}/files?name={number}{suffix}", body)
        record = self._json("POST", f"/api/uploads/{upload}/finish")
        while record["state"] == "reading":
            time.sleep(_PAUSE)
            record = self._json("GET", f"/api/uploads/{upload}")
        if record["state"] == "failed":
            raise RequestError(str(record["detail"]))
        return str(record["volume"])

    def translate(
        self,
        volume: str,
        *,
        model: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        samples: int = 1,
    ) -> str:
        """Queue a translation, and return the job's identifier.

        Args:
            volume: identifier of the volume.
            model: identifier of the model; None: the suggested one.
            steps: sampling steps of the last stage; None: the model's own.
            seed: of the noise.
            samples: how many to draw and average.
        """
        wanted = model or self.models()[0]["id"]
        request = {"volume": volume, "model": wanted, "steps": steps, "seed": seed, "samples": samples}
        return str(self._json("POST", "/api/jobs", request)["id"])

    def follow(self, job: str) -> Iterator[dict[str, Any]]:
        """The job's record at each change, until it has ended.

        Raises:
            RequestError: the viewer ended before the job did.
        """
        state = "unknown"
        with self._open("GET", f"/api/jobs/{quote(job)}/events") as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    record: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                    state = record["state"]
                    yield record
        if state not in ("done", "failed", "cancelled"):
            raise RequestError("The viewer ended before the job did; start both again.")

    def wait(self, job: str) -> dict[str, Any]:
        """The record of a job that was done.

        Raises:
            RequestError: it failed, with the reason, or was cancelled.
        """
        *_, record = self.follow(job)
        if record["state"] != "done":
            raise RequestError(str(record["detail"] or "The job was cancelled; start it again."))
        return record

    def cancel(self, job: str) -> None:
        """Cancel a job that has not ended; one that has is deleted, with the volumes that it made."""
        self._json("DELETE", f"/api/jobs/{quote(job)}")

    def download(
        self,
        volume: str,
        path: str | Path,
        format: Literal["nifti", "nrrd", "dicom", "sidecar"] = "nifti",
        *,
        anonymize: bool = False,
    ) -> None:
        """Write a volume into a file, whole or not at all: NIfTI, NRRD, a zip of DICOM, or the sidecar."""
        query = urlencode({"format": format, "anonymize": str(anonymize).lower()})
        with (
            self._open("GET", f"/api/volumes/{quote(volume)}/download?{query}") as answer,
            atomic_path(path) as temporary,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(answer, file)

    def _json(self, method: str, path: str, body: dict[str, Any] | BinaryIO | None = None) -> Any:
        with self._open(method, path, body) as answer:
            return json.loads(answer.read() or b"null")

    def _open(self, method: str, path: str, body: dict[str, Any] | BinaryIO | None = None) -> HTTPResponse:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/octet-stream"}
        data: Any = body
        if isinstance(body, dict):
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        elif body is not None:
            headers["Content-Length"] = str(body.seek(0, 2))
            body.seek(0)
        request = Request(self._base + path, data, headers, method=method)
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=self._timeout)
        except HTTPError as error:
            try:
                sentence = str(json.loads(error.read())["detail"])
            except (ValueError, KeyError, TypeError, OSError):
                sentence = f"The viewer answered with {error.code}."
            raise RequestError(sentence) from error
        except (URLError, OSError) as error:
            raise RequestError(
                f"The viewer at {self._base} cannot be reached; is `ct2mri view` still running?"
            ) from error
        return answer


def _series_files(folder: Path) -> list[Path]:
    """The files of a series, without what file managers and other programs leave beside them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if not file.name.startswith(".") and file.name.upper() != "DICOMDIR"]
