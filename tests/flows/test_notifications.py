"""What the outside is told: by HTTP to a server that really listens, and by a program that really runs."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows import notifications


@pytest.fixture
def listener():
    """A local HTTP server that keeps what it is told, and answers with ``server.status``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.told, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_port}/hook?key=secret"


def test_a_webhook_and_a_command_are_told(listener, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_WEBHOOK", address(listener))
    monkeypatch.setenv("TUNELINE_COMMAND", f"tee '{tmp_path}/told it'")
    notifications.notify("promoted", "champion v2.0.0 · 晋级", version="v2.0.0")
    (told,) = listener.told
    assert (told["event"], told["text"], told["version"]) == ("promoted", "champion v2.0.0 · 晋级", "v2.0.0")
    assert json.loads((tmp_path / "told it").read_text(encoding="utf-8")) == told


@pytest.mark.parametrize("command", ["no-such-program", "false", "sleep 5", "/etc/passwd", "a 'b"])
def test_what_cannot_be_told_stops_nothing_and_shows_no_secret(listener, monkeypatch, capsys, command):
    listener.status = 500
    monkeypatch.setattr(notifications, "TIMEOUT", 0.5)
    monkeypatch.setenv("TUNELINE_WEBHOOK", address(listener))
    monkeypatch.setenv("TUNELINE_COMMAND", command)
    notifications.notify("failed", "because")
    said = capsys.readouterr().out
    assert said.count("was not told that failed") == 2
    assert "secret" not in said


@pytest.mark.parametrize("address", ["http://host:secret/x", f"http://{'secret' * 20}/", "secret"])
def test_an_address_that_is_none_stops_nothing(monkeypatch, capsys, address):
    monkeypatch.setenv("TUNELINE_WEBHOOK", address)
    monkeypatch.setenv("TUNELINE_COMMAND", " ")
    notifications.notify("failed", "because")
    said = capsys.readouterr().out
    assert said.count("was not told that failed") == 1
    assert "secret" not in said


def test_nobody_is_told_where_nobody_listens(monkeypatch, capsys):
    monkeypatch.delenv("TUNELINE_WEBHOOK", raising=False)
    monkeypatch.delenv("TUNELINE_COMMAND", raising=False)
    notifications.notify("drift", "x")
    assert capsys.readouterr().out == ""


@pytest.fixture
def trickling():
    """A server that answers byte by byte and never ends; gives its port, and whether a client still listens."""
    left = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not left.wait(0.02):
                try:
                    connection.sendall(b"a")
                except OSError:
                    left.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: answer(server.accept()[0]), daemon=True).start()
        yield server.getsockname()[1], left
        left.set()


def test_a_webhook_that_answers_byte_by_byte_holds_nothing_up(trickling, monkeypatch, capsys):
    port, left = trickling
    monkeypatch.setattr(notifications, "TIMEOUT", 0.5)
    monkeypatch.setenv("TUNELINE_WEBHOOK", f"http://127.0.0.1:{port}/?key=secret")
    monkeypatch.delenv("TUNELINE_COMMAND", raising=False)
    started = time.monotonic()
    notifications.notify("failed", "because")
    assert 0.4 < time.monotonic() - started < 2
    assert capsys.readouterr().out == "The webhook was not told that failed: TimeoutException.\n"
    assert left.wait(5)  # nobody goes on reading


def test_a_name_that_takes_long_to_resolve_holds_nothing_up(monkeypatch, capsys):
    monkeypatch.setattr(notifications, "TIMEOUT", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **more: time.sleep(3))
    monkeypatch.setenv("TUNELINE_WEBHOOK", "http://slow.example/")
    started = time.monotonic()
    notifications.notify("failed", "because")
    assert time.monotonic() - started < 2
    assert "was not told that failed: TimeoutException" in capsys.readouterr().out


def test_the_body_of_an_answer_is_not_waited_for(monkeypatch, capsys):
    """A status says enough; a body without end would only end by the limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                connection.recv(1)

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("TUNELINE_WEBHOOK", f"http://127.0.0.1:{server.getsockname()[1]}/")
        started = time.monotonic()
        notifications.notify("drift", "x")
    assert time.monotonic() - started < 2
    assert capsys.readouterr().out == ""
