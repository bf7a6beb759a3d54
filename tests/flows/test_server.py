"""The server of one machine: closed to others unless it asks for a password, and what supervisord is told."""

import configparser
import socket

import pytest

from flows import gpus, server
from models.errors import UserError


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "gpu-host"])
def test_a_server_that_others_reach_needs_a_password(host, monkeypatch):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    with pytest.raises(UserError, match="PREFECT_SERVER_API_AUTH_STRING"):
        server.refuse_if_open(host)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:secret")
    server.refuse_if_open(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_none(host, monkeypatch):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    server.refuse_if_open(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_where_something_listens_no_server_is_started(host):
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}"):
            server.refuse_if_taken(host, port)
    server.refuse_if_taken(host, port)


def test_supervisord_runs_server_keeper_and_an_agent_for_each_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:secret")
    path = server.write_configuration(tmp_path, server.programs_of("127.0.0.1", 4200, ["0", "1,2"]))
    found = configparser.RawConfigParser()
    found.read(path, encoding="utf-8")
    names = {name.partition(":")[2] for name in found.sections() if name.startswith("program:")}
    assert names == {"server", "keeper", "cpu", "gpu-0", "gpu-1-2", "deployments"}
    assert '"--gpus" "1,2"' in found["program:gpu-1-2"]["command"]
    assert all(found[f"program:{name}"]["killasgroup"] == "true" for name in names)
    assert "secret" not in path.read_text(encoding="utf-8")


def test_a_path_that_supervisord_would_expand_is_refused(tmp_path):
    with pytest.raises(UserError, match="100%"):
        server.refuse_if_variable(tmp_path, tmp_path / "100%")
    server.refuse_if_variable(tmp_path)


def test_two_agents_never_own_the_same_gpu(monkeypatch):
    there = [gpus.Gpu("0", "GPU-aa"), gpus.Gpu("1", "GPU-bb")]
    monkeypatch.setattr(gpus, "present", lambda: there)
    assert server.agents_of(["0", "1"]) == ["0", "1"]
    for said in (["0", "GPU-aa"], ["0,1", "1"], ["none", "none"]):
        with pytest.raises(UserError, match="two agents"):
            server.agents_of(said)
    with pytest.raises(UserError, match="it has 0, 1"):
        server.agents_of(["2"])
