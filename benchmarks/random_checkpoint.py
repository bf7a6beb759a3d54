"""A checkpoint of ChatGLM-6B's size with random weights, and a description of the machine, for the GPU benchmarks."""

import contextlib
import importlib.metadata
import os
import subprocess
from pathlib import Path

import torch

from models import base_model
from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from models.storage import read_json, write_json

ROOT = Path(__file__).parents[1]
FILES = "files.json"  # hashes of a checkpoint's files
SMALL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "inner_hidden_size": 256, "vocab_size": 2048}
SMALL |= {"bos_token_id": 2044, "eos_token_id": 2045, "mask_token_id": 2046, "gmask_token_id": 2047}


def make_checkpoint(folder: Path, small: bool, **sizes) -> None:
    """Write random weights in half precision, in shards of 2 GB.

    Args:
        small: use the sizes of a toy model.
        sizes: fields of the configuration to override.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**(SMALL if small else {}) | sizes))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="2GB")
    names = ["config.json", *(path.name for path in folder.glob("model*.safetensors*"))]
    write_json(folder / FILES, base_model.hash_files(folder, names))


def read_checkpoint(folder: Path, name: str = "random") -> base_model.Base:
    """Return the base that :func:`make_checkpoint` wrote; it has no tokenizer."""
    return base_model.Base(name, folder, None, read_json(folder / FILES))


def describe_machine(commit: str | None = None) -> dict:
    """Return device, library versions and commit.

    Args:
        commit: of the code, for a copy of it outside a git repository.
    """
    git = subprocess.run(["git", "rev-parse", "--verify", "-q", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = {"torch": torch.__version__}
    for name in ("transformers", "peft", "bitsandbytes"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not every benchmark needs all of them
            versions[name] = importlib.metadata.version(name)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        **versions,
        "commit": commit or git.stdout.strip() or None,
    }
