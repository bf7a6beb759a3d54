"""The only place that starts dvc, or reads its settings."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.command_line import ERROR_FILE
from models.errors import UserError
from models.program_environment import program_environment
from pipelines.processes import RemoteAway, output_of, run_module

Settings = dict[str, dict[str, Any]]  # by section


def run(*arguments: str) -> None:
    """Run ``dvc``, its output going to the terminal.

    Raises:
        RemoteAway: its remote does not answer.
        UserError: dvc failed; it has said why.
    """
    if run_module("dvc", *arguments, environment=program_environment(), needs_network=True) != 0:
        raise UserError(f"`dvc {' '.join(arguments)}` stopped; the lines above say where and why.")


def tell(*arguments: str) -> None:
    """:func:`run`, but its error is what the stage ended with. Not for stages of raw data, which may quote them."""
    with tempfile.NamedTemporaryFile(prefix="tuneline-") as words:
        os.environ[ERROR_FILE] = words.name
        try:
            run(*arguments)
        except RemoteAway:
            raise
        except UserError as error:
            said = Path(words.name).read_text(encoding="utf-8").strip()
            raise UserError(said or str(error)) from None
        finally:
            del os.environ[ERROR_FILE]


def ask(*arguments: str) -> str:
    """Run ``dvc``; gives what it wrote. Not with ``--quiet``, which keeps the reason of a failure back, too.

    Raises:
        RemoteAway: its remote does not answer.
        ProgramFailed: dvc failed.
    """
    return output_of(sys.executable, "-m", "dvc", *arguments)


def settings(folder: Path) -> Settings:
    """DVC's settings for a repository, those of user and host too; paths are whole, sections may be empty.

    Read here, since a dvc started for each question would take half a second.

    Raises:
        UserError: they cannot be read.
    """
    from dvc.config import Config  # takes over this process's terminal: only where it is needed

    with _refusals(folder):
        return Config(dvc_dir=str(folder / ".dvc"))


@contextmanager
def own_settings(folder: Path) -> Iterator[Settings]:
    """Those of a repository on this host alone, ``.dvc/config.local``, to be changed.

    Raises:
        UserError: they cannot be read, or DVC knows no such setting.
    """
    from dvc.config import Config

    with _refusals(folder), Config(dvc_dir=str(folder / ".dvc")).edit("local") as found:
        yield found


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    from dvc.config import ConfigError

    try:
        yield
    except ConfigError as error:
        raise UserError(f"DVC's settings in {folder} cannot be used ({error}).") from None
