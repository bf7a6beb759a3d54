"""What goes out comes back: merged models and published prefixes give the logits of the adapter."""

import json

import pytest
import torch
from given import SETTINGS, logits, manifest_of, shake

from models import adapters, base, exchange
from models.chatglm import ChatGLMConfig
from models.errors import UserError


def saved(kind: str, base_folder, folder) -> torch.Tensor:
    """Save an adapter of a kind; gives its logits."""
    found = base.read_record(base_folder)
    method = kind.split()[0]
    torch.manual_seed(0)
    tuned = adapters.attach(base.load_model(found, "float32"), method, **SETTINGS[kind])
    shake(tuned)
    adapters.save(tuned, folder, manifest_of(found, method))
    return logits(tuned.eval(), adapters.base_of(tuned).config)


@pytest.mark.parametrize("kind", [kind for kind in SETTINGS if "ptuning" not in kind])
def test_a_merged_model_is_a_base_that_answers_as_the_adapter(kind, base_folder, tmp_path):
    expected = saved(kind, base_folder, tmp_path / "adapter")
    exchange.save_merged(tmp_path / "adapter", base.read_record(base_folder), tmp_path / "merged")
    again = base.verify(tmp_path / "merged", "merged")
    model = base.load_model(again, "float32")
    torch.testing.assert_close(logits(model, model.config), expected, rtol=1e-4, atol=1e-3)
    assert base.load_tokenizer(again.folder)("你好").input_ids == base.load_tokenizer(base_folder)("你好").input_ids


@pytest.mark.parametrize("kind", ["ptuning_v2", "ptuning_v2 projected"])
def test_a_prefix_goes_out_as_published_and_comes_back(kind, base_folder, tmp_path):
    found = base.read_record(base_folder)
    expected = saved(kind, base_folder, tmp_path / "adapter")
    exchange.save_official_prefix(tmp_path / "adapter", found, tmp_path / "official")
    config = json.loads((tmp_path / "official/config.json").read_text())
    assert (config["pre_seq_len"], config["prefix_projection"]) == (5, False)
    file = tmp_path / "official/pytorch_model.bin"
    assert list(exchange._tensors(file)) == ["transformer.prefix_encoder.embedding.weight"]
    exchange.load_official_prefix(file, found, "back", "float32", tmp_path / "back")
    model = adapters.load(tmp_path / "back", found)
    torch.testing.assert_close(logits(model, model.config), expected, rtol=1e-5, atol=1e-5)


def test_a_row_holds_key_and_value_of_each_layer_as_the_published_code_reads_them(base_folder):
    """Its get_prompt: view (tokens, 2 · layers, heads, dim), permute, split in pairs."""
    tuned = adapters.attach(base.load_model(base.read_record(base_folder), "float32"), "ptuning_v2", prefix_tokens=3)
    config: ChatGLMConfig = tuned.config
    heads, layers = config.num_attention_heads, config.num_layers
    rows = torch.randn(3, 2 * layers * config.hidden_size)
    adapters.put_prefix(tuned, rows)
    published = rows.view(1, 3, 2 * layers, heads, -1).permute(2, 1, 0, 3, 4).split(2)
    cache = tuned.get_prompt(1)
    for layer, (key, value) in enumerate(published):
        torch.testing.assert_close(cache.layers[layer].keys, key.permute(1, 2, 0, 3))
        torch.testing.assert_close(cache.layers[layer].values, value.permute(1, 2, 0, 3))


def test_a_published_projection_is_computed():
    torch.manual_seed(0)
    embedding, (one, other) = torch.nn.Embedding(4, 8), (torch.nn.Linear(8, 8), torch.nn.Linear(8, 32))
    layers = torch.nn.ModuleDict({"embedding": embedding, "trans": torch.nn.Sequential(one, torch.nn.Tanh(), other)})
    tensors = {exchange.PREFIX + name: value.half() for name, value in layers.state_dict().items()}
    expected = layers["trans"](embedding.weight)
    torch.testing.assert_close(exchange.prefix_rows(tensors), expected, rtol=1e-2, atol=1e-3)


def test_what_cannot_be_exchanged_is_one_sentence(base_folder, tmp_path):
    found = base.read_record(base_folder)
    saved("lora", base_folder, tmp_path / "lora")
    saved("ptuning_v2", base_folder, tmp_path / "prefix")
    with pytest.raises(UserError, match="export it with --merged"):
        exchange.save_official_prefix(tmp_path / "lora", found, tmp_path / "out")
    with pytest.raises(UserError, match="export it with --official"):
        exchange.save_merged(tmp_path / "prefix", found, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    files = {
        "none.bin": ({"lm_head.weight": torch.zeros(2)}, "no P-Tuning checkpoint"),
        "other.bin": ({exchange.PREFIX + "embedding.weight": torch.zeros(2, 6)}, "belongs to another base"),
        "code.bin": ({"x": UserError("code")}, "more than tensors"),
        "list.bin": ([1, 2], "no tensors by name"),
        "flat.bin": ({exchange.PREFIX + "embedding.weight": torch.zeros(6)}, "is damaged"),
        "empty.bin": ({exchange.PREFIX + "embedding.weight": torch.zeros(0, 6)}, "is damaged"),
        "nan.bin": ({exchange.PREFIX + "embedding.weight": torch.full((2, 6), torch.nan)}, "is damaged"),
        "shapes.bin": (
            {
                exchange.PREFIX + "embedding.weight": torch.zeros(2, 6),
                exchange.PREFIX + "trans.0.weight": torch.zeros(5, 5),
                exchange.PREFIX + "trans.0.bias": torch.zeros(5),
            },
            "do not fit",
        ),
    }
    for name, (content, said) in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=said):
            exchange.load_official_prefix(tmp_path / name, found, "x", "float32", tmp_path / "out")
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="not written by PyTorch"):
        exchange.load_official_prefix(tmp_path / "pointer.bin", found, "x", "float32", tmp_path / "out")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "none.bin").read_bytes()[:40])
    for name in ("cut.bin", "missing.bin"):
        with pytest.raises(UserError):
            exchange.load_official_prefix(tmp_path / name, found, "x", "float32", tmp_path / "out")
