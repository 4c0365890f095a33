"""Lookup-free quantization."""

import itertools
import math

import pytest
import torch
import vector_quantize_pytorch as vq

from partita.tokenizers.bottlenecks.lfq import LFQ

STEP = torch.tensor(0)


def built(dim, **options):
    quantizer = LFQ(**options)
    quantizer.build(dim)
    return quantizer


def test_codes_are_signs():
    quantizer, frames = built(3, bits=3).eval(), torch.randn(2, 3, 50)
    signs = torch.where(frames > 0, 1.0, -1.0)
    assert torch.equal(quantizer(frames, STEP).latents, signs)
    codes = quantizer.encode(frames)
    assert torch.equal(codes[:, 0], ((signs + 1) / 2 * torch.tensor([1, 2, 4])[:, None]).sum(1).long())
    assert torch.equal(quantizer.decode(codes), signs)


def test_further_codebooks_are_signs_of_what_is_left():
    quantizer = built(1, bits=1, num_codebooks=3).eval()
    frames = torch.tensor([-1.8, -0.6, 0.3, 0.9, 1.7])[None, None]
    # -1.8 = -1 - 0.5 - 0.25, and so on; the nearest of the sums ±1 ± 0.5 ± 0.25
    assert quantizer(frames, STEP).latents.flatten().tolist() == [-1.75, -0.75, 0.25, 0.75, 1.75]
    assert quantizer.encode(frames)[0].mT.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 1]]


def entropies(frames, temperature):
    """Both entropies by the distances to all entries of two bits, one frame after the other."""
    entries = list(itertools.product((-1, 1), repeat=2))
    probabilities = []
    for frame in frames:
        weights = [math.exp(-sum((a - b) ** 2 for a, b in zip(frame, e, strict=True)) / temperature) for e in entries]
        probabilities.append([weight / sum(weights) for weight in weights])
    mean = [sum(column) / len(frames) for column in zip(*probabilities, strict=True)]
    alone = [-sum(p * math.log(p) for p in row) for row in probabilities]
    return sum(alone) / len(alone), -sum(p * math.log(p) for p in mean)


def test_losses_are_those_of_a_direct_computation():
    options = {"temperature": 2.0, "entropy": 0.5, "diversity": 0.3, "commitment": 0.7}
    quantizer, frames = built(2, bits=2, **options).train(), torch.randn(3, 2, 4)
    alone, together = entropies(frames.mT.reshape(-1, 2).tolist(), 2.0)
    losses = quantizer(frames, STEP).losses
    assert losses["entropy"].item() == pytest.approx(0.5 * (alone - 0.3 * together), abs=1e-5)
    commitment = (frames.abs() - 1).square().mean()
    assert losses["commitment"].item() == pytest.approx(0.7 * commitment.item(), abs=1e-5)


def test_losses_and_gradients_are_those_of_the_library():
    library = vq.LFQ(dim=6, codebook_size=32, commitment_loss_weight=0.25).train()
    quantizer = built(6, bits=5, commitment=0.25, temperature=0.5).train()
    for name in ("project_in", "project_out"):
        getattr(quantizer, name).load_state_dict(getattr(library, name).state_dict())
    frames = torch.randn(8, 6, 100)
    first, second = (frames.clone().requires_grad_() for _ in range(2))
    latents, codes, loss = library(first.mT, inv_temperature=2.0)
    passed = quantizer(second, STEP)
    torch.testing.assert_close(passed.latents, latents.mT)
    torch.testing.assert_close(sum(passed.losses.values()), loss, atol=1e-4, rtol=1e-4)
    for made, losses in ((latents, loss), (passed.latents, sum(passed.losses.values()))):
        (made.square().sum() + 100 * losses).backward()
    torch.testing.assert_close(second.grad, first.grad, atol=1e-4, rtol=1e-3)
    reversed_bits = torch.arange(32).bitwise_and(1) * 16  # its first channel is the highest bit
    for bit in range(1, 5):
        reversed_bits += (torch.arange(32) >> bit & 1) << (4 - bit)
    assert torch.equal(reversed_bits[quantizer.eval().encode(frames)[:, 0]], codes)


def test_what_dropout_leaves_out_does_not_count():
    """With only one example that uses the second codebook, its losses are those of that example."""
    quantizer = built(2, bits=2, num_codebooks=2, temperature=1.0)
    values, used = torch.randn(2, 3, 7, 2), torch.tensor([[1.0, 1, 1], [0, 1, 0]])
    alone, together = quantizer.entropies(values, used)
    for k, frames in enumerate((values[0].reshape(-1, 2), values[1, 1])):
        expected = entropies(frames.tolist(), 1.0)
        assert (alone[k].item(), together[k].item()) == pytest.approx(expected, abs=1e-5)
    none = quantizer.entropies(values, torch.zeros(2, 3))
    assert torch.stack(none).tolist() == [[0, 0], [0, 0]]


def test_the_largest_codebook_has_finite_losses():
    quantizer, frames = built(18, bits=18), (10 * torch.randn(2, 18, 30)).requires_grad_()
    losses = quantizer.train()(frames, STEP).losses
    assert losses["entropy"].item() == pytest.approx(-0.1 * math.log(60), abs=0.02)  # all frames differ
    sum(losses.values()).backward()
    assert frames.grad.isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bits": 0}, "bits must be 1 to 18, not 0"),
        ({"bits": 19}, "bits must be 1 to 18, not 19"),
        ({"num_codebooks": 25}, "num_codebooks must be at most 24"),
        ({"entropy": -1.0}, "entropy must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"dropout": 2.0}, "dropout must be between 0 and 1"),
    ],
)
def test_refuses_nonsense(wrong, message):
    with pytest.raises(ValueError, match=message):
        LFQ(**wrong)
