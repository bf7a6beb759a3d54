import os
import shutil
from pathlib import Path

# Before torch. Figures are recorded, and bytes repeat, on the CPU; a GPU is for the tests that need one.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("TUNELINE_TEST_GPU", "")

import pytest
import torch
from given import TEXTS

from models import base, tiny
from models.chatglm import ChatGLMForConditionalGeneration


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A whole checkpoint in the official layout: a trained vocabulary, random weights."""
    folder = tmp_path_factory.mktemp("weights") / "base"
    tokenizer = tiny.train_tokenizer(TEXTS * 3, 4500, folder)
    torch.manual_seed(0)
    config = tiny.configure(tokenizer, hidden_size=32, layers=2, heads=2)
    config.initializer_range = 0.3  # so that attention weighs in: it is faint beside the scaled residuals
    model = ChatGLMForConditionalGeneration(config)
    model.save_pretrained(folder)
    base.write_record(base.verify(folder, "tiny"), folder)
    return folder


@pytest.fixture
def base_copy(base_folder, tmp_path) -> Path:
    """The same, to spoil."""
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


@pytest.fixture(scope="session")
def tokenizer(base_folder):
    return base.load_tokenizer(base_folder)


@pytest.fixture
def model(base_folder):
    return base.load_model(base.read_record(base_folder), "float32")
