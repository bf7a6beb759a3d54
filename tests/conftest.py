import os
import shutil
from pathlib import Path

# Set before torch is imported: recorded results and equal bytes need the CPU; only some tests use a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("TUNELINE_TEST_GPU", "")

import pytest
import torch
from shared_data import TEXTS

from models import base_model, base_verification, model_loading, tiny_base_model
from models.chatglm import ChatGLMForConditionalGeneration


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A complete checkpoint in the official layout, with a trained vocabulary and random weights."""
    folder = tmp_path_factory.mktemp("weights") / "base"
    tokenizer = tiny_base_model.train_tokenizer(TEXTS * 3, 4500, folder)
    torch.manual_seed(0)
    config = tiny_base_model.build_config(tokenizer, hidden_size=32, layers=2, heads=2)
    config.initializer_range = 0.3  # with the default, attention is negligible compared with the scaled residuals
    model = ChatGLMForConditionalGeneration(config)
    model.save_pretrained(folder)
    base_model.write_record(base_verification.verify_base(folder, "tiny"), folder)
    return folder


@pytest.fixture
def base_copy(base_folder, tmp_path) -> Path:
    """A copy of the checkpoint for a test to modify."""
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


@pytest.fixture(scope="session")
def tokenizer(base_folder):
    return model_loading.load_tokenizer(base_folder)


@pytest.fixture
def model(base_folder):
    return model_loading.load_model(base_model.read_record(base_folder), "float32")
