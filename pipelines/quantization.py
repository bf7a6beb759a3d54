"""Measure the cost of quantization: ``python -m pipelines.quantization lora``.

The adapter is evaluated on its base model in 16, 8 and 4 bits; stage compare compares loss, answers, memory and speed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.errors import UserError
from pipelines import stage_paths
from pipelines.promotion import require_adapter

BITS = (16, 8, 4)  # 16: not quantized, in base.dtype


def compare_quantization(name: str, page: Path, widths: Sequence[int] = BITS) -> str:
    """Evaluate and compare an adapter on its base model in several bit widths; return the summary.

    Args:
        page: HTML file to write; the Markdown file goes next to it.

    Raises:
        UserError: there is no such adapter, or it cannot be evaluated.
    """
    stage_paths.require_html(page)
    params = params_schema.load()
    require_adapter(params, name)
    weights = stage_paths.WEIGHTS / name
    labels = {bits: f"{name} {params.base.dtype if bits == 16 else f'{bits} bit'}" for bits in widths}
    with tempfile.TemporaryDirectory() as scratch:
        for bits, label in labels.items():
            if stage_paths.run_evaluate(label, weights, Path(scratch), "--bits", str(bits)) != 0:
                raise UserError(f"{name} could not be evaluated in {bits} bits; the reason is in the output above.")
        return stage_paths.run_compare(list(labels.values()), Path(scratch), page)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate an adapter on its base model in 16, 8 and 4 bits.")
    parser.add_argument("adapter", help="its key under adapters: in params.yaml")
    parser.add_argument("--out", type=Path, help="HTML file; Markdown goes next to it")
    parser.add_argument("--bits", type=int, nargs="+", choices=BITS, default=BITS)
    arguments = parser.parse_args()
    page = arguments.out or Path(f"reports/quantization_{arguments.adapter}.html")
    print(compare_quantization(arguments.adapter, page, arguments.bits))
    print(page)


if __name__ == "__main__":
    main()
