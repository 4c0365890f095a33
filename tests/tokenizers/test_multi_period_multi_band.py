"""DAC's discriminators, against their published definition written out."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from partita.layers.codec_losses import discriminator_least_squares, feature_matching, generator_least_squares
from partita.tokenizers.discriminators.multi_period_multi_band import MultiPeriodMultiBand

PERIODS, WINDOWS = (2, 3, 5, 7, 11), (2048, 1024, 512)
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
PERIOD_LAYERS = [(1, 32, 3), (32, 128, 3), (128, 512, 3), (512, 1024, 3), (1024, 1024, 1)]
"""Channels and strides of convolutions with five taps in time."""
BAND_LAYERS = [(2, 9, 1), (32, 9, 2), (32, 9, 2), (32, 9, 2), (32, 3, 1)]
"""Channels, taps in frequency and strides of convolutions with three taps in time, to 32 channels."""
SMALL = {"periods": (2, 3), "period_width": 2, "windows": (256,), "window_width": 2}


def built(**options):
    judge = MultiPeriodMultiBand(**options)
    judge.build(16000, 1)
    return judge


def strided(length, taps, stride):
    return (length + 2 * (taps // 2) - taps) // stride + 1


def normalized(narrow, wide, taps):
    """Parameters of a convolution with a bias and a length and a direction for each output."""
    return narrow * wide * taps + 2 * wide


def test_the_published_number_of_parameters():
    with torch.device("meta"):
        judge = built()
    period = sum(normalized(a, b, 5) for a, b, _ in PERIOD_LAYERS) + normalized(1024, 1, 3)
    band = sum(normalized(a, 32, 3 * taps) for a, taps, _ in BAND_LAYERS)
    window = len(BANDS) * band + normalized(32, 1, 9)
    expected = len(PERIODS) * period + len(WINDOWS) * window
    assert sum(p.numel() for p in judge.parameters()) == expected
    assert 42e6 < expected < 43e6


def test_the_published_features():
    """Of half a second: five for each period, and five for each band of each window."""
    samples = 8000
    with FakeTensorMode():
        judgments = built()(torch.randn(2, 1, samples))
    assert len(judgments) == 8
    for period, (scores, features) in zip(PERIODS, judgments[:5], strict=True):
        rows, shapes = samples // period + 1, []  # one row more, even if the last one is complete
        for _, wide, stride in PERIOD_LAYERS:
            rows = strided(rows, 5, stride)
            shapes.append((2, wide, rows, period))
        assert [tuple(f.shape) for f in features] == shapes
        assert scores.shape == (2, 1, rows, period)
    for window, (scores, features) in zip(WINDOWS, judgments[5:], strict=True):
        frames, shapes, left = math.ceil(samples / (window // 4)), [], 0
        for low, high in BANDS:
            width = int(high * (window // 2 + 1)) - int(low * (window // 2 + 1))
            for _, taps, stride in BAND_LAYERS:
                width = strided(width, taps, stride)
                shapes.append((2, 32, frames, width))
            left += width
        assert [tuple(f.shape) for f in features] == shapes
        assert scores.shape == (2, 1, frames, left)


@pytest.mark.parametrize("samples", [2048, 2111])
def test_spectra_have_one_frame_per_hop(samples):
    """A centered transform of the audio extended by reflections, without the two outermost frames on each side."""
    judge = built(**SMALL)
    seen, audio, window = [], torch.randn(2, 1, samples), 256
    (judged,) = (member for member in judge.members if hasattr(member, "ranges"))
    for layers in judged.bands:
        layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    judge(audio)
    level = audio - audio.mean(-1, keepdim=True)
    level = 0.8 * level / level.abs().amax(-1, keepdim=True)
    hop, pad = window // 4, (window - window // 4) // 2
    longer = F.pad(level, (pad, pad + math.ceil(samples / hop) * hop - samples), mode="reflect")
    spectrum = torch.stft(longer[:, 0], window, hop, window=torch.hann_window(window), return_complex=True)[..., 2:-2]
    edges = [int(edge * 129) for edge, _ in BANDS] + [129]
    for band, low, high in zip(seen, edges, edges[1:], strict=False):
        part = spectrum[:, low:high].mT
        torch.testing.assert_close(band, torch.stack([part.real, part.imag], 1), atol=1e-4, rtol=1e-4)


def test_a_period_folds_the_waveform():
    """Scores of one period are those of each phase alone, because no filter reaches from one to another."""
    judge = built(**SMALL | {"periods": (3,), "windows": ()})
    (member,) = judge.members
    audio = torch.randn(1, 1, 300)
    scores, features = member(audio)
    folded = F.pad(audio, (0, 3), mode="reflect").view(1, 1, 101, 3)
    x = folded[..., 1:2]
    for layer, feature in zip(member.layers, features, strict=True):
        x = F.leaky_relu(layer(x), 0.1)
        torch.testing.assert_close(feature[..., 1:2], x)
    torch.testing.assert_close(scores[..., 1:2], member.score(x))


def test_neither_offset_nor_level_tells():
    judge, audio = built(**SMALL), 0.1 * torch.randn(2, 1, 1000)
    for (one, _), (other, _) in zip(judge(audio), judge(0.3 * audio + 0.2), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert all(scores.isfinite().all() for scores, _ in judge(torch.zeros(1, 1, 1000)))


@pytest.mark.parametrize("samples", [5, 200, 1500])
def test_channels_are_judged_separately_at_any_length(samples):
    judge = built(**SMALL)
    audio = torch.randn(2, 2, samples, requires_grad=True)
    judgments = judge(audio)
    assert all(scores.shape[:2] == (4, 1) for scores, _ in judgments)
    real = judge(torch.randn(2, 2, samples))
    (generator_least_squares(judgments) + feature_matching(real, judgments, summed=True)).backward()
    assert audio.grad.isfinite().all()
    assert audio.grad.any()


def test_it_learns_to_tell_noise_from_tones():
    judge = built(**SMALL | {"window_width": 4})
    optimizer, time, losses = torch.optim.Adam(judge.parameters(), 5e-3), torch.arange(1000) / 16000, []
    for _ in range(20):
        tones = torch.sin(2 * torch.pi * (200 + 2000 * torch.rand(4, 1, 1)) * time)
        loss = discriminator_least_squares(judge(tones), judge(0.5 * torch.randn(4, 1, 1000)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.5  # three discriminators start near 1
    assert min(losses) < 1.5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"periods": (), "windows": ()}, "periods or windows"),
        ({"periods": (0,)}, "periods must be positive"),
        ({"windows": (510,)}, "multiples of four"),
        ({"bands": (0.0, 0.5)}, "from 0 to 1"),
        ({"bands": (0.0, 0.6, 0.5, 1.0)}, "rise from 0 to 1"),
        ({"bands": (0.0, 0.001, 1.0)}, "holds no frequency"),
    ],
)
def test_nonsense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        MultiPeriodMultiBand(**wrong)
