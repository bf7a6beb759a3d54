import math
import shutil

import pytest
import torch
from transformers import TrainerCallback

from models import adapters, base_model
from models.errors import UserError
from models.manifest import WEIGHTS
from models.storage import sha256_of
from models.training import Diverged, PaddingCollator, TrainConfig, fit
from models.training.batches import EpochOrder
from models.training.trainer import AdapterTrainer, trained

ROWS = [
    {"id": f"row-{i}", "input_ids": [40 + i, 31, 4, 5, 60 + i, 51], "labels": [*[-100] * 4, 60 + i, 51]}
    for i in range(12)
]
PLAIN = {"rank": 4, "alpha": 8, "target_modules": ["query_key_value"]}
NAME = "base_model.model.transformer.layers.0.attention.query_key_value.lora_B.default.weight"


def rows_for(config) -> list[dict]:
    return [
        {**row, "input_ids": [*row["input_ids"][:2], config.gmask_token_id, config.bos_token_id, *row["input_ids"][4:]]}
        for row in ROWS
    ]


def run(base_folder, **options):
    model = base_model.load_model(base_model.read_record(base_folder), "float32")
    torch.manual_seed(0)
    tuned = adapters.attach(model, "lora", rank=4, alpha=8, dropout=0.1, target_modules=["query_key_value", "dense"])
    rows = rows_for(model.config)
    names = ("on_point", "callbacks", "checkpoint_folder")
    how = {name: options.pop(name) for name in names if name in options}
    settings = TrainConfig(**{"batch_size": 4, "learning_rate": 0.02, "epochs": 6, "seed": 3, "evaluations": 3} | options)
    return tuned, fit(tuned, rows[:9], rows[9:], settings, **how)


def test_batches_are_padded_on_the_right():
    batch = PaddingCollator(3)([{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}, {"input_ids": [7], "labels": [7]}])
    assert batch["input_ids"].tolist() == [[7, 8, 9], [7, 3, 3]]
    assert batch["labels"].tolist() == [[-100, 8, 9], [7, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_it_learns_and_tells_every_loss(base_folder):
    points = []
    _, fitted = run(base_folder, on_point=points.append)
    train = [point["loss"] for point in fitted.history if point["split"] == "train"]
    assert train[-1] < train[0] - 0.5
    assert sum(point["split"] == "eval" for point in fitted.history) == 3
    assert [{key: point[key] for key in fitted.history[0]} for point in points] == fitted.history
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


def test_a_step_of_several_devices_takes_the_rows_of_one(base_folder):
    alone, many = EpochOrder(10, None, 4, seed=1), EpochOrder(10, None, 4, seed=1, fill=4)
    assert len(many) == 12
    assert list(many) == [*alone, 10, 10]  # the rows of nothing
    for step in range(1, 7):
        assert many.of_step(step) == alone.of_step(step)
    assert sorted(i for step in (1, 2, 3) for i in alone.of_step(step)) == list(range(10))
    assert alone.of_step(4) == list(alone.indices(1))[:4]


def test_a_loss_that_is_no_number_ends_the_run_with_the_step_and_its_rows(base_folder, monkeypatch):
    """Row 5 spoils the step that it is in, long before anything is logged."""
    usual = AdapterTrainer.compute_loss

    def spoiled(self, model, inputs, **how):
        loss = usual(self, model, inputs, **how)
        return loss * torch.nan if (inputs["input_ids"] == 45).any() else loss

    monkeypatch.setattr(AdapterTrainer, "compute_loss", spoiled)
    with pytest.raises(Diverged) as caught:
        run(base_folder, batch_size=1, logs=3)
    order = EpochOrder(9, [6] * 9, 1, seed=3).indices(0)
    assert f"loss of step {order.index(5) + 1} is nan" in str(caught.value)
    assert "rows of that step: row-5. " in str(caught.value)
    assert "learning_rate below 0.02" in str(caught.value)


def test_a_loss_worse_than_guessing_among_all_tokens_ends_the_run(base_folder, monkeypatch):
    usual = AdapterTrainer.compute_loss
    worse = math.log(base_model.load_model(base_model.read_record(base_folder), "float32").config.vocab_size)

    def later(self, model, inputs, **how):
        return usual(self, model, inputs, **how) + (added if 10 <= self.state.global_step < until else 0)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", later)
    added, until = 0.5 * worse, 18
    run(base_folder)
    added, until = 2 * worse, 14
    run(base_folder)
    until = 15
    with pytest.raises(Diverged, match=r"the loss of step 11 is [\d.]+ \(lowest so far [\d.]+\)"):
        run(base_folder)


def test_a_training_that_diverged_does_so_again_from_its_checkpoint(base_folder, tmp_path, monkeypatch):
    """The guard goes on where it was: a checkpoint may have been written while the loss was above."""
    usual = AdapterTrainer.compute_loss

    def worse(self, model, inputs, **how):
        return usual(self, model, inputs, **how) + (50 if self.state.global_step >= 7 else 0)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", worse)
    sentences = []
    for _ in range(2):
        with pytest.raises(Diverged) as caught:
            run(base_folder, evaluations=9, checkpoint_folder=tmp_path)
        sentences.append(str(caught.value))
    assert "loss of step 8 is" in sentences[0]
    assert (tmp_path / "checkpoint-10").is_dir()
    assert sentences[0] == sentences[1]


def test_the_figures_of_the_moment_are_told_again_by_who_goes_on(base_folder, tmp_path):
    told = []
    for _ in range(2):
        points = []
        run(base_folder, evaluations=9, logs=18, checkpoint_folder=tmp_path, on_point=points.append)
        told.append(points)
        shutil.rmtree(tmp_path / "checkpoint-18")
    assert len(told[0]) == len(told[1]) == 18 + 9
    assert told[0][:16] == told[1][:16]
    assert "gradient_norm" in told[1][0]


def test_the_weights_of_the_lowest_evaluation_loss_are_kept(base_folder, tmp_path):
    """Whatever the callback sees at the best evaluation is what the model has afterwards."""
    seen = {}

    class See(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
            seen[state.global_step] = (metrics["eval_loss"], trained(model)[NAME].clone())

    def keep(**how):
        tuned, fitted = run(base_folder, learning_rate=0.02, epochs=12, evaluations=9, callbacks=[See()], **how)
        return trained(tuned)[NAME], fitted

    for how in ({}, {"checkpoint_folder": tmp_path}):
        weights, fitted = keep(keep_best=True, **how)
        best = min(seen, key=lambda step: seen[step][0])
        assert best < max(seen)
        assert torch.equal(weights, seen[best][1])
        assert (fitted.kept_step, fitted.loss("eval")) == (best, seen[best][0])
    assert [path.name for path in tmp_path.glob("best-*")] == [f"best-{best}.safetensors"]
    weights, fitted = keep()
    assert torch.equal(weights, seen[max(seen)][1])
    assert fitted.kept_step == fitted.steps == max(seen)


def test_it_ends_when_evaluations_get_no_better(base_folder, tmp_path):
    settings = {"learning_rate": 0.02, "epochs": 12, "evaluations": 9, "patience": 2, "keep_best": True}
    tuned, fitted = run(base_folder, checkpoint_folder=tmp_path, **settings)
    losses = [point["loss"] for point in fitted.history if point["split"] == "eval"]
    assert len(losses) < 9
    assert losses.index(min(losses)) == len(losses) - 3
    # Killed behind its end, before the adapter was saved: it ends at once, with the same.
    again, other = run(base_folder, checkpoint_folder=tmp_path, **settings)
    assert other.history == fitted.history
    assert (other.steps, other.kept_step) == (fitted.steps, fitted.kept_step)
    assert torch.equal(trained(again)[NAME], trained(tuned)[NAME])
    # Without its best weights no checkpoint is of use.
    for path in tmp_path.glob("best-*"):
        path.unlink()
    anew, other = run(base_folder, checkpoint_folder=tmp_path, **settings)
    assert other.kept_step == fitted.kept_step
    assert torch.equal(trained(anew)[NAME], trained(tuned)[NAME])


def test_the_evaluation_loss_is_the_mean_over_labelled_tokens_packed_or_not(base_folder):
    config = base_model.load_model(base_model.read_record(base_folder), "float32").config
    rows = rows_for(config)
    rows[2] |= {"input_ids": rows[2]["input_ids"] + [70] * 9, "labels": rows[2]["labels"] + [70] * 9}

    def tuned():
        torch.manual_seed(0)
        return adapters.attach(base_model.load_model(base_model.read_record(base_folder), "float32"), "lora", **PLAIN)

    with torch.no_grad():
        model = tuned()
        losses = torch.stack([model(**PaddingCollator(3)([row])).loss for row in rows])
    labelled = torch.tensor([sum(place >= 0 for place in row["labels"]) for row in rows])
    expected = float((losses * labelled).sum() / labelled.sum())
    assert float(losses.mean()) != pytest.approx(expected, rel=1e-2)
    for how in ({"batch_size": 3}, {"batch_size": 2, "pack_tokens": 24}):
        fitted = fit(tuned(), rows[:4], rows, TrainConfig(learning_rate=1e-12, evaluations=2, **how))
        assert fitted.loss("eval") == pytest.approx(expected, rel=1e-5)


def test_the_figures_of_the_moment(base_folder):
    points = []
    run(base_folder, on_point=points.append, logs=18)
    train = [point for point in points if point["split"] == "train"]
    assert [point["step"] for point in train] == list(range(1, 19))
    for point in train:
        assert point["padding"] == 0
        assert point["tokens_per_second"] > 0
        assert point["gradient_norm"] > 0
        assert point["memory_gib"] > 0.1
    assert train[-1]["learning_rate"] < train[0]["learning_rate"]


def test_the_same_seed_gives_the_same_bytes(base_folder, tmp_path):
    hashes = []
    for attempt in range(3):
        tuned, _ = run(base_folder, seed=3 if attempt < 2 else 4)
        tuned.save_pretrained(tmp_path / str(attempt))
        hashes.append(sha256_of(tmp_path / str(attempt) / WEIGHTS))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("options", [{"batch_size": 2, "gradient_accumulation": 2}, {"gradient_checkpointing": True}])
def test_accumulation_and_checkpointing_change_no_result(base_folder, options):
    """Without dropout the same rows reach each update, so the weights agree."""

    def weights(**how):
        model = base_model.load_model(base_model.read_record(base_folder), "float32")
        torch.manual_seed(0)
        tuned = adapters.attach(model, "lora", rank=4, alpha=8, target_modules=["query_key_value"])
        rows = rows_for(model.config)[:8]
        fit(tuned, rows, [], TrainConfig(learning_rate=0.02, epochs=2, seed=1, **how))
        return {name: value for name, value in tuned.state_dict().items() if "lora_" in name}

    usual, other = weights(batch_size=4), weights(**{"batch_size": 4} | options)
    for name, value in usual.items():
        torch.testing.assert_close(other[name], value, atol=2e-5, rtol=1e-4)


def test_memory_that_runs_out_is_one_sentence(base_folder, monkeypatch):
    def exhausted(self, *arguments, **how):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(AdapterTrainer, "compute_loss", exhausted)
    with pytest.raises(UserError, match=r"memory ran out \(CUDA out of memory. Tried to allocate 9 GiB.\)"):
        run(base_folder)
