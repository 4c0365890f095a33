"""Conditions of structure: chords, beats, tempo, timing, key and instruments."""

import math

import numpy as np
import pytest
import torch

import partita
from partita.conditioners.beat_pulses import Beats
from partita.conditioners.chord_tones import Chords
from partita.conditioners.instrument_embeddings import Instruments
from partita.conditioners.key_embedding import Key
from partita.conditioners.number import Number
from partita.core.contracts import Clip
from partita.core.part import Part
from partita.data.fields.base import crop_fields


def condition(part, fields, seconds=1.0, seed=None):
    return part(part.prepare([Clip(one, seconds, seed=seed) for one in fields]))


# chords


def test_chords_are_the_pitch_classes_at_the_center_of_each_frame():
    """At 10 Hz, the centers of frames are at 0.05, 0.15 and so on."""
    rows = [(0.0, 0.3, "C:maj"), (0.3, 0.54, "A:min7"), (0.54, 0.8, "N"), (0.8, 0.9, "X")]
    made = condition(Chords(frame_rate=10), [{"chords": rows}])
    c, a, none = {0, 4, 7}, {9, 0, 4, 7}, set()
    expected = [c, c, c, a, a, none, none, none, none, none]
    assert made.values.shape == (1, 10, 12)
    assert [set(frame.nonzero().flatten().tolist()) for frame in made.values[0]] == expected
    assert made.values.unique().tolist() == [0, 1]
    # no chord is known, an unnamed one is not, and neither is what follows the last one
    assert made.mask[0].tolist() == [True] * 8 + [False] * 2


def test_no_chords_are_the_null_condition():
    part = Chords(frame_rate=10)
    made = condition(part, [{"chords": [(0.0, 1.0, "G:7")]}, {}, {"chords": None}, {"chords": []}])
    null = part.null(made)
    assert made.mask.any(1).tolist() == [True, False, False, False]
    for i in (1, 2, 3):
        assert torch.equal(made.values[i], null.values[i])
        assert torch.equal(made.mask[i], null.mask[i])


def test_chords_that_are_longer_shorter_or_odd():
    part = Chords(frame_rate=10)
    for rows in ([(-3.0, 9.0, "C")], [(0, 1e9, "C:maj")]):
        assert condition(part, [{"chords": rows}]).values[0].sum(0).nonzero().flatten().tolist() == [0, 4, 7]
    assert not condition(part, [{"chords": [(0.0, 1.0, "C:huge")]}]).mask.any()
    assert not condition(part, [{"chords": [(0.01, 0.02, "C:maj")]}]).mask.any()
    prepared = part.prepare([Clip({"chords": [(0.0, 9.0, "C:maj")]}, seconds) for seconds in (0.5, 1.0)])
    assert prepared["mask"].sum(1).tolist() == [5, 10]
    assert condition(Chords(frame_rate=50, at_least=30), [{"chords": [(0, 40, "C")]}]).mask.sum() == 1500


def test_chords_of_a_crop_are_those_of_its_place():
    rows = [(0.0, 2.0, "C:maj"), (2.0, 4.0, "F:maj")]
    whole = condition(Chords(frame_rate=50), [{"chords": rows}], seconds=4.0)
    part = condition(Chords(frame_rate=50), [crop_fields({"chords": rows}, 1.5, 1.0)], seconds=1.0)
    assert torch.equal(part.values, whole.values[:, 75:125])


# beats


def test_beats_are_smoothed_and_downbeats_are_not():
    """At 50 Hz, a beat at 0.21 s is in frame 10, which lasts from 0.20 to 0.22 s."""
    made = condition(Beats(frame_rate=50), [{"beats": [0.21, 0.71], "downbeats": np.array([0.71])}])
    expected = torch.zeros(50)
    expected[7:14] = torch.tensor([0.05, 0.1, 0.3, 0.9, 0.3, 0.1, 0.05])
    expected[32:39] = torch.tensor([0.05, 0.1, 0.3, 1.9, 0.3, 0.1, 0.05])
    torch.testing.assert_close(made.values[0, :, 0], expected)
    assert made.mask.all()


def test_pulses_that_meet_add_up_and_those_outside_are_left_out():
    made = condition(Beats(frame_rate=50), [{"beats": [0.0, 0.04, 0.041, -0.5, 5.0]}])
    # impulses in the frames 0 and 2, as numpy convolves them
    impulses = np.zeros(50)
    impulses[[0, 2]] = 1
    expected = np.convolve(impulses, [0.05, 0.1, 0.3, 0.9, 0.3, 0.1, 0.05], "same")
    np.testing.assert_allclose(made.values[0, :, 0].numpy(), expected, atol=1e-6)


def test_a_tempo_is_a_regular_grid_in_four_four():
    made = condition(Beats(frame_rate=50), [{"tempo": 120}], seconds=3.0)
    pulses = made.values[0, :, 0]
    assert (pulses > 0.5).nonzero().flatten().tolist() == [0, 25, 50, 75, 100, 125]
    assert (pulses > 1.5).nonzero().flatten().tolist() == [0, 100]
    # beats that are known take its place, and in training the first one is not
    known = condition(Beats(frame_rate=50), [{"tempo": 120, "beats": [0.3]}], seconds=3.0)
    assert (known.values[0, :, 0] > 0.5).nonzero().flatten().tolist() == [15]
    assert not condition(Beats(), [{"tempo": 120}], seed=3).mask.any()


def test_no_beats_are_the_null_condition_and_a_pause_is_not():
    part = Beats()
    made = condition(part, [{"beats": [0.5]}, {}, {"beats": []}, {"downbeats": [0.5]}])
    null = part.null(made)
    assert torch.equal(made.values[1], null.values[1])
    assert made.mask.any(1).tolist() == [True, False, True, True]
    assert made.values[2].eq(0).all()
    assert made.values[3, 25] == pytest.approx(1.9)


def test_beats_of_clips_of_several_lengths():
    prepared = Beats(frame_rate=10).prepare([Clip({"beats": [0.0]}, seconds) for seconds in (0.2, 1.0)])
    assert prepared["mask"].sum(1).tolist() == [2, 10]
    assert prepared["pulses"][0, 2:].eq(0).all()


@pytest.mark.parametrize("tempo", [1e-3, 999.0])
def test_slow_and_fast_tempi(tempo):
    made = condition(Beats(), [{"tempo": tempo}], seconds=2.0)
    assert made.values.isfinite().all()
    assert made.mask.all()


def test_too_fast_tempi_are_refused():
    with pytest.raises(ValueError, match="at most 1000 beats per minute, not 1e"):
        condition(Beats(), [{"tempo": 1e30}])


# numbers


def test_numbers_are_stable_audios():
    """Limited to the range, and the linear layer of the number and the sines and cosines of learned frequencies."""
    part = Number(dim=768, low=0, high=512, inputs=("seconds_start", "seconds_total"))
    fields = [{"seconds_start": 51.2, "seconds_total": 256.0}, {"seconds_start": -3.0, "seconds_total": 9e9}]
    made = condition(part, fields)
    assert made.values.shape == (2, 2, 768)
    for i, row in enumerate([[0.1, 0.5], [0.0, 1.0]]):
        for j, (name, x) in enumerate(zip(part.inputs, row, strict=True)):
            state = {k: v.double() for k, v in part.features[name].state_dict().items()}
            w = state["frequencies"]
            features = torch.cat([torch.tensor([x]).double(), (2 * math.pi * w * x).sin(), (2 * math.pi * w * x).cos()])
            expected = state["projection.weight"] @ features + state["projection.bias"]
            torch.testing.assert_close(made.values[i, j].double(), expected, rtol=1e-4, atol=1e-4)
    assert part.features["seconds_start"].projection.weight.shape == (768, 257)


def test_ratios_of_tempi_count():
    part = Number(low=30, high=480, log=True)
    prepared = part.prepare([Clip({"tempo": tempo}, 1.0) for tempo in (30, 60, 120, 240, 480, 1, 1e9)])
    torch.testing.assert_close(prepared["numbers"][:, 0], torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 0.0, 1.0]))


def test_numbers_that_are_not_known():
    part = Number(inputs=("tempo", "seconds_total"))
    made = condition(part, [{"tempo": 90.0}, {}, {"seconds_total": 8.0}])
    null = part.null(made)
    assert made.mask.tolist() == [[True, False], [False, False], [False, True]]
    assert torch.equal(made.values[1], null.values[1])
    assert made.values[0, 1].eq(0).all()
    assert made.values[0, 0].ne(0).any()


# keys


def test_a_key_is_the_same_however_it_is_written():
    part = Key(dim=8)
    names = ["F# minor", "Gb min", "f sharp minor", "G minor", "G major", "F#m"]
    made = condition(part, [{"key": name} for name in names]).values[:, 0]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[0], made[5])
    assert len(made.unique(dim=0)) == 3


def test_what_is_no_key_is_the_null_condition():
    part = Key(dim=8)
    made = condition(part, [{"key": "G minor"}, {}, {"key": "D dorian"}, {"key": None}])
    null = part.null(made)
    assert made.mask.all()
    assert null.mask.all()
    assert torch.equal(made.values[1:], null.values[1:])
    assert not torch.equal(made.values[0], null.values[0])
    null.values.sum().backward()
    assert part.embeddings.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [24]


def test_keys_that_were_not_met_are_not_known(tmp_path):
    part = Key(dim=8)
    assert part.knows("A minor")
    assert not part.knows("sad")
    condition(part.train(), [{"key": "G minor"}, {"key": "nothing"}])
    assert part.knows("g min")
    assert not part.knows("A minor")
    part.save(tmp_path / "key")
    assert not Part.load(tmp_path / "key").knows("A minor")


# instruments


def test_instruments_are_a_bag_of_whole_names():
    part = Instruments(dim=4)
    fields = [["church organ", "flute"], ["Flute", "church  organ", "flute"], ["church", "organ"], []]
    made = condition(part, [{"instruments": names} for names in fields] + [{}])
    assert made.mask.sum(1).tolist() == [2, 2, 2, 0, 0]
    assert torch.equal(made.values[0], made.values[1])
    assert not torch.equal(made.values[0], made.values[2])
    assert torch.equal(made.values[3:], part.null(made).values[3:])
    assert condition(Instruments(most=2), [{"instruments": list("abcdef")}]).mask.shape == (1, 2)


def test_instruments_that_were_not_met_are_not_known():
    part = Instruments(dim=4, num_embeddings=1 << 16)
    assert part.knows("flute")
    condition(part.train(), [{"instruments": ["Flute"]}, {}])
    assert part.knows("flute")
    assert not part.knows("oboe")


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Chords, {"frame_rate": 0}),
        (Chords, {"frame_rate": float("nan")}),
        (Chords, {"at_least": -1}),
        (Beats, {"frame_rate": 1e9}),
        (Number, {"low": 5, "high": 5}),
        (Number, {"high": float("inf")}),
        (Number, {"low": 0, "log": True}),
        (Number, {"dim": 0}),
        (Key, {"dim": 0}),
        (Instruments, {"most": 0}),
        (Beats, {"inputs": ("seconds_total",)}),
        (Chords, {"inputs": ("text",)}),
        (Instruments, {"inputs": ("text",)}),
        (Number, {"inputs": ("text",)}),
    ],
)
def test_values_out_of_range_are_named(cls, options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        cls(**options)


def test_from_python():
    chords = partita.encode_inputs(Chords(frame_rate=10), 1.0, chords=[[(0, 0.5, "C"), (0.5, 1, "G:7")]])
    assert chords.values[0, 0].nonzero().flatten().tolist() == [0, 4, 7]
    assert chords.values[0, 9].nonzero().flatten().tolist() == [2, 5, 7, 11]
    assert partita.encode_inputs(Beats(), 2.0, tempo=60).values[0, :, 0].gt(0.5).sum() == 2
    assert partita.encode_inputs(Instruments(dim=4), instruments="flute; church organ").mask.sum() == 2
