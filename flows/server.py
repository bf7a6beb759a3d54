"""A whole site on one machine: ``python -m flows.server``, or ``make server``.

A Prefect server on loopback (SQLite), the keeper, a CPU agent and an agent for each GPU, under supervisord, which
starts again what ends and stops all with Ctrl-C or SIGTERM. The deployments of prefect.yaml are made, too.
Everything lies in ``TUNELINE_HOME``; logs under ``server/``.

The server asks for a password, on loopback too: that of ``PREFECT_SERVER_API_AUTH_STRING``, or one that is generated
once and kept in ``server/login``. To be reached from other hosts it needs one of the user's own (``--host 0.0.0.0`` is
refused without), and ``TUNELINE_ORIGINS`` with the addresses that they use. The database is another one with
``PREFECT_API_DATABASE_CONNECTION_URL``.
"""

import argparse
import configparser
import fcntl
import ipaddress
import os
import re
import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from flows import gpus
from flows.access import DEFAULT_PORT, LOGIN, ORIGINS, origins_of, own_login, refuse_bad_login
from flows.agent import ENDING
from models.command_line import entry_point
from models.errors import UserError
from models.storage import writing
from pipelines.clone import home, repository
from pipelines.processes import become, end_leftovers

CLIENT_LOGIN = "PREFECT_API_AUTH_STRING"  # in the environment of the server's clients
SUPERVISOR = "supervisor.supervisord"
SITE = "TUNELINE_SITE"  # in the environment of all that a site starts


def refuse_if_open(host: str) -> None:
    """Raises UserError: the server could be reached from elsewhere, and asks for no password."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not os.environ.get(LOGIN):
        raise UserError(
            f"--host {host} can be reached from elsewhere: set {LOGIN} to user:password here, "
            "and PREFECT_API_AUTH_STRING to the same for agents and users."
        )


def refuse_if_taken(host: str, port: int) -> None:
    """Raises UserError: something listens there already, which agents would take for this server."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(
            f"The server cannot listen on {host}, port {port} ({said}{_holders(port)}); stop what does, or choose "
            "--port."
        ) from None


def _holders(port: int) -> str:
    """The processes that hold a port, as far as this user may know them."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return ""
    pids = {found.pid for found in connections if found.laddr and found.laddr.port == port}
    return "".join(f"; process {pid}" for pid in sorted(pids - {None}))


def private(folder: Path) -> Path:
    """Make a folder that only this user can enter; gives it.

    Raises:
        UserError: it belongs to somebody else.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.geteuid():
        raise UserError(f"{folder} belongs to another user; choose another TUNELINE_HOME.")
    folder.chmod(0o700)
    return folder


def hold_site(folder: Path) -> int:
    """Lock the folder for this site and return the lock, which supervisord inherits.

    Processes of a killed supervisord are ended first: they would hold the port and the slots of the agents.

    Raises:
        UserError: a site runs there already.
    """
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = _supervisor(folder)  # `supervisorctl reload` closes the lock while the site runs
    except BlockingIOError:
        holder = os.read(lock, 20).decode() or "unknown"
    if holder:
        os.close(lock)
        raise UserError(
            f"A site runs in {folder} already (process {holder}); stop it with Ctrl-C or `kill {holder}`, or choose "
            "another TUNELINE_HOME."
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    os.set_inheritable(lock, True)
    if left := end_leftovers(SITE, str(folder), patience=ENDING):
        print(f"Ended {left} programs of a killed site · 已结束被强制终止的站点遗留的 {left} 个程序", flush=True)
    return lock


def _supervisor(folder: Path) -> int | None:
    """The process number of the supervisord that runs the site of this folder, if one does."""
    with suppress(OSError, ValueError, psutil.Error):  # none ever ran, it is gone, or its number is another user's
        process = psutil.Process(int((folder / "supervisord.pid").read_text()))
        if process.environ().get(SITE) == str(folder) and SUPERVISOR in process.cmdline():
            return process.pid
    return None


def agents_of(said: Sequence[str] | None) -> list[str]:
    """What each GPU agent owns, as its user named it, or one GPU each.

    Raises:
        UserError: this host has no such GPU, or two agents would own the same.
    """
    if said is None:
        return gpus.one_each()
    there = gpus.present()
    owned = [name for each in said for name in ([gpu.name for gpu in gpus.chosen(each, there)] or [gpus.NONE])]
    if len(set(owned)) < len(owned):
        raise UserError(f"Of {' and '.join(said)} two agents would own the same; name each GPU once.")
    return list(said)


def refuse_if_variable(*folders: Path) -> None:
    """Raises UserError: supervisord would take part of a path for a variable; it expands names of log files twice."""
    for folder in folders:
        if "%" in str(folder):
            raise UserError(f"The path {folder} holds a %, which supervisord takes for a variable; choose another.")


def programs_of(host: str, port: int, owned: list[str]) -> dict[str, list[str]]:
    """What runs, by name: arguments of Python."""
    server = ["-m", "flows.api_server", "--host", host, "--port", str(port)]
    agents = {"gpu-" + re.sub(r"[^\w-]+", "-", each): ["-m", "flows.agent", "--gpus", each] for each in owned}
    keeper = {"keeper": ["-m", "flows.keeper"], "cpu": ["-m", "flows.agent", "--cpu"]}
    return {"server": server} | keeper | agents | {"deployments": ["-m", "flows.deployments"]}


def write_configuration(folder: Path, programs: dict[str, list[str]]) -> Path:
    """supervisord's configuration; gives its path."""
    found = configparser.RawConfigParser()
    found["supervisord"] = {
        "nodaemon": "true",
        "logfile": str(folder / "supervisord.log"),
        "pidfile": str(folder / "supervisord.pid"),
        "childlogdir": str(folder),
        "directory": str(Path.cwd()),
    }
    found["unix_http_server"] = {"file": str(folder / "control"), "chmod": "0600"}
    found["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    found["supervisorctl"] = {"serverurl": f"unix://{folder / 'control'}"}
    for name, arguments in programs.items():
        found[f"program:{name}"] = _program(name, [sys.executable, *arguments], folder)
    path = folder / "supervisord.conf"
    with writing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        found.write(file)
    return path


def _program(name: str, command: list[str], folder: Path) -> dict[str, str]:
    return {
        "command": " ".join(f'"{part}"' for part in command),
        "autorestart": "unexpected" if name == "deployments" else "true",
        "startsecs": "0" if name == "deployments" else "1",
        "startretries": "1000",  # an agent that waits for its GPUs is no reason to give up
        "stopasgroup": "true",  # the flow of a worker with the worker
        "killasgroup": "true",
        "stopwaitsecs": str(round(ENDING) + 20),
        "redirect_stderr": "true",
        "stdout_logfile": str(folder / f"{name}.log"),
        "stdout_logfile_maxbytes": "20MB",
        "stdout_logfile_backups": "2",
    }


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Server, keeper and agents of one machine.")
    parser.add_argument("--host", default="127.0.0.1", help="where the server listens (127.0.0.1)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"({DEFAULT_PORT})")
    parser.add_argument("--gpus", action="append", help="what one GPU agent owns, such as 0,1; by default one GPU each")
    arguments = parser.parse_args()
    owned = agents_of(arguments.gpus)
    refuse_if_open(arguments.host)
    if login := os.environ.get(LOGIN):
        refuse_bad_login(login)
    origins_of(arguments.host, arguments.port, os.environ.get(ORIGINS, ""))  # a mistake in it is told at once
    folder = home() / "server"
    refuse_if_variable(folder, Path.cwd(), Path(sys.executable))
    hold_site(private(folder))
    refuse_if_taken(arguments.host, arguments.port)
    host = {"0.0.0.0": "127.0.0.1"}.get(arguments.host, arguments.host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{arguments.port}"
    os.environ |= {"PREFECT_API_URL": f"{address}/api", "TUNELINE_REPOSITORY": repository(), SITE: str(folder)}
    os.environ.setdefault("PREFECT_HOME", str(folder / "prefect"))
    os.environ |= dict.fromkeys((LOGIN, CLIENT_LOGIN), login or own_login(folder / "login"))
    configuration = write_configuration(folder, programs_of(arguments.host, arguments.port, owned))
    print(f"{address} · logs · 日志 {folder} · Ctrl-C stops all · 按 Ctrl-C 全部停止", flush=True)
    print(f"export PREFECT_API_URL={address}/api", flush=True)
    if not login:
        path = shlex.quote(str(folder / "login"))
        print(f'export PREFECT_API_AUTH_STRING="$(cat {path})"', flush=True)
        print(f"The UI asks for what {path} holds · 登录界面时输入该文件的内容", flush=True)
    become(SUPERVISOR, "--nodaemon", "--configuration", str(configuration))


if __name__ == "__main__":
    main()
