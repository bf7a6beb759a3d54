"""Loss and gradients of compiled blocks on the GPU, compared with those without compilation."""

import pytest
import torch

from models import adapters
from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from models.packing import PackingCollator
from models.prompt import IGNORED_LABEL
from models.training.compiling import compile_blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and TUNELINE_TEST_GPU=0")
SIZES = {"num_layers": 3, "hidden_size": 128, "num_attention_heads": 2, "inner_hidden_size": 512, "vocab_size": 2048}
SPECIAL_IDS = {"bos_token_id": 2044, "eos_token_id": 2045, "mask_token_id": 2046, "gmask_token_id": 2047}
ADAPTER_SETTINGS = {
    "full": {},
    "lora": {"rank": 4, "alpha": 8, "target_modules": ["query_key_value", "dense_4h_to_h"]},
    "ptuning_v2": {"prefix_tokens": 5},
}


def make_model() -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    config = ChatGLMConfig(**SIZES, **SPECIAL_IDS)
    config.initializer_range = 0.2  # with the default, attention is negligible compared with the scaled residuals
    return ChatGLMForConditionalGeneration(config).cuda()


def make_rows(length: int) -> list[list[dict]]:
    """Return a full packed row and one with padding, of samples longer and shorter than a block of attention."""
    generator = torch.Generator().manual_seed(1)

    def make_sample(context: int, answer: int) -> dict:
        ids = torch.randint(20, 2000, (context + answer,), generator=generator).tolist()
        ids[context - 2 : context] = [2047, 2044]
        return {"input_ids": ids, "labels": [IGNORED_LABEL] * context + ids[context:]}

    full_row = [make_sample(300, 150), make_sample(20, 9), make_sample(40, 70)]
    num_tokens = sum(len(sample["input_ids"]) for sample in full_row)
    full_row.append(make_sample(30, length - num_tokens - 30))
    return [full_row, [make_sample(9, 200), make_sample(290, 60)]]


def loss_and_gradients(method: str, length: int, compiled: bool) -> tuple[float, dict[str, torch.Tensor]]:
    model = make_model()
    torch.manual_seed(2)
    adapted = adapters.attach_adapter(model, method, **ADAPTER_SETTINGS[method])
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad and method != "full":
                parameter.normal_(std=0.1)  # LoRA starts with zeros
    if compiled:
        compile_blocks(adapted)
    adapted.train()
    batch = PackingCollator(length, model.config)(make_rows(length))
    loss = adapted(**{name: values.cuda() for name, values in batch.items()}).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    return float(loss), gradients


@pytest.mark.parametrize("length", [896, 950], ids=["whole blocks", "partial block"])
@pytest.mark.parametrize("method", ADAPTER_SETTINGS)
def test_compiled_blocks_have_the_same_loss_and_gradients(method, length):
    torch._dynamo.reset()
    expected_loss, expected = loss_and_gradients(method, length, compiled=False)
    loss, gradients = loss_and_gradients(method, length, compiled=True)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 5e-3 * gradient.norm() + 1e-6, name
