import mir_eval
import numpy as np
import pytest
import torch

from partita.errors import PartitaError
from partita.metrics.key_and_chords import (
    ChordAgreement,
    KeyAgreement,
    chord_agreement,
    estimate_chords,
    harmonic_chroma,
)

RATE = 16000
NAMES = ["C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"]
THIRD = {"maj": 4, "min": 3}


def sound(pitches, seconds):
    """Tones of four harmonics, in MIDI pitches; ``[1, T]``."""
    time = torch.arange(round(seconds * RATE)) / RATE
    audio = torch.zeros_like(time)
    for pitch in pitches:
        for harmonic in (1, 2, 3, 4):
            audio += torch.sin(2 * torch.pi * harmonic * 440 * 2 ** ((pitch - 69) / 12) * time + pitch) / harmonic
    return 0.05 * audio[None]


def triad(name, low=48):
    root, quality = name.split(":")
    root = low + NAMES.index(root)
    return [root, root + 7, root + 12, root + 12 + THIRD[quality]]


def progression(*names, seconds=1.0):
    return torch.cat([sound(triad(name) if name != "N" else [], seconds) for name in names], -1)


def labels(*names, seconds=1.0):
    return [(i * seconds, (i + 1) * seconds, name) for i, name in enumerate(names)]


def agreement(metric, audio, reference, lengths=None):
    metric.update(audio, reference, lengths)
    found = metric.compute()
    return {name: found[name].item() for name in metric.names}


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("mode", ["major", "minor"])
def test_cadences_and_scales_have_their_key(tonic, mode):
    degrees = {"major": [(0, "maj"), (5, "maj"), (7, "maj"), (0, "maj")]}
    degrees["minor"] = [(0, "min"), (5, "min"), (7, "maj"), (0, "min")]
    chords = progression(*(f"{NAMES[(tonic + step) % 12]}:{quality}" for step, quality in degrees[mode]), seconds=0.5)
    steps = {"major": [0, 2, 4, 5, 7, 9, 11, 12, 7, 4, 0], "minor": [0, 2, 3, 5, 7, 8, 11, 12, 7, 3, 0]}[mode]
    scale = torch.cat([sound([60 + tonic + step], 0.3) for step in steps], -1)
    for audio in (chords, scale):
        result = agreement(KeyAgreement(RATE), audio[None], [{"key": f"{NAMES[tonic]} {mode}"}])
        assert result == {"key": 1.0, "key_exact": 1.0}


def test_key_scores_are_those_of_mirex():
    """C major against itself, a fifth below, its relative and parallel minor, and a stranger."""
    audio = progression("C:maj", "F:maj", "G:maj", "C:maj")[None]
    known = [("C major", 1), ("F major", 0.5), ("A minor", 0.3), ("C minor", 0.2), ("F# major", 0)]
    metric = KeyAgreement(RATE)
    for key, score in known:
        assert agreement(KeyAgreement(RATE), audio, [{"key": key}])["key"] == pytest.approx(score)
        metric.update(audio, [{"key": key}])
    found = metric.compute()
    assert found["key"].item() == pytest.approx(2 / 5)
    assert found["key_exact"].item() == pytest.approx(1 / 5)
    assert found["key_clips"] == 5


def test_silence_has_no_key_and_no_chord():
    silence = torch.zeros(1, 1, 2 * RATE)
    assert agreement(KeyAgreement(RATE), silence, [{"key": "C major"}])["key"] == 0
    assert agreement(ChordAgreement(RATE), silence, [{"chords": labels("N", "N")}])["chord_majmin"] == 1
    assert agreement(ChordAgreement(RATE), silence, [{"chords": labels("C:maj", "A:min")}])["chord_root"] == 0


def test_noise_has_no_chord():
    noise = torch.randn(1, 1, 4 * RATE)
    assert agreement(ChordAgreement(RATE), noise, [{"chords": labels("N", seconds=4)}])["chord_majmin"] > 0.9


@pytest.mark.parametrize("root", range(12))
@pytest.mark.parametrize("quality", ["maj", "min"])
def test_triads_have_their_name(root, quality):
    name = f"{NAMES[root]}:{quality}"
    chroma = harmonic_chroma(RATE)
    for low in (36, 48, 60):
        found = chroma(sound(triad(name, low), 1.0)[None])[0].numpy()
        assert estimate_chords(found, chroma.frame_rate, 1.0) == [(0.0, 1.0, name)]


@pytest.mark.parametrize("rate", [16000, 32000, 44100])
def test_progressions_are_found_with_their_times(rate):
    from torchaudio.functional import resample

    names = ("C:maj", "A:min", "F:maj", "N", "G:maj", "Eb:min")
    audio = resample(progression(*names), RATE, rate)
    chroma = harmonic_chroma(rate)
    found = estimate_chords(chroma(audio[None])[0].numpy(), chroma.frame_rate, 6.0)
    assert [name for _, _, name in found] == list(names)
    assert np.allclose([span[:2] for span in found], [span[:2] for span in labels(*names)], atol=0.18)


def test_chord_agreement_goes_by_time():
    audio = progression("C:maj", "A:min", "F:maj", "G:maj")[None]
    right = agreement(ChordAgreement(RATE), audio, [{"chords": labels("C:maj", "A:min", "F:maj", "G:maj")}])
    assert min(right.values()) > 0.9
    # right root and wrong third; a seventh chord does not count as its triad's quality, a diminished one not at all
    wrong = agreement(ChordAgreement(RATE), audio, [{"chords": labels("C:min", "A:min7", "F:7", "G:dim")}])
    assert wrong["chord_root"] == pytest.approx(1, abs=0.08)
    assert wrong["chord_majmin"] == pytest.approx(2 / 3, abs=0.08)
    none = agreement(ChordAgreement(RATE), audio, [{"chords": labels("C#:maj", "Bb:min", "F#:maj", "Ab:maj")}])
    assert none["chord_root"] == none["chord_majmin"] == 0
    assert none["chord_segmentation"] == pytest.approx(right["chord_segmentation"])


def test_gaps_between_labeled_chords_do_not_count():
    whole = [(0.0, 2.0, "C:maj"), (2.0, 4.0, "G:maj"), (4.0, 6.0, "A:min")]
    agreeing, comparable = chord_agreement([whole[0], whole[2]], whole)
    assert [*agreeing, *comparable] == pytest.approx([4, 4, 6, 4, 4, 6])
    for same in (whole[::-1], [(0.0, 2.5, "C:maj"), *whole[1:]], [(0.0, 1.9999, "C:maj"), *whole[1:]]):
        agreeing, comparable = chord_agreement(same, whole)
        assert [*agreeing, *comparable] == pytest.approx([6] * 6, abs=1e-3)


def test_chord_agreement_agrees_with_mir_eval():
    """On random labels, with sevenths and gaps, against the evaluation of mir_eval as a whole."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        edges, heard_edges = (np.concatenate([[0], np.sort(rng.uniform(0, 8, 6)), [8]]) for _ in range(2))
        names = [f"{NAMES[rng.integers(3)]}:{rng.choice(['maj', 'min', '7', 'dim', 'sus4'])}" for _ in range(7)]
        heard = [f"{NAMES[rng.integers(3)]}:{rng.choice(['maj', 'min'])}" for _ in range(6)] + ["N"]
        reference = list(zip(edges[:-1], edges[1:], names, strict=True))
        estimated = list(zip(heard_edges[:-1], heard_edges[1:], heard, strict=True))
        agreeing, comparable = chord_agreement(reference, estimated)
        theirs = mir_eval.chord.evaluate(
            np.stack([edges[:-1], edges[1:]], 1), names, np.stack([heard_edges[:-1], heard_edges[1:]], 1), heard
        )
        expected = [theirs["root"], theirs["majmin"], theirs["seg"]]
        assert np.allclose(agreeing / np.maximum(comparable, 1e-9), expected)


@pytest.mark.parametrize("kind", [KeyAgreement, ChordAgreement])
def test_processes_together_are_one(kind):
    clips = [progression("C:maj", "F:maj"), progression("G:maj", "A:min"), progression("D:min", "D:min")]
    fields = [
        {"key": "C major", "chords": labels("C:maj", "D:min")},
        {"key": "E minor", "chords": labels("C:maj")},
        {"key": "D minor", "chords": labels("D:min", "D:dim")},
    ]
    whole, first, second = kind(RATE), kind(RATE), kind(RATE)
    whole.update(torch.stack(clips), fields)
    first.update(clips[0][None], fields[:1])
    second.update(torch.stack(clips[1:]), fields[1:])
    first.merge_state(second)
    first.merge_state(kind(RATE))  # a process that had no clips
    expected = {name: value.item() for name, value in whole.compute().items()}
    assert {name: value.item() for name, value in first.compute().items()} == pytest.approx(expected)


@pytest.mark.parametrize("kind", [KeyAgreement, ChordAgreement])
def test_the_interval_is_that_of_the_clips(kind):
    """Half of 40 clips right, half wrong: a proportion, whose standard error is known."""
    clips = torch.stack([progression("C:maj", "F:maj", "G:maj", "C:maj", seconds=0.5)] * 40)
    right, wrong = labels("C:maj", "F:maj", "G:maj", "C:maj", seconds=0.5), labels("F#:maj", seconds=2)
    fields = [{"key": "C major", "chords": right}, {"key": "F# major", "chords": wrong}] * 20
    metric = kind(RATE)
    metric.update(clips, fields)
    found = metric.compute()
    name = metric.names[0]
    assert found[name].item() == pytest.approx(0.5, abs=0.06)
    for bound, side in (("low", -1), ("high", 1)):
        expected = found[name].item() + side * 1.96 * 0.5 / 40**0.5
        assert found[f"{name}_{bound}"].item() == pytest.approx(expected, abs=0.03)


def test_examples_without_labels_do_not_count():
    for kind in (KeyAgreement, ChordAgreement):
        metric = kind(RATE)
        metric.update(torch.randn(2, 1, RATE), [{}, {"key": None, "chords": []}])
        found = metric.compute()
        assert all(found[f"{name}_clips"] == 0 and found[name].isnan() for name in metric.names)
        metric.update(torch.randn(1, 1, RATE), [{"key": "C major", "chords": labels("C:maj")}])
        found = metric.compute()
        assert all(found[f"{name}_clips"] == 1 and found[f"{name}_low"].isnan() for name in metric.names)


def test_chords_that_cannot_be_compared_do_not_count_in_that_figure():
    """A diminished chord has a root, but is neither major nor minor."""
    metric = ChordAgreement(RATE)
    metric.update(
        progression("C:maj")[None].expand(3, -1, -1), [{"chords": labels(c)} for c in ("C:maj", "C:dim", "A:min")]
    )
    found = metric.compute()
    assert (found["chord_root_clips"], found["chord_majmin_clips"]) == (3, 2)
    assert found["chord_root"].item() == pytest.approx(2 / 3, abs=0.05)
    assert found["chord_majmin"].item() == pytest.approx(1 / 2, abs=0.05)


def test_padding_does_not_count():
    audio = torch.cat([progression("C:maj", "F:maj"), sound([61, 65, 68], 4.0)], -1)[None]
    chords = [{"chords": labels("C:maj", "F:maj"), "key": "F major"}]
    assert agreement(ChordAgreement(RATE), audio, chords, [2 * RATE])["chord_majmin"] > 0.9
    assert agreement(KeyAgreement(RATE), audio, chords, [2 * RATE])["key"] >= 0.5
    assert agreement(KeyAgreement(RATE), audio, chords)["key"] < 0.5


def test_labels_that_cannot_be_read_are_named():
    audio = torch.randn(1, 1, RATE)
    with pytest.raises(PartitaError, match=r"H-Dur.*F# minor"):
        KeyAgreement(RATE).update(audio, [{"key": "H-Dur"}])
    with pytest.raises(PartitaError, match=r"Xmaj.*F#:min7"):
        ChordAgreement(RATE).update(audio, [{"chords": labels("Xmaj")}])
