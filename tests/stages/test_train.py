import dataclasses
import subprocess

import pytest
from given import write_rows

from models import base
from models.errors import DataBlocked
from models.prompt import IGNORED_LABEL, PROMPT_VERSION
from stages import receipt
from stages.train import code_commit, read_rows, refuse_other_tokens


@pytest.fixture
def encoded(base_folder, tmp_path):
    found = base.read_record(base_folder)
    for split in receipt.SPLITS:
        write_rows(tmp_path / f"{split}.jsonl", [{"id": "a", "prompt": [1, 2], "answer": [3]}])
    receipt.write(tmp_path, tokenizer_sha256=found.tokenizer_sha256, prompt_version=PROMPT_VERSION)
    return tmp_path


def test_rows_learn_the_answer_alone(encoded):
    assert read_rows(encoded, "train") == [{"input_ids": [1, 2, 3], "labels": [IGNORED_LABEL, IGNORED_LABEL, 3]}]


def test_tokens_of_another_tokenizer_are_refused(encoded, base_folder):
    found = base.read_record(base_folder)
    refuse_other_tokens(encoded, found)
    files = found.files | {base.TOKENIZER: {"size": 1, "sha256": "0" * 64}}
    with pytest.raises(DataBlocked, match="another tokenizer"):
        refuse_other_tokens(encoded, dataclasses.replace(found, files=files))


def test_the_commit_of_the_code_and_whether_the_tree_is_dirty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code_commit() is None
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert code_commit() == head
    (tmp_path / "a").write_text("2")
    assert code_commit() == f"{head}+"
