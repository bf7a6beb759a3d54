"""``python -m stages.train``: see the package's docstring."""

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from formats import params_schema, receipt
from models import base_model
from models.command_line import entry_point
from models.errors import DataBlocked, UserError
from models.families import family_of
from models.storage import scratch_folder


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit one adapter.")
    parser.add_argument("--adapter", required=True, help="key under adapters: in params.yaml")
    # No option may be an ambiguous prefix of torchrun's options, as --log is: its parser would reject the command.
    for name in ("checked", "encoded", "base", "out", "dvclive", "checkpoints", "champion", "versions"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def check_tokenizer(encoded: receipt.VerifiedFolder, base: base_model.Base) -> None:
    """Compare the encoded data with the base's tokenizer and the prompt version.

    Raises:
        DataBlocked: the token ids belong to another tokenizer or prompt version.
    """
    encoder = (encoded.receipt.tokenizer_sha256, encoded.receipt.prompt_version)
    if encoder != (base.tokenizer_sha256, family_of(base).prompt_version(base)):
        raise DataBlocked(
            f"{encoded.folder} was encoded with another tokenizer or prompt version. Run `dvc repro encode`."
        )


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of ``train.report_to`` are installed, before anything is loaded.

    Raises:
        UserError: one is missing; the message has the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.report_to names {name}, but the package is not installed; run "
                f"`{sys.executable} -m pip install {name}`, or remove {name} from train.report_to in params.yaml."
            )


def launch_ranks(count: int) -> None:
    """Run this program in ``count`` processes, one per device.

    Raises:
        UserError: the host has fewer GPUs, or fewer cores if it has no GPU.
    """
    import torch

    from models.launch import launch

    cuda = torch.cuda.is_available()
    available = torch.cuda.device_count() if cuda else os.cpu_count() or 1
    if count > available:
        raise UserError(
            f"train.devices is {count}, but this host has {available} {'GPUs' if cuda else 'cores'}. "
            "Lower train.devices in params.yaml."
        )
    launch("stages.train", sys.argv[1:], count)


@entry_point
def main() -> None:
    arguments, params = parse_arguments(), params_schema.load()
    if arguments.adapter not in params.adapters:
        raise UserError(f"params.yaml has no adapter {arguments.adapter!r}. It has {', '.join(params.adapters)}.")
    check_trackers(params.train.report_to)
    checked, encoded = receipt.read(arguments.checked).verify(), receipt.read(arguments.encoded)
    receipt.refuse_unrelated(encoded, checked)
    base = base_model.read_record(arguments.base)
    check_tokenizer(encoded, base)
    for folder in (arguments.out, arguments.dvclive, arguments.checkpoints):
        with scratch_folder(folder):
            pass  # fails now rather than after the training if the folder is not writable
    # FSDP needs a process group, even of one rank.
    needs_process_group = params.train.devices > 1 or params.train.strategy == "fsdp"
    if needs_process_group and "RANK" not in os.environ:
        launch_ranks(params.train.devices)
        return

    # Imported here because they load torch, which takes seconds and which the checks above do not need.
    from models import checkpoints
    from models.training import devices
    from stages.train.adapter_training import train_adapter
    from stages.train.train_job import build_train_job

    devices.set_device()
    job = build_train_job(arguments, params, base, encoded)
    if devices.rank() > 0:
        train_adapter(job)
        return
    with checkpoints.exclusive_lock(arguments.checkpoints, arguments.adapter):
        checkpoints.prepare_folder(job.checkpoints)
        train_adapter(job)
        shutil.rmtree(job.checkpoints)


if __name__ == "__main__":
    main()
