"""Every registered backbone and denoiser keeps its contract, at the size of its tiny preset."""

import pytest
import torch
from components import registered, shaken, small

from partita.core.schema import build
from partita.generators.backbones.base import SequenceContext
from partita.generators.denoisers.base import DenoiserContext, DenoiserSetting
from partita.generators.network import NetworkSetting

BACKBONES = registered("backbone")
DENOISERS = registered("denoiser")


def backbone(name, **setting):
    torch.manual_seed(0)
    made = small("backbone", name)
    made.build(NetworkSetting(cross="cross" in made.fusions, **setting))
    return shaken(made).eval()


def context_of(model, places, batch=3, padded=0):
    """Everything a backbone may be told; the samples have 0, 1, 2 … of ``padded`` places of a prefix."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, places, dtype=torch.bool)
    for i in range(batch):
        mask[i, min(i, padded) : padded] = False
    positions = (mask.long().cumsum(1) - 1).clamp(min=0) if padded else torch.arange(places)[None]
    cross = torch.randn(batch, 4, model.width, generator=draw) if "cross" in model.fusions else None
    heard = torch.arange(4) < torch.tensor([[4], [2], [0]])[:batch] if cross is not None else None
    return SequenceContext(positions, mask if padded else None, cross, heard)


def sample(context, i, keep):
    """The context of one sample, of the places ``keep`` alone."""
    cross = None if context.cross is None else context.cross[i : i + 1]
    heard = None if context.cross_mask is None else context.cross_mask[i : i + 1]
    return SequenceContext(context.positions.expand(3, -1)[i : i + 1, keep], None, cross, heard)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("stretches", [[9], [1] * 9, [4, 1, 3, 1]])
@torch.no_grad()
def test_bit_by_bit_a_backbone_makes_the_same_as_at_once(name, padded, stretches):
    model = backbone(name)
    x, context = torch.randn(3, 9, model.width), context_of(model, 9, padded=padded)
    whole, state, parts = model(x, context), model.new_state(context), []
    assert whole.shape == x.shape
    assert state.length == 0
    for n in stretches:
        parts.append(model(x[:, state.length : state.length + n], context, state))
    assert state.length == 9
    held = torch.ones(3, 9, dtype=torch.bool) if context.mask is None else context.mask
    torch.testing.assert_close(torch.cat(parts, 1)[held], whole[held], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_backbone_sees_nothing_of_what_follows(name):
    model = backbone(name)
    x, context = torch.randn(3, 8, model.width), context_of(model, 8)
    other = x.clone()
    other[:, 5:] = 9.0
    before, after = model(x, context), model(other, context)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()
    earlier = x.clone()
    earlier[:, 0] += 1.0
    assert not torch.isclose(model(earlier, context)[:, -1], before[:, -1]).all(-1).any()
    # the first places alone, of a sequence that may become longer
    torch.testing.assert_close(model(x[:, :5], context), before[:, :5])


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_a_sample_of_a_backbone_depends_on_neither_batch_nor_padding(name):
    model = backbone(name)
    x, context = torch.randn(3, 9, model.width), context_of(model, 9, padded=3)
    together = model(x, context)
    for i in range(3):
        keep = context.mask[i]
        torch.testing.assert_close(model(x[i : i + 1, keep], sample(context, i, keep))[0], together[i, keep])


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_weight_of_a_backbone_learns(name, checkpointing):
    model = backbone(name, checkpointing=checkpointing).train()
    context = context_of(model, 6)
    model(torch.randn(3, 6, model.width), context).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    if context.cross is not None:
        moved = SequenceContext(context.positions, None, 2 * context.cross, context.cross_mask)
        x = torch.randn(3, 6, model.width)
        model.eval()
        differs = ~torch.isclose(model(x, context), model(x, moved)).all(-1)
        assert differs[:2].all()
        assert not differs[2].any()  # which has nothing to attend to


@pytest.mark.parametrize("family", ["backbone", "denoiser"])
def test_a_component_is_built_once_and_again_from_what_it_notes(family):
    for name in registered(family):
        component = small(family, name)
        assert not list(component.parameters())  # before it is built
        setting = NetworkSetting() if family == "backbone" else DenoiserSetting(outputs=3)
        again = build(type(component), component.config["arguments"])
        torch.manual_seed(0)
        component.build(setting)
        torch.manual_seed(0)
        again.build(setting)
        assert component.state_dict().keys() == again.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(component.parameters(), again.parameters(), strict=True))
        with pytest.raises(ValueError, match="make one for each"):
            component.build(setting)


def denoiser(name, **setting):
    torch.manual_seed(0)
    made = small("denoiser", name)
    made.build(DenoiserSetting(outputs=5, cross="cross" in made.fusions, **setting))
    return shaken(made).eval()


def told(model, frames, batch=3, masked=False):
    draw = torch.Generator().manual_seed(1)
    mask = torch.arange(frames) < torch.tensor([[frames], [max(1, frames - 2)], [max(1, frames // 2)]])[:batch]
    cross = torch.randn(batch, 4, model.width, generator=draw) if "cross" in model.fusions else None
    heard = torch.arange(4) < torch.tensor([[4], [2], [0]])[:batch] if cross is not None else None
    pooled = torch.randn(batch, model.width, generator=draw) if "modulate" in model.fusions else None
    return DenoiserContext(mask if masked else None, cross, heard, pooled)


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("frames", [1, 2, 7, 13, 16])
@torch.no_grad()
def test_a_denoiser_takes_any_number_of_frames_and_ignores_padding(name, frames):
    model = denoiser(name)
    x, level, context = torch.randn(3, frames, model.width), torch.rand(3), told(model, frames, masked=True)
    made = model(x, level, context)
    assert made.shape == (3, frames, 5)
    other = torch.where(context.mask[..., None], x, torch.full_like(x, 7.0))
    torch.testing.assert_close(model(other, level, context)[context.mask], made[context.mask], rtol=1e-4, atol=1e-5)
    alone = DenoiserContext(*(None if t is None else t[1:2] for t in vars(context).values()))
    kept = context.mask[1]
    torch.testing.assert_close(model(x[1:2], level[1:2], alone)[0, kept], made[1, kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DENOISERS)
@torch.no_grad()
def test_a_denoiser_sees_the_level_and_what_it_is_told(name):
    model = denoiser(name)
    x, level, context = torch.randn(3, 9, model.width), torch.rand(3), told(model, 9)
    before = model(x, level, context)

    def differs(**changes):
        level_then = changes.pop("level", level)
        other = model(x, level_then, DenoiserContext(**{**vars(context), **changes}))
        return ~torch.isclose(other, before).flatten(1).all(1)

    assert differs(level=1 - level).all()
    if context.cross is not None:
        assert differs(cross=2 * context.cross).tolist() == [True, True, False]
    if context.pooled is not None:
        assert differs(pooled=-context.pooled).all()


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_weight_of_a_denoiser_learns(name, checkpointing):
    model = denoiser(name, checkpointing=checkpointing).train()
    model(torch.randn(3, 6, model.width), torch.rand(3), told(model, 6)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
