"""Who is let in, and how answers are fenced."""

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import TOKEN, Serving, serving

from ct2mri.errors import RequestError
from ct2mri.options.evaluation import ViewOptions
from ct2mri.viewer.security import JSON_LIMIT, is_loopback
from ct2mri.viewer.view import view


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("security")
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text("{}")  # given something, it draws no phantom
    with serving(root / "results", str(root / "run")) as running:
        yield running


def port(server: Serving) -> int:
    return int(server.base.rsplit(":", 1)[1])


def ask(server: Serving, path: str = "/api/status", method: str = "GET", **headers: str) -> httpx.Response:
    """A request without the token, unless it is given."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.stranger.request(method, path, headers=named)


BEARER = f"Bearer {TOKEN}"


@pytest.mark.parametrize("path", ["/", "/static/index.html", "/api/status", "/api/openapi.json", "/nowhere"])
def test_nothing_is_told_without_the_token(server, path):
    answer = ask(server, path)
    assert answer.status_code == 401
    assert "ct2mri view" in answer.text
    for wrong in (
        "Bearer wrong",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
    ):
        assert ask(server, path, Authorization=wrong).status_code == 401


def test_the_address_with_the_token_sets_a_cookie_that_opens_the_page(server):
    entering = server.stranger.get(server.address)
    assert (entering.status_code, entering.headers["location"]) == (303, "/")
    cookie = entering.headers["set-cookie"]
    assert cookie.startswith(f"ct2mri-{port(server)}=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    held = {"Cookie": cookie.split(";")[0]}
    assert "<html" in server.stranger.get("/", headers=held).text
    assert server.stranger.get("/api/status", headers=held).status_code == 200
    assert server.stranger.get("/?token=wrong").status_code == 401
    assert (
        ask(server, f"/api/status?token={TOKEN}").status_code == 401
    )  # the address alone opens the page only


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "localhost.evil.example:{port}"],
)
def test_another_host_name_is_refused(server, host):
    answer = ask(server, Host=host.format(port=port(server)), Authorization=BEARER)
    assert answer.status_code == 421
    assert "evil" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_its_own_host_names_are_good(server, host):
    name = host.format(port=port(server))
    assert ask(server, Host=name, Authorization=BEARER, Origin=f"http://{name}").status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "file://",
    ],
)
def test_another_site_is_refused(server, origin):
    answer = ask(server, Origin=origin.format(port=port(server)), Authorization=BEARER)
    assert answer.status_code == 403


def test_what_browsers_say_of_other_sites_is_heeded(server):
    for site in ("cross-site", "same-site"):
        for method, path in (("POST", "/api/demo"), ("GET", "/api/status"), ("GET", "/")):
            sent = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
            assert ask(server, path, method, Authorization=BEARER, **sent).status_code == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask(server, "/", **link).status_code == 401  # may be followed, and brings no cookie
    # A redirection would lose the cookie there; a page of our own leads on.
    entrance = ask(server, f"/?token={TOKEN}", **link)
    assert entrance.status_code == 200 and "set-cookie" in entrance.headers
    assert 'http-equiv="refresh" content="0; url=/"' in entrance.text and TOKEN not in entrance.text
    framed = {**link, "Sec_Fetch_Dest": "iframe"}
    assert ask(server, f"/?token={TOKEN}", **framed).status_code == 403


def test_no_answer_to_questions_of_other_sites(server):
    answer = ask(server, "/api/status", "OPTIONS", Authorization=BEARER, Access_Control_Request_Method="GET")
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("path", ["/", "/api/status", "/api/nowhere", "/static/js/main.js"])
def test_answers_are_fenced(server, path):
    for headers in ({}, {"Authorization": BEARER}):
        answer = ask(server, path, **headers)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http:" not in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


def test_patients_data_do_not_stay_in_the_browsers_cache(server):
    assert ask(server, "/api/volumes", Authorization=BEARER).headers["cache-control"] == "no-store"
    assert ask(server, "/", Authorization=BEARER).headers["cache-control"] == "no-cache"


def test_a_part_of_the_page_is_sent_once(server):
    part = ask(server, "/static/js/main.js", Authorization=BEARER)
    assert part.headers["content-type"].startswith("text/javascript")
    again = ask(server, "/static/js/main.js", Authorization=BEARER, If_None_Match=part.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"]
)
def test_no_way_out_of_the_static_folder(server, path):
    with socket.create_connection(("127.0.0.1", port(server))) as raw:  # clients tidy such addresses
        raw.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port(server)}\r\nAuthorization: {BEARER}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        answer = b""
        while chunk := raw.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 404")


def test_large_bodies_are_refused(server):
    large = b'{"name": "' + b"x" * JSON_LIMIT + b'", "kind": "file"}'
    headers = {"Authorization": BEARER, "Content-Type": "application/json"}
    assert httpx.post(f"{server.base}/api/uploads", content=large, headers=headers).status_code == 413
    unannounced = (large[i : i + 1000] for i in range(0, len(large), 1000))
    assert httpx.post(f"{server.base}/api/uploads", content=unannounced, headers=headers).status_code == 422


def test_the_terminal_shows_the_token_once_and_no_requests(server):
    ask(server, f"/?token={TOKEN}")
    server.client.get("/api/volumes/Secret-Name")
    text = server.log.read_text()
    assert text.count(TOKEN) == 1
    assert "Secret" not in text and "GET" not in text


def test_it_listens_on_loopback_alone(server):
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1"}:
        if not address.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((address, port(server)), timeout=5).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", "10.1.2.3"])
def test_other_hosts_demand_a_token(host, tmp_path):
    assert not is_loopback(host)
    with pytest.raises(RequestError, match=r"unencrypted.*--token") as refusal:
        view(ViewOptions(host=host, results=tmp_path))
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "token", ["short", "x" * 15, "with spaces in the middle", "semicolon;in;the;cookie", "ümläütsümläüts"]
)
def test_weak_tokens_are_refused(token, tmp_path):
    with pytest.raises(RequestError, match="16 characters or more"):
        view(ViewOptions(token=token, results=tmp_path))


def test_all_addresses_with_a_token(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with serving(tmp_path / "results", str(tmp_path), "--host", "0.0.0.0") as open_server:
        assert "nothing is encrypted" in open_server.log.read_text()
        number = port(open_server)
        local = f"http://127.0.0.1:{number}"
        good = {"Authorization": BEARER}
        assert httpx.get(f"{local}/api/status", headers=good).status_code == 200
        assert httpx.get(f"{local}/api/status").status_code == 401
        # A number cannot be a name that was made to point here.
        assert (
            httpx.get(f"{local}/api/status", headers={**good, "Host": f"192.0.2.7:{number}"}).status_code
            == 200
        )
        assert (
            httpx.get(f"{local}/api/status", headers={**good, "Host": f"evil.example:{number}"}).status_code
            == 421
        )


def test_one_viewer_to_a_results_folder(server, capsys):
    with pytest.raises(RequestError, match="Another viewer works in"):
        view(ViewOptions(results=server.results, no_browser=True))


def test_a_port_that_is_taken(server, tmp_path):
    with pytest.raises(RequestError, match="Nothing can listen on"):
        view(ViewOptions(results=tmp_path, port=port(server), no_browser=True))


def test_help_and_the_idle_server_load_no_heavy_library(server):
    program = (
        "import sys\nfrom ct2mri.cli import main\n"
        "try: main(['view', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'pydantic', 'uvicorn', 'SimpleITK', 'nibabel'}\n"
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    program = (
        "import sys, ct2mri.viewer.view\n"
        "sys.exit(','.join({'torch', 'SimpleITK', 'nibabel', 'scipy'} & set(sys.modules)) or 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="Memory is read from /proc.")
def test_the_idle_server_takes_less_than_300_mb(server):
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    (resident,) = (line.split()[1] for line in lines if line.startswith("VmRSS"))
    assert int(resident) < 300 * 1024
