"""What the published code computes on the same weights is the definition of correct."""

import json
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from shared_data import ROOT, developer_file

from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from models.chatglm.masks import derive_position_ids, prefix_lm_mask

VECTORS = ["lora_base", "prefix", "prefix_projection", "own"]


class Recorded:
    """One file of recorded figures and the model that they belong to."""

    def __init__(self, path: Path):
        self.figures = load_file(path)
        self.settings = json.loads(path.with_suffix(".json").read_text())
        weights = self._under("weights.")
        self.config = ChatGLMConfig(**self.settings)
        self.base = ChatGLMForConditionalGeneration(self.config)
        missing, unexpected = self.base.load_state_dict(weights, strict=False)
        assert not missing
        assert all("prefix_encoder" in name for name in unexpected)
        self.model = self.base
        if self.settings["pre_seq_len"]:
            self.model = self._with_prefix(weights)
        self.model.eval()

    def _under(self, start: str) -> dict:
        return {name.removeprefix(start): value for name, value in self.figures.items() if name.startswith(start)}

    def _with_prefix(self, weights: dict):
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.settings["pre_seq_len"],
            prefix_projection=self.settings["prefix_projection"],
        )
        model = get_peft_model(self.base, config)
        self.encoder = model.prompt_encoder["default"]
        names = {name: self._of_peft(name) for name in weights if "prefix_encoder" in name}
        self.encoder.load_state_dict({own: weights[name] for name, own in names.items()})
        self.base.lm_head.requires_grad_(True)  # the published code leaves it trainable
        return model

    @staticmethod
    def _of_peft(name: str) -> str:
        return name.removeprefix("transformer.prefix_encoder.").replace("trans.", "transform.")

    def gradients(self):
        """Pairs of computed and recorded gradient, by name."""
        for name, recorded in self._under("grads.").items():
            owner, own = (self.encoder, self._of_peft(name)) if "prefix_encoder" in name else (self.base, name)
            yield name, owner.get_parameter(own).grad, recorded

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
    if request.param == "own":
        return Recorded(ROOT / "tests/fixtures/prefix.safetensors")
    return Recorded(developer_file(f"reference/vectors/{request.param}.safetensors"))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_logits_loss_and_gradients(recorded, mode):
    figures = recorded.figures
    getattr(recorded.model, mode)()
    output = recorded.model(input_ids=figures["input_ids"], labels=figures["labels"])
    assert (output.logits - figures["logits"]).abs().max() < 2e-5
    assert abs(output.loss - figures["loss"]) < 1e-5
    output.loss.backward()
    for name, computed, expected in recorded.gradients():
        assert (computed - expected).norm() / expected.norm() < 1e-4, name


def test_greedy_continuations_row_by_row(recorded):
    for row, expected in zip(recorded.figures["input_ids"], recorded.figures["greedy"], strict=True):
        prompt = row[: row.tolist().index(recorded.config.bos_token_id) + 1][None]
        assert recorded.generate(prompt)[0].tolist() == expected.tolist()


def test_greedy_continuations_of_one_batch(recorded):
    """Left-padded, as recorded, or, where no such batch was recorded, padded here."""
    rows = recorded.figures["input_ids"].tolist()
    prompts = [row[: row.index(recorded.config.bos_token_id) + 1] for row in rows]
    length = max(map(len, prompts))
    batch = torch.tensor([[3] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    if "leftpad.input_ids" in recorded.figures:
        assert batch.tolist() == recorded.figures["leftpad.input_ids"].tolist()
    assert recorded.generate(batch, mask).tolist() == recorded.figures["greedy"].tolist()


def test_positions_and_mask(recorded):
    figures = recorded.figures
    positions = derive_position_ids(figures["input_ids"], recorded.config)
    assert torch.equal(positions, figures["position_ids"])
    assert torch.equal(prefix_lm_mask(positions[:, 1], 0, None), ~figures["masked_out"])
