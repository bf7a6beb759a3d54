"""Run ``dvc`` commands, and read and edit DVC's configuration. No other module starts DVC."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import texts
from models.command_line import ERROR_FILE
from models.errors import UserError
from models.program_environment import program_environment
from pipelines.processes import RemoteUnavailable, output_of, run_module

Config = dict[str, dict[str, Any]]  # by section


def run(*arguments: str, folder: Path | None = None, **environment: str) -> None:
    """Run ``dvc``; its output goes to the terminal.

    Args:
        folder: the repository; None for the working directory.
        environment: additional environment variables.

    Raises:
        RemoteUnavailable: DVC's remote does not answer.
        UserError: DVC failed; the reason is in its output.
    """
    # DVC runs in the locale C, since its messages are parsed; the tables of its stages are in the user's language.
    variables = program_environment(**{texts.LANGUAGE: texts.terminal_language()}, **environment)
    if run_module("dvc", *_in_folder(folder), *arguments, environment=variables, needs_network=True) != 0:
        raise UserError(f"`dvc {' '.join(arguments)}` failed; the reason is in the output above.")


def run_with_stage_error(*arguments: str, folder: Path | None = None) -> None:
    """Run ``dvc`` like :func:`run`, and raise the error message of the stage that failed.

    Not for stages that read raw data: their messages may quote samples.
    """
    with tempfile.NamedTemporaryFile(prefix="tuneline-") as error_file:
        try:
            run(*arguments, folder=folder, **{ERROR_FILE: error_file.name})
        except RemoteUnavailable:
            raise
        except UserError as error:
            message = Path(error_file.name).read_text(encoding="utf-8").strip()
            raise UserError(message or str(error)) from None


def capture(*arguments: str, folder: Path | None = None) -> str:
    """Run ``dvc`` and return its output. Do not pass ``--quiet``, which also suppresses the reason of a failure.

    Raises:
        RemoteUnavailable: DVC's remote does not answer.
        ProgramFailed: DVC failed.
    """
    return output_of(sys.executable, "-m", "dvc", *_in_folder(folder), *arguments)


def _in_folder(folder: Path | None) -> tuple[str, ...]:
    return () if folder is None else ("--cd", str(folder))


def load_config(folder: Path) -> Config:
    """Return DVC's configuration of a repository, merged with the user's and the system's.

    Paths are absolute; sections may be empty. Loaded in this process: starting ``dvc config`` takes half a second.

    Raises:
        UserError: the configuration cannot be read.
    """
    from dvc.config import Config  # changes signal handlers and the terminal on import

    with _config_errors(folder):
        return Config(dvc_dir=str(folder / ".dvc"))


@contextmanager
def edit_local_config(folder: Path) -> Iterator[Config]:
    """Yield ``.dvc/config.local`` of a repository, which git ignores, and save the changes.

    Raises:
        UserError: the configuration cannot be read, or DVC refuses a change.
    """
    from dvc.config import Config

    with _config_errors(folder), Config(dvc_dir=str(folder / ".dvc")).edit("local") as config:
        yield config


@contextmanager
def _config_errors(folder: Path) -> Iterator[None]:
    from dvc.config import ConfigError

    try:
        yield
    except ConfigError as error:
        raise UserError(f"DVC's configuration in {folder} cannot be used ({error}).") from None
