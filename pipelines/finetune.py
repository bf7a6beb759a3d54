"""The main job: raw data in, compared adapters out.

``python -m pipelines.finetune`` reproduces what changed and ends with the comparison's short form.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.errors import DataBlocked, UserError
from models.storage import read_json
from pipelines import dvc

SUMMARY, CHECKS = Path("reports/summary.txt"), Path("reports/data_checks.json")


def finetune(targets: Sequence[str] = ()) -> str:
    """Reproduce the whole DAG, or the given stages and what they need; gives the short comparison.

    Raises:
        DataBlocked: the data checks stopped it.
        UserError: params.yaml is wrong, a stage failed, or no comparison came of it.
    """
    params_schema.load()  # a slip of the pen is told before anything runs
    before = state_of_checks()
    try:
        dvc.run("repro", *targets)
    except UserError:
        refuse_if_blocked(before)
        raise
    if not SUMMARY.is_file():
        raise UserError(f"{SUMMARY} was not made; run `dvc repro compare`.")
    return SUMMARY.read_text(encoding="utf-8")


def state_of_checks() -> tuple[int, int] | None:
    """By which the data checks are known to be written anew: inode and time, not compared with this host's clock.

    A workspace on a shared volume is stamped by another one.
    """
    try:
        found = CHECKS.stat()
        return found.st_ino, found.st_mtime_ns
    except FileNotFoundError:
        return None


def refuse_if_blocked(before: tuple[int, int] | None) -> None:
    """dvc has one exit code for all failures; tell data that were blocked from the rest.

    Args:
        before: :func:`state_of_checks` before dvc ran; checks from then do not count.
    """
    if state_of_checks() not in (before, None):
        checks = read_json(CHECKS)
        if checks["verdict"] == "blocked":
            raise DataBlocked(f"The data checks stopped it: {'; '.join(checks['reasons'])}.")


@entry_point
def main() -> None:
    print(finetune(sys.argv[1:]))
    print(f"The whole comparison · 完整对比：{SUMMARY.with_name('comparison.html')}")
    print("Talk to it · 和它对话：python -m chat --adapter lora")


if __name__ == "__main__":
    main()
