"""A loopback server that answers what huggingface_hub asks of the Hub."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStandIn:
    """Serves the folders under `root` as repositories `owner/name`; `requests` lists what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                stand_in.requests.append(f"{self.command} {path}")
                status, headers, content = stand_in.respond(path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def respond(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content for a path."""
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repository, rest = self.root / parts[2] / parts[3], parts[4:]
            if not repository.is_dir():
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            files = [file for file in sorted(repository.rglob("*")) if file.is_file()]
            if rest[:1] == ["tree"]:
                listing = [
                    {
                        "type": "file",
                        "path": file.relative_to(repository).as_posix(),
                        "size": file.stat().st_size,
                        "oid": _hash(file),
                    }
                    for file in files
                ]
                return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
            info = {
                "id": f"{parts[2]}/{parts[3]}",
                "sha": COMMIT,
                "private": False,
                "siblings": [{"rfilename": file.relative_to(repository).as_posix()} for file in files],
            }
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if len(parts) >= 5 and parts[2] == "resolve":
            file = self.root.joinpath(parts[0], parts[1], *parts[4:])
            if file.is_file():
                return 200, {"ETag": f'"{_hash(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes()
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def close(self) -> None:
        """Stop answering; the port refuses from now on."""
        self.server.shutdown()
        self.server.server_close()


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
