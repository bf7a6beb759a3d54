"""Access control: checks of Host and Origin, and the generated login."""

import stat
import threading
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from flows import access
from models.errors import UserError

OWN = "http://127.0.0.1:4200"


@pytest.fixture
def checked_app():
    """A client of an application behind the middleware, and the requests that reach the application."""
    received: list[str] = []

    async def page(request) -> PlainTextResponse:
        received.append(request.method)
        return PlainTextResponse("page")

    async def socket(websocket) -> None:
        received.append("websocket")
        await websocket.accept()
        await websocket.close()

    app = Starlette(routes=[Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/socket", socket)])
    origins = access.allowed_origins("127.0.0.1", 4200, "https://tuneline.example")
    return TestClient(access.OriginCheckMiddleware(app, origins), base_url=OWN), received


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 200),  # a program
        ("POST", {"Origin": OWN}, 200),
        ("POST", {"Origin": "http://localhost:4200", "Sec-Fetch-Site": "cross-site"}, 200),
        ("POST", {"Origin": "https://tuneline.example", "Host": "tuneline.example"}, 200),
        ("POST", {"Host": "LOCALHOST:4200"}, 200),
        ("GET", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("GET", {"Sec-Fetch-Site": "none"}, 200),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "document"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", {"Sec-Fetch-Site": "same-site"}, 403),
        ("POST", {"Origin": "http://evil.example"}, 403),
        ("GET", {"Origin": "http://evil.example"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Origin": ""}, 403),
        ("POST", {"Origin": "https://127.0.0.1:4200"}, 403),
        ("POST", {"Origin": "http://127.0.0.1:4200.evil.example"}, 403),
        ("POST", {"Origin": "http://127.0.0.1:42000"}, 403),
        ("POST", {"Host": "evil.example"}, 400),
        ("GET", {"Host": "evil.example:4200"}, 400),
        ("GET", {"Host": "127.0.0.1"}, 400),
        ("GET", {"Host": "127.0.0.1:42000"}, 400),
        ("GET", {"Host": "127.0.0.1:4200.evil.example"}, 400),
        ("GET", {"Host": ""}, 400),
        ("GET", {"Host": "evil.example", "X-Forwarded-Host": "127.0.0.1:4200"}, 400),
    ],
)
def test_only_same_site_requests_pass(checked_app, method, headers, status):
    client, received = checked_app
    response = client.request(method, "/", headers=headers)
    assert response.status_code == status
    assert received == ([method] if status == 200 else [])
    if status == 200:
        assert response.headers["x-frame-options"] == "DENY"
    else:
        assert access.ORIGINS_VARIABLE in response.json()["exception_message"]


@pytest.mark.parametrize("name", ["Host", "Origin", "Sec-Fetch-Site"])
def test_duplicate_header_is_rejected(checked_app, name):
    client, received = checked_app
    own, foreign = {
        "Host": ("127.0.0.1:4200", "evil.example"),
        "Origin": (OWN, "http://evil.example"),
        "Sec-Fetch-Site": ("same-origin", "cross-site"),
    }[name]
    for pair in ((own, foreign), (foreign, own)):
        assert client.post("/", headers=[(name, value) for value in pair]).status_code in (400, 403)
    assert received == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ],
)
def test_cross_site_websocket_is_rejected_before_accept(checked_app, headers):
    client, received = checked_app
    own = {"Host": "127.0.0.1:4200"}  # TestClient sends another Host
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket", headers=own | headers):
        pass
    assert received == []
    with client.websocket_connect("/socket", headers=own | {"Origin": OWN}):
        assert received == ["websocket"]


def test_lifespan_events_pass():
    """Prefect runs migrations and services in the lifespan."""
    events = []

    @asynccontextmanager
    async def lifespan(app):
        events.append("started")
        yield

    with TestClient(access.OriginCheckMiddleware(Starlette(lifespan=lifespan), [OWN])):
        assert events == ["started"]


@pytest.mark.parametrize(
    ("host", "port", "additional", "expected"),
    [
        ("127.0.0.1", 4200, "", []),
        ("0.0.0.0", 4200, "", []),
        ("::", 4200, "", []),
        ("GPU-host", 4200, "", ["http://gpu-host:4200"]),
        ("fd00::1", 4200, "", ["http://[fd00::1]:4200"]),
        ("0.0.0.0", 4200, "http://Gpu-Host:4200/, https://a.example", ["http://gpu-host:4200", "https://a.example"]),
        ("0.0.0.0", 4200, "https://a.example:443", ["https://a.example"]),
    ],
)
def test_allowed_origins_are_loopback_the_host_and_additional_ones(host, port, additional, expected):
    loopback = ["http://127.0.0.1:4200", "http://localhost:4200", "http://[::1]:4200"]
    assert access.allowed_origins(host, port, additional) == loopback + expected


def test_default_port_is_left_out_of_origins():
    assert access.allowed_origins("127.0.0.1", 80)[0] == "http://127.0.0.1"


@pytest.mark.parametrize(
    "text",
    ["gpu-host:4200", "*", "http://", "ftp://a", "http://a/path", "http://a:x", "http://a:99999", "http://u@a"],
)
def test_malformed_origin_is_rejected(text):
    with pytest.raises(UserError, match=access.ORIGINS_VARIABLE):
        access.allowed_origins("127.0.0.1", 4200, text)


def test_login_is_generated_once_and_readable_by_its_user_only(tmp_path):
    path = tmp_path / "login"
    login = access.load_or_create_login(path)
    user, _, password = login.partition(":")
    assert user == "tuneline"
    assert len(password) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert access.load_or_create_login(path) == login
    assert [file.name for file in tmp_path.iterdir()] == ["login"]
    assert access.load_or_create_login(tmp_path / "another") != login
    access.validate_login(login)


def test_concurrent_generation_gives_one_login(tmp_path, monkeypatch):
    """Both threads find no file; the slower one uses the file of the other."""
    both, logins = threading.Barrier(2), []
    exists = access.Path.exists

    def exists_after_barrier(path) -> bool:
        file_exists = exists(path)
        both.wait(5)
        return file_exists

    monkeypatch.setattr(access.Path, "exists", exists_after_barrier)
    path = tmp_path / "login"
    threads = [threading.Thread(target=lambda: logins.append(access.load_or_create_login(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(logins) == 2
    assert logins[0] == logins[1]


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_login_file_readable_by_others_is_rejected(tmp_path, mode):
    path = tmp_path / "login"
    access.load_or_create_login(path)
    path.chmod(mode)
    with pytest.raises(UserError, match="Other users can read"):
        access.load_or_create_login(path)


@pytest.mark.parametrize("text", ["", "\n", "tuneline:", "tuneline:short", "密码" * 20, "a:b\nc:d", "x" * 50])
def test_damaged_login_file_is_rejected(tmp_path, text):
    path = tmp_path / "login"
    access.load_or_create_login(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        access.load_or_create_login(path)


def test_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("tuneline:" + "a" * 32)
    (tmp_path / "login").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        access.load_or_create_login(tmp_path / "login")


@pytest.mark.parametrize("login", ["", "password", ":password", "user:", "使用者:密码", "user:密码"])
def test_invalid_login_is_rejected(login):
    with pytest.raises(UserError, match="user:password"):
        access.validate_login(login)
