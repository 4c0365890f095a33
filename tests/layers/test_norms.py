import pytest
import torch
from torch.nn import functional as F

from partita.layers.norms import make_norm


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(3, 5, 24, dtype=dtype) * 2 + 0.7, torch.rand(24, dtype=dtype) + 0.5


def through(function, x, weight):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = function(x, weight)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out.detach(), x.grad, weight.grad


def ours(x, weight):
    norm = make_norm("rms", x.shape[-1])
    del norm.weight
    norm.weight = weight
    return norm(x)


def test_root_mean_square_norm_and_its_gradients_are_those_of_the_formula():
    x, weight = inputs(torch.float64)
    expected = through(lambda x, weight: x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight, x, weight)
    found = through(ours, x.float(), weight.float())
    for mine, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, truth.float())


def test_a_row_of_zeros_has_finite_gradients():
    x, weight = inputs()
    found = through(ours, x.index_fill(1, torch.tensor([2]), 0.0), weight)
    assert all(part.isfinite().all() for part in found)
    assert found[0][:, 2].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_keep_their_type(dtype):
    x, weight = inputs(dtype)
    torch.testing.assert_close(ours(x, weight), F.rms_norm(x, (24,), weight, 1e-6))


def test_weights_of_another_type_train_too():
    x, weight = inputs()
    expected = through(ours, x, weight.bfloat16().float())
    for mine, truth in zip(through(ours, x, weight.bfloat16()), expected, strict=True):
        torch.testing.assert_close(mine.float(), truth, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen):
    x, weight = inputs()
    expected = dict(zip(("x", "weight"), through(ours, x, weight)[1:], strict=True))
    given = {name: value.clone().requires_grad_(name != frozen) for name, value in (("x", x), ("weight", weight))}
    out = ours(**given)
    (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
    assert given.pop(frozen).grad is None
    ((name, learned),) = given.items()
    torch.testing.assert_close(learned.grad, expected[name])


def test_training_and_generation_give_the_same_result():
    x, weight = inputs()
    trained = through(ours, x, weight)[0]
    with torch.no_grad():
        torch.testing.assert_close(ours(x, weight), trained)


def test_under_autocast_the_norm_stays_in_single_precision():
    x, weight = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = through(ours, x, weight)
    assert all(part.dtype == torch.float32 for part in found)
