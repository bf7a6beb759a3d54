"""What the GPU computes with compiled blocks, against the same without: loss and every gradient."""

import pytest
import torch

from models import adapters
from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from models.packing import PackingCollator
from models.training.compiling import compile_blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and TUNELINE_TEST_GPU=0")
SIZES = {"num_layers": 3, "hidden_size": 128, "num_attention_heads": 2, "inner_hidden_size": 512, "vocab_size": 2048}
SPECIAL = {"bos_token_id": 2044, "eos_token_id": 2045, "mask_token_id": 2046, "gmask_token_id": 2047}
METHODS = {
    "full": {},
    "lora": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value", "dense_4h_to_h"]},
    "ptuning_v2": {"prefix_tokens": 5},
}


def small() -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    config = ChatGLMConfig(**SIZES, **SPECIAL)
    config.initializer_range = 0.2  # so that attention weighs in: it is faint beside the scaled residuals
    return ChatGLMForConditionalGeneration(config).cuda()


def rows(length: int) -> list[list[dict]]:
    """Two packed rows, one filled to its end and one not, of samples that span several blocks and less than one."""
    draw = torch.Generator().manual_seed(1)

    def one(context: int, answer: int) -> dict:
        ids = torch.randint(20, 2000, (context + answer,), generator=draw).tolist()
        ids[context - 2 : context] = [2047, 2044]
        return {"input_ids": ids, "labels": [-100] * context + ids[context:]}

    whole = [one(300, 150), one(20, 9), one(40, 70)]
    used = sum(len(each["input_ids"]) for each in whole)
    return [[*whole, one(30, length - used - 30)], [one(9, 200), one(290, 60)]]


def loss_and_gradients(method: str, length: int, compiled: bool) -> tuple[float, dict[str, torch.Tensor]]:
    model = small()
    torch.manual_seed(2)
    tuned = adapters.attach(model, method, **METHODS[method])
    with torch.no_grad():
        for each in tuned.parameters():
            if each.requires_grad and method != "full":
                each.normal_(std=0.1)  # LoRA begins with zeros
    if compiled:
        compile_blocks(tuned)
    tuned.train()
    batch = PackingCollator(length, model.config)(rows(length))
    loss = tuned(**{name: value.cuda() for name, value in batch.items()}).loss
    loss.backward()
    return float(loss), {name: each.grad for name, each in tuned.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("length", [896, 950], ids=["whole blocks", "a block in part"])
@pytest.mark.parametrize("method", METHODS)
def test_compiled_blocks_give_the_same_loss_and_gradients(method, length):
    torch._dynamo.reset()
    loss, expected = loss_and_gradients(method, length, compiled=False)
    found_loss, found = loss_and_gradients(method, length, compiled=True)
    assert found_loss == pytest.approx(loss, rel=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 5e-3 * gradient.norm() + 1e-6, name
