import pytest
import torch

from partita.layers.relative_positions import SCALE, RelativeBias, bucket
from partita.layers.transformer_blocks import Transformer


@pytest.mark.parametrize("causal", [True, False])
def test_biases_are_those_of_t5(causal):
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=32, d_kv=8, num_heads=4, is_decoder=causal)
    reference = T5Attention(config, has_relative_attention_bias=True)
    mine = RelativeBias(4, causal=causal)
    torch.nn.init.normal_(mine.biases.weight)
    reference.relative_attention_bias.weight.data.copy_(SCALE * mine.biases.weight[:32])
    ids = torch.arange(400)[None]
    found, expected = mine(ids, ids), reference.compute_bias(400, 400)
    if causal:  # what follows is never attended to
        keep = torch.ones(400, 400, dtype=torch.bool).tril()
        found, expected = found[..., keep], expected[..., keep]
    assert torch.equal(found, expected)


def test_distances_share_buckets_that_grow():
    found = bucket(torch.arange(10_000), 32)
    assert found[:17].tolist() == list(range(17))
    sizes = found.bincount()
    assert (sizes[16:-1].diff() >= -1).all()
    assert found.max() == 31
    assert found[127] == 31


def test_order_matters_and_shifting_all_positions_does_not():
    torch.manual_seed(0)
    model = Transformer(32, 2, 4, positions="relative")
    torch.nn.init.normal_(model.relative.biases.weight)
    x, ids = torch.randn(1, 6, 32), torch.arange(6)[None]
    out = model(x, model.positions(ids))
    torch.testing.assert_close(model(x, model.positions(ids + 50)), out)
    assert not torch.allclose(model(x, model.positions(ids * 2)), out)


def test_far_distances_share_a_bias():
    bias = RelativeBias(3)
    torch.nn.init.normal_(bias.biases.weight)
    ids = torch.tensor([[0, 3, 127, 128, 129, 5000, 100_000], [7, 9, 300, 2, 1, 0, 4]])
    found = bias(ids[:, -2:], ids)
    assert found.shape == (2, 3, 2, 7)
    assert torch.equal(found, bias.of_distances(ids[:, -2:, None] - ids[:, None]).permute(0, 3, 1, 2))


def test_shifts_do_not_change_distances_of_half_positions():
    model = Transformer(32, 1, 4, positions="relative")
    ids = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0, 2.5]])
    numbers, shifted = (model.positions(ids + shift).relative[0] for shift in (0, 1))
    assert torch.equal(shifted - numbers, torch.ones_like(numbers))


def test_the_bias_learns():
    model = Transformer(32, 2, 4, positions="relative")
    model(torch.randn(2, 5, 32), model.positions(torch.arange(5)[None])).square().sum().backward()
    gradient = model.relative.biases.weight.grad
    assert (gradient[:5].abs().sum(1) > 0).all()
    assert gradient[5:].eq(0).all()


def test_what_comes_later_has_biases_of_its_own():
    bias = RelativeBias(1)
    torch.nn.init.normal_(bias.biases.weight)
    assert len(bias.of_distances(torch.arange(-8, 9)).unique()) == 17
