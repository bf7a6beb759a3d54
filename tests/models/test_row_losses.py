import pytest
import torch
from shared_data import conversation

from models import adapters, base_model, model_loading
from models.prompt import encode_sample
from models.row_losses import mean_row_divergences, mean_row_losses

PAIRS = [("你好", "再见"), ("你是谁？", "我是测试用的模型 tiny-test。"), ("3加4等于多少？", "3+4=7，所以答案是7。")]


@pytest.fixture
def rows(tokenizer):
    encoded = [encode_sample(tokenizer, conversation(*pair)) for pair in PAIRS]
    return [{"prompt": prompt, "answer": answer} for prompt, answer in encoded]


def answer_log_probabilities(model, row) -> torch.Tensor:
    """Return the log-probabilities that predict the answer's tokens, (answer tokens, vocabulary), without padding."""
    with torch.inference_mode():
        logits = model(torch.tensor([row["prompt"] + row["answer"]])).logits[0]
    return logits[len(row["prompt"]) - 1 : -1].log_softmax(-1)


def test_losses_do_not_depend_on_the_batch(model, rows):
    expected = [
        -answer_log_probabilities(model, row)[range(len(row["answer"])), row["answer"]].mean().item() for row in rows
    ]
    for batch_size in (1, 2, 3):
        assert mean_row_losses(model, rows, batch_size) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_divergence_is_the_mean_kl_from_the_base(base_folder, rows, method):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    bases = [answer_log_probabilities(model, row) for row in rows]
    settings = {"lora": {"rank": 4, "alpha": 8, "target_modules": ["dense"]}, "ptuning_v2": {"prefix_tokens": 4}}[
        method
    ]
    torch.manual_seed(0)
    tuned = adapters.attach_adapter(model, method, **settings).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = [answer_log_probabilities(tuned, row) for row in rows]
    expected = [(p.exp() * (p - q)).sum(-1).mean().item() for p, q in zip(bases, adapted, strict=True)]
    assert min(expected) > 1e-3
    for batch_size in (1, 3):
        assert mean_row_divergences(tuned, rows, batch_size) == pytest.approx(expected, rel=1e-3)


def test_divergence_of_a_fresh_lora_is_zero_and_of_a_base_none(base_folder, rows):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    assert mean_row_divergences(model, rows, 2) is None
    tuned = adapters.attach_adapter(model, "lora", rank=4, alpha=8, target_modules=["dense"]).eval()
    assert mean_row_divergences(tuned, rows, 2) == pytest.approx([0, 0, 0], abs=1e-7)
