"""Fine-tune all adapters on this machine: ``python -m pipelines.finetune`` runs the stages whose inputs have changed.

``python -m pipelines.finetune encode train@lora`` runs only these stages and the stages that they depend on. If stage
compare is among the stages to run, a summary of the comparison is printed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.errors import DataBlocked, UserError
from models.storage import read_json
from pipelines import dvc
from pipelines.start_from import fetch_starts
from texts import terminal_language, translate

COMPARE = "compare"  # the stage that writes summaries and page
SUMMARIES = {"en": Path("reports/summary.txt"), "zh": Path("reports/summary.zh.txt")}
PAGE, CHECKS = Path("reports/comparison.html"), Path("reports/data_checks.json")


def finetune(targets: Sequence[str] = ()) -> str | None:
    """Reproduce the DAG, or the given stages and their dependencies.

    Args:
        targets: stages of dvc.yaml; empty for all.

    Returns:
        The summary of the comparison in the terminal's language; None if stage compare was not among the targets.

    Raises:
        DataBlocked: the data checks block the data.
        UserError: params.yaml is not valid, a stage failed, or stage compare wrote no summary.
    """
    params = params_schema.load()  # reports a mistake in params.yaml before anything runs
    fetch_starts(params)
    checks_before = read_report_state()
    try:
        dvc.run("repro", *targets)
    except UserError:
        raise_if_blocked(checks_before)
        raise
    if targets and COMPARE not in targets:
        return None
    summary = SUMMARIES[terminal_language()]
    if not summary.is_file():
        raise UserError(f"{summary} does not exist; run `dvc repro compare`.")
    return summary.read_text(encoding="utf-8")


def read_report_state(folder: Path = Path()) -> tuple[int, int] | None:
    """Return inode and modification time of the data checks' report, which change when it is written.

    The time is not compared with this host's clock: a shared volume may have the clock of another host.
    """
    try:
        status = (folder / CHECKS).stat()
        return status.st_ino, status.st_mtime_ns
    except FileNotFoundError:
        return None


def raise_if_blocked(before: tuple[int, int] | None, folder: Path = Path()) -> None:
    """Raise DataBlocked if data checks written since ``before`` block the data.

    DVC exits with the same code for blocked data and for all other failures.

    Args:
        before: :func:`read_report_state` before DVC ran.
        folder: of the repository.
    """
    if read_report_state(folder) not in (before, None):
        checks = read_json(folder / CHECKS)
        if checks["verdict"] == "blocked":
            raise DataBlocked(f"The data checks block the data: {'; '.join(checks['reasons'])}.")


@entry_point
def main() -> None:
    summary = finetune(sys.argv[1:])
    if summary is None:
        return
    print(summary)
    print(translate("Full comparison report: {page}", page=PAGE))
    print(translate("Chat with the LoRA adapter: {command}", command="python -m chat --adapter lora"))


if __name__ == "__main__":
    main()
