"""ChatGLM2-6B and ChatGLM3-6B: parity with recorded results of the published code, and damaged checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_data import developer_file
from transformers import GlmForCausalLM

from models import adapters, model_loading, schemas
from models.adapter_conversion import compute_prefix
from models.base_model import CONFIG, Base, hash_files
from models.errors import UserError
from models.families import FAMILIES
from models.families.successor_weights import build_config, convert_weights, rotate_prefix

GENERATIONS = ["chatglm2", "chatglm3"]
PREFIXES = ["prefix", "prefix_projection"]
CONFIG_KEYS = schemas.SuccessorConfig.model_fields.keys()


class RecordedModel:
    """A file of recorded results, and the published checkpoint that they belong to.

    Attributes:
        tensors: recorded inputs and results, by name.
        settings: of the published configuration, with ``prompt_lengths``.
    """

    def __init__(self, path: Path, folder: Path):
        self.tensors = load_file(path)
        self.settings = json.loads(path.with_suffix(".json").read_text())
        self.folder = folder
        self.weights = {
            name.removeprefix("weights."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("weights.")
        }
        self.write(self.weights)

    def write(self, weights: dict, **changes) -> None:
        """Write the checkpoint with these weights and changes of its configuration."""
        config = {key: value for key, value in self.settings.items() if key in CONFIG_KEYS} | changes
        (self.folder / CONFIG).write_text(json.dumps(config))
        save_file(weights, self.folder / "model.safetensors")

    def load(self) -> GlmForCausalLM:
        return model_loading.load_model(
            Base("recorded", self.folder, None, hash_files(self.folder, [CONFIG, "model.safetensors"]), "chatglm3-6b"),
            "float32",
        )

    def load_with_prefix(self):
        """Return the model with the published prefix, as peft's prefix tuning."""
        model = self.load()
        rows = compute_prefix(self.weights)
        adapted = adapters.attach_adapter(model, "ptuning_v2", prefix_tokens=len(rows))
        adapters.set_prefix(adapted, FAMILIES["chatglm3-6b"].import_prefix(rows, model.config))
        return adapted.eval()


def generate(model, input_ids, attention_mask) -> torch.Tensor:
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return generated[:, input_ids.shape[1] :]


def assert_generation_equals(model, recorded: RecordedModel) -> None:
    """Assert that greedy continuations equal the recorded ones, of single prompts and of a left-padded batch."""
    tensors = recorded.tensors
    for index, length in enumerate(recorded.settings["prompt_lengths"]):
        prompt = tensors["input_ids"][index : index + 1, :length]
        assert torch.equal(generate(model, prompt, torch.ones_like(prompt))[0], tensors["greedy"][index])
    batch = generate(model, tensors["leftpad.input_ids"], tensors["leftpad.attention_mask"])
    assert torch.equal(batch, tensors["leftpad.greedy"])


@pytest.fixture(params=GENERATIONS)
def recorded(request, tmp_path) -> RecordedModel:
    return RecordedModel(developer_file(f"reference/vectors/{request.param}/base.safetensors"), tmp_path)


@pytest.fixture(params=[f"{generation}/{prefix}" for generation in GENERATIONS for prefix in PREFIXES])
def recorded_prefix(request, tmp_path) -> RecordedModel:
    return RecordedModel(developer_file(f"reference/vectors/{request.param}.safetensors"), tmp_path)


# Parity --------------------------------------------------------------------------------------------


def test_logits_loss_and_gradients_equal_the_published_ones(recorded):
    model, tensors = recorded.load(), recorded.tensors
    model.requires_grad_(True)
    outputs = model(tensors["input_ids"], attention_mask=tensors["attention_mask"], labels=tensors["labels"])
    torch.testing.assert_close(outputs.logits, tensors["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.loss, tensors["loss"], atol=1e-6, rtol=0)
    outputs.loss.backward()
    published = ((name, tensor) for name, tensor in tensors.items() if name.startswith("grads."))
    gradients = ((Path(), name.removeprefix("grads."), tensor) for name, tensor in published)
    parameters = dict(model.named_parameters())
    for _, name, expected in convert_weights(gradients, model.config):
        gradient = parameters.pop(name).grad
        if name == "model.embed_tokens.weight":  # transformers gives row 0, the padding, no gradient
            gradient, expected = gradient[1:], expected[1:]
        assert (gradient - expected).norm() <= 1e-5 * expected.norm(), name
    assert not parameters


def test_greedy_continuations_equal_the_published_ones(recorded):
    assert_generation_equals(recorded.load(), recorded)


def test_prefix_equals_the_published_one(recorded_prefix):
    adapted, tensors = recorded_prefix.load_with_prefix(), recorded_prefix.tensors
    logits = adapted(tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-5, rtol=0)
    assert_generation_equals(adapted, recorded_prefix)


def test_rotation_of_a_prefix_can_be_undone(recorded_prefix):
    config, rows = recorded_prefix.load().config, compute_prefix(recorded_prefix.weights)
    rotated = rotate_prefix(rows, config, len(rows))
    assert not torch.allclose(rotated, rows)
    torch.testing.assert_close(rotate_prefix(rotated, config, -len(rows)), rows)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_all_weights_of_the_release_have_a_place(generation):
    folder = developer_file(f"reference/{generation}-6b")
    content = json.loads((folder / CONFIG).read_text())
    published = schemas.validate_schema(schemas.SuccessorConfig, content, folder / CONFIG)
    config = build_config(published, folder / CONFIG)
    with torch.device("meta"):
        model = GlmForCausalLM(config)
        index = json.loads((folder / "pytorch_model.bin.index.json").read_text())["weight_map"]
        joint = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        tensors = ((folder, name, torch.empty(joint if "query_key_value" in name else 1)) for name in index)
        names = [name for _, name, _ in convert_weights(tensors, config)]
    assert sorted(names) == sorted(model.state_dict())
    assert model.num_parameters() == 6_243_584_000


# Damaged and unsupported checkpoints ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rmsnorm": False}, "rmsnorm False"),
        ({"post_layer_norm": False}, "post_layer_norm False"),
        ({"multi_query_attention": False}, "multi_query_attention False"),
        ({"add_bias_linear": True}, "add_bias_linear True"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm True"),
        ({"rope_ratio": 0}, "rope_ratio"),
        ({"multi_query_group_num": 1}, "query_key_value.*96 rows"),
        ({"num_layers": 4}, r"lack 11 tensors, the first is model\.layers\.3"),
        ({"num_layers": 2}, r"model\.layers\.2"),
        ({"ffn_hidden_size": 8}, "has shape"),
        ({"quantization_bit": 4}, "quantization_bit"),
        ({"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(recorded, changes, message):
    recorded.write(recorded.weights, **changes)
    with pytest.raises(UserError, match=message):
        recorded.load()


@pytest.mark.parametrize("name", ["transformer.encoder.layers.0.extra.weight", "extra.weight"])
def test_an_unknown_weight_is_named(recorded, name):
    recorded.write(recorded.weights | {name: torch.zeros(1)})
    with pytest.raises(UserError, match=name):
        recorded.load()


@pytest.mark.parametrize("family", ["chatglm2-6b", "chatglm3-6b"])
@pytest.mark.parametrize("ratio", [1, 16, 50])
def test_the_32k_variants_have_the_published_frequencies(recorded, family, ratio):
    """As the published code computes them: positions divided by the ratio, or the base multiplied by it."""
    recorded.write(recorded.weights, rope_ratio=ratio)
    files = hash_files(recorded.folder, [CONFIG, "model.safetensors"])
    model = model_loading.load_model(Base("recorded", recorded.folder, None, files, family), "float32")
    exponents = torch.arange(0, 8, 2) / 8  # half of a head of 16 channels
    expected = 10_000**-exponents / ratio if family == "chatglm2-6b" else (10_000 * ratio) ** -exponents
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)
    rows = torch.randn(3, 2 * 3 * 2 * 16)
    rotated = FAMILIES[family].import_prefix(rows, model.config)
    first = rows.unflatten(1, (3, 2, 2, 16))[0, 0, 0, 0, :2]
    angle = 3 * expected[0]
    turned = torch.stack(
        (first[0] * angle.cos() - first[1] * angle.sin(), first[0] * angle.sin() + first[1] * angle.cos())
    )
    torch.testing.assert_close(rotated.unflatten(1, (3, 2, 2, 16))[0, 0, 0, 0, :2], turned)
