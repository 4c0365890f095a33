"""Finite scalar quantization, with one codebook and with several."""

import itertools
import math

import pytest
import torch
from vector_quantize_pytorch import ResidualFSQ as LibraryResidualFSQ

from partita.tokenizers.bottlenecks.fsq import FSQ
from partita.tokenizers.bottlenecks.residual_fsq import ResidualFSQ

STEP = torch.tensor(0)


def built(bottleneck, dim):
    bottleneck.build(dim)
    return bottleneck.eval()


def code(frame, levels):
    """The code and the values of a frame by the formula of the paper, in double precision."""
    index, basis, values = 0, 1, []
    for value, number in zip(frame, levels, strict=True):
        half, offset = (number - 1) * (1 + 1e-3) / 2, 0.0 if number % 2 else 0.5
        bounded = math.tanh(value + math.atanh(offset / half)) * half - offset
        level = round(bounded)
        index += (level + number // 2) * basis
        basis *= number
        values.append(level / (number // 2))
    return index, values


def test_codes_are_those_of_the_formula():
    levels = (8, 5, 3)
    quantizer, frames = built(FSQ(levels=levels), 3), 2 * torch.randn(1, 3, 200)
    codes, passed = quantizer.encode(frames), quantizer(frames, STEP)
    assert codes.shape == (1, 1, 200)
    assert codes.dtype == torch.int64
    assert passed.losses == {}
    expected = [code(frame, levels) for frame in frames[0].mT.double().tolist()]
    assert codes.flatten().tolist() == [index for index, _ in expected]
    torch.testing.assert_close(passed.latents[0].mT, torch.tensor([values for _, values in expected]))
    assert torch.equal(quantizer.decode(codes)[0].mT, torch.tensor([values for _, values in expected]))


def test_values_over_the_range_use_every_code():
    grid = torch.linspace(-4, 4, 40)
    frames = torch.cartesian_prod(grid, grid, grid).mT[None]
    assert built(FSQ(levels=(8, 5, 4)), 3).encode(frames).unique().tolist() == list(range(160))


@pytest.mark.parametrize("levels", [(8,) * 6, (1000, 262), (2,) * 18, (15, 13, 11, 9, 9)])
def test_the_codes_of_the_largest_codebooks_are_exact(levels):
    """Every vector of levels has its own code, and every code its vector."""
    quantizer = built(FSQ(levels=levels), len(levels))
    layers, every = quantizer.layers, torch.arange(math.prod(levels))
    assert torch.equal(layers.codes_to_indices(layers.indices_to_codes(every[None])), every[None].int())


@pytest.mark.parametrize("levels", [(8, 5, 3), (5, 2)])
def test_latents_are_those_before_rounding(levels):
    quantizer, frames = built(FSQ(levels=levels), len(levels)), torch.randn(2, len(levels), 100)
    distance = (quantizer.latents(frames) - quantizer(frames, STEP).latents).abs()
    widths = torch.tensor([2 if 2 in levels else (n - 1) / (n // 2) for n in levels]) / (torch.tensor(levels) - 1)
    assert (distance <= widths[:, None] / 2 + 1e-5).all()
    assert (distance.amax((0, 2)) > widths / 4).all()


def test_two_levels_are_the_sign():
    frames = torch.tensor([-0.5, -0.1, 0.1, 2.0])[None, None]
    quantizer = built(FSQ(levels=(2,)), 1)
    assert quantizer.encode(frames).flatten().tolist() == [0, 0, 1, 1]
    assert quantizer(frames, STEP).latents.flatten().tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize("kind", [FSQ, ResidualFSQ])
@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((), "from 2 to 1000, not []"),
        ((8, 1), "from 2 to 1000, not [8, 1]"),
        ((2000,), "from 2 to 1000"),
        ((64,) * 4, "at most 262,144 codes are supported, not 16,777,216"),
    ],
)
def test_levels_that_cannot_be(kind, levels, message):
    with pytest.raises(ValueError, match="levels") as raised:
        kind(levels=levels)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_codebooks": 0}, "num_codebooks must be at least 1"),
        ({"num_codebooks": 9, "levels": (8, 5)}, "at most 8 with 8 levels, not 9"),
        ({"dropout": 1.5}, "dropout must be between 0 and 1"),
    ],
)
def test_arguments_of_several_codebooks(wrong, message):
    with pytest.raises(ValueError, match=message):
        ResidualFSQ(**wrong)


def test_residual_levels_divide_the_range_evenly():
    """Two codebooks of 4 levels make 16 levels, one twelfth plus one quarter of it outside of [-1, 1]."""
    quantizer = built(ResidualFSQ(levels=(4,), num_codebooks=2), 1)
    codes = torch.tensor(list(itertools.product(range(4), range(4)))).mT[None]
    found = quantizer.decode(codes).flatten()
    torch.testing.assert_close(found, torch.linspace(-1.25, 1.25, 16))
    frames = torch.linspace(-3, 3, 500)[None, None]
    squashed = torch.tanh(frames / (4 / 3)) * (4 / 3)
    nearest = (squashed - found[:, None]).abs().argmin(1)
    assert torch.equal(quantizer.encode(frames)[0], codes[0][:, nearest[0]])


def test_residual_codes_are_those_of_the_library():
    levels, torch_layers = (8, 5, 3), LibraryResidualFSQ(levels=[8, 5, 3], num_quantizers=3, dim=6)
    quantizer = built(ResidualFSQ(levels=levels, num_codebooks=3), 6)
    for name in ("project_in", "project_out"):
        getattr(quantizer, name).load_state_dict(getattr(torch_layers, name).state_dict())
    frames = 3 * torch.randn(2, 6, 50)
    latents, codes = torch_layers.eval()(frames.mT)
    assert torch.equal(quantizer.encode(frames), codes.mT)
    torch.testing.assert_close(quantizer(frames, STEP).latents, latents.mT)


def test_each_codebook_divides_the_error():
    quantizer, frames = built(ResidualFSQ(levels=(4, 3), num_codebooks=4), 2), torch.randn(4, 2, 500)
    codes, exact = quantizer.encode(frames), quantizer.latents(frames)
    errors = [(quantizer.decode(codes[:, :k]) - exact).abs().amax((0, 2)) for k in (1, 2, 3, 4)]
    for coarse, fine in itertools.pairwise(errors):
        torch.testing.assert_close(coarse / fine, torch.tensor([4.0, 3.0]), rtol=0.1, atol=0)


def test_dropout_quantizes_each_example_with_its_own_number_of_codebooks():
    quantizer, frames = built(ResidualFSQ(levels=(4, 4), num_codebooks=3, dropout=1.0), 2), torch.randn(300, 2, 5)
    codes = quantizer.encode(frames)
    prefixes = torch.stack([quantizer.decode(codes[:, :k]) for k in (1, 2, 3)])
    distances = (prefixes - quantizer.train()(frames, STEP).latents).abs().amax((2, 3))
    assert distances.amin(0).max() < 1e-5
    assert all(60 < (distances.argmin(0) == k).sum() < 140 for k in range(3))
