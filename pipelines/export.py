"""Export an adapter to another format, or import one.

``python -m pipelines.export lora --merged DIR`` merges an adapter into its base model and writes a checkpoint in the
official layout, which ``base.model: DIR`` in params.yaml accepts. ``python -m pipelines.export ptuning_v2 --official
DIR`` writes a prefix in the format of the published P-Tuning code; ``python -m pipelines.export NAME --from FILE``
imports a file of that format as an adapter for the chat.
"""

import argparse
from pathlib import Path

from formats import params_schema
from models import adapter_conversion, base_model
from models.command_line import entry_point
from models.errors import UserError
from pipelines.promotion import require_adapter
from pipelines.registry import FOLDER as CHAMPION
from pipelines.stage_paths import WEIGHTS
from texts import translate

IMPORTED = Path("models/imported")


def adapter_folder(name: str) -> Path:
    """Return the folder of an adapter, or of the champion.

    Raises:
        UserError: params.yaml has no such adapter.
    """
    if name == "champion":
        return CHAMPION
    require_adapter(params_schema.load(), name)
    return WEIGHTS / name


def require_empty(out: Path) -> None:
    """Raise UserError if the path exists, and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; pass a new folder.")


def import_prefix(name: str, file: Path) -> Path:
    """Import a checkpoint of the published P-Tuning code as an adapter, and return its folder.

    Raises:
        UserError: the name is reserved or not valid, or the file is not such a checkpoint.
    """
    params = params_schema.load()
    reserved = params_schema.RESERVED_NAMES | set(params.adapters)
    if name in reserved or not name.isascii() or not name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"{name!r} is reserved, or not a name for an adapter; use other letters, digits, - and _.")
    out, base = IMPORTED / name, base_model.read_record(WEIGHTS / "base")
    require_empty(out)
    adapter_conversion.import_official_prefix(file, base, name, params.base.dtype, out)
    return out


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Export an adapter to another format, or import one.")
    parser.add_argument("adapter", help="an adapter's key in params.yaml, or champion")
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument("--merged", type=Path, metavar="DIR", help="write a merged model in the official layout")
    formats.add_argument("--official", type=Path, metavar="DIR", help="write a prefix as the P-Tuning code saves it")
    formats.add_argument("--from", type=Path, metavar="FILE", dest="file", help="import pytorch_model.bin of a prefix")
    parser.add_argument(
        "--onto-16-bits", action="store_true", help="also merge an adapter that was trained on a base in 4 or 8 bits"
    )
    arguments = parser.parse_args()
    if arguments.onto_16_bits and not arguments.merged:
        parser.error("--onto-16-bits goes with --merged")
    return arguments


@entry_point
def main() -> None:
    arguments = parse_arguments()
    if arguments.file is not None:
        out = import_prefix(arguments.adapter, arguments.file)
        print(out)
        print(translate("Chat with this adapter: {command}", command=f"python -m chat --adapter {out.name}"))
        return
    folder, base = adapter_folder(arguments.adapter), base_model.read_record(WEIGHTS / "base")
    out = arguments.merged or arguments.official
    require_empty(out)
    if arguments.merged:
        adapter_conversion.export_merged_model(folder, base, out, arguments.onto_16_bits)
    else:
        adapter_conversion.export_official_prefix(folder, base, out)
    print(out)


if __name__ == "__main__":
    main()
