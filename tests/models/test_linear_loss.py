import pytest
import torch
import torch.nn.functional as F

from models import linear_loss


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_loss_and_gradient_equal_those_of_cross_entropy(monkeypatch, num_tokens, dtype, tolerance):
    monkeypatch.setattr(linear_loss, "CHUNK", 4)
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 16, generator=generator).to(dtype)
    targets = torch.randint(50, (num_tokens,), generator=generator)
    expected = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(3 * expected, hidden)
    total = linear_loss.FrozenHeadLoss.apply(hidden, weight, targets)
    torch.testing.assert_close(total, expected, rtol=tolerance, atol=tolerance)
    (gradient,) = torch.autograd.grad(3 * total, hidden)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=5 * tolerance)


def test_loss_without_gradient():
    with torch.no_grad():
        total = linear_loss.FrozenHeadLoss.apply(torch.ones(3, 4), torch.eye(4), torch.tensor([0, 1, 2]))
    assert total.item() == pytest.approx(3 * torch.tensor(4.0).log().item())


def test_loss_of_no_tokens_is_zero():
    hidden = torch.zeros(0, 4, requires_grad=True)
    total = linear_loss.FrozenHeadLoss.apply(hidden, torch.eye(4), torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total.item() == 0
