import math

import pytest
import torch

from partita.layers.diffusion_transformer import DiffusionTransformer, LevelEmbedding
from partita.layers.transformer_blocks import BlockConfig


def make(**options):
    torch.manual_seed(0)
    options = {"cross": True, **options}
    block = BlockConfig(**{name: options.pop(name) for name in list(options) if hasattr(BlockConfig, name)})
    return DiffusionTransformer(32, 5, 2, 4, block=block, **options).eval()


def inputs(batch=2, places=7, keys=3):
    draw = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, places, 32, generator=draw),
        "level": torch.rand(batch, generator=draw),
        "cross": torch.randn(batch, keys, 32, generator=draw),
        "pooled": torch.randn(batch, 32, generator=draw),
    }


def shaken(model):
    """The same model with weights that are zero at the start drawn at random."""
    draw = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        if not weight.any():
            weight.data = 0.3 * torch.randn(weight.shape, generator=draw)
    return model


def test_it_starts_as_its_sources_do():
    """PixArt-α's tables and modulation, DiT's embedding of time and last layer, from their published code."""
    torch.manual_seed(0)
    model = DiffusionTransformer(256, 5, 4, 4)
    tables = torch.stack([block.table for block in model.blocks])
    assert tables.std().item() == pytest.approx(1 / 16, rel=0.05)
    for layer in (model.level.expand, model.level.contract, model.modulation):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()
    for layer in (model.last_modulation, model.output):
        assert not layer.weight.any()
        assert not layer.bias.any()
    assert not list(model.norm.parameters())


def test_a_level_is_seen_as_dit_sees_a_time_step():
    """Level 0.3 is step 300: 128 frequencies from 1 down to 10,000 to the power of −127 / 128, cosines first."""
    level, seen = LevelEmbedding(8), []
    level.expand.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0][0]))
    level(torch.tensor([0.3]))
    for i in (0, 1, 64, 127):
        angle = 300 * 10_000 ** (-i / 128)
        assert seen[0][i].item() == pytest.approx(math.cos(angle), abs=1e-3)
        assert seen[0][128 + i].item() == pytest.approx(math.sin(angle), abs=1e-3)


def test_it_starts_at_zero_whatever_it_sees():
    assert not make()(**inputs()).any()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_every_weight_learns_once_the_gates_have_opened(norm):
    model = make(norm=norm, qk_norm=True, activation="swiglu").train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = inputs(4)
    target = torch.randn(4, 7, 5)
    gradients = []
    for _ in range(3):  # the first step opens the output, the second the gates behind it
        optimizer.zero_grad()
        (model(**seen) - target).square().mean().backward()
        gradients.append({name for name, weight in model.named_parameters() if weight.grad.any()})
        optimizer.step()
    assert gradients[0] == {"output.weight", "output.bias"}
    assert gradients[2] == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("changed", ["x", "level", "cross", "pooled"])
def test_everything_it_is_shown_matters_everywhere(changed):
    model = shaken(make())
    seen = inputs()
    before = model(**seen)
    other = seen[changed].clone()
    other[:, 0 if other.dim() == 3 else ...] += 0.3
    after = model(**{**seen, changed: other})
    assert (before != after).any(-1).all()


def test_what_pads_changes_nothing():
    model = shaken(make())
    seen = inputs()
    alone = model(**{k: v[:1] for k, v in seen.items()} | {"x": seen["x"][:1, :5], "cross": seen["cross"][:1, :2]})
    mask, cross_mask = torch.ones(2, 7).bool(), torch.ones(2, 3).bool()
    mask[0, 5:] = False
    cross_mask[0, 2:] = False
    for noise in (0.0, 100.0):
        seen["x"][0, 5:] = noise
        seen["cross"][0, 2:] = noise
        together = model(**seen, mask=mask, cross_mask=cross_mask)
        torch.testing.assert_close(together[:1, :5], alone, atol=1e-5, rtol=1e-5)
    assert together.isfinite().all()


def test_a_sample_with_nothing_to_attend_to_is_as_without_cross_attention():
    model = shaken(make())
    seen = inputs()
    nothing = model(**seen, cross_mask=torch.tensor([[False] * 3, [True] * 3]))
    without = model(**{k: v for k, v in seen.items() if k != "cross"})
    torch.testing.assert_close(nothing[0], without[0])
    assert not torch.allclose(nothing[1], without[1])


def test_places_are_told_apart_by_their_distance():
    model = shaken(make(cross=False))
    same = torch.ones(1, 6, 32)
    same[0, 2] += torch.linspace(-1, 1, 32)
    out = model(same, torch.tensor([0.5]))
    assert not torch.allclose(out[0, 0], out[0, 1], atol=1e-4)
    # read backwards, the same distances point the other way
    assert not torch.allclose(model(same.flip(1), torch.tensor([0.5])).flip(1), out, atol=1e-4)


def test_recomputing_blocks_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = shaken(make(checkpointing=checkpointing)).train()
        model(**inputs()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="multiple of twice the heads"):
        DiffusionTransformer(30, 5, 2, 4)
    with pytest.raises(ValueError, match="positive"):
        DiffusionTransformer(32, 5, 0, 4)
