"""DAC's quantizer, against its definition."""

import pytest
import torch
from torch.nn import functional as F

from partita.tokenizers.bottlenecks.factorized_rvq import FactorizedRVQ

STEP = torch.tensor(0)


def built(dim=12, **options):
    quantizer = FactorizedRVQ(**{"num_codebooks": 3, "cardinality": 16, "codebook_dim": 4, "dropout": 0.0} | options)
    quantizer.build(dim)
    return quantizer


def test_the_definition_frame_by_frame():
    """Nearest of unit vectors; entries go on as they are, losses are mean squares, summed over books."""
    quantizer, latents = built().eval(), torch.randn(2, 12, 9)
    residual, total, codes, distance = latents, torch.zeros_like(latents), [], 0.0
    for book in quantizer.codebooks:
        projected = F.conv1d(residual, book.input.weight, book.input.bias)
        unit, entries = F.normalize(projected, dim=1), F.normalize(book.entries, dim=1)
        distances = (unit.mT[:, :, None] - entries).square().sum(-1)
        codes.append(distances.argmin(-1))
        chosen = book.entries[codes[-1]].mT
        distance = distance + (projected - chosen).square().mean()
        out = F.conv1d(chosen, book.output.weight, book.output.bias)
        residual, total = residual - out, total + out
    codes = torch.stack(codes, 1)
    passed = quantizer(latents, STEP)
    assert torch.equal(quantizer.encode(latents), codes)
    torch.testing.assert_close(quantizer.decode(codes), total, atol=1e-5, rtol=0)
    torch.testing.assert_close(passed.latents, total, atol=1e-5, rtol=0)
    torch.testing.assert_close(passed.losses["codebook"], distance)
    torch.testing.assert_close(passed.losses["commitment"], 0.25 * distance)


def test_gradients_pass_straight_through_in_the_small_space():
    quantizer, latents = built(num_codebooks=1), torch.randn(2, 12, 9, requires_grad=True)
    weights = torch.randn(2, 12, 9)
    (quantizer(latents, STEP).latents * weights).sum().backward()
    (book,) = quantizer.codebooks
    through = book.output.weight[..., 0] @ book.input.weight[..., 0]
    torch.testing.assert_close(latents.grad, through.T @ weights, atol=1e-5, rtol=1e-4)
    assert book.entries.grad is None or not book.entries.grad.any()  # only the codebook loss moves the entries


def test_each_loss_moves_its_own_side():
    quantizer, latents = built(num_codebooks=1), torch.randn(2, 12, 9, requires_grad=True)
    losses = quantizer(latents, STEP).losses
    (book,) = quantizer.codebooks
    pulls = torch.autograd.grad(losses["codebook"], [book.entries, latents], allow_unused=True, retain_graph=True)
    assert pulls[0].any()
    assert pulls[1] is None
    pulls = torch.autograd.grad(losses["commitment"], [book.entries, latents], allow_unused=True)
    assert pulls[0] is None
    assert pulls[1].any()


def test_fewer_codebooks_are_a_prefix():
    quantizer, latents = built().eval(), torch.randn(2, 12, 9)
    codes = quantizer.encode(latents)
    assert torch.equal(quantizer.encode(latents, 2), codes[:, :2])
    assert quantizer.decode(codes[:, :1]).shape == (2, 12, 9)


def test_dropout_leaves_out_the_last_codebooks_of_some_examples():
    quantizer, latents = built(dropout=0.5), torch.randn(400, 12, 2)
    prefixes = torch.stack([quantizer.decode(quantizer.encode(latents, k)) for k in (1, 2, 3)])
    made = quantizer(latents, STEP).latents
    used = (made - prefixes).abs().amax((2, 3)).argmin(0)
    torch.testing.assert_close(made, prefixes[used, torch.arange(400)], atol=1e-5, rtol=0)
    # half of them draw from three numbers: 1/6, 1/6 and 4/6
    shares = used.bincount(minlength=3) / 400
    torch.testing.assert_close(shares, torch.tensor([1 / 6, 1 / 6, 4 / 6]), atol=0.08, rtol=0)
    quantizer.eval()
    torch.testing.assert_close(quantizer(latents, STEP).latents, prefixes[2], atol=1e-5, rtol=0)


def test_codebooks_are_computed_in_full_precision_under_autocast():
    quantizer, latents = built().eval(), torch.randn(2, 12, 9)
    codes = quantizer.encode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(latents), codes)
        assert torch.equal(quantizer.decode(codes), quantizer.decode(codes))
        assert quantizer(latents, STEP).latents.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_codebooks": 0}, "not 0 codebooks"),
        ({"cardinality": 1}, "of two entries"),
        ({"codebook_dim": 0}, "in 0 dimensions"),
        ({"dropout": 1.5}, "dropout"),
        ({"commitment": -1.0}, "commitment"),
        ({"revive_below": 0.0}, "revive_below"),
    ],
)
def test_nonsense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        FactorizedRVQ(**wrong)


def test_entries_start_as_frames_after_the_warmup():
    """Before it, the projections alone are trained, without losses of their own."""
    torch.manual_seed(0)
    part = FactorizedRVQ(num_codebooks=3, cardinality=32, codebook_dim=4, dropout=0.0, warmup_steps=2)
    part.build(16)
    part.train()
    frames = torch.randn(2, 16, 400) + 5 * torch.randn(16, 1)  # far from the random entries
    before = [codebook.entries.clone() for codebook in part.codebooks]
    latents, losses = part(frames.requires_grad_(), torch.tensor(1))
    assert not losses
    assert torch.autograd.grad(latents.sum(), frames)[0].abs().sum() > 0
    assert all(torch.equal(a, codebook.entries) for a, codebook in zip(before, part.codebooks, strict=True))
    _, losses = part(frames, torch.tensor(2))
    assert set(losses) == {"codebook", "commitment"}
    used = [len(codes.unique()) for codes in part.encode(frames).unbind(1)]
    assert min(used) > 24
    started = [codebook.entries.clone() for codebook in part.codebooks]
    part(frames, torch.tensor(3))
    assert all(torch.equal(a, codebook.entries) for a, codebook in zip(started, part.codebooks, strict=True))
    assert "warmup_steps (2)" in part.doubt(2)
    assert part.doubt(3) is None
    with pytest.raises(ValueError, match="warmup_steps must not be negative"):
        FactorizedRVQ(warmup_steps=-1)


def test_unused_entries_come_back_as_frames():
    """Frames far from the entries of a codebook use one of them; the others start again among the frames."""
    torch.manual_seed(0)
    part = built(num_codebooks=1, cardinality=32, codebook_dim=4, revive_below=0.1)
    part.train()
    frames = torch.randn(2, 12, 400) + 5 * torch.randn(12, 1)
    before = len(part.encode(frames).unique())
    kept = part.codebooks[0].entries.detach().clone()
    for _ in range(250):
        part(frames, STEP)
    after = part.codebooks[0].entries.detach()
    assert before < 16
    assert len(part.encode(frames).unique()) > 28
    assert (after == kept).all(1).any()  # those in use stay as they are
    part.eval()
    part(frames + 50, STEP)
    assert torch.equal(part.codebooks[0].entries, after)


def test_frozen_entries_keep_their_meaning():
    part = built(num_codebooks=1, revive_below=0.5)
    part.train().requires_grad_(False)
    kept = part.codebooks[0].entries.clone()
    for _ in range(100):
        part(torch.randn(2, 12, 40) + 9, STEP)
    assert torch.equal(part.codebooks[0].entries, kept)
