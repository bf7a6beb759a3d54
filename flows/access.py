"""Access control of the Prefect server: a login (``user:password``), and checks of the Host and Origin headers.

Every page in a browser on the server's machine can reach a server on loopback. A page of another site can send requests
without reading the response (CSRF), and with DNS rebinding it can read the response too. The server therefore checks
Host and Origin of each request, and requires the login on loopback as well.
"""

import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from models.errors import UserError

ORIGINS_VARIABLE = "TUNELINE_ORIGINS"  # in the server's environment: additional origins of the server
LOGIN_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"  # in the server's environment: login, as user:password
DEFAULT_PORT = 4200
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SCHEME_PORTS = {"http": 80, "https": 443}
BAD_REQUEST, FORBIDDEN, POLICY_VIOLATION = 400, 403, 1008


def allowed_origins(host: str, port: int, additional: str = "") -> list[str]:
    """Return the origins of the server's own pages: loopback, the host that it listens on, and additional ones.

    Args:
        additional: origins, separated by commas.

    Raises:
        UserError: an additional origin is malformed.
    """
    try:
        is_wildcard = ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a host name
        is_wildcard = False
    hosts = dict.fromkeys([*LOOPBACK, *([] if is_wildcard else [host])])
    own = [_format_origin("http", name, port) for name in hosts]
    parsed = [_parse_origin(text.strip()) for text in additional.split(",") if text.strip()]
    return list(dict.fromkeys([*own, *parsed]))


def _parse_origin(text: str) -> str:
    try:
        url = urlsplit(text)
        if url.scheme in SCHEME_PORTS and url.hostname and url.path in ("", "/") and not (url.query or url.username):
            return _format_origin(url.scheme, url.hostname, url.port or SCHEME_PORTS[url.scheme])
    except ValueError:  # the port is not a number
        pass
    raise UserError(
        f"{ORIGINS_VARIABLE}: {text!r} is not an origin; write scheme, host and port, such as http://gpu-host:4200."
    )


def _format_origin(scheme: str, host: str, port: int) -> str:
    """Format an origin as browsers do: lower case, IPv6 in brackets, no port if it is the scheme's default."""
    name = f"[{host.lower()}]" if ":" in host else host.lower()
    return f"{scheme}://{name}" + ("" if port == SCHEME_PORTS[scheme] else f":{port}")


class OriginCheckMiddleware:
    """ASGI middleware that rejects requests from pages of other sites, and forbids framing of the UI."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]):
        self.app = app
        self.origins = frozenset(origins)
        self.hosts = frozenset(urlsplit(origin).netloc for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_frame_options(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Frame-Options"] = "DENY"
            await send(message)

        if scope["type"] not in ("http", "websocket"):  # lifespan: start and shutdown of the server
            await self.app(scope, receive, send)
        elif rejection := self.find_rejection(scope):
            await _reject(scope, receive, send, *rejection)
        else:
            await self.app(scope, receive, send_with_frame_options)

    def find_rejection(self, scope: Scope) -> tuple[int, str] | None:
        """Return the HTTP status and the reason if Host or Origin is not one of this site, else None."""
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return BAD_REQUEST, f"Unknown Host header; add http://HOST:PORT to {ORIGINS_VARIABLE} to allow it."
        if origins:
            is_same_site = len(origins) == 1 and origins[0] in self.origins
        else:
            # Browsers omit Origin in navigations and in some GET requests; programs send neither header.
            fetch_sites = headers.getlist("sec-fetch-site")
            is_same_site = all(site in ("same-origin", "none") for site in fetch_sites) or _is_navigation(
                scope, headers
            )
        if not is_same_site:
            return FORBIDDEN, f"Cross-site request; add the origin to {ORIGINS_VARIABLE} to allow it."
        return None


def _is_navigation(scope: Scope, headers: Headers) -> bool:
    """Return whether the request opens the UI as a top-level page, which the linking page cannot read."""
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


async def _reject(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await WebSocketClose(POLICY_VIOLATION, reason)(scope, receive, send)
    else:
        # Prefect's clients and UI display this key.
        await JSONResponse({"exception_message": reason}, status)(scope, receive, send)


def load_or_create_login(path: Path) -> str:
    """Return the login (``user:password``) stored in a file; generate it on first use.

    Raises:
        UserError: the file is damaged, or other users can read it.
    """
    if not path.exists():
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(f"tuneline:{secrets.token_urlsafe(24)}\n")
        with suppress(FileExistsError):  # another process has created it; link(2), unlike rename(2), never overwrites
            path.hardlink_to(draft)
        draft.unlink()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii", errors="replace") as file:
        status, text = os.fstat(file.fileno()), file.read().strip()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UserError(f"Other users can read or change the login file {path}; delete it to generate a new one.")
    if not re.fullmatch(r"tuneline:[\w-]{32,}", text, re.ASCII):
        raise UserError(f"The login file {path} is damaged; delete it to generate a new one.")
    return text


def validate_login(login: str) -> None:
    """Raise UserError if the login is not ``user:password`` in ASCII; Prefect compares it as ASCII."""
    if not re.fullmatch(r"[^:]+:.+", login) or not login.isascii():
        raise UserError(
            f"Set {LOGIN_VARIABLE} to user:password in ASCII characters; `make server` generates one by itself."
        )
