"""Who may ask: every request is checked for its host, its origin and the token, and answers are fenced in.

A web page elsewhere can make a browser send requests to 127.0.0.1. The token stops it, since it does not know
it; the cookie that holds the token is not sent along from other sites; a page whose name was made to point at
127.0.0.1 (DNS rebinding) is stopped by the host's name; and `Origin` stops what is left.
"""

import hmac
import ipaddress
import json
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_LIMIT = 64 * 1024
"""Bytes that the body of a request may have, unless it is a file of an upload."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
"""For a report, one file with its scripts and styles in it. It can reach no server, this one included."""

_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    # Volumes are patients' data: they are not to stay on disk in the browser's cache.
    "Cache-Control": "no-store",
}
_LOCKED = "This needs the token: open the address that `ct2mri view` printed, or send it as a Bearer token."
_ENTRANCE = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/">'
    b'<link rel="icon" href="data:,"><title>ct2mri viewer</title><p><a href="/">To the viewer</a></p></html>'
)
_LOCKED_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,">'
    "<title>ct2mri viewer</title><h1>This page is locked</h1><p>Open the whole address that "
    "<code>ct2mri view</code> printed in its terminal; it ends with a token.</p></html>"
)


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Whether a host to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def cookie_name(port: int) -> str:
    """The name of the cookie, the port in it, since browsers share cookies between the ports of a host."""
    return f"ct2mri-{port}"


class Gate:
    """ASGI middleware that lets through what is allowed.

    Args:
        app: what is behind it.
        token: the secret.
        port: that the server listens on.
        hosts: names that the server may be called by, without port.
        any_address: allow any numeric address as well: for a server that listens on all of them. A name is
            needed for DNS rebinding, a number is not at its risk.
    """

    def __init__(
        self, app: ASGIApp, *, token: str, port: int, hosts: frozenset[str], any_address: bool
    ) -> None:
        self.app = app
        self.token = token
        self.port = port
        self.hosts = hosts
        self.any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _headers(scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if scope["path"] == "/" and "token" in query:
            site = headers.get("sec-fetch-site", "none")
            await self._enter(send, query["token"][-1], site not in ("none", "same-origin"))
            return
        if not self._knows_token(headers):
            await _locked(send, scope)
            return
        await self.app(scope, _bounded(scope, receive), _fenced(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        if not self._is_ours(headers.get("host", "")):
            return 421, "The Host header names another server; open the address that `ct2mri view` printed."
        origin = headers.get("origin")
        if origin is not None and not (
            origin.startswith("http://") and self._is_ours(origin.removeprefix("http://"))
        ):
            return 403, "The request comes from another web site, which is not allowed."
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            # A link elsewhere to the viewer's address may be followed; nothing else from other sites.
            opens = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
            if not (opens and scope["path"] == "/" and headers.get("sec-fetch-dest") == "document"):
                return 403, "The request comes from another web site, which is not allowed."
        length = headers.get("content-length", "0")
        if not _is_upload(scope) and not (length.isdecimal() and int(length) <= JSON_LIMIT):
            return 413, f"The body of this request may have {JSON_LIMIT} bytes; send less."
        return None

    def _is_ours(self, address: str) -> bool:
        """Whether `host:port` is this server."""
        host, _, port = address.rpartition(":")
        if port != str(self.port):
            if self.port != 80 or port.isdecimal():
                return False
            host = address
        host = host.removeprefix("[").removesuffix("]").lower()
        if host in self.hosts:
            return True
        if not self.any_address:
            return False
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _knows_token(self, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._matches(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(cookie_name(self.port))
        except CookieError:
            return False
        return cookie is not None and self._matches(cookie.value)

    def _matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    async def _enter(self, send: Send, given: str, from_elsewhere: bool) -> None:
        """Put the token of the address into a cookie, and show the page under an address without it.

        Browsers do not send the cookie along a redirection that began on another site (a terminal in a web
        page, say); there a page of our own leads on.
        """
        if not self._matches(given):
            await _answer(send, 401, _LOCKED)
            return
        cookie = f"{cookie_name(self.port)}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        if from_elsewhere:
            await _send(send, 200, _ENTRANCE, "text/html; charset=utf-8", {"Set-Cookie": cookie})
        else:
            await _answer(send, 303, "Go on at /.", {"Set-Cookie": cookie, "Location": "/"})


def _headers(scope: Scope) -> dict[str, str]:
    """The headers by lower-case name; of one given twice, what nobody would allow."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        found[key] = f"{found[key]}; {text}" if key in found else text
    return found


def _is_upload(scope: Scope) -> bool:
    return bool(scope["method"] == "PUT" and scope["path"].startswith("/api/uploads/"))


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Receive no more than a small body, except where a file is uploaded, which is bounded there."""
    if _is_upload(scope):
        return receive
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > JSON_LIMIT:
                # What was read so far is dropped: what is behind sees an empty body, and refuses it.
                return {"type": "http.request", "body": b"", "more_body": False}
        return message

    return bounded


def _fenced(send: Send) -> Send:
    """Send with the headers that fence the page in; an answer's own go before them."""

    async def fenced(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(
                    (name.lower().encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.lower().encode() not in present
                ),
            ]
        await send(message)

    return fenced


async def _locked(send: Send, scope: Scope) -> None:
    if scope["path"] == "/":
        await _send(send, 401, _LOCKED_PAGE.encode(), "text/html; charset=utf-8", {})
    else:
        await _answer(send, 401, _LOCKED, {"WWW-Authenticate": "Bearer"})


async def _answer(send: Send, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
    await _send(send, status, json.dumps({"detail": sentence}).encode(), "application/json", headers or {})


async def _send(send: Send, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
    everything = {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **headers}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in everything.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
