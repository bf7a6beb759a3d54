"""Gradients of float16 trainings at any number of labelled tokens, next to those of float32."""

import pytest
import torch
from shared_data import ADAPTER_SETTINGS
from transformers import TrainerCallback

from models import adapters, base_model, model_loading
from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from models.training import Diverged, TrainConfig, fit, loss_scaling
from models.training.batches import PaddingCollator
from models.training.sharding import whole as full_tensor

LABELLED = [256, 100_000, 10_000_000]
LABELLED_PER_UPDATE = 16  # of rows_for, in one batch


def rows_for(config: ChatGLMConfig) -> list[dict]:
    return [
        {
            "input_ids": [40 + i, config.gmask_token_id, config.bos_token_id, 60 + i, 51],
            "labels": [-100] * 3 + [60 + i, 51],
        }
        for i in range(8)
    ]


def gradients(base_folder, folder, dtype, labelled, method="lora", bits=None, sharded=False, **adapter) -> torch.Tensor:
    """Gradients of one batch as the optimizer receives them, where the update has ``labelled`` labelled tokens."""
    model = model_loading.load_model(base_model.read_record(base_folder), "float32" if method == "full" else dtype, bits)
    torch.manual_seed(0)
    tuned = adapters.attach_adapter(model, method, **adapter)
    with torch.no_grad():  # lora_B begins at zero, which would leave lora_A without gradients
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    rows = rows_for(adapters.get_base_model(tuned).config)
    long_rows = [{**row, "labels": row["labels"] * (labelled // (2 * len(rows)))} for row in rows]
    settings = TrainConfig(
        batch_size=len(rows),
        learning_rate=0.1,
        max_steps=1,
        max_grad_norm=1e9,
        sharded=sharded,
        autocast=dtype if method == "full" else "float32",
    )
    trainer = fit._trainer(tuned, long_rows, [], settings, fit._arguments(settings, folder, False, False))
    trainer.create_optimizer_and_scheduler(1)
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    batch = PaddingCollator(adapters.get_base_model(tuned).config.pad_token_id)(rows)
    trainer.training_step(tuned, batch, torch.tensor(labelled))
    trainer._clip_grad_norm(tuned)
    trained = [full_tensor(parameter.grad) for parameter in tuned.parameters() if parameter.requires_grad]
    return torch.cat([gradient.double().flatten() for gradient in trained])


def assert_alike(own: torch.Tensor, exact: torch.Tensor) -> None:
    assert float(torch.nn.functional.cosine_similarity(own, exact, dim=0)) >= 0.99
    assert float(own.norm() / exact.norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["lora", "lora dora", "ptuning_v2 projected"])
def test_half_precision_has_the_gradients_of_float32(base_folder, tmp_path, kind):
    how = {"method": kind.split()[0], **ADAPTER_SETTINGS[kind]}
    exact = gradients(base_folder, tmp_path, "float32", 256, **how)
    for labelled in LABELLED:
        own = gradients(base_folder, tmp_path, "float16", labelled, **how)
        assert_alike(own, exact * 256 / labelled)
    assert_alike(gradients(base_folder, tmp_path, "bfloat16", 256, **how), exact)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_in_half_precision_has_the_gradients_of_float32(base_folder, tmp_path, bits):
    how = {"bits": bits, **ADAPTER_SETTINGS["lora"]}
    exact = gradients(base_folder, tmp_path, "float32", 100_000, **how)
    for dtype in ("float16", "bfloat16"):
        assert_alike(gradients(base_folder, tmp_path, dtype, 100_000, **how), exact)


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sharded_full_fine_tuning_has_the_gradients_of_float32(base_folder, tmp_path, process_group, dtype):
    exact = gradients(base_folder, tmp_path, "float32", 100_000, "full", sharded=True)
    assert_alike(gradients(base_folder, tmp_path, dtype, 100_000, "full", sharded=True), exact)


def test_an_overflow_skips_the_update_and_halves_the_scale(base_folder, monkeypatch):
    monkeypatch.setattr(loss_scaling, "SCALE_PER_TOKEN", 1e9)
    scales, weights = [], []

    class Record(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            scales.append(optimizer.scaler.get_scale())
            weights.append(lora_b(model).detach().clone())

    fitted, before, after = fit_in_float16(base_folder, [Record()], max_steps=20)
    first = 1e9 * LABELLED_PER_UPDATE
    overflows = [scale < former for former, scale in zip([first, *scales], scales, strict=False)]
    assert overflows[0]
    assert not overflows[-1]
    assert scales[-1] == first / 2 ** sum(overflows)
    for overflow, former, weight in zip(overflows, [before, *weights], weights, strict=False):
        assert torch.equal(former, weight) == overflow
    assert after.isfinite().all()
    assert fitted.steps == 20


def test_a_training_that_overflows_at_every_scale_ends_with_a_sentence(base_folder, monkeypatch):
    plain = ChatGLMForConditionalGeneration._loss

    def overflow(self, states, *arguments):
        states.register_hook(lambda gradient: gradient * torch.inf)
        return plain(self, states, *arguments)

    monkeypatch.setattr(ChatGLMForConditionalGeneration, "_loss", overflow)
    with pytest.raises(Diverged, match="the gradient of the loss of step 25 is inf"):
        fit_in_float16(base_folder, [], max_steps=40)


def test_a_resumed_training_keeps_the_scale(base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scaling, "SCALE_PER_TOKEN", 1e9)

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 10:
                raise InterruptedError

    _, _, whole = fit_in_float16(base_folder, [], max_steps=20, checkpoint_folder=tmp_path / "whole")
    folder = tmp_path / "resumed"
    with pytest.raises(InterruptedError):
        fit_in_float16(base_folder, [Stop()], max_steps=20, checkpoint_folder=folder)
    monkeypatch.setattr(loss_scaling, "SCALE_PER_TOKEN", 1.0)  # other rounding, if it counted
    _, _, resumed = fit_in_float16(base_folder, [], max_steps=20, checkpoint_folder=folder)
    assert torch.equal(whole, resumed)


def fit_in_float16(base_folder, callbacks, checkpoint_folder=None, **settings):
    model = model_loading.load_model(base_model.read_record(base_folder), "float16")
    torch.manual_seed(0)
    tuned = adapters.attach_adapter(model, "lora", **ADAPTER_SETTINGS["lora"])
    before = lora_b(tuned).detach().clone()
    settings = TrainConfig(batch_size=8, learning_rate=0.01, evaluations=2, **settings)
    if checkpoint_folder is not None:
        checkpoint_folder.mkdir(exist_ok=True)
    rows = rows_for(model.config)
    fitted = fit(tuned, rows, [], settings, callbacks=callbacks, checkpoint_folder=checkpoint_folder)
    return fitted, before, lora_b(tuned).detach()


def lora_b(tuned) -> torch.nn.Parameter:
    return next(parameter for name, parameter in tuned.named_parameters() if "lora_B" in name)
