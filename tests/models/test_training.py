import pytest
import torch

from models import adapters, base
from models.errors import UserError
from models.storage import sha256_of
from models.training import EpochOrder, RightPadding, fit

ROWS = [
    {"input_ids": [40 + i, 41, 4, 5, 50 + i, 51], "labels": [-100, -100, -100, -100, 50 + i, 51]} for i in range(12)
]


def rows_for(config) -> list[dict]:
    return [
        {**row, "input_ids": [*row["input_ids"][:2], config.gmask_token_id, config.bos_token_id, *row["input_ids"][4:]]}
        for row in ROWS
    ]


def run(base_folder, **options):
    model = base.load_model(base.read_record(base_folder), "float32")
    torch.manual_seed(0)
    tuned = adapters.attach(model, "lora", rank=4, alpha=8, dropout=0.1, target_modules=["query_key_value", "dense"])
    rows = rows_for(model.config)
    settings = {"batch_size": 4, "learning_rate": 0.02, "epochs": 6, "seed": 3} | options
    fitted = fit(tuned, rows[:9], rows[9:], pad_token_id=3, evaluations=3, **settings)
    return tuned, fitted


def test_batches_are_padded_on_the_right():
    batch = RightPadding(3)([{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}, {"input_ids": [7], "labels": [7]}])
    assert batch["input_ids"].tolist() == [[7, 8, 9], [7, 3, 3]]
    assert batch["labels"].tolist() == [[-100, 8, 9], [7, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_it_learns_and_tells_every_loss(base_folder):
    points = []
    _, fitted = run(base_folder, on_loss=points.append)
    train = [point["loss"] for point in fitted.history if point["split"] == "train"]
    assert train[-1] < train[0] - 0.5
    assert sum(point["split"] == "eval" for point in fitted.history) == 3
    assert points == fitted.history
    assert fitted.steps == 18
    assert fitted.tokens == 6 * 9 * 6


def test_every_epoch_has_an_order_of_its_own_that_seed_and_epoch_decide(base_folder, monkeypatch):
    order = EpochOrder(20, list(range(20)), 4, seed=1)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    order.set_epoch(0)
    assert list(order) == first != second
    assert sorted(first) == sorted(second) == list(range(20))
    told = []
    monkeypatch.setattr(EpochOrder, "set_epoch", lambda self, epoch: told.append(epoch))
    run(base_folder, epochs=3)
    assert sorted(set(told)) == [0, 1, 2]  # Trainer tells it


def test_a_diverging_run_ends_with_a_sentence(base_folder):
    with pytest.raises(UserError, match=r"diverged: the (train|eval) loss at step \d+ is (nan|inf)"):
        run(base_folder, learning_rate=1e30)


def test_the_same_seed_gives_the_same_bytes(base_folder, tmp_path):
    hashes = []
    for attempt in range(3):
        tuned, _ = run(base_folder, seed=3 if attempt < 2 else 4)
        tuned.save_pretrained(tmp_path / str(attempt))
        hashes.append(sha256_of(tmp_path / str(attempt) / adapters.WEIGHTS))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("options", [{"batch_size": 2, "gradient_accumulation": 2}, {"gradient_checkpointing": True}])
def test_accumulation_and_checkpointing_change_no_result(base_folder, options):
    """Without dropout the same rows reach each update, so the weights agree."""

    def weights(**how):
        model = base.load_model(base.read_record(base_folder), "float32")
        torch.manual_seed(0)
        tuned = adapters.attach(model, "lora", rank=4, alpha=8, target_modules=["query_key_value"])
        rows = rows_for(model.config)[:8]
        fit(tuned, rows, [], pad_token_id=3, learning_rate=0.02, epochs=2, seed=1, **how)
        return {name: value for name, value in tuned.state_dict().items() if "lora_" in name}

    usual, other = weights(batch_size=4), weights(**{"batch_size": 4} | options)
    for name, value in usual.items():
        torch.testing.assert_close(other[name], value, atol=2e-5, rtol=1e-4)
