import pytest
import torch

from partita.errors import PartitaError
from partita.metrics.melody_agreement import MelodyAgreement

RATE = 8000
TUNE, OTHER = (0, 4, 7, 5, 2, 9, 0, 11), (0, 1, 6, 7, 1, 10, 3, 8)


def play(*semitones, seconds=0.75, key=0, harmonics=1):
    """Tones one after the other, in semitones above the A of 220 Hz, ``[1, T]``."""
    time = torch.arange(int(seconds * RATE)) / RATE
    pitches = [220 * 2 ** ((s + key) / 12) for s in semitones]
    tones = [sum(torch.sin(2 * torch.pi * p * n * time) / n for n in range(1, harmonics + 1)) for p in pitches]
    return 0.2 * torch.cat(tones)[None]


def agreement(clip, melody):
    return MelodyAgreement(RATE).agreement(clip[None], [melody]).item()


@pytest.mark.parametrize("key", [0, 5, 11, -3])
@pytest.mark.parametrize("seconds", [0.5, 0.75, 1.2])
def test_a_melody_agrees_in_any_key_tempo_octave_and_sound(key, seconds):
    cover = play(*TUNE, key=key + 12, seconds=seconds, harmonics=3)
    assert agreement(play(*TUNE), cover) > 0.93
    assert agreement(play(*TUNE), cover.expand(2, -1) / 5) == pytest.approx(agreement(play(*TUNE), cover), abs=1e-4)
    assert agreement(play(*OTHER), cover) < 0.8


def test_the_beginning_of_a_melody_is_enough():
    assert agreement(play(*TUNE), play(*TUNE[:5], seconds=1.0)) > 0.93
    assert agreement(play(*TUNE[:5]), play(*TUNE, seconds=0.6)) > 0.93


def test_noise_agrees_less_than_another_melody():
    noise = torch.randn(1, 6 * RATE, generator=torch.Generator().manual_seed(0))
    assert agreement(noise, play(*TUNE)) < agreement(play(*OTHER), play(*TUNE)) - 0.05


def test_silence_agrees_with_nothing_and_mistakes_are_named():
    assert agreement(play(*TUNE), torch.zeros(1, RATE)) == 0
    assert 0 <= agreement(play(*TUNE), torch.ones(1, 1)) <= 1
    with pytest.raises(PartitaError, match="2 clips need a melody each, not 1 melodies"):
        MelodyAgreement(RATE).update(torch.zeros(2, 1, RATE), [torch.zeros(1, RATE)])
    with pytest.raises(PartitaError, match="a melody is empty"):
        MelodyAgreement(RATE).update(torch.zeros(1, 1, RATE), [torch.zeros(1, 0)])


def test_the_mean_over_clips_has_an_interval_over_pieces():
    metric = MelodyAgreement(RATE)
    clips = torch.stack([play(*TUNE), play(*OTHER), play(*OTHER)])
    metric.update(clips, [play(*TUNE, key=3)] * 3, pieces=["a", "b", "b"])
    found = metric.compute()
    expected = [agreement(clip, play(*TUNE, key=3)) for clip in clips]
    assert found["melody_agreement"].item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert 0 <= found["melody_agreement_low"] < found["melody_agreement"] < found["melody_agreement_high"] <= 1
    assert (found["clips"], found["pieces"]) == (3, 2)
