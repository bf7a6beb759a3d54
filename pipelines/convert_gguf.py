"""Convert a GGUF file (llama.cpp) to a checkpoint folder: ``python -m pipelines.convert_gguf FILE --out FOLDER``."""

import argparse
import os
from pathlib import Path

from models.command_line import entry_point
from models.errors import UserError
from texts import translate


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a GGUF file to a checkpoint folder for base.model.")
    parser.add_argument("file", type=Path, help="the GGUF file")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the checkpoint")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the weights; default: float32",
    )
    arguments = parser.parse_args()
    if not arguments.file.is_file():
        raise UserError(f"{arguments.file} does not exist.")
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise UserError(f"{arguments.out} exists already; pass a new folder.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is in the file
    from models.gguf_conversion import convert_gguf  # loads torch, which takes seconds

    convert_gguf(arguments.file, arguments.out, arguments.dtype)
    print(arguments.out)
    print(translate("Set base.model in params.yaml to this folder."))


if __name__ == "__main__":
    main()
