import math

import numpy as np
import pytest
import torch
import torchaudio

from partita.core.part import Part
from partita.metrics.codec import MelDistance
from partita.tokenizers.log_mel import LogMel

SMALL = {"sample_rate": 8000, "frame_rate": 50, "bands": 40}


def tones(batch=2, channels=1, seconds=1.0, rate=8000):
    """A few steady partials that fade, at random pitches."""
    draw = torch.Generator().manual_seed(4)
    time = torch.arange(int(seconds * rate)) / rate
    pitch = 100 + 1500 * torch.rand(batch, channels, 5, 1, generator=draw)
    return 0.15 * (torch.sin(2 * torch.pi * pitch * time) * torch.exp(-2 * time)).sum(2)


def reference(audio, *, rate, hop, overlap, bands, f_min, f_max):
    """Frame by frame in double precision, with torchaudio's filterbank."""
    length, frames = overlap * hop, math.ceil(len(audio) / hop)
    left = (length - hop) // 2
    padded = np.concatenate([np.zeros(left), audio, np.zeros(length + hop)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    banks = torchaudio.functional.melscale_fbanks(length // 2 + 1, f_min, f_max, bands, rate, mel_scale="htk").numpy()
    spectra = [np.abs(np.fft.rfft(padded[s * hop : s * hop + length] * window)) for s in range(frames)]
    magnitude = np.array(spectra) / np.sqrt((window**2).sum())
    return np.log(np.maximum(magnitude @ banks, 1e-5)).T


@pytest.mark.parametrize("samples", [1, 160, 3999])
def test_is_the_logarithm_of_mel_magnitudes(samples):
    options = {"overlap": 4, "bands": 20, "f_min": 100.0, "f_max": 3000.0}
    audio = torch.randn(2, 1, samples) * 0.1
    latents = LogMel(sample_rate=8000, frame_rate=50, **options).encode(audio)
    for clip, found in zip(audio, latents, strict=True):
        expected = reference(clip[0].double().numpy(), rate=8000, hop=160, **options)
        assert found.shape == expected.shape
        assert np.abs(found.numpy() - expected).max() < 1e-3


def test_frames_are_centered_on_their_hops():
    audio = torch.zeros(1, 1, 1600)
    audio[0, 0, 5 * 160 + 80] = 1.0
    loudness = LogMel(**SMALL).encode(audio)[0].mean(0)
    assert loudness.argmax() == 5
    assert loudness[4] == pytest.approx(float(loudness[6]), abs=0.1)


def test_channels_follow_each_other():
    tokenizer, audio = LogMel(channels=2, **SMALL), tones(channels=2)
    assert tokenizer.spec.dim == 80
    mono = LogMel(**SMALL)
    both = torch.cat([mono.encode(audio[:, :1]), mono.encode(audio[:, 1:])], 1)
    assert torch.allclose(tokenizer.encode(audio), both, atol=1e-5)
    assert tokenizer.decode(both).shape == (2, 2, 8000)


def test_decoding_gives_a_sound_of_nearly_the_same_spectrum():
    tokenizer, audio = LogMel(**SMALL), tones()
    latents = tokenizer.encode(audio[..., :7999])
    decoded = tokenizer.decode(latents)
    assert decoded.shape == (2, 1, 8000)
    distance, silence = MelDistance(8000), MelDistance(8000)
    distance.update(decoded, audio)
    silence.update(audio.flip(0), audio)
    assert distance.compute() < 0.45 * silence.compute()
    # where there is something to hear, the bands come back
    heard = latents > latents.max() - 5
    assert (tokenizer.encode(decoded) - latents)[heard].abs().mean() < 0.1


def test_decoding_depends_on_nothing_else():
    tokenizer = LogMel(**SMALL, iterations=4)  # each of them enlarges the rounding errors of another batch size
    latents, state = tokenizer.encode(tones(batch=3)), torch.get_rng_state()
    decoded = tokenizer.decode(latents)
    assert torch.equal(tokenizer.decode(latents), decoded)
    assert torch.allclose(tokenizer.decode(latents[1:2]), decoded[1:2], atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_there_is_nothing_to_learn_or_load(tmp_path):
    tokenizer = LogMel(**SMALL)
    assert (tokenizer.trainable, tokenizer.weightless) == (False, True)
    assert not tokenizer.state_dict()
    tokenizer.save(tmp_path)
    assert torch.equal(Part.load(tmp_path).encode(tones()), tokenizer.encode(tones()))


def test_half_precision_and_extremes_stay_finite():
    tokenizer = LogMel(**SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(tones()), LogMel(**SMALL).encode(tones()))
    for level in (-1e4, 1e4):
        assert tokenizer.decode(torch.full((1, 40, 3), level)).isfinite().all()


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"frame_rate": 33.0}, "whole number of samples"),
        ({"frame_rate": 0.0}, "whole number of samples"),
        ({"bands": 0}, "bands must be"),
        ({"f_min": 5000.0}, "bands go up"),
        ({"f_max": 5000.0}, "from 0 to 4000"),
        ({"overlap": 1}, "overlap"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_refuses_nonsense(option, word):
    with pytest.raises(ValueError, match=word):
        LogMel(**SMALL | option)
