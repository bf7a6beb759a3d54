import pytest
import torch
from torch import nn

from models import adapters, precision
from models.errors import UserError
from models.prompt import IGNORED_LABEL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [4, 8])
def test_float32_weights_compute_in_the_dtype_of_their_input(dtype, rank):
    torch.manual_seed(0)
    down, up = precision.Float32Weight(16, rank, bias=False), precision.Float32Weight(rank, 24, bias=False)
    states = torch.randn(5, 16).to(dtype)
    result = up(down(states))
    result.float().sum().backward()
    assert result.dtype == dtype
    assert down.weight.grad.dtype == up.weight.grad.dtype == torch.float32
    assert down.weight.grad.shape == (rank, 16)
    expected = states.float() @ down.weight.T @ up.weight.T
    torch.testing.assert_close(result.float(), expected, rtol=2e-2, atol=2e-2)


def test_lora_weights_stay_float32_on_a_half_precision_base(model):
    adapted = adapters.attach_adapter(model.bfloat16(), "lora", rank=2, alpha=4, target_modules=["query_key_value"])
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trainable} == {torch.float32}
    ids = torch.tensor([[20, 21, model.config.gmask_token_id, model.config.bos_token_id, 22, 23]])
    adapted(input_ids=ids, labels=torch.where(ids == ids[:, -1:], ids, IGNORED_LABEL)).loss.backward()
    assert all(parameter.grad is not None for parameter in trainable)


def test_fp8_rows_use_the_whole_range_with_an_error_of_at_most_a_sixteenth():
    """e4m3 has 3 mantissa bits: half a step is 1/16 of the value. The smallest values have an absolute error."""
    values = torch.randn(7, 64) * torch.logspace(-6, 6, 7)[:, None]
    values[3] = 0
    scaled, scale = precision.scale_rows(values)
    assert scaled.dtype == torch.float8_e4m3fn
    assert scale.shape == (7, 1)
    dequantized = scaled.float() * scale
    assert torch.equal(dequantized[3], torch.zeros(64))
    error = (dequantized - values).abs()
    assert (error <= values.abs() / 16 + scale * 2**-10).all()


def test_without_an_fp8_gpu_layers_are_kept_and_a_message_is_logged(caplog):
    layers = nn.Sequential(nn.Linear(16, 16))
    with caplog.at_level("INFO", logger="tuneline"):
        assert precision.convert_frozen_layers_to_fp8(layers.requires_grad_(False)) == 0
    assert type(layers[0]) is nn.Linear
    assert "no GPU with fp8" in caplog.text


def test_fp8_with_a_float32_base_raises_user_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    layers = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    with pytest.raises(UserError, match="needs a base in 16 bits"):
        precision.convert_frozen_layers_to_fp8(layers.requires_grad_(False))
    trainable = nn.Sequential(nn.Linear(16, 16))  # float32 is allowed for trained layers
    assert precision.convert_frozen_layers_to_fp8(trainable) == 0
    # Sizes of one of the two layers are multiples of 16.
    assert precision.convert_frozen_layers_to_fp8(layers.bfloat16()) == 1
