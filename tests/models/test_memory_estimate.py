import json
import re
from dataclasses import replace

import pytest
import torch
from shared_data import ROOT
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.training_speed import CASES, memory_spec
from models import adapters
from models.chatglm import ChatGLMConfig
from models.families import FAMILIES
from models.memory_estimate import GIB, TrainingSpec, _activations, estimate, explain_misfit, list_alternatives
from models.padding import PaddingCollator

MEASURED = json.loads((ROOT / "benchmarks/results/training.json").read_text(encoding="utf-8"))["cases"]
LORA = {"rank": 8, "dropout": 0.1, "target_modules": ["query_key_value", "dense"]}
LARGE = TrainingSpec(ChatGLMConfig(), "lora", LORA, "bfloat16", rows=16, length=2048, labelled=16 * 1024)


@pytest.mark.parametrize("name", [name for name in MEASURED if not CASES[name].pad_to])
def test_estimate_is_within_15_percent_of_the_measurement(name):
    estimated = estimate(memory_spec(CASES[name])).total / GIB
    assert estimated == pytest.approx(MEASURED[name]["peak_memory_gib"], rel=0.15)


def test_settings_that_save_memory_lower_the_estimate():
    for saving in (
        {"gradient_checkpointing": True},
        {"quantization": 4},
        {"rows": 8},
        {"length": 1024},
        {"packed": True},
    ):
        assert estimate(replace(LARGE, **saving)).total < estimate(LARGE).total
    full = replace(LARGE, method="full", attachment={})
    assert estimate(full).total > estimate(LARGE).total + 80 * GIB  # 6.7 billion parameters with Adam
    wide = replace(LARGE, attachment=LORA | {"target_modules": ["query_key_value", "dense_4h_to_h"]})
    assert estimate(wide).activations > estimate(LARGE).activations


def test_a_training_that_fits_needs_no_explanation():
    assert explain_misfit(LARGE, estimate(LARGE).total) is None


@pytest.mark.parametrize("free_gib", [8, 16, 24, 48, 80])
def test_explanation_has_numbers_and_two_settings_that_fit(free_gib):
    message = explain_misfit(LARGE, free_gib * GIB)
    assert f"{estimate(LARGE).total / GIB:.1f} GiB (base 12.5" in message
    assert f"{free_gib:.1f} GiB are free" in message
    sizes = re.findall(r"\((\d+\.\d) GiB\)", message)
    assert len(sizes) == (2 if free_gib > 13.5 else 1)  # below that, only 4 bits fit
    assert all(float(size) <= free_gib for size in sizes)


def test_explanation_if_no_setting_fits():
    assert "No setting fits" in explain_misfit(LARGE, GIB)


def test_alternatives_are_distinct_trainings():
    alternatives = [spec for _, _, spec in list_alternatives(LARGE)]
    assert LARGE not in alternatives
    assert len(set(map(repr, alternatives))) == len(alternatives)


SIZES = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
    "pad_token_id": 0,
}
ALL_LAYERS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


def measure_kept_bytes(model, batch) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without parameters and buffers."""
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor):
        alive.append(tensor)  # or a freed storage's address could be used again
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    assert loss.requires_grad
    return sum(size for address, size in kept.items() if address not in fixed)


@pytest.mark.parametrize("kind", ["glm", "glm4", "qwen2", "qwen3", "llama", "gemma3_text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("method", "targets", "dropout"),
    [("lora", ["query_key_value"], 0.0), ("lora", ALL_LAYERS, 0.0), ("lora", ALL_LAYERS, 0.1), ("ptuning_v2", [], 0.0)],
)
def test_activations_of_other_families_are_those_that_autograd_keeps(kind, dtype, method, targets, dropout):
    if (kind, method) == ("gemma3_text", "ptuning_v2"):
        pytest.skip("a prefix is refused with sliding-window attention")
    family, config = FAMILIES["chat-template"], CONFIG_MAPPING[kind](**SIZES)
    config._attn_implementation = "sdpa"
    names = family.linear_names(targets, config)
    attachment = {"rank": 8, "target_modules": names, "dropout": dropout}
    settings = attachment | {"alpha": 16} if method == "lora" else {"prefix_tokens": 8}
    model = family.create_model(config).to(getattr(torch, dtype)).requires_grad_(False)
    adapted = adapters.attach_adapter(model, method, **settings).train()
    rows, length = 4, 256
    samples = [{"input_ids": [5] * size, "labels": [-100] * (size // 2) + [6] * (size - size // 2)} for size in
               (length, length - 2, length - 3, length)]  # fmt: skip
    spec = TrainingSpec(
        config, method, attachment | {"prefix_tokens": 8}, dtype, rows, length, rows * length // 2, gpu=False
    )
    measured = measure_kept_bytes(adapted, PaddingCollator(0)(samples))
    assert _activations(spec) == pytest.approx(measured, rel=0.12)
