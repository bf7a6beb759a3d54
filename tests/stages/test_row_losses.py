import pytest
import torch
from shared_data import conversation

from models import adapters, base_model, model_loading
from models.prompt import encode_sample
from stages.evaluate.row_losses import row_divergences, row_losses

PAIRS = [("你好", "再见"), ("你是谁？", "我是测试用的模型 tiny-test。"), ("3加4等于多少？", "3+4=7，所以答案是7。")]


@pytest.fixture
def rows(tokenizer):
    encoded = [encode_sample(tokenizer, conversation(*pair)) for pair in PAIRS]
    return [{"prompt": prompt, "answer": answer} for prompt, answer in encoded]


def predictions(model, row) -> torch.Tensor:
    """Log-probabilities at the places before the answer, a row alone."""
    with torch.inference_mode():
        logits = model(torch.tensor([row["prompt"] + row["answer"]])).logits[0]
    return logits[len(row["prompt"]) - 1 : -1].log_softmax(-1)


def test_losses_of_rows_alone_and_in_any_batch(model, rows):
    expected = [-predictions(model, row)[range(len(row["answer"])), row["answer"]].mean().item() for row in rows]
    for batch_size in (1, 2, 3):
        assert row_losses(model, rows, batch_size) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_the_divergence_from_the_base(base_folder, rows, method):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    bases = [predictions(model, row) for row in rows]
    how = {"lora": {"rank": 4, "alpha": 8, "target_modules": ["dense"]}, "ptuning_v2": {"prefix_tokens": 4}}[method]
    torch.manual_seed(0)
    tuned = adapters.attach_adapter(model, method, **how).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = [predictions(tuned, row) for row in rows]
    expected = [(p.exp() * (p - q)).sum(-1).mean().item() for p, q in zip(bases, adapted, strict=True)]
    assert min(expected) > 1e-3
    for batch_size in (1, 3):
        assert row_divergences(tuned, rows, batch_size) == pytest.approx(expected, rel=1e-3)


def test_a_fresh_lora_is_its_base_and_a_bare_model_has_none(base_folder, rows):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    assert row_divergences(model, rows, 2) is None
    tuned = adapters.attach_adapter(model, "lora", rank=4, alpha=8, target_modules=["dense"]).eval()
    assert row_divergences(tuned, rows, 2) == pytest.approx([0, 0, 0], abs=1e-7)
