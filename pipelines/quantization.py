"""What quantization costs: ``python -m pipelines.quantization lora``.

The same adapter answers everything on its base in 16 bits, 8 and 4; stage compare sets the three side by side: loss,
equal answers, memory, speed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.errors import UserError
from pipelines import stage_paths

BITS = (16, 8, 4)  # 16 stands for the type that the base is in


def quantization(name: str, out: Path, every: Sequence[int] = BITS) -> str:
    """Write the comparison of these numbers of bits; gives its short form."""
    if out.suffix != ".html":
        raise UserError(f"--out: {out} is to be a page; let its name end with .html.")
    knobs = params_schema.load()
    if name not in knobs.adapters:
        raise UserError(f"params.yaml has no adapter {name!r}; it has {', '.join(knobs.adapters)}.")
    weights = stage_paths.WEIGHTS / name
    names = [f"{name} {knobs.base.dtype if bits == 16 else f'{bits} bit'}" for bits in every]
    with tempfile.TemporaryDirectory() as scratch:
        for label, bits in zip(names, every, strict=True):
            if stage_paths.evaluate(label, weights, Path(scratch), "--bits", str(bits)) != 0:
                raise UserError(f"{name} could not be evaluated in {bits} bits; the lines above say why.")
        stage_paths.compare(names, Path(scratch), out)
        return (Path(scratch) / "summary.txt").read_text(encoding="utf-8")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate an adapter on its base in 16, 8 and 4 bits.")
    parser.add_argument("adapter", help="its key under adapters: in params.yaml")
    parser.add_argument("--out", type=Path, help="the page; Markdown goes beside it")
    parser.add_argument("--bits", type=int, nargs="+", choices=BITS, default=BITS)
    arguments = parser.parse_args()
    out = arguments.out or Path(f"reports/quantization_{arguments.adapter}.html")
    print(quantization(arguments.adapter, out, arguments.bits))
    print(out)


if __name__ == "__main__":
    main()
