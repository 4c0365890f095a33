import numpy as np
import pytest
import torch
from scipy.stats import t as student

from partita.metrics.rhythm import RhythmAgreement, estimate_beats

RATE = 16000


def clicks(tempo, seconds=8.0, first=0.3):
    """Short bursts of noise on the beats, and the beats."""
    beats = np.arange(first, seconds, 60 / tempo)
    audio = torch.zeros(round(seconds * RATE) + RATE)
    burst = torch.randn(800) * torch.exp(-torch.arange(800) / 100)
    for beat in beats:
        audio[round(beat * RATE) :][:800] += burst
    return 0.1 * audio[None, None, :-RATE], beats


def agreement(audio, reference, lengths=None, **options):
    metric = RhythmAgreement(RATE, **options)
    metric.update(audio, reference, lengths)
    found = metric.compute()
    return {name: found[name].item() for name in metric.names}


@pytest.mark.parametrize("tempo", [66.0, 90.0, 117.0])
def test_clicks_have_their_tempo_and_beats(tempo):
    audio, beats = clicks(tempo)
    estimated, found = estimate_beats(audio[0], RATE)
    assert estimated == pytest.approx(tempo, rel=0.03)
    # the first ones and the last may be missing or too many
    assert all(np.abs(found - beat).min() < 0.03 for beat in beats[1:-1])
    result = agreement(audio, [{"tempo": tempo, "beats": beats}])
    assert result["tempo_accuracy_1"] == result["tempo_accuracy_2"] == 1
    assert result["beat_f_measure"] > 0.9


def test_octaves_count_in_the_second_accuracy_only():
    audio, beats = clicks(100.0)
    for label, first, second in ((100, 1, 1), (103, 1, 1), (50, 0, 1), (200, 0, 1), (107, 0, 0), (150, 0, 0)):
        result = agreement(audio, [{"tempo": label, "beats": beats}])
        assert (result["tempo_accuracy_1"], result["tempo_accuracy_2"]) == (first, second)


def test_beats_off_by_more_than_the_window_do_not_agree():
    audio, beats = clicks(100.0)
    assert agreement(audio, [{"beats": beats + 0.03}])["beat_f_measure"] > 0.85
    assert agreement(audio, [{"beats": beats + 0.2}])["beat_f_measure"] < 0.15
    # every second: all of them found, half of what is found right
    assert agreement(audio, [{"beats": beats[::2]}])["beat_f_measure"] == pytest.approx(2 / 3, abs=0.08)


def test_the_start_can_be_left_out():
    audio, beats = clicks(100.0)
    displaced = np.where(beats < 4, beats - 0.2, beats)
    assert agreement(audio, [{"beats": displaced}])["beat_f_measure"] < 0.7
    assert agreement(audio, [{"beats": displaced}], trim=4.0)["beat_f_measure"] > 0.85


def test_means_go_over_clips_that_have_the_label():
    audio, beats = clicks(100.0)
    metric = RhythmAgreement(RATE)
    metric.update(audio.expand(3, 2, -1), [{"tempo": 100.0}, {"tempo": 70.0}, {"beats": beats}])
    result = metric.compute()
    assert result["tempo_accuracy_1"] == 0.5
    assert result["beat_f_measure"] > 0.9
    assert [int(result[f"{name}_clips"]) for name in metric.names] == [2, 2, 1]
    # Wilson's bounds, (1/2 − p)² = q² p (1 − p), with Student's quantile, of two clips that scatter as much as one
    share = student.ppf(0.975, 1) ** 2
    bounds = sorted(np.roots([1 + share, -(1 + share), 1 / 4]))
    assert result["tempo_accuracy_1_low"].item() == pytest.approx(bounds[0], rel=1e-4)
    assert result["tempo_accuracy_1_high"].item() == pytest.approx(bounds[1], rel=1e-4)
    assert result["beat_f_measure_low"].isnan()
    metric.reset()
    metric.update(audio, [{"beats": []}])
    result = metric.compute()
    assert all(result[f"{name}_clips"] == 0 and result[name].isnan() for name in metric.names)


def test_merged_metrics_equal_one():
    audio, beats = clicks(100.0)
    fields = [{"tempo": 100.0}, {"tempo": 70.0, "beats": beats}, {"tempo": 200.0}, {"beats": beats[::2]}]
    clips = audio.expand(4, 1, -1)
    whole, first, second = (RhythmAgreement(RATE) for _ in range(3))
    whole.update(clips, fields)
    first.update(clips[:1], fields[:1])
    second.update(clips[1:], fields[1:])
    first.merge_state(second)
    merged = first.compute()
    for name, value in whole.compute().items():
        assert merged[name].item() == pytest.approx(value.item(), rel=1e-12), name


def test_padding_does_not_count():
    audio, beats = clicks(100.0)
    other, _ = clicks(100.0, first=0.6)
    padded = torch.cat([audio, other], -1)
    length = audio.shape[-1]
    whole = agreement(padded, [{"beats": beats}])["beat_f_measure"]
    assert agreement(padded, [{"beats": beats}], [length])["beat_f_measure"] > 0.9 > whole


def test_silence_has_neither():
    result = agreement(torch.zeros(1, 1, 4 * RATE), [{"tempo": 100.0, "beats": [1.0, 2.0, 3.0]}])
    assert result == {"tempo_accuracy_1": 0, "tempo_accuracy_2": 0, "beat_f_measure": 0}


@pytest.mark.parametrize(("options", "message"), [({"expected_tempo": 0.0}, "above 0"), ({"trim": -1.0}, "at least 0")])
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        RhythmAgreement(RATE, **options)
