"""The only place that starts dvc."""

import sys

from models.errors import UserError
from pipelines.programs import output_of, run_module


def run(*arguments: str) -> None:
    """Run ``dvc``, its output going to the terminal.

    Raises:
        UserError: dvc failed; it has said why.
    """
    if run_module("dvc", *arguments) != 0:
        raise UserError(f"`dvc {' '.join(arguments)}` stopped; the lines above say where and why.")


def ask(*arguments: str) -> str:
    """Run ``dvc``; gives what it wrote."""
    return output_of(sys.executable, "-m", "dvc", *arguments)
