"""The melody as the strongest pitch class of each frame."""

import pytest
import torch

import partita
from partita.conditioners.melody_chroma import MelodyChroma
from partita.core.contracts import Clip

RATE = 8000
NAMES = {"C": 261.63, "E": 329.63, "G": 392.0, "A": 440.0}


def tone(*names, seconds=1.0):
    """A sine for each name, one after the other, each of so many seconds."""
    time = torch.arange(round(seconds * RATE)) / RATE
    return torch.cat([0.3 * torch.sin(2 * torch.pi * NAMES[name] * time) for name in names])[None]


@pytest.fixture
def chroma():
    return MelodyChroma(sample_rate=RATE, window=1024, hop=256)


def heard(chroma, *clips, seconds=2.0):
    prepared = chroma.prepare([Clip(fields, seconds, audio, RATE) for fields, audio in clips])
    condition = chroma(prepared)
    assert condition.mask.all()
    assert torch.equal(condition.values.sum(-1), torch.ones(condition.mask.shape))
    return condition.values.argmax(-1)


def test_frames_are_the_notes_that_are_played(chroma):
    frames = heard(chroma, ({}, tone("A", "E")))[0]
    assert len(frames) == 63  # 2 s at 31.25 Hz
    assert frames[2:29].unique().tolist() == [9]
    assert frames[34:61].unique().tolist() == [4]


def test_drums_and_bass_are_left_out(chroma):
    stems = {"bass": 3 * tone("C", "C"), "flute": tone("G", "G"), "drums": 3 * tone("E", "E")}
    frames = heard(chroma, ({"stems": stems}, tone("A", "A")))[0]
    assert frames[3:-3].unique().tolist() == [7]
    assert heard(chroma, ({"stems": {"bass": tone("C", "C")}}, tone("A", "A")))[0, 5] == 9  # there is no other stem


def test_a_melody_of_a_prompt_takes_the_place_of_the_audio(chroma):
    assert heard(chroma, ({"cover": tone("E", "E")}, None))[0, 5] == 4
    assert heard(chroma, ({"cover": tone("E", "E")}, tone("A", "A")))[0, 5] == 9  # in training, the clip itself


def test_no_melody_is_the_null_condition(chroma):
    prepared = chroma.prepare([Clip({}, 2.0), Clip({}, 2.0, torch.zeros(1, 2 * RATE), RATE)])
    condition = chroma(prepared)
    null = chroma.null(chroma(chroma.prepare([Clip({}, 2.0, tone("A", "E"), RATE)])))
    for one in condition.values:
        assert torch.equal(one, null.values[0])
    assert null.mask.all()
    assert null.values[..., 0].all()


def test_short_melodies_repeat_and_long_ones_are_cut(chroma):
    short, long = heard(chroma, ({}, tone("A", "E", seconds=0.25)), ({}, tone("A", "E", "G")), seconds=2.0)
    assert torch.equal(short[:16], short[16:32])
    assert long[-3:].tolist() == [4, 4, 4]
    whole = MelodyChroma(sample_rate=RATE, window=1024, hop=256, at_least=4)
    assert heard(whole, ({}, tone("A", "E"))).shape == (1, 125)
    assert heard(whole, ({}, tone("A", "E")), seconds=5.0).shape == (1, 157)


@pytest.mark.parametrize("samples", [0, 1, 100])
def test_almost_nothing_is_still_a_melody(chroma, samples):
    assert heard(chroma, ({}, torch.zeros(1, samples))).shape == (1, 63)


@pytest.mark.parametrize("options", [{"sample_rate": 0}, {"hop": 0}, {"at_least": -1}, {"at_least": float("nan")}])
def test_values_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MelodyChroma(**options)


def test_recordings_of_any_rate(chroma):
    recording = torch.sin(2 * torch.pi * 440 * torch.arange(44100) / 44100)[None]
    condition = partita.encode_inputs(chroma, 1.0, audio=partita.Excerpt(recording, sample_rate=44100))
    assert condition.values.argmax(-1)[0, 3:-3].unique().tolist() == [9]
