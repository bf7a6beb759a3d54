"""The only place that starts dvc."""

import os
import sys
import tempfile
from pathlib import Path

from models.errors import LAST_WORDS, UserError
from pipelines.programs import output_of, run_module


def run(*arguments: str) -> None:
    """Run ``dvc``, its output going to the terminal.

    Raises:
        UserError: dvc failed; it has said why.
    """
    if run_module("dvc", *arguments) != 0:
        raise UserError(f"`dvc {' '.join(arguments)}` stopped; the lines above say where and why.")


def tell(*arguments: str) -> None:
    """:func:`run`, but its error is what the stage ended with. Not for stages of raw data, which may quote them."""
    with tempfile.NamedTemporaryFile(prefix="tuneline-") as words:
        os.environ[LAST_WORDS] = words.name
        try:
            run(*arguments)
        except UserError as error:
            said = Path(words.name).read_text(encoding="utf-8").strip()
            raise UserError(said or str(error)) from None
        finally:
            del os.environ[LAST_WORDS]


def ask(*arguments: str) -> str:
    """Run ``dvc``; gives what it wrote."""
    return output_of(sys.executable, "-m", "dvc", *arguments)
