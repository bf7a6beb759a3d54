import pytest
import torch
import torch.nn.functional as F

from models.chatglm import loss


@pytest.mark.parametrize("tokens", [1, 7, 8, 9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_frozen_head_gives_the_loss_and_gradient_of_plain_cross_entropy(monkeypatch, tokens, dtype, tolerance):
    monkeypatch.setattr(loss, "CHUNK", 4)
    draw = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 16, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(50, 16, generator=draw).to(dtype)
    targets = torch.randint(50, (tokens,), generator=draw)
    expected = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(3 * expected, hidden)
    total = loss.FrozenHeadLoss.apply(hidden, weight, targets)
    torch.testing.assert_close(total, expected, rtol=tolerance, atol=tolerance)
    (own,) = torch.autograd.grad(3 * total, hidden)
    assert own.dtype == dtype
    torch.testing.assert_close(own, gradient, rtol=tolerance, atol=5 * tolerance)


def test_without_a_gradient_only_the_loss_is_computed():
    with torch.no_grad():
        total = loss.FrozenHeadLoss.apply(torch.ones(3, 4), torch.eye(4), torch.tensor([0, 1, 2]))
    assert total.item() == pytest.approx(3 * torch.tensor(4.0).log().item())


def test_no_tokens_cost_nothing():
    hidden = torch.zeros(0, 4, requires_grad=True)
    total = loss.FrozenHeadLoss.apply(hidden, torch.eye(4), torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total.item() == 0
