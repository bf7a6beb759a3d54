import pytest
import torch
from torch import nn

from models import adapters, precision
from models.errors import UserError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [4, 8])
def test_lora_computes_in_the_type_of_its_input_with_float32_weights(dtype, rank):
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


def test_the_weights_of_lora_stay_float32_beside_a_base_in_half_precision(model):
    tuned = adapters.attach(model.bfloat16(), "lora", rank=2, alpha=4, target_modules=["query_key_value"])
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    ids = torch.tensor([[20, 21, model.config.gmask_token_id, model.config.bos_token_id, 22, 23]])
    tuned(input_ids=ids, labels=torch.where(ids == ids[:, -1:], ids, -100)).loss.backward()
    assert all(parameter.grad is not None for parameter in trained)


def test_a_row_of_fp8_spans_its_whole_range_and_errs_by_a_sixteenth_at_most():
    """e4m3 has 3 bits behind the point: half a step is 1/16 of the value; the smallest values err in absolute terms."""
    values = torch.randn(7, 64) * torch.logspace(-6, 6, 7)[:, None]
    values[3] = 0
    scaled, scale = precision.scale_rows(values)
    assert scaled.dtype == torch.float8_e4m3fn
    assert scale.shape == (7, 1)
    again = scaled.float() * scale
    assert torch.equal(again[3], torch.zeros(64))
    error = (again - values).abs()
    assert (error <= values.abs() / 16 + scale * 2**-10).all()


def test_without_a_gpu_that_has_it_fp8_changes_nothing_and_says_so(caplog):
    layers = nn.Sequential(nn.Linear(16, 16))
    with caplog.at_level("INFO", logger="tuneline"):
        assert precision.convert_frozen_layers_to_fp8(layers.requires_grad_(False)) == 0
    assert type(layers[0]) is nn.Linear
    assert "no GPU with fp8" in caplog.text


def test_fp8_beside_a_base_in_float32_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    layers = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    with pytest.raises(UserError, match="needs a base in 16 bits"):
        precision.convert_frozen_layers_to_fp8(layers.requires_grad_(False))
    assert precision.convert_frozen_layers_to_fp8(nn.Sequential(nn.Linear(16, 16))) == 0  # trained, so it may be in float32
    assert precision.convert_frozen_layers_to_fp8(layers.bfloat16()) == 1  # of the two, the one whose sides are multiples of 16
