import shutil

import pytest
import torch
from shared_data import minimal_manifest

from chat.chat_model import ChatModel
from models import adapter_files, adapters, base_model, model_loading
from models.errors import UserError
from models.manifest import WEIGHTS
from models.sample import Message
from models.storage import read_json, write_json

QUESTION = [Message("user", "你是谁？")]


@pytest.fixture
def weights(base_folder, tmp_path):
    """Folder with a base model, a LoRA and a prefix, both with random weights."""
    folder = tmp_path / "weights"
    shutil.copytree(base_folder, folder / "base")
    base = base_model.read_record(folder / "base")
    settings_by_method = {
        "lora": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value"]},
        "ptuning_v2": {"prefix_tokens": 4},
    }
    for seed, (method, settings) in enumerate(settings_by_method.items()):
        torch.manual_seed(seed)
        model = adapters.attach_adapter(model_loading.load_model(base, "float32"), method, **settings)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        adapter_files.save_adapter(model, folder / method, minimal_manifest(base, method))
    return folder


def chat_model(weights, name=None, dtype="float32") -> ChatModel:
    return ChatModel(weights, name, dtype, max_new_tokens=8, sample=False)


def answer(model, **options) -> str:
    stream = model.stream_answer(QUESTION, **options)
    text = "".join(stream)
    assert text == stream.answer.text
    return text


def test_the_champion_is_the_default_if_there_is_one(weights):
    assert chat_model(weights).name == "tiny"
    shutil.copytree(weights / "lora", weights.parent / "champion")
    champion = chat_model(weights)
    assert champion.name == "tiny + champion"
    assert champion.names() == ["base", "champion", "lora", "ptuning_v2"]
    assert answer(champion) == answer(chat_model(weights, "lora"))


def test_the_base_is_the_default_if_the_champion_belongs_to_another_base(weights, caplog, monkeypatch):
    monkeypatch.setenv("TUNELINE_LANG", "en")
    shutil.copytree(weights / "lora", weights.parent / "champion")
    manifest = weights.parent / "champion/manifest.json"
    write_json(manifest, read_json(manifest) | {"base_identity": "another"})
    assert chat_model(weights).name == "tiny"
    assert "The base model answers instead" in caplog.text
    with pytest.raises(UserError):
        chat_model(weights, "champion")


def test_a_switched_model_answers_like_one_that_was_loaded_directly(weights):
    model = chat_model(weights, "base")
    expected = {name: answer(chat_model(weights, name)) for name in ("base", "lora", "ptuning_v2")}
    assert len(set(expected.values())) == 3
    for name in ("lora", "ptuning_v2", "base", "lora"):
        model.switch(name)
        assert answer(model) == expected[name]


def test_a_failed_switch_keeps_the_current_adapter(weights):
    model = chat_model(weights, "lora")
    expected = answer(model)
    (weights / "ptuning_v2" / WEIGHTS).write_bytes(b"damaged")
    for name, reason in (("other", "There is no adapter 'other'"), ("ptuning_v2", "is not the file")):
        with pytest.raises(UserError, match=reason):
            model.switch(name)
        assert (model.adapter, answer(model)) == ("lora", expected)


def test_force_sampling_gives_different_answers(weights):
    model = chat_model(weights, "lora")
    torch.manual_seed(0)
    assert len({answer(model, force_sampling=True) for _ in range(5)}) > 1


def test_a_missing_base_model_and_a_missing_room_for_prompts_are_errors(weights, tmp_path):
    with pytest.raises(UserError, match="no base model"):
        chat_model(tmp_path)
    with pytest.raises(UserError, match="max-new-tokens must be less"):
        ChatModel(weights, "base", "float32", max_new_tokens=100_000, sample=False)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
@pytest.mark.parametrize("name", ["base", "lora", "ptuning_v2"])
def test_the_dtype_applies_to_base_and_adapters(weights, name, dtype, expected):
    model = chat_model(weights, name, dtype)
    assert adapters.get_base_model(model.model).get_parameter("lm_head.weight").dtype == expected
    if dtype == "bfloat16":
        assert answer(model)


def test_dtype_auto_is_that_of_the_adapters_training(weights):
    manifest = weights / "lora/manifest.json"
    write_json(manifest, read_json(manifest) | {"dtype": "bfloat16"})
    model = chat_model(weights, "lora", "auto")
    assert adapters.get_base_model(model.model).dtype == torch.bfloat16
