"""What the outside is told: by HTTP to a server that really listens, and by a program that really runs."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows import notify


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
    notify.tell("promoted", "champion v2.0.0 · 晋级", version="v2.0.0")
    (told,) = listener.told
    assert (told["event"], told["text"], told["version"]) == ("promoted", "champion v2.0.0 · 晋级", "v2.0.0")
    assert json.loads((tmp_path / "told it").read_text(encoding="utf-8")) == told


@pytest.mark.parametrize("command", ["no-such-program", "false", "sleep 5", "/etc/passwd", "a 'b"])
def test_what_cannot_be_told_stops_nothing_and_shows_no_secret(listener, monkeypatch, capsys, command):
    listener.status = 500
    monkeypatch.setattr(notify, "SECONDS", 0.5)
    monkeypatch.setenv("TUNELINE_WEBHOOK", address(listener))
    monkeypatch.setenv("TUNELINE_COMMAND", command)
    notify.tell("failed", "because")
    said = capsys.readouterr().out
    assert said.count("was not told that failed") == 2
    assert "secret" not in said


def test_an_address_that_is_none_stops_nothing(monkeypatch, capsys):
    monkeypatch.setenv("TUNELINE_WEBHOOK", "http://host:secret/x")
    monkeypatch.setenv("TUNELINE_COMMAND", " ")
    notify.tell("failed", "because")
    said = capsys.readouterr().out
    assert said.count("was not told that failed") == 1
    assert "secret" not in said


def test_nobody_is_told_where_nobody_listens(monkeypatch, capsys):
    monkeypatch.delenv("TUNELINE_WEBHOOK", raising=False)
    monkeypatch.delenv("TUNELINE_COMMAND", raising=False)
    notify.tell("drift", "x")
    assert capsys.readouterr().out == ""
