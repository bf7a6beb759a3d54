"""Training on the CPU: losses, records, divergence, best weights, early stopping, reproducibility."""

import math
import shutil

import pytest
import torch
from transformers import TrainerCallback

from models import adapters, base_model, model_loading
from models.errors import UserError
from models.manifest import WEIGHTS
from models.padding import PaddingCollator
from models.prompt import IGNORED_LABEL
from models.storage import sha256_of
from models.training import Diverged, TrainConfig, fit
from models.training.batches import EpochOrder
from models.training.trainer import AdapterTrainer, trainable_parameters

ROWS = [
    {
        "id": f"row-{number}",
        "input_ids": [40 + number, 31, 4, 5, 60 + number, 51],
        "labels": [*[IGNORED_LABEL] * 4, 60 + number, 51],
    }
    for number in range(12)
]
LORA = {"rank": 4, "alpha": 8, "target_modules": ["query_key_value"]}
LORA_WEIGHT = "base_model.model.transformer.layers.0.attention.query_key_value.lora_B.default.weight"


def make_rows(config) -> list[dict]:
    return [
        {**row, "input_ids": [*row["input_ids"][:2], config.gmask_token_id, config.bos_token_id, *row["input_ids"][4:]]}
        for row in ROWS
    ]


def load(base_folder):
    return model_loading.load_model(base_model.read_record(base_folder), "float32")


def train(base_folder, *, on_record=None, callbacks=(), checkpoint_folder=None, **settings):
    """Return the trained model and the result."""
    model = load(base_folder)
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(
        model, "lora", rank=4, alpha=8, dropout=0.1, target_modules=["query_key_value", "dense"]
    )
    rows = make_rows(model.config)
    defaults = {"batch_size": 4, "learning_rate": 0.02, "epochs": 6, "seed": 3, "evaluations": 3}
    result = fit(
        adapted,
        rows[:9],
        rows[9:],
        TrainConfig(**defaults | settings),
        on_record=on_record,
        callbacks=callbacks,
        checkpoint_folder=checkpoint_folder,
    )
    return adapted, result


# Batches -------------------------------------------------------------------------------------------


def test_padding_collator_pads_on_the_right():
    batch = PaddingCollator(3)([{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}, {"input_ids": [7], "labels": [7]}])
    assert batch["input_ids"].tolist() == [[7, 8, 9], [7, 3, 3]]
    assert batch["labels"].tolist() == [[-100, 8, 9], [7, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["label_indices"].tolist() == [0, 1]


def test_epoch_order_depends_on_seed_and_epoch(base_folder, monkeypatch):
    order = EpochOrder(20, list(range(20)), 4, seed=1)
    first_epoch = list(order)
    order.set_epoch(1)
    second_epoch = list(order)
    order.set_epoch(0)
    assert list(order) == first_epoch != second_epoch
    assert sorted(first_epoch) == sorted(second_epoch) == list(range(20))
    epochs = []
    monkeypatch.setattr(EpochOrder, "set_epoch", lambda self, epoch: epochs.append(epoch))
    train(base_folder, epochs=3)
    assert sorted(set(epochs)) == [0, 1, 2]  # set by Trainer


def test_several_devices_take_the_same_rows_per_step_as_one():
    single, several = EpochOrder(10, None, 4, seed=1), EpochOrder(10, None, 4, seed=1, pad_to_multiple_of=4)
    assert len(several) == 12
    assert list(several) == [*single, 10, 10]  # index of the padding row
    for step in range(1, 7):
        assert several.indices_of_step(step) == single.indices_of_step(step)
    assert sorted(index for step in (1, 2, 3) for index in single.indices_of_step(step)) == list(range(10))
    assert single.indices_of_step(4) == list(single.indices(1))[:4]


# Losses and records --------------------------------------------------------------------------------


def test_loss_falls_and_every_loss_is_recorded(base_folder):
    records = []
    _, result = train(base_folder, on_record=records.append)
    train_losses = [record["loss"] for record in result.history if record["split"] == "train"]
    assert train_losses[-1] < train_losses[0] - 0.5
    assert sum(record["split"] == "eval" for record in result.history) == 3
    assert [{key: record[key] for key in result.history[0]} for record in records] == result.history
    assert result.steps == 18
    assert result.tokens == 6 * 9 * 6


def test_records_contain_measurements(base_folder):
    records = []
    train(base_folder, on_record=records.append, logs=18)
    train_records = [record for record in records if record["split"] == "train"]
    assert [record["step"] for record in train_records] == list(range(1, 19))
    for record in train_records:
        assert record["padding"] == 0
        assert record["tokens_per_second"] > 0
        assert record["gradient_norm"] > 0
        assert record["memory_gib"] > 0.1
    assert train_records[-1]["learning_rate"] < train_records[0]["learning_rate"]


def test_a_resumed_training_passes_on_earlier_records(base_folder, tmp_path):
    records_by_run = []
    for _ in range(2):
        records = []
        train(base_folder, evaluations=9, logs=18, checkpoint_folder=tmp_path, on_record=records.append)
        records_by_run.append(records)
        shutil.rmtree(tmp_path / "checkpoint-18")
    assert len(records_by_run[0]) == len(records_by_run[1]) == 18 + 9
    assert records_by_run[0][:16] == records_by_run[1][:16]
    assert "gradient_norm" in records_by_run[1][0]


def test_evaluation_loss_is_the_mean_over_labelled_tokens(base_folder):
    config = load(base_folder).config
    rows = make_rows(config)
    rows[2] |= {"input_ids": rows[2]["input_ids"] + [70] * 9, "labels": rows[2]["labels"] + [70] * 9}

    def load_adapted():
        torch.manual_seed(0)
        return adapters.attach_adapter(load(base_folder), "lora", **LORA)

    with torch.no_grad():
        model = load_adapted()
        losses = torch.stack([model(**PaddingCollator(3)([row])).loss for row in rows])
    num_labelled = torch.tensor([sum(label >= 0 for label in row["labels"]) for row in rows])
    expected = float((losses * num_labelled).sum() / num_labelled.sum())
    assert float(losses.mean()) != pytest.approx(expected, rel=1e-2)
    for settings in ({"batch_size": 3}, {"batch_size": 2, "pack_tokens": 24}):
        result = fit(load_adapted(), rows[:4], rows, TrainConfig(learning_rate=1e-12, evaluations=2, **settings))
        assert result.loss("eval") == pytest.approx(expected, rel=1e-5)


# Divergence ----------------------------------------------------------------------------------------


def test_a_nan_loss_stops_the_training_and_names_step_and_rows(base_folder, monkeypatch):
    """Row 5 makes the loss of its step NaN, several steps before the next log entry."""
    compute_loss = AdapterTrainer.compute_loss

    def nan_for_row_5(self, model, inputs, **kwargs):
        loss = compute_loss(self, model, inputs, **kwargs)
        return loss * torch.nan if (inputs["input_ids"] == 45).any() else loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", nan_for_row_5)
    with pytest.raises(Diverged) as error:
        train(base_folder, batch_size=1, logs=3)
    order = EpochOrder(9, [6] * 9, 1, seed=3).indices(0)
    assert f"loss of step {order.index(5) + 1} is nan" in str(error.value)
    assert "Rows of that step: row-5. " in str(error.value)
    assert "learning_rate below 0.02" in str(error.value)


def test_five_steps_above_the_loss_of_a_uniform_guess_stop_the_training(base_folder, monkeypatch):
    compute_loss = AdapterTrainer.compute_loss
    margin = math.log(load(base_folder).config.vocab_size)

    def raise_loss(self, model, inputs, **kwargs):
        return compute_loss(self, model, inputs, **kwargs) + (added if 10 <= self.state.global_step < end else 0)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", raise_loss)
    added, end = 0.5 * margin, 18
    train(base_folder)
    added, end = 2 * margin, 14
    train(base_folder)
    end = 15
    with pytest.raises(Diverged, match=r"the loss of step 11 is [\d.]+ \(lowest loss so far [\d.]+\)"):
        train(base_folder)


def test_a_diverged_training_diverges_again_after_a_resume(base_folder, tmp_path, monkeypatch):
    """The guard's state is part of the checkpoint, which may be written while the loss is too high."""
    compute_loss = AdapterTrainer.compute_loss

    def raise_loss(self, model, inputs, **kwargs):
        return compute_loss(self, model, inputs, **kwargs) + (50 if self.state.global_step >= 7 else 0)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", raise_loss)
    messages = []
    for _ in range(2):
        with pytest.raises(Diverged) as error:
            train(base_folder, evaluations=9, checkpoint_folder=tmp_path)
        messages.append(str(error.value))
    assert "loss of step 8 is" in messages[0]
    assert (tmp_path / "checkpoint-10").is_dir()
    assert messages[0] == messages[1]


def test_out_of_memory_becomes_a_message(base_folder, monkeypatch):
    def fail(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(AdapterTrainer, "compute_loss", fail)
    with pytest.raises(UserError, match=r"ran out of memory \(CUDA out of memory. Tried to allocate 9 GiB.\)"):
        train(base_folder)


# Best weights and early stopping -------------------------------------------------------------------


def test_keep_best_ends_with_the_weights_of_the_lowest_evaluation_loss(base_folder, tmp_path):
    evaluations = {}

    class RecordEvaluations(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
            weight = trainable_parameters(model)[LORA_WEIGHT].clone()
            evaluations[state.global_step] = (metrics["eval_loss"], weight)

    def run(**options):
        adapted, result = train(base_folder, epochs=12, evaluations=9, callbacks=[RecordEvaluations()], **options)
        return trainable_parameters(adapted)[LORA_WEIGHT], result

    for options in ({}, {"checkpoint_folder": tmp_path}):
        weight, result = run(keep_best=True, **options)
        best = min(evaluations, key=lambda step: evaluations[step][0])
        assert best < max(evaluations)
        assert torch.equal(weight, evaluations[best][1])
        assert (result.kept_step, result.loss("eval")) == (best, evaluations[best][0])
    assert [path.name for path in tmp_path.glob("best-*")] == [f"best-{best}.safetensors"]
    weight, result = run()
    assert torch.equal(weight, evaluations[max(evaluations)][1])
    assert result.kept_step == result.steps == max(evaluations)


def test_early_stopping_is_exact_after_a_resume(base_folder, tmp_path):
    settings = {"epochs": 12, "evaluations": 9, "patience": 2, "keep_best": True, "checkpoint_folder": tmp_path}
    adapted, result = train(base_folder, **settings)
    losses = [record["loss"] for record in result.history if record["split"] == "eval"]
    assert len(losses) < 9
    assert losses.index(min(losses)) == len(losses) - 3
    # Killed after it stopped, before the adapter was saved: stops at once, with the same weights.
    resumed, resumed_result = train(base_folder, **settings)
    assert resumed_result.history == result.history
    assert (resumed_result.steps, resumed_result.kept_step) == (result.steps, result.kept_step)
    assert torch.equal(trainable_parameters(resumed)[LORA_WEIGHT], trainable_parameters(adapted)[LORA_WEIGHT])
    # A checkpoint without its best weights is not complete.
    for path in tmp_path.glob("best-*"):
        path.unlink()
    restarted, restarted_result = train(base_folder, **settings)
    assert restarted_result.kept_step == result.kept_step
    assert torch.equal(trainable_parameters(restarted)[LORA_WEIGHT], trainable_parameters(adapted)[LORA_WEIGHT])


# Reproducibility -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(base_folder, tmp_path):
    hashes = []
    for run, seed in enumerate((3, 3, 4)):
        adapted, _ = train(base_folder, seed=seed)
        adapted.save_pretrained(tmp_path / str(run))
        hashes.append(sha256_of(tmp_path / str(run) / WEIGHTS))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("options", [{"batch_size": 2, "gradient_accumulation": 2}, {"gradient_checkpointing": True}])
def test_gradient_accumulation_and_checkpointing_keep_the_result(base_folder, options):
    """Without dropout each update sees the same rows, so the weights agree."""

    def trained_weights(**settings):
        model = load(base_folder)
        torch.manual_seed(0)
        adapted = adapters.attach_adapter(model, "lora", **LORA)
        fit(adapted, make_rows(model.config)[:8], [], TrainConfig(learning_rate=0.02, epochs=2, seed=1, **settings))
        return {name: values for name, values in adapted.state_dict().items() if "lora_" in name}

    expected, weights = trained_weights(batch_size=4), trained_weights(**{"batch_size": 4} | options)
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values, atol=2e-5, rtol=1e-4)
