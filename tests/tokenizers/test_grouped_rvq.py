"""Residual vector quantization in groups of channels."""

import pytest
import torch

from partita.tokenizers.bottlenecks.grouped_rvq import GroupedRVQ
from partita.tokenizers.bottlenecks.rvq import RVQ

FEW = {"num_codebooks": 3, "cardinality": 16, "decay": 0.9, "warmup_steps": 0, "kmeans_iterations": 2}
STEP = torch.tensor(0)


def built(groups=2, dim=8, **options):
    quantizer = GroupedRVQ(groups=groups, **FEW | options)
    quantizer.build(dim)
    return quantizer


def trained(steps=10, **options):
    quantizer = built(**options)
    for _ in range(steps):
        quantizer(torch.randn(4, 8, 64, requires_grad=True), STEP)
    return quantizer


def test_groups_are_independent_quantizers():
    """Each group quantizes as an RVQ with its weights does, and learns what this learns."""
    grouped, frames = trained(dropout=0.0, revive_below=0.0), torch.randn(4, 8, 50, requires_grad=True)
    alone = []
    for quantizer in grouped.quantizers:
        copy = RVQ(**FEW, dropout=0.0, revive_below=0.0)
        copy.build(4)
        copy.load_state_dict(quantizer.state_dict())
        alone.append(copy)
    passed, apart = grouped(frames, STEP), [q(half, STEP) for q, half in zip(alone, frames.chunk(2, 1), strict=True)]
    assert torch.equal(passed.latents, torch.cat([p.latents for p in apart], 1))
    torch.testing.assert_close(passed.losses["commitment"], sum(p.losses["commitment"] for p in apart) / 2)
    codes = grouped.eval().encode(frames)
    for group, (quantizer, half) in enumerate(zip(alone, frames.chunk(2, 1), strict=True)):
        assert torch.equal(grouped.quantizers[group].codebooks, quantizer.codebooks)
        assert torch.equal(codes[:, group::2], quantizer.eval().encode(half))


def test_one_group_is_an_rvq():
    torch.manual_seed(3)
    grouped = built(groups=1)
    torch.manual_seed(3)
    plain = RVQ(**FEW)
    plain.build(8)
    for _ in range(3):
        frames, state = torch.randn(4, 8, 64, requires_grad=True), torch.get_rng_state()
        first = grouped(frames, STEP)
        torch.set_rng_state(state)
        second = plain(frames, STEP)
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(first.losses["commitment"], second.losses["commitment"])


def test_the_first_codebooks_of_all_groups_come_first():
    grouped, frames = trained().eval(), torch.randn(2, 8, 20)
    codes = grouped.encode(frames)
    assert codes.shape == (2, 6, 20)
    errors = []
    for total in range(1, 7):
        prefix = grouped.encode(frames, total)
        assert torch.equal(prefix, codes[:, :total])
        found = grouped.decode(prefix)
        for group, half in enumerate(found.chunk(2, 1)):
            own = (total + 1 - group) // 2  # the first group has one more
            expected = grouped.quantizers[group].decode(codes[:, group::2][:, :own]) if own else torch.zeros(2, 4, 20)
            assert torch.equal(half, expected)
        errors.append((found - frames).square().mean().item())
    assert errors == sorted(errors, reverse=True)


def test_dropout_is_drawn_once_for_all_groups():
    grouped, frames = trained(dropout=1.0), torch.randn(200, 8, 2)
    latents = grouped(frames, STEP).latents  # the encoder is frozen: the codebooks stay
    codes = grouped.eval().encode(frames)
    prefixes = torch.stack([grouped.decode(codes[:, : 2 * n]) for n in (1, 2, 3)])
    distances = (prefixes - latents).abs().amax((2, 3))
    assert distances.amin(0).max() < 1e-5
    assert all(35 < (distances.argmin(0) == n).sum() < 100 for n in range(3))


def test_latents_pass_during_the_warmup():
    grouped, frames = built(warmup_steps=5), torch.randn(2, 8, 10)
    assert torch.equal(grouped(frames, torch.tensor(4)).latents, frames)
    assert not torch.equal(grouped(frames, torch.tensor(5)).latents, frames)
    assert "bottleneck.warmup_steps (5)" in grouped.doubt(5)
    assert grouped.doubt(6) is None


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"num_codebooks": 0}, {"cardinality": 1}, {"dropout": -0.1}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=r"must be|needs"):
        GroupedRVQ(**wrong)


def test_groups_must_divide_the_latents():
    with pytest.raises(ValueError, match="must divide the width of the latents, 8, which 3 does not"):
        built(groups=3)
