"""Start a complete site on one machine: ``python -m flows.server``, or ``make server``.

supervisord runs a Prefect server on loopback (SQLite), the keeper, a CPU agent, an agent for each GPU, and the creation
of the deployments in prefect.yaml. It restarts programs that end, and Ctrl-C or SIGTERM stops all of them. Files are in
``TUNELINE_HOME``, logs in ``TUNELINE_HOME/server``.

The server requires a login on loopback as well: ``PREFECT_SERVER_API_AUTH_STRING``, or a generated one in
``server/login``. ``--host 0.0.0.0`` requires the former, and ``TUNELINE_ORIGINS`` with the URLs under which other hosts
reach the server. ``PREFECT_API_DATABASE_CONNECTION_URL`` selects another database.
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
from flows.access import (
    DEFAULT_PORT,
    LOGIN_VARIABLE,
    ORIGINS_VARIABLE,
    allowed_origins,
    load_or_create_login,
    validate_login,
)
from flows.agent import RUN_STOP_TIMEOUT
from models.command_line import entry_point
from models.errors import UserError
from models.storage import atomic_write
from pipelines.clone import home, repository
from pipelines.processes import exec_module, terminate_by_environment
from texts import translate

CLIENT_LOGIN_VARIABLE = "PREFECT_API_AUTH_STRING"  # in the environment of the server's clients
SITE_VARIABLE = "TUNELINE_SITE"  # in the environment of every process of a site
SUPERVISOR = "supervisor.supervisord"


def require_login_if_public(host: str) -> None:
    """Raise UserError if other hosts can reach the server and no login is set."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback and not os.environ.get(LOGIN_VARIABLE):
        raise UserError(
            f"--host {host} opens the server to other hosts: set {LOGIN_VARIABLE} to user:password here, "
            f"and {CLIENT_LOGIN_VARIABLE} to the same value for agents and users."
        )


def check_port_is_free(host: str, port: int) -> None:
    """Raise UserError if another program listens on the port: agents would take it for this server."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The server cannot listen on {host}, port {port} ({reason}{_describe_holders(port)}); stop the other "
            "program, or choose another --port."
        ) from None


def _describe_holders(port: int) -> str:
    """Return the PIDs of processes that use a port, as far as this user may see them."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return ""
    pids = {connection.pid for connection in connections if connection.laddr and connection.laddr.port == port}
    return "".join(f"; process {pid}" for pid in sorted(pids - {None}))


def make_private_folder(folder: Path) -> Path:
    """Create a folder with mode 700 and return it.

    Raises:
        UserError: the folder belongs to another user.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.geteuid():
        raise UserError(f"{folder} belongs to another user; choose another TUNELINE_HOME.")
    folder.chmod(0o700)
    return folder


def lock_site(folder: Path) -> int:
    """Lock the folder for this site and return the lock, which supervisord inherits.

    Processes of a killed supervisord are ended first: they would hold the port and the concurrency slots of the agents.

    Raises:
        UserError: another site runs in this folder.
    """
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = _find_supervisor(folder)  # `supervisorctl reload` closes the lock while the site runs
    except BlockingIOError:
        holder = os.read(lock, 20).decode() or "unknown"
    if holder:
        os.close(lock)
        raise UserError(
            f"A site already runs in {folder} (process {holder}); stop it with Ctrl-C or `kill {holder}`, or choose "
            "another TUNELINE_HOME."
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    os.set_inheritable(lock, True)
    if count := terminate_by_environment(SITE_VARIABLE, str(folder), grace=RUN_STOP_TIMEOUT):
        print(translate("Ended {count} processes of a killed site.", count=count), flush=True)
    return lock


def _find_supervisor(folder: Path) -> int | None:
    """Return the PID of the supervisord that runs the site of this folder, or None."""
    with suppress(OSError, ValueError, psutil.Error):  # no PID file, ended, or its PID belongs to another user now
        process = psutil.Process(int((folder / "supervisord.pid").read_text()))
        if process.environ().get(SITE_VARIABLE) == str(folder) and SUPERVISOR in process.cmdline():
            return process.pid
    return None


def choose_gpu_sets(named: Sequence[str] | None) -> list[str]:
    """Return the ``--gpus`` value of each GPU agent: as named by the user, or one GPU each.

    Raises:
        UserError: this host has no such GPU, or two agents would use the same GPU.
    """
    if named is None:
        return gpus.default_gpu_sets()
    available = gpus.list_gpus()
    used = [
        name
        for gpu_set in named
        for name in ([gpu.name for gpu in gpus.select_gpus(gpu_set, available)] or [gpus.NO_GPU])
    ]
    if len(set(used)) < len(used):
        raise UserError(f"--gpus {' --gpus '.join(named)}: two agents would use the same GPU; name each GPU once.")
    return list(named)


def refuse_percent_signs(*folders: Path) -> None:
    """Raise UserError if a path contains %: supervisord expands variables, in names of log files twice."""
    for folder in folders:
        if "%" in str(folder):
            raise UserError(f"The path {folder} contains %, which supervisord would expand; choose another path.")


def list_programs(host: str, port: int, gpu_sets: list[str]) -> dict[str, list[str]]:
    """Return the programs of a site: arguments of Python, by program name."""
    server = ["-m", "flows.api_server", "--host", host, "--port", str(port)]
    agents = {
        "gpu-" + re.sub(r"[^\w-]+", "-", gpu_set): ["-m", "flows.agent", "--gpus", gpu_set] for gpu_set in gpu_sets
    }
    keeper = {"keeper": ["-m", "flows.keeper"], "cpu": ["-m", "flows.agent", "--cpu"]}
    return {"server": server} | keeper | agents | {"deployments": ["-m", "flows.deployments"]}


def write_supervisor_config(folder: Path, programs: dict[str, list[str]]) -> Path:
    """Write supervisord's configuration and return its path."""
    config = configparser.RawConfigParser()
    config["supervisord"] = {
        "nodaemon": "true",
        "logfile": str(folder / "supervisord.log"),
        "pidfile": str(folder / "supervisord.pid"),
        "childlogdir": str(folder),
        "directory": str(Path.cwd()),
    }
    config["unix_http_server"] = {"file": str(folder / "control"), "chmod": "0600"}
    config["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    config["supervisorctl"] = {"serverurl": f"unix://{folder / 'control'}"}
    for name, arguments in programs.items():
        config[f"program:{name}"] = _program_section(name, [sys.executable, *arguments], folder)
    path = folder / "supervisord.conf"
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        config.write(file)
    return path


def _program_section(name: str, command: list[str], folder: Path) -> dict[str, str]:
    return {
        "command": " ".join(f'"{argument}"' for argument in command),
        "autorestart": "unexpected" if name == "deployments" else "true",
        "startsecs": "0" if name == "deployments" else "1",
        "startretries": "1000",  # an agent may fail for a long time while another one holds its GPUs
        "stopasgroup": "true",  # flows end with their worker
        "killasgroup": "true",
        "stopwaitsecs": str(round(RUN_STOP_TIMEOUT) + 20),
        "redirect_stderr": "true",
        "stdout_logfile": str(folder / f"{name}.log"),
        "stdout_logfile_maxbytes": "20MB",
        "stdout_logfile_backups": "2",
    }


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Run server, keeper and agents on this machine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"port to listen on (default: {DEFAULT_PORT})")
    parser.add_argument("--gpus", action="append", help="GPUs of one agent, such as 0,1 (default: one agent per GPU)")
    arguments = parser.parse_args()
    gpu_sets = choose_gpu_sets(arguments.gpus)
    require_login_if_public(arguments.host)
    if login := os.environ.get(LOGIN_VARIABLE):
        validate_login(login)
    allowed_origins(arguments.host, arguments.port, os.environ.get(ORIGINS_VARIABLE, ""))  # reports errors early
    folder = home() / "server"
    refuse_percent_signs(folder, Path.cwd(), Path(sys.executable))
    lock_site(make_private_folder(folder))
    check_port_is_free(arguments.host, arguments.port)
    host = {"0.0.0.0": "127.0.0.1"}.get(arguments.host, arguments.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{arguments.port}"
    os.environ |= {"PREFECT_API_URL": f"{url}/api", "TUNELINE_REPOSITORY": repository(), SITE_VARIABLE: str(folder)}
    os.environ.setdefault("PREFECT_HOME", str(folder / "prefect"))
    site_login = login or load_or_create_login(folder / "login")
    os.environ |= dict.fromkeys((LOGIN_VARIABLE, CLIENT_LOGIN_VARIABLE), site_login)
    config = write_supervisor_config(folder, list_programs(arguments.host, arguments.port, gpu_sets))
    print_instructions(url, folder, has_generated_login=not login)
    exec_module(SUPERVISOR, "--nodaemon", "--configuration", str(config))


def print_instructions(url: str, folder: Path, *, has_generated_login: bool) -> None:
    """Print the URL, and the shell commands that set up a client of this server."""
    message = translate("Starting {url}, with logs in {folder}. Ctrl-C stops all programs.", url=url, folder=folder)
    print(message, flush=True)
    print(f"export PREFECT_API_URL={url}/api", flush=True)
    if has_generated_login:
        path = shlex.quote(str(folder / "login"))
        print(f'export PREFECT_API_AUTH_STRING="$(cat {path})"', flush=True)
        print(translate("The UI's login form expects the content of {path}.", path=path), flush=True)


if __name__ == "__main__":
    main()
