import shutil

import pytest
import torch
from shared_data import minimal_manifest

from chat.partner import Partner
from models import adapter_files, adapters, base_model, model_loading
from models.errors import UserError
from models.manifest import WEIGHTS
from models.sample import Message
from models.storage import read_json, write_json

QUESTION = [Message("user", "你是谁？")]


@pytest.fixture
def weights(base_folder, tmp_path):
    """A base, a LoRA and a prefix on it."""
    folder = tmp_path / "weights"
    shutil.copytree(base_folder, folder / "base")
    found = base_model.read_record(folder / "base")
    hows = {
        "lora": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value"]},
        "ptuning_v2": {"prefix_tokens": 4},
    }
    for seed, (method, how) in enumerate(hows.items()):
        torch.manual_seed(seed)
        tuned = adapters.attach_adapter(model_loading.load_model(found, "float32"), method, **how)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        adapter_files.save_adapter(tuned, folder / method, minimal_manifest(found, method))
    return folder


def partner_of(weights, name=None) -> Partner:
    return Partner(weights, name, "float32", room=8, sample=False)


def answer(partner, **how) -> str:
    stream = partner.answer(QUESTION, **how)
    text = "".join(stream)
    assert text == stream.answer.text
    return text


def test_the_champion_answers_if_there_is_one(weights):
    assert partner_of(weights).name == "tiny"
    shutil.copytree(weights / "lora", weights.parent / "champion")
    champion = partner_of(weights)
    assert champion.name == "tiny + champion"
    assert champion.names() == ["base", "champion", "lora", "ptuning_v2"]
    assert answer(champion) == answer(partner_of(weights, "lora"))


def test_a_champion_of_another_base_leaves_the_base_to_answer(weights, caplog):
    shutil.copytree(weights / "lora", weights.parent / "champion")
    manifest = weights.parent / "champion/manifest.json"
    write_json(manifest, read_json(manifest) | {"base_identity": "another"})
    assert partner_of(weights).name == "tiny"
    assert "The base answers instead" in caplog.text
    with pytest.raises(UserError):
        partner_of(weights, "champion")


def test_switched_it_answers_as_the_other_would_and_back_as_before(weights):
    partner = partner_of(weights, "base")
    said = {name: answer(partner_of(weights, name)) for name in ("base", "lora", "ptuning_v2")}
    assert len(set(said.values())) == 3
    for name in ("lora", "ptuning_v2", "base", "lora"):
        partner.switch(name)
        assert answer(partner) == said[name]


def test_what_cannot_be_loaded_leaves_the_present_one(weights):
    partner = partner_of(weights, "lora")
    said = answer(partner)
    (weights / "ptuning_v2" / WEIGHTS).write_bytes(b"damaged")
    for name, reason in (("other", "There is no adapter 'other'"), ("ptuning_v2", "is not the file")):
        with pytest.raises(UserError, match=reason):
            partner.switch(name)
        assert (partner.key, answer(partner)) == ("lora", said)


def test_another_answer_is_sampled(weights):
    partner = partner_of(weights, "lora")
    torch.manual_seed(0)
    assert len({answer(partner, differently=True) for _ in range(5)}) > 1


def test_no_base_and_no_room_are_one_sentence(weights, tmp_path):
    with pytest.raises(UserError, match="no base model"):
        partner_of(tmp_path)
    with pytest.raises(UserError, match="max-new-tokens must be less"):
        Partner(weights, "base", "float32", room=100_000, sample=False)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
@pytest.mark.parametrize("name", ["base", "lora", "ptuning_v2"])
def test_the_type_asked_for_holds_for_adapters_too(weights, name, dtype, expected):
    partner = Partner(weights, name, dtype, room=8, sample=False)
    assert adapters.get_base_model(partner.model).get_parameter("lm_head.weight").dtype == expected
    if dtype == "bfloat16":
        assert answer(partner)


def test_without_a_type_the_one_of_the_training_holds(weights):
    manifest = weights / "lora/manifest.json"
    write_json(manifest, read_json(manifest) | {"dtype": "bfloat16"})
    partner = Partner(weights, "lora", "auto", room=8, sample=False)
    assert adapters.get_base_model(partner.model).dtype == torch.bfloat16
