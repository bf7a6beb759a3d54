"""Gradients of float16 training runs, compared with those of float32, for any number of labelled tokens per update."""

import pytest
import torch
from shared_data import ADAPTER_SETTINGS
from transformers import TrainerCallback

from models import adapters, base_model, model_loading
from models.chatglm import ChatGLMConfig, modeling_chatglm
from models.padding import PaddingCollator
from models.prompt import IGNORED_LABEL
from models.training import Diverged, TrainConfig, fit, loss_scaling
from models.training.batches import prepare_data
from models.training.loss_scaling import make_grad_scaler, needs_loss_scaling
from models.training.sharding import full_tensor
from models.training.train_config import build_arguments
from models.training.trainer import AdapterTrainer, StepStatistics

NUM_LABELLED = [256, 100_000, 10_000_000]  # per update
LABELLED_PER_BATCH = 16  # of make_rows


def make_rows(config: ChatGLMConfig) -> list[dict]:
    return [
        {
            "input_ids": [40 + number, config.gmask_token_id, config.bos_token_id, 60 + number, 51],
            "labels": [IGNORED_LABEL] * 3 + [60 + number, 51],
        }
        for number in range(8)
    ]


def compute_gradients(
    base_folder, folder, dtype, num_labelled, method="lora", bits=None, sharded=False, **adapter
) -> torch.Tensor:
    """Return the gradients of one batch, as the optimizer gets them, in an update of ``num_labelled`` tokens."""
    base = base_model.read_record(base_folder)
    model = model_loading.load_model(base, "float32" if method == "full" else dtype, bits)
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model, method, **adapter)
    with torch.no_grad():  # lora_B starts at zero, which would leave lora_A without gradients
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    config = adapters.get_base_model(adapted).config
    rows = make_rows(config)
    trainer = make_trainer(
        adapted,
        [{**row, "labels": row["labels"] * (num_labelled // (2 * len(rows)))} for row in rows],
        TrainConfig(
            batch_size=len(rows),
            learning_rate=0.1,
            max_steps=1,
            max_grad_norm=1e9,
            sharded=sharded,
            autocast=dtype if method == "full" else "float32",
        ),
        folder,
    )
    trainer.create_optimizer_and_scheduler(1)
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
    trainer.training_step(adapted, PaddingCollator(config.pad_token_id)(rows), torch.tensor(num_labelled))
    trainer._clip_grad_norm(adapted)
    gradients = [full_tensor(parameter.grad) for parameter in adapted.parameters() if parameter.requires_grad]
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def make_trainer(model, rows: list[dict], config: TrainConfig, folder) -> AdapterTrainer:
    arguments = build_arguments(config, folder, evaluate=False, save=False)
    data = prepare_data(model.config, rows, [], config)
    grad_scaler = None
    if needs_loss_scaling(model, config.autocast, config.sharded):
        grad_scaler = make_grad_scaler(arguments.device, data.train_rows, config.rows_per_update)
    return AdapterTrainer(
        model,
        arguments,
        data,
        StepStatistics(arguments.device),
        callbacks=[],
        grad_scaler=grad_scaler,
        shard_dtype=config.autocast if config.sharded else None,
    )


def assert_similar(gradients: torch.Tensor, expected: torch.Tensor) -> None:
    assert float(torch.nn.functional.cosine_similarity(gradients, expected, dim=0)) >= 0.99
    assert float(gradients.norm() / expected.norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["lora", "lora dora", "ptuning_v2 projected"])
def test_half_precision_gradients_equal_those_of_float32(base_folder, tmp_path, kind):
    adapter = {"method": kind.split()[0], **ADAPTER_SETTINGS[kind]}
    expected = compute_gradients(base_folder, tmp_path, "float32", 256, **adapter)
    for num_labelled in NUM_LABELLED:
        gradients = compute_gradients(base_folder, tmp_path, "float16", num_labelled, **adapter)
        assert_similar(gradients, expected * 256 / num_labelled)
    assert_similar(compute_gradients(base_folder, tmp_path, "bfloat16", 256, **adapter), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_on_a_quantized_base_in_half_precision_equal_those_of_float32(base_folder, tmp_path, bits):
    adapter = {"bits": bits, **ADAPTER_SETTINGS["lora"]}
    expected = compute_gradients(base_folder, tmp_path, "float32", 100_000, **adapter)
    for dtype in ("float16", "bfloat16"):
        assert_similar(compute_gradients(base_folder, tmp_path, dtype, 100_000, **adapter), expected)


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_sharded_full_fine_tuning_equal_those_of_float32(base_folder, tmp_path, process_group, dtype):
    expected = compute_gradients(base_folder, tmp_path, "float32", 100_000, "full", sharded=True)
    assert_similar(compute_gradients(base_folder, tmp_path, dtype, 100_000, "full", sharded=True), expected)


# Overflow ------------------------------------------------------------------------------------------


def fit_in_float16(base_folder, callbacks, checkpoint_folder=None, **settings):
    """Return the result of a training run, and LoRA's B before and after it."""
    model = model_loading.load_model(base_model.read_record(base_folder), "float16")
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model, "lora", **ADAPTER_SETTINGS["lora"])
    before = lora_b(adapted).detach().clone()
    if checkpoint_folder is not None:
        checkpoint_folder.mkdir(exist_ok=True)
    result = fit(
        adapted,
        make_rows(model.config),
        [],
        TrainConfig(batch_size=8, learning_rate=0.01, evaluations=2, **settings),
        callbacks=callbacks,
        checkpoint_folder=checkpoint_folder,
    )
    return result, before, lora_b(adapted).detach()


def lora_b(adapted) -> torch.nn.Parameter:
    return next(parameter for name, parameter in adapted.named_parameters() if "lora_B" in name)


def test_overflow_skips_the_update_and_halves_the_scale(base_folder, monkeypatch):
    monkeypatch.setattr(loss_scaling, "SCALE_PER_TOKEN", 1e9)
    scales, weights = [], []

    class RecordScale(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            scales.append(optimizer.scaler.get_scale())
            weights.append(lora_b(model).detach().clone())

    result, before, after = fit_in_float16(base_folder, [RecordScale()], max_steps=20)
    first_scale = 1e9 * LABELLED_PER_BATCH
    overflows = [scale < previous for previous, scale in zip([first_scale, *scales], scales, strict=False)]
    assert overflows[0]
    assert not overflows[-1]
    assert scales[-1] == first_scale / 2 ** sum(overflows)
    for overflow, previous, weight in zip(overflows, [before, *weights], weights, strict=False):
        assert torch.equal(previous, weight) == overflow
    assert after.isfinite().all()
    assert result.steps == 20


def test_overflow_at_every_scale_stops_the_training(base_folder, monkeypatch):
    compute_loss = modeling_chatglm.mean_loss

    def overflow(head, states, *args):
        states.register_hook(lambda gradient: gradient * torch.inf)
        return compute_loss(head, states, *args)

    monkeypatch.setattr(modeling_chatglm, "mean_loss", overflow)
    with pytest.raises(Diverged, match="the gradient of the loss of step 25 is inf"):
        fit_in_float16(base_folder, [], max_steps=40)


def test_a_resumed_training_keeps_the_scale(base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scaling, "SCALE_PER_TOKEN", 1e9)

    class Interrupt(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 10:
                raise InterruptedError

    _, _, uninterrupted = fit_in_float16(base_folder, [], max_steps=20, checkpoint_folder=tmp_path / "uninterrupted")
    folder = tmp_path / "resumed"
    with pytest.raises(InterruptedError):
        fit_in_float16(base_folder, [Interrupt()], max_steps=20, checkpoint_folder=folder)
    monkeypatch.setattr(loss_scaling, "SCALE_PER_TOKEN", 1.0)  # would round differently if it was used
    _, _, resumed = fit_in_float16(base_folder, [], max_steps=20, checkpoint_folder=folder)
    assert torch.equal(uninterrupted, resumed)
