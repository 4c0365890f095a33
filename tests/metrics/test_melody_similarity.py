import pytest
import torch

from partita.errors import PartitaError
from partita.metrics.melody_similarity import MelodySimilarity

RATE = 32000


def tones(*semitones, seconds=2.0):
    """One after another, in semitones above A 440."""
    time = torch.arange(int(seconds * RATE)) / RATE
    return torch.cat([torch.sin(2 * torch.pi * 440 * 2 ** (s / 12) * time) for s in semitones])[None, None]


def compare(audio, reference, lengths=None, **options):
    metric = MelodySimilarity(RATE, **options)
    metric.update(audio, reference, lengths)
    return metric.compute()["chroma_cosine"].item()


def test_the_same_melody_agrees_whatever_octave_and_loudness():
    melody = tones(0, 3, 5)
    assert compare(melody, melody) == 1
    assert compare(tones(12, -9, 17) / 9, melody) == pytest.approx(1, abs=0.01)
    assert compare(melody.expand(1, 2, -1), melody) == 1


def test_another_melody_does_not():
    assert compare(tones(1, 4, 6), tones(0, 3, 5)) == 0
    # a third of the tones, and near a change either can be the stronger one
    assert compare(tones(0, 4, 6), tones(0, 3, 5)) == pytest.approx(1 / 3, abs=0.05)


def test_without_one_hot_a_tone_in_common_counts():
    """Two tones alike loud, one of them in common: the cosine is one half."""
    one, other = tones(0) + tones(3), tones(0) + tones(7)
    # within one octave weights differ by little
    assert compare(one, other, one_hot=False) == pytest.approx(0.5, abs=0.15)
    assert compare(one, one, one_hot=False) == pytest.approx(1, abs=1e-5)


def test_padding_does_not_count():
    silence = torch.zeros(1, 1, 2 * RATE)
    audio, reference = torch.cat([tones(1), silence], -1), torch.cat([tones(2), silence], -1)
    assert compare(audio, reference) > 0.4
    # a frame reaches a quarter of a second beyond the length
    assert compare(audio, reference, [int(1.5 * RATE)]) == 0


def test_mean_over_frames_of_all_updates():
    metric = MelodySimilarity(RATE)
    metric.update(tones(0, 0, 0), tones(0, 0, 0))
    metric.update(tones(0), tones(1))
    # of 47 + 16 frames, ceil(6 · 7.8125) and ceil(2 · 7.8125)
    found = metric.compute()
    assert found["chroma_cosine"].item() == pytest.approx(47 / 63)
    assert 0 <= found["chroma_cosine_low"] < 0.05 < 0.95 < found["chroma_cosine_high"] <= 1  # two clips say little
    assert found["clips"] == 2
    metric.reset()
    with pytest.raises(PartitaError, match="MelodySimilarity has no clips"):
        metric.compute()


def test_merged_metrics_equal_one():
    clips = [tones(0, 0), tones(1, 3), tones(0, 3), tones(5, 7)]
    audio, reference = torch.cat(clips), torch.cat(clips[::-1])
    lengths = [2 * RATE, 4 * RATE, 3 * RATE, 4 * RATE]
    whole, first, second = (MelodySimilarity(RATE) for _ in range(3))
    whole.update(audio, reference, lengths)
    first.update(audio[:1], reference[:1], lengths[:1])
    second.update(audio[1:], reference[1:], lengths[1:])
    first.merge_state(second)
    merged = first.compute()
    for name, value in whole.compute().items():
        assert merged[name].item() == pytest.approx(value.item(), rel=1e-12), name


def test_lengths_that_differ_are_an_error():
    with pytest.raises(PartitaError, match="same length"):
        compare(tones(0, 0), tones(0))
