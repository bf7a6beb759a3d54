"""What many tests are given."""

import json
from pathlib import Path

import pytest

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


def shared(path: str) -> Path:
    """A file beside the project that only its developers have; skips where it is missing."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs ../shared/{path}, which is not part of the project")
    return found


def conversation(*texts: str) -> tuple[Message, ...]:
    """Messages of alternating roles, the user first."""
    return tuple(Message(("user", "assistant")[index % 2], text) for index, text in enumerate(texts))


def write_rows(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
