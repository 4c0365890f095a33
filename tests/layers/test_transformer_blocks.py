import math

import pytest
import torch

from partita.layers.attention import CrossAttention, key_mask
from partita.layers.positions import position_ids, rotary, rotate, sinusoidal
from partita.layers.transformer_blocks import BlockConfig, Transformer

VARIANTS = {
    "musicgen": {},
    "t5": {"positions": "relative"},
    "modern": {"positions": "rotary", "norm": "rms", "activation": "swiglu", "qk_norm": True},
}


def make(variant="musicgen", **options):
    torch.manual_seed(0)
    options = {"cross": True, **VARIANTS[variant], **options}
    block = BlockConfig(**{name: options.pop(name) for name in list(options) if hasattr(BlockConfig, name)})
    model = Transformer(32, 2, 4, block=block, **options).eval()
    if model.position_kind == "relative":
        torch.nn.init.normal_(model.relative.biases.weight)
    return model


def ids(n):
    return torch.arange(n)[None]


def test_sinusoidal_positions_are_cosines_then_sines():
    table = sinusoidal(torch.tensor([[3]]), 8)[0, 0]
    frequencies = [10_000 ** (-i / 3) for i in range(4)]
    expected = [math.cos(3 * f) for f in frequencies] + [math.sin(3 * f) for f in frequencies]
    torch.testing.assert_close(table, torch.tensor(expected))


def test_rotary_scores_depend_on_the_distance_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16)

    def score(i, j):
        q = rotate(query, rotary(torch.tensor([[i]])[:, None], 16))
        k = rotate(key, rotary(torch.tensor([[j]])[:, None], 16))
        return (q * k).sum()

    torch.testing.assert_close(score(5, 2), score(103, 100))
    assert not torch.isclose(score(5, 2), score(5, 3))
    torch.testing.assert_close(score(0, 0), (query * key).sum())


def test_rotary_positions_turn_neighbours_by_their_angles():
    turned = rotate(torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4), rotary(torch.tensor([3]), 4))[0, 0, 0]
    first, second = 3.0, 3.0 / 100
    expected = [math.cos(first), math.sin(first), -2 * math.sin(second), 2 * math.cos(second)]
    torch.testing.assert_close(turned, torch.tensor(expected))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float64, 1e-5)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_other_types(variant, dtype, bound, training):
    model, x, cross = make(variant), torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    expected = model(x, model.positions(ids(5)), cross=cross)
    model = model.to(dtype).train(training)
    with torch.set_grad_enabled(training):
        found = model(x.to(dtype), model.positions(ids(5)), cross=cross.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=bound, rtol=bound)
    if training:
        found.square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_causal(variant):
    model = make(variant, cross=False)
    x = torch.randn(1, 6, 32)
    changed = x.clone()
    changed[:, 4:] = 7.0
    before, after = model(x, model.positions(ids(6))), model(changed, model.positions(ids(6)))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_without_causality_everything_is_seen():
    model = make(cross=False, causal=False)
    x = torch.randn(1, 6, 32)
    changed = x.clone()
    changed[:, 5] = 7.0
    positions = model.positions(ids(6))
    assert not torch.allclose(model(x, positions)[:, 0], model(changed, positions)[:, 0])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(variant, causal):
    """The same sample with padding before, amid and behind its places, and among what it attends to."""
    model = make(variant, causal=causal)
    x, cross = torch.randn(1, 4, 32), torch.randn(1, 3, 32)
    alone = model(x, model.positions(ids(4)), cross=cross)
    places, keys = torch.tensor([1, 3, 4, 6]), torch.tensor([0, 2, 4])
    padded, padded_cross = torch.full((1, 8, 32), 5.0), torch.full((1, 6, 32), -3.0)
    padded[:, places], padded_cross[:, keys] = x, cross
    mask, cross_mask = torch.zeros(1, 8, dtype=torch.bool), torch.zeros(1, 6, dtype=torch.bool)
    mask[:, places], cross_mask[:, keys] = True, True
    positions = model.positions(position_ids(mask))
    together = model(padded, positions, mask=mask, cross=padded_cross, cross_mask=cross_mask)
    assert together.isfinite().all()
    torch.testing.assert_close(together[:, places], alone, rtol=1e-5, atol=1e-5)


def test_fully_masked_cross_attention_is_exactly_zero():
    torch.manual_seed(0)
    attention = CrossAttention(16, 2)
    x, source = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[False] * 5, [True, True, False, False, False]])
    out = attention(x, attention.keys_values(source), key_mask(mask))
    assert (out[0] == 0).all()
    assert (out[1] != 0).all()
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("padded", [False, True])
def test_cached_steps_equal_the_whole_sequence(variant, padded):
    model = make(variant)
    x, cross = torch.randn(2, 9, 32), torch.randn(2, 5, 32)
    mask, cross_mask = torch.ones(2, 9, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    if padded:
        mask[0, 1:3], cross_mask[0, 2:], cross_mask[1] = False, False, False
    positions = model.positions(position_ids(mask))
    whole = model(x, positions, mask=mask, cross=cross, cross_mask=cross_mask)
    cache = model.new_cache(9, mask=mask, cross=cross, cross_mask=cross_mask)
    # a start of four places, then single ones, then two at once
    parts = [model(x[:, a:b], positions.slice(a, b), cache=cache) for a, b in ((0, 4), (4, 5), (5, 6), (6, 7), (7, 9))]
    torch.testing.assert_close(torch.cat(parts, 1)[mask], whole[mask], rtol=1e-4, atol=1e-5)


def test_a_full_cache_refuses():
    model = make(cross=False)
    cache = model.new_cache(2)
    with pytest.raises(ValueError, match="holds 2 places, not 3"):
        model(torch.randn(1, 3, 32), model.positions(ids(3)), cache=cache)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = make(cross=False, checkpointing=checkpointing).train()
        torch.manual_seed(1)
        model(torch.randn(2, 5, 32), model.positions(ids(5))).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_initial_weights_shrink_with_depth():
    model = Transformer(256, 3, 4)
    for depth, block in enumerate(model.blocks, start=1):
        std = block.self_attention.query_key_value.weight.std().item()
        # a normal cut at three deviations keeps 0.9866 of its deviation
        assert std == pytest.approx(0.9866 / math.sqrt(256 * 2 * depth), rel=0.02)


def test_dropout_acts_in_training_only():
    model = make(cross=False, dropout=0.5)
    x, positions = torch.randn(1, 5, 32), model.positions(ids(5))
    torch.testing.assert_close(model(x, positions), model(x, positions))
    model.train()
    assert not torch.allclose(model(x, positions), model(x, positions))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="width 30 must be a multiple of twice the heads, 8"):
        Transformer(30, 1, 4)
    with pytest.raises(ValueError, match="must be positive"):
        Transformer(32, 0, 4)
