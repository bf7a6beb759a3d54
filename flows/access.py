"""Access control of a site's server: its password, and its own pages and programs alone.

A server on loopback is open to every page that a browser on that machine shows. A page of another site can send
requests whose answer it may not read, and one whose host name is rebound to 127.0.0.1 can read the answer too. So
Host and Origin of each request are checked, and the password is required on loopback as well.
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

ORIGINS = "TUNELINE_ORIGINS"  # in the server's environment: further addresses by which it is reached
LOGIN = "PREFECT_SERVER_API_AUTH_STRING"  # in the server's environment: user:password
DEFAULT_PORT = 4200
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SCHEME_PORTS = {"http": 80, "https": 443}
BAD_REQUEST, FORBIDDEN, POLICY_VIOLATION = 400, 403, 1008


def origins_of(host: str, port: int, further: str = "") -> list[str]:
    """The origins of a server's own pages: loopback, the host it listens on, and further ones.

    Args:
        further: origins, a comma between them.

    Raises:
        UserError: a further one is no origin.
    """
    try:
        is_wildcard = ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a host name
        is_wildcard = False
    names = dict.fromkeys([*LOOPBACK, *([] if is_wildcard else [host])])
    own = [_origin("http", name, port) for name in names]
    return list(dict.fromkeys([*own, *(_parsed(part.strip()) for part in further.split(",") if part.strip())]))


def _parsed(text: str) -> str:
    try:
        url = urlsplit(text)
        if url.scheme in SCHEME_PORTS and url.hostname and url.path in ("", "/") and not (url.query or url.username):
            return _origin(url.scheme, url.hostname, url.port or SCHEME_PORTS[url.scheme])
    except ValueError:  # of a port that is no number
        pass
    raise UserError(f"{ORIGINS} names {text!r}; write a scheme, a host and a port, such as http://gpu-host:4200.")


def _origin(scheme: str, host: str, port: int) -> str:
    """An origin as browsers write it: lower case, IPv6 in brackets, no port where it is the scheme's own."""
    name = f"[{host.lower()}]" if ":" in host else host.lower()
    return f"{scheme}://{name}" + ("" if port == SCHEME_PORTS[scheme] else f":{port}")


class SiteOnly:
    """ASGI middleware that refuses requests of other sites' pages, and frames that other sites put the UI into."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]):
        self.app = app
        self.origins = frozenset(origins)
        self.hosts = frozenset(urlsplit(origin).netloc for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Frame-Options"] = "DENY"
            await send(message)

        if scope["type"] not in ("http", "websocket"):  # lifespan: the server's own start and end
            await self.app(scope, receive, send)
        elif refusal := self.refusal(scope):
            await _refuse(scope, receive, send, *refusal)
        else:
            await self.app(scope, receive, send_unframed)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason if a request is not the site's own."""
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return BAD_REQUEST, f"Host is none of this server's; {ORIGINS} can name more, such as http://gpu-host:4200."
        if origins:
            is_own = len(origins) == 1 and origins[0] in self.origins
        else:
            # Browsers leave Origin out of navigations and of some GETs; programs send neither header.
            sites = headers.getlist("sec-fetch-site")
            is_own = all(site in ("same-origin", "none") for site in sites) or _is_navigation(scope, headers)
        if not is_own:
            return FORBIDDEN, f"The request comes from a page of another site; {ORIGINS} can name the site's own."
        return None


def _is_navigation(scope: Scope, headers: Headers) -> bool:
    """Whether a link leads to the UI in a tab of its own, which the page with the link cannot read."""
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await WebSocketClose(POLICY_VIOLATION, reason)(scope, receive, send)
    else:
        # The key that Prefect's clients and its UI show.
        await JSONResponse({"exception_message": reason}, status)(scope, receive, send)


def own_login(path: Path) -> str:
    """The password that a site generates once and keeps in this file, as user:password.

    Raises:
        UserError: the file is damaged, or others can read it.
    """
    if not path.exists():
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(f"tuneline:{secrets.token_urlsafe(24)}\n")
        with suppress(FileExistsError):  # another process was first; a link, unlike a rename, replaces nothing
            path.hardlink_to(draft)
        draft.unlink()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii", errors="replace") as file:
        status, text = os.fstat(file.fileno()), file.read().strip()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UserError(f"Others can read or change {path}, the password of this site; delete it to get a new one.")
    if not re.fullmatch(r"tuneline:[\w-]{32,}", text, re.ASCII):
        raise UserError(f"{path}, the password of this site, is damaged; delete it to get a new one.")
    return text


def refuse_bad_login(login: str) -> None:
    """Raises UserError: there is no password for the server, or one that Prefect cannot compare."""
    if not re.fullmatch(r"[^:]+:.+", login) or not login.isascii():
        raise UserError(f"Set {LOGIN} to user:password, of ASCII characters; `make server` makes one by itself.")
