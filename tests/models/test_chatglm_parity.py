"""Parity with recorded results of the published code on the same weights."""

import json
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from shared_data import ROOT, developer_file

from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from models.chatglm.masks import derive_position_ids, prefix_lm_mask

VECTORS = ["lora_base", "prefix", "prefix_projection", "fixture"]


class RecordedModel:
    """A file of recorded results and the model that they belong to.

    Attributes:
        tensors: recorded inputs and results, by name.
    """

    def __init__(self, path: Path):
        self.tensors = load_file(path)
        self.settings = json.loads(path.with_suffix(".json").read_text())
        weights = self._tensors_with_prefix("weights.")
        self.config = ChatGLMConfig(**self.settings)
        self.base = ChatGLMForConditionalGeneration(self.config)
        missing, unexpected = self.base.load_state_dict(weights, strict=False)
        assert not missing
        assert all("prefix_encoder" in name for name in unexpected)
        self.model = self.base
        if self.settings["pre_seq_len"]:
            self.model = self._attach_prefix(weights)
        self.model.eval()

    def _tensors_with_prefix(self, prefix: str) -> dict:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def _attach_prefix(self, weights: dict):
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.settings["pre_seq_len"],
            prefix_projection=self.settings["prefix_projection"],
        )
        model = get_peft_model(self.base, config)
        self.encoder = model.prompt_encoder["default"]
        names = {name: self._peft_name(name) for name in weights if "prefix_encoder" in name}
        self.encoder.load_state_dict({peft_name: weights[name] for name, peft_name in names.items()})
        self.base.lm_head.requires_grad_(True)  # the published code does not freeze it
        return model

    @staticmethod
    def _peft_name(name: str) -> str:
        return name.removeprefix("transformer.prefix_encoder.").replace("trans.", "transform.")

    def gradients(self):
        """Yield name, computed gradient and recorded gradient of every parameter."""
        for name, recorded in self._tensors_with_prefix("grads.").items():
            in_prefix = "prefix_encoder" in name
            parameter = (
                self.encoder.get_parameter(self._peft_name(name)) if in_prefix else self.base.get_parameter(name)
            )
            yield name, parameter.grad, recorded

    def generate(self, input_ids, attention_mask=None):
        generated = self.model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=self.config.pad_token_id,
        )
        return generated[:, input_ids.shape[1] :]


@pytest.fixture(params=VECTORS)
def recorded(request):
    if request.param == "fixture":
        return RecordedModel(ROOT / "tests/fixtures/prefix.safetensors")
    return RecordedModel(developer_file(f"reference/vectors/{request.param}.safetensors"))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_logits_loss_and_gradients(recorded, mode):
    tensors = recorded.tensors
    getattr(recorded.model, mode)()
    output = recorded.model(input_ids=tensors["input_ids"], labels=tensors["labels"])
    assert (output.logits - tensors["logits"]).abs().max() < 2e-5
    assert abs(output.loss - tensors["loss"]) < 1e-5
    output.loss.backward()
    for name, computed, expected in recorded.gradients():
        assert (computed - expected).norm() / expected.norm() < 1e-4, name


def test_greedy_answers_row_by_row(recorded):
    for row, expected in zip(recorded.tensors["input_ids"], recorded.tensors["greedy"], strict=True):
        prompt = row[: row.tolist().index(recorded.config.bos_token_id) + 1][None]
        assert recorded.generate(prompt)[0].tolist() == expected.tolist()


def test_greedy_answers_of_a_left_padded_batch(recorded):
    rows = recorded.tensors["input_ids"].tolist()
    prompts = [row[: row.index(recorded.config.bos_token_id) + 1] for row in rows]
    length = max(map(len, prompts))
    batch = torch.tensor([[recorded.config.pad_token_id] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    if "leftpad.input_ids" in recorded.tensors:
        assert batch.tolist() == recorded.tensors["leftpad.input_ids"].tolist()
    assert recorded.generate(batch, mask).tolist() == recorded.tensors["greedy"].tolist()


def test_positions_and_mask(recorded):
    tensors = recorded.tensors
    positions = derive_position_ids(tensors["input_ids"], recorded.config)
    assert torch.equal(positions, tensors["position_ids"])
    assert torch.equal(prefix_lm_mask(positions[:, 1], 0, None), ~tensors["masked_out"])
