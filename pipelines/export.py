"""An adapter in a form that others read, and back.

``python -m pipelines.export lora --merged DIR`` writes a whole model in the official file layout, with the adapter in
its weights; ``base.model: DIR`` in params.yaml takes it as a base. ``python -m pipelines.export ptuning_v2 --official
DIR`` writes a prefix as the published P-Tuning code saves it; ``python -m pipelines.export NAME --from FILE`` makes
an adapter of such a file, for the chat.
"""

import argparse
from pathlib import Path

from formats import params_schema
from models import adapter_conversion, base_model
from models.command_line import entry_point
from models.errors import UserError

WEIGHTS, CHAMPION, IMPORTED = Path("models/weights"), Path("models/champion"), Path("models/imported")


def folder_of(name: str) -> Path:
    """Where an adapter lies."""
    if name == "champion":
        return CHAMPION
    if name not in params_schema.load().adapters:
        raise UserError(f"params.yaml has no adapter {name!r}; it has {', '.join(params_schema.load().adapters)}.")
    return WEIGHTS / name


def refuse_to_overwrite(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a new folder.")


def take_over(name: str, file: Path) -> Path:
    """Make an adapter of a published P-Tuning checkpoint; gives its folder."""
    knobs = params_schema.load()
    taken = params_schema.RESERVED_NAMES | set(knobs.adapters)
    if name in taken or not name.isascii() or not name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"{name!r} is taken, or no name for an adapter; choose another of letters, digits, - and _.")
    out = IMPORTED / name
    refuse_to_overwrite(out)
    adapter_conversion.load_official_prefix(file, base_model.read_record(WEIGHTS / "base"), name, knobs.base.dtype, out)
    return out


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Write an adapter in a form that others read, or read one.")
    parser.add_argument("adapter", help="an adapter's key, or champion")
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--merged", type=Path, metavar="DIR", help="a whole model in the official file layout")
    ways.add_argument("--official", type=Path, metavar="DIR", help="a prefix as the published P-Tuning code saves it")
    ways.add_argument("--from", type=Path, metavar="FILE", dest="file", help="pytorch_model.bin to make the adapter of")
    parser.add_argument("--onto-16-bits", action="store_true", help="merge an adapter of a base in 4 or 8 bits, too")
    arguments = parser.parse_args()
    if arguments.onto_16_bits and not arguments.merged:
        parser.error("--onto-16-bits goes with --merged")
    if arguments.file is not None:
        out = take_over(arguments.adapter, arguments.file)
        print(f"{out}\nTalk to it · 和它对话：python -m chat --adapter {out.name}")
        return
    folder, found = folder_of(arguments.adapter), base_model.read_record(WEIGHTS / "base")
    out = arguments.merged or arguments.official
    refuse_to_overwrite(out)
    if arguments.merged:
        adapter_conversion.save_merged(folder, found, out, arguments.onto_16_bits)
    else:
        adapter_conversion.save_official_prefix(folder, found, out)
    print(out)


if __name__ == "__main__":
    main()
