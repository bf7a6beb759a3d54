"""Who may use the server: which Host and Origin pass, and the password that a site makes."""

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
def served():
    """An app behind the checks, and the requests that came through."""
    came: list[str] = []

    async def page(request) -> PlainTextResponse:
        came.append(request.method)
        return PlainTextResponse("page")

    async def socket(websocket) -> None:
        came.append("websocket")
        await websocket.accept()
        await websocket.close()

    app = Starlette(routes=[Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/socket", socket)])
    origins = access.allowed_origins("127.0.0.1", 4200, "https://tuneline.example")
    return TestClient(access.OriginCheckMiddleware(app, origins), base_url=OWN), came


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
def test_requests_of_the_site_alone_come_through(served, method, headers, status):
    client, came = served
    answer = client.request(method, "/", headers=headers)
    assert answer.status_code == status
    assert came == ([method] if status == 200 else [])
    if status == 200:
        assert answer.headers["x-frame-options"] == "DENY"
    else:
        assert access.ORIGINS_VARIABLE in answer.json()["exception_message"]


@pytest.mark.parametrize("name", ["Host", "Origin", "Sec-Fetch-Site"])
def test_of_two_headers_none_hides_the_other(served, name):
    client, came = served
    own, foreign = {
        "Host": ("127.0.0.1:4200", "evil.example"),
        "Origin": (OWN, "http://evil.example"),
        "Sec-Fetch-Site": ("same-origin", "cross-site"),
    }[name]
    for pair in ((own, foreign), (foreign, own)):
        assert client.post("/", headers=[(name, value) for value in pair]).status_code in (400, 403)
    assert came == []


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
def test_websockets_are_refused_before_they_are_accepted(served, headers):
    client, came = served
    own = {"Host": "127.0.0.1:4200"}  # the test's client names another host
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket", headers=own | headers):
        pass
    assert came == []
    with client.websocket_connect("/socket", headers=own | {"Origin": OWN}):
        assert came == ["websocket"]


def test_the_servers_own_start_comes_through():
    """Without its lifespan Prefect would run no migration and no service."""
    began = []

    @asynccontextmanager
    async def lifespan(app):
        began.append("begun")
        yield

    with TestClient(access.OriginCheckMiddleware(Starlette(lifespan=lifespan), [OWN])):
        assert began == ["begun"]


@pytest.mark.parametrize(
    ("host", "port", "further", "more"),
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
def test_the_origins_of_a_site_are_loopback_its_host_and_those_that_are_named(host, port, further, more):
    loopback = ["http://127.0.0.1:4200", "http://localhost:4200", "http://[::1]:4200"]
    assert access.allowed_origins(host, port, further) == loopback + more


def test_on_port_80_origins_have_no_port():
    assert access.allowed_origins("127.0.0.1", 80)[0] == "http://127.0.0.1"


@pytest.mark.parametrize(
    "further",
    ["gpu-host:4200", "*", "http://", "ftp://a", "http://a/path", "http://a:x", "http://a:99999", "http://u@a"],
)
def test_what_is_no_origin_is_refused_in_a_sentence(further):
    with pytest.raises(UserError, match=access.ORIGINS_VARIABLE):
        access.allowed_origins("127.0.0.1", 4200, further)


def test_a_site_makes_its_password_once_and_for_its_user_alone(tmp_path):
    path = tmp_path / "login"
    login = access.load_or_create_login(path)
    user, _, password = login.partition(":")
    assert user == "tuneline"
    assert len(password) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert access.load_or_create_login(path) == login
    assert [left.name for left in tmp_path.iterdir()] == ["login"]
    assert access.load_or_create_login(tmp_path / "another") != login
    access.validate_login(login)


def test_two_that_make_it_at_once_have_the_same(tmp_path, monkeypatch):
    """Each has found no file; the slower one takes the other's."""
    both, logins = threading.Barrier(2), []
    exists = access.Path.exists

    def wait_for_the_other(path) -> bool:
        found = exists(path)
        both.wait(5)
        return found

    monkeypatch.setattr(access.Path, "exists", wait_for_the_other)
    threads = [threading.Thread(target=lambda: logins.append(access.load_or_create_login(tmp_path / "login"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(logins) == 2
    assert logins[0] == logins[1]


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_password_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "login"
    access.load_or_create_login(path)
    path.chmod(mode)
    with pytest.raises(UserError, match="Others can read"):
        access.load_or_create_login(path)


@pytest.mark.parametrize("text", ["", "\n", "tuneline:", "tuneline:short", "密码" * 20, "a:b\nc:d", "x" * 50])
def test_a_damaged_password_is_refused(tmp_path, text):
    path = tmp_path / "login"
    access.load_or_create_login(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        access.load_or_create_login(path)


def test_a_link_in_place_of_the_password_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("tuneline:" + "a" * 32)
    (tmp_path / "login").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        access.load_or_create_login(tmp_path / "login")


@pytest.mark.parametrize("login", ["", "password", ":password", "user:", "使用者:密码", "user:密码"])
def test_a_password_that_prefect_cannot_compare_is_refused(login):
    with pytest.raises(UserError, match="user:password"):
        access.validate_login(login)
