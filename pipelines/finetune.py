"""The main job: raw data in, compared adapters out.

``python -m pipelines.finetune`` reproduces what changed and ends with the comparison's short form.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from models.errors import UserError, program
from pipelines import dvc
from stages import params

SUMMARY = Path("reports/summary.txt")


def finetune(targets: Sequence[str] = ()) -> str:
    """Reproduce the whole DAG, or the given stages and what they need; gives the short comparison.

    Raises:
        UserError: params.yaml is wrong, a stage failed, or no comparison came of it.
    """
    params.load()  # a slip of the pen is told before anything runs
    dvc.run("repro", *targets)
    if not SUMMARY.is_file():
        raise UserError(f"{SUMMARY} was not made; run `dvc repro compare`.")
    return SUMMARY.read_text(encoding="utf-8")


@program
def main() -> None:
    print(finetune(sys.argv[1:]))
    print(f"The whole comparison · 完整对比：{SUMMARY.with_name('comparison.html')}")
    print("Talk to it · 和它对话：python -m chat --adapter lora")


if __name__ == "__main__":
    main()
