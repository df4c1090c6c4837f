"""A viewer in a process of its own, as a person starts it, and a client that asks it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import httpx

TOKEN = "token-of-the-server-tests"
PATIENCE = 300.0
"""Seconds: the machine may be busy with other things."""


class _Forgetful(CookieJar):
    def extract_cookies(self, *_: Any) -> None:
        """Keep none."""


class Serving:
    """The process and what it serves."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, results: Path) -> None:
        self.process = process
        self.log = log
        self.results = results
        self.address = self._address()
        self.base = self.address.split("/?")[0]
        self.client = httpx.Client(
            base_url=self.base, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE
        )

        # Without the token, and without a memory for cookies.
        self.stranger = httpx.Client(base_url=self.base, timeout=PATIENCE, cookies=_Forgetful())

    def _address(self) -> str:
        for _ in range(int(PATIENCE * 10)):
            words = self.log.read_text().split()
            if found := [word for word in words if word.startswith("http://")]:
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"The viewer did not start: {self.log.read_text()}")

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, content: Any = None) -> Any:
        answer = self.client.post(path, json=content)
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()

    def send(self, files: dict[str, bytes], kind: str = "file", name: str = "a volume") -> dict[str, Any]:
        """Upload some files, and wait until they are read."""
        upload = self.post("/api/uploads", {"name": name, "kind": kind})["id"]
        for file, content in files.items():
            answer = self.client.put(f"/api/uploads/{upload}/files", params={"name": file}, content=content)
            assert answer.status_code == 200, answer.text
        self.post(f"/api/uploads/{upload}/finish")
        return self.until(f"/api/uploads/{upload}", lambda record: record["state"] != "reading")

    def until(self, path: str, good: Any) -> Any:
        end = time.monotonic() + PATIENCE
        while not good(record := self.get(path)):
            assert time.monotonic() < end, record
            time.sleep(0.1)
        return record

    def done(self, job: str) -> Any:
        """A job once it has ended."""
        return self.until(f"/api/jobs/{job}", lambda r: r["state"] not in ("queued", "running"))

    def events(self, job: str) -> Iterator[dict[str, Any]]:
        with self.client.stream("GET", f"/api/jobs/{job}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


@contextmanager
def serving(results: Path, *arguments: str) -> Iterator[Serving]:
    """`ct2mri view` until the block ends; it must end by itself and leave nothing behind."""
    results.parent.mkdir(parents=True, exist_ok=True)
    log = results.parent / f"{results.name}-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "ct2mri", "view", *arguments, "--results", str(results)]
    command += ["--no-browser", "--token", TOKEN, "--device", "cpu"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        yield Serving(process, log, results)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=PATIENCE)
