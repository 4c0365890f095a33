"""Notes sound at their pitch, when they should, and add up."""

import numpy as np
import pytest
from scipy.signal import hilbert

from partita.data.arrangement import INSTRUMENTS
from partita.data.soundfont import SoundFont
from partita.data.synthesizer import LONGEST_RELEASE, Note, Synthesizer
from partita.errors import PartitaError

RATE = 16000
FONT = SoundFont()


def synthesizer(channels=1):
    return Synthesizer(FONT, RATE, channels)


def frequency_near(sound, expected):
    """The strongest frequency within a semitone of ``expected``."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 18))
    frequencies = np.fft.rfftfreq(1 << 18, 1 / RATE)
    near = np.abs(np.log2(frequencies.clip(1) / expected)) < 1 / 12
    return frequencies[near][spectrum[near].argmax()]


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_a_middle_a_has_440_hz(name):
    sound = synthesizer().render([Note(0.0, 1.0, 69, 100)], INSTRUMENTS[name].program, RATE)[0]
    cents = 1200 * np.log2(frequency_near(sound[RATE // 10 :], 440.0) / 440.0)
    assert abs(cents) < 15


@pytest.mark.parametrize("pitch", [43, 55, 62, 81])
def test_keys_are_a_semitone_apart(pitch):
    sound = synthesizer().render([Note(0.0, 1.0, pitch, 100)], INSTRUMENTS["harpsichord"].program, RATE)[0]
    expected = 440 * 2 ** ((pitch - 69) / 12)
    assert abs(1200 * np.log2(frequency_near(sound, expected) / expected)) < 10


def test_a_note_starts_and_ends_in_time():
    sound = synthesizer().render([Note(0.5, 0.5, 69, 100)], INSTRUMENTS["clarinet"].program, 2 * RATE)[0]
    level = np.sqrt((sound.reshape(-1, RATE // 100) ** 2).mean(axis=1))
    assert not sound[: RATE // 2].any()
    assert level[55:100].min() > 0.5 * level.max()
    assert not sound[round((1.0 + LONGEST_RELEASE) * RATE) :].any()


def test_notes_add_up_and_do_not_depend_on_what_was_played_before():
    one, other = Note(0.0, 0.7, 60, 90), Note(0.2, 1.6, 67, 80)
    used = synthesizer()
    used.render([Note(0.0, 3.0, 67, 100)], 19, RATE)
    together = used.render([one, other], 19, RATE)
    apart = synthesizer().render([one], 19, RATE) + synthesizer().render([other], 19, RATE)
    assert np.array_equal(together, apart)


def test_a_clip_is_a_part_of_the_whole():
    notes = [Note(0.1 * i, 0.4, 60 + i, 90) for i in range(12)]
    whole = synthesizer().render(notes, 6, 2 * RATE)
    moved = [note._replace(onset=note.onset - 0.5) for note in notes]
    assert np.allclose(synthesizer().render(moved, 6, RATE), whole[:, RATE // 2 : RATE // 2 + RATE], atol=1e-7)


@pytest.mark.parametrize("name", ["strings", "choir", "church organ", "french horn", "trumpet", "piano"])
def test_instruments_are_heard_as_long_after_the_onset_as_their_table_says(name):
    """The level is that of the analytic signal, smoothed; the figures were measured as the power of short windows."""
    instrument, times = INSTRUMENTS[name], []
    for key in range(instrument.lowest, instrument.highest + 1, 6):
        sound = synthesizer().render([Note(0.0, 1.1, key, 100)], instrument.program, round(1.1 * RATE))[0]
        smooth = np.hanning(max(RATE // 25, round(2.5 * RATE / (440 * 2 ** ((key - 69) / 12)))))
        level = np.convolve(np.abs(hilbert(sound)), smooth / smooth.sum(), "same")[:RATE]
        sustained = np.median(level[RATE // 2 :])
        times.append([(level >= share * sustained).argmax() / RATE for share in (0.5, 0.9)])
    half, full = np.median(times, axis=0)
    assert abs(half - instrument.half) < 0.025
    assert abs(full - instrument.full) < 0.04


def test_louder_and_stereo():
    soft, loud = (synthesizer().render([Note(0.0, 0.5, 60, v)], 0, RATE)[0] for v in (50, 100))
    assert np.allclose(4 * soft, loud, atol=1e-6)
    stereo = synthesizer(2).render([Note(0.0, 0.5, 60, 100)], 48, RATE)
    assert stereo.shape == (2, RATE)
    assert not np.array_equal(stereo[0], stereo[1])


def test_a_small_cache_changes_nothing():
    notes = [Note(0.05 * i, 0.3, 50 + i, 90) for i in range(10)]
    small = Synthesizer(FONT, RATE, cache_bytes=1)
    assert np.array_equal(small.render(notes * 2, 19, RATE), synthesizer().render(notes * 2, 19, RATE))


def test_files_that_are_no_soundfont_are_named(tmp_path):
    path = tmp_path / "bad.sf2"
    with pytest.raises(PartitaError, match=r"bad\.sf2"):
        SoundFont(path).zones(0)
    path.write_bytes(FONT.path.read_bytes()[:100_000])
    with pytest.raises(PartitaError, match="truncated"):
        SoundFont(path).zones(0)
    with pytest.raises(PartitaError, match="no program 5 in bank 99"):
        FONT.zones(5, 99)
