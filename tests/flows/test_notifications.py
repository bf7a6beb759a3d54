"""Notifications: by webhook to a local HTTP server, and by a command."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows import notifications


@pytest.fixture
def webhook():
    """A local HTTP server that records request bodies and answers with ``server.status``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.bodies, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def webhook_url(server) -> str:
    return f"http://127.0.0.1:{server.server_port}/hook?key=secret"


def test_webhook_and_command_receive_the_event(webhook, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_WEBHOOK", webhook_url(webhook))
    monkeypatch.setenv("TUNELINE_COMMAND", f"tee '{tmp_path}/received event'")
    notifications.notify("promoted", "champion v2.0.0 · 晋级", version="v2.0.0")
    (body,) = webhook.bodies
    assert (body["event"], body["text"], body["version"]) == ("promoted", "champion v2.0.0 · 晋级", "v2.0.0")
    assert json.loads((tmp_path / "received event").read_text(encoding="utf-8")) == body


@pytest.mark.parametrize("command", ["no-such-program", "false", "sleep 5", "/etc/passwd", "a 'b"])
def test_failed_notification_is_printed_without_secrets(webhook, monkeypatch, capsys, command):
    webhook.status = 500
    monkeypatch.setattr(notifications, "TIMEOUT", 0.5)
    monkeypatch.setenv("TUNELINE_WEBHOOK", webhook_url(webhook))
    monkeypatch.setenv("TUNELINE_COMMAND", command)
    notifications.notify("failed", "because")
    output = capsys.readouterr().out
    assert output.count("notification of event 'failed' failed") == 2
    assert "secret" not in output


@pytest.mark.parametrize("url", ["http://host:secret/x", f"http://{'secret' * 20}/", "secret"])
def test_invalid_url_is_printed_without_secrets(monkeypatch, capsys, url):
    monkeypatch.setenv("TUNELINE_WEBHOOK", url)
    monkeypatch.setenv("TUNELINE_COMMAND", " ")
    notifications.notify("failed", "because")
    output = capsys.readouterr().out
    assert output.count("notification of event 'failed' failed") == 1
    assert "secret" not in output


def test_nothing_is_sent_without_webhook_and_command(monkeypatch, capsys):
    monkeypatch.delenv("TUNELINE_WEBHOOK", raising=False)
    monkeypatch.delenv("TUNELINE_COMMAND", raising=False)
    notifications.notify("drift", "x")
    assert capsys.readouterr().out == ""


@pytest.fixture
def trickling_server():
    """A server that sends an endless response byte by byte: its port, and an event set when the client disconnects."""
    disconnected = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not disconnected.wait(0.02):
                try:
                    connection.sendall(b"a")
                except OSError:
                    disconnected.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: answer(server.accept()[0]), daemon=True).start()
        yield server.getsockname()[1], disconnected
        disconnected.set()


def test_timeout_covers_a_trickling_response(trickling_server, monkeypatch, capsys):
    port, disconnected = trickling_server
    monkeypatch.setattr(notifications, "TIMEOUT", 0.5)
    monkeypatch.setenv("TUNELINE_WEBHOOK", f"http://127.0.0.1:{port}/?key=secret")
    monkeypatch.delenv("TUNELINE_COMMAND", raising=False)
    started = time.monotonic()
    notifications.notify("failed", "because")
    assert 0.4 < time.monotonic() - started < 2
    assert capsys.readouterr().out == "Webhook notification of event 'failed' failed: TimeoutException.\n"
    assert disconnected.wait(5)


def test_timeout_covers_name_resolution(monkeypatch, capsys):
    monkeypatch.setattr(notifications, "TIMEOUT", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **options: time.sleep(3))
    monkeypatch.setenv("TUNELINE_WEBHOOK", "http://slow.example/")
    started = time.monotonic()
    notifications.notify("failed", "because")
    assert time.monotonic() - started < 2
    assert "failed: TimeoutException" in capsys.readouterr().out


def test_response_body_is_not_read(monkeypatch, capsys):
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
