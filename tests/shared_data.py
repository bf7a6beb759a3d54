"""Data that several tests share: paths, texts, rows, adapter settings and manifests."""

import json
from pathlib import Path

import pytest
import torch

from models import base_model
from models.manifest import Manifest
from models.prompt import PROMPT_VERSION
from models.sample import Message

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
TEXTS = [
    "你好，我是一个很小的模型。",
    "请以“夕阳”造句。",
    "夕阳把湖面染成了金色。",
    "你是谁？",
    "我是测试用的模型 tiny-test。",
    "3加4等于多少？",
    "3+4=7，所以答案是7。",
]


def developer_file(path: str) -> Path:
    """Return the path of a file that only developers have; skip the test if it is missing."""
    file = SHARED / path
    if not file.exists():
        pytest.skip(f"needs ../shared/{path}, which is not part of the project")
    return file


def conversation(*texts: str) -> tuple[Message, ...]:
    """Return messages of alternating roles, the user first."""
    return tuple(Message(("user", "assistant")[index % 2], text) for index, text in enumerate(texts))


def write_rows(path: Path, rows: list) -> Path:
    """Write rows as JSON Lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# Adapters -----------------------------------------------------------------------------------------

ADAPTER_SETTINGS = {
    "lora": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value"]},
    "lora everywhere": {"rank": 2, "alpha": 4, "target_modules": ["dense", "dense_h_to_4h", "dense_4h_to_h"]},
    "lora rank-stabilized": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value", "dense"], "rslora": True},
    "lora dora": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value", "dense"], "dora": True},
    "full": {},
    "ptuning_v2": {"prefix_tokens": 5},
    "ptuning_v2 projected": {"prefix_tokens": 5, "projection": True},
}


def minimal_manifest(base: base_model.Base, method: str = "lora") -> Manifest:
    """Return a manifest with the required fields of an adapter on this base."""
    return Manifest(
        name=method,
        method=method,
        settings={},
        base=base.name,
        base_identity=base.identity,
        tokenizer_sha256=base.tokenizer_sha256,
        prompt_version=PROMPT_VERSION,
        quantization=None,
        dtype="float32",
        receipt_sha256="",
        code_commit=None,
        training={},
    )


def short_row_logits(model, config) -> torch.Tensor:
    """Return the logits of a short row."""
    with torch.inference_mode():
        return model(torch.tensor([[40, 41, config.gmask_token_id, config.bos_token_id, 50]])).logits


def randomize_adapter(model) -> None:
    """Add noise to the adapter's weights: a new LoRA adapter has no effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
