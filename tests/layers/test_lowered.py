"""Networks in a lower precision: nearly the same numbers, each sample on its own, and the network itself unchanged."""

import copy

import pytest
import torch
from torch import nn

from partita.layers import lowered as module
from partita.layers.lowered import LAYERS, feasible_precision, lowered

CPU = torch.device("cpu")
ERROR = {"bf16": 0.005, "int8": 0.012 if module._has_vnni() else 0.022}
"""Largest error of products relative to their size. Bytes round to 1/254 of the largest number, or to 1/127."""


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch):
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)  # also where it is slow


def network():
    return nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 64, bias=False)).eval()


@pytest.mark.parametrize("precision", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_nearly_that_of_single_precision(precision, bias):
    linear = nn.Linear(1024, 300, bias=bias)
    x = torch.randn(4, 7, 1024) * torch.tensor([1e-3, 1.0, 30.0, 1e4])[:, None, None]
    exact, made = linear(x), LAYERS[precision](linear)(x)
    assert made.shape == exact.shape
    assert made.dtype == torch.float32
    errors = (made - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    assert (errors < ERROR[precision]).all(), errors
    assert torch.equal(LAYERS[precision](linear)(torch.zeros(2, 1024)), linear(torch.zeros(2, 1024)))


@pytest.mark.parametrize("precision", LAYERS)
def test_a_sample_does_not_depend_on_the_batch(precision):
    linear = LAYERS[precision](nn.Linear(1024, 2048))
    x = torch.randn(8, 1024) * 10.0 ** torch.arange(-4, 4)[:, None]
    batch = linear(x)
    for alone, row in zip(x, batch, strict=True):
        assert torch.equal(linear(alone[None])[0], row)


@pytest.mark.parametrize("precision", LAYERS)
def test_the_network_stays_as_it_is_and_shares_all_other_tensors(precision):
    whole = network()
    state = copy.deepcopy(whole.state_dict())
    small = lowered(whole, precision)
    assert [type(layer) for layer in small if not isinstance(layer, nn.Linear)].count(LAYERS[precision]) == 2
    assert small[2].weight is whole[2].weight
    assert type(whole[0]) is nn.Linear
    assert whole.state_dict().keys() == state.keys()
    x = torch.randn(3, 256)
    exact, made = whole(x), small(x)
    assert not torch.equal(exact, made)
    assert (made - exact).norm() / exact.norm() < 3 * ERROR[precision]


def test_it_is_made_once_and_again_for_other_weights():
    whole, x = network(), torch.randn(3, 256)
    first = lowered(whole, "bf16")
    assert lowered(whole, "bf16") is first
    with torch.no_grad():
        whole[3].weight.mul_(2)
    torch.testing.assert_close(lowered(whole, "bf16")(x), 2 * first(x))


def test_single_precision_is_the_network_itself():
    whole = network()
    assert lowered(whole, "fp32") is whole


def test_what_a_device_lacks_is_replaced(monkeypatch, recwarn):
    cuda, other = torch.device("cuda"), torch.device("mps")
    assert [feasible_precision("auto", device) for device in (CPU, cuda, other)] == ["int8", "bf16", "fp32"]
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    assert not recwarn.list
    monkeypatch.delattr(torch, "quantize_per_channel")
    module._has_int8.cache_clear()
    assert feasible_precision("auto", CPU) == "fp32"
    module._has_int8.cache_clear()
    with pytest.warns(UserWarning, match="cpu computes bf16 slowly.*: generating in fp32"):
        assert feasible_precision("bf16", CPU) == "fp32"
    with pytest.warns(UserWarning, match="cuda computes int8 slowly.*: generating in bf16"):
        assert feasible_precision("int8", cuda) == "bf16"
