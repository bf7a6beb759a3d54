"""``python -m stages.train``: see the package's docstring."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from formats import params_schema, receipt
from models import base_model
from models.command_line import entry_point
from models.errors import DataBlocked, UserError
from models.prompt import PROMPT_VERSION
from models.storage import scratch_folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit one adapter.")
    parser.add_argument("--adapter", required=True, help="its key under adapters: in params.yaml")
    # None may begin as an option of torchrun does (--log would be one of several): it would take it for its own.
    for name in ("checked", "encoded", "base", "out", "dvclive", "checkpoints"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def refuse_other_tokens(encoded: receipt.Verified, found: base_model.Base) -> None:
    """Raises DataBlocked: the token ids belong to another tokenizer or prompt."""
    made = encoded.receipt
    if (made.tokenizer_sha256, made.prompt_version) != (found.tokenizer_sha256, PROMPT_VERSION):
        raise DataBlocked(f"{encoded.folder} was encoded with another tokenizer or prompt; run `dvc repro encode`.")


def start_processes(count: int) -> None:
    """Run this program in ``count`` processes, one a device.

    Raises:
        UserError: the host has fewer GPUs, or cores where it has no GPU.
    """
    import torch

    from models.launch import launch

    cuda = torch.cuda.is_available()
    there = torch.cuda.device_count() if cuda else os.cpu_count() or 1
    if count > there:
        raise UserError(f"train.devices is {count}, but this host has {there} {'GPUs' if cuda else 'cores'}.")
    launch("stages.train", sys.argv[1:], count)


@entry_point
def main() -> None:
    arguments, knobs = parse(), params_schema.load()
    if arguments.adapter not in knobs.adapters:
        raise UserError(f"params.yaml has no adapter {arguments.adapter!r}; it has {', '.join(knobs.adapters)}.")
    checked, encoded = receipt.read(arguments.checked).verify(), receipt.read(arguments.encoded)
    receipt.refuse_unrelated(encoded, checked)
    found = base_model.read_record(arguments.base)
    refuse_other_tokens(encoded, found)
    for folder in (arguments.out, arguments.dvclive, arguments.checkpoints):
        with scratch_folder(folder):
            pass  # what cannot be written is better known before the training than after
    several = knobs.train.devices > 1 or knobs.train.strategy == "fsdp"  # which needs a group, be it of one
    if several and "RANK" not in os.environ:
        start_processes(knobs.train.devices)
        return

    # Slow to import, and not needed to refuse.
    from models import checkpoints
    from models.training import devices
    from stages.train.adapter_training import make
    from stages.train.train_job import build_train_job

    devices.take()
    order = build_train_job(arguments, knobs, found, encoded)
    if devices.rank() > 0:
        make(order)
        return
    with checkpoints.exclusive_lock(arguments.checkpoints, arguments.adapter):
        checkpoints.prepare_folder(order.checkpoints)
        make(order)
        shutil.rmtree(order.checkpoints)


if __name__ == "__main__":
    main()
