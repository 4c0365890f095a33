"""What is continued: which part of a recording is taken, and how it goes over into what is generated."""

import numpy as np
import pytest
import soundfile
import torch

import partita
from partita import Excerpt
from partita.core.excerpt import FADE, spliced
from partita.storage import audio_file

RATE = 8000


def tone(seconds, rate=RATE, hertz=110.0, channels=1):
    """A sine, in every channel another phase."""
    phases = np.arange(channels)[:, None]
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate + phases)).astype(np.float32)


@pytest.fixture
def song(tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, tone(6, 44100, channels=2).T, 44100, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("part", "start", "length"),
    [({}, 0, 6), ({"start": 4.5}, 4.5, 1.5), ({"last": 2}, 4, 2), ({"start": 1, "seconds": 0.5}, 1, 0.5)],
)
def test_the_part_asked_for_is_taken_from_files_and_arrays_of_any_rate(song, part, start, length):
    expected = tone(6, channels=2).mean(0)[round(start * RATE) : round((start + length) * RATE)]
    sound = soundfile.read(song, dtype="float32")[0].T
    for excerpt in (Excerpt(song, **part), Excerpt(sound, sample_rate=44100, **part)):
        assert excerpt.length(RATE) == pytest.approx(length)
        heard = excerpt.read(RATE, 1)
        assert heard.shape == (1, 1, len(expected))
        inner = slice(200, -200)
        np.testing.assert_allclose(heard[0, 0, inner], expected[inner], atol=2e-3)


def test_the_shortest_excerpt_is_a_sample(song):
    sound = soundfile.read(song, dtype="float32")[0].T
    for excerpt in (Excerpt(song, seconds=1e-9), Excerpt(sound, sample_rate=44100, seconds=1e-9)):
        assert excerpt.read(RATE, 1).shape == (1, 1, 1)


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_an_excerpt_of_an_array_is_that_of_the_file_to_its_very_ends(song, rate):
    """What is before and after it is resampled with it."""
    sound = soundfile.read(song, dtype="float32")[0].T
    for part in (
        {"start": 1.237, "seconds": 1.0},
        {"start": 4.5},
        {"last": 2.0},
        {"seconds": 0.01},
        {"start": 5.99999},
    ):
        heard = Excerpt(sound, sample_rate=44100, **part).read(rate, 1)
        torch.testing.assert_close(heard, Excerpt(song, **part).read(rate, 1), atol=1e-5, rtol=0)


def test_only_the_excerpt_of_a_long_file_is_read(song, monkeypatch):
    read = []

    class Watched(audio_file.soundfile.SoundFile):
        def read(self, frames=-1, *args, **options):
            read.append(frames)
            return super().read(frames, *args, **options)

    monkeypatch.setattr(audio_file.soundfile, "SoundFile", Watched)
    Excerpt(song, last=0.5).read(RATE, 1)
    assert 0 < sum(read) < 44100
    assert min(read) > 0
    read.clear()
    assert Excerpt(song, start=1).length(RATE) == pytest.approx(5)
    assert 0 < sum(read) <= 44100 // 5


@pytest.mark.parametrize(
    ("samples", "largest"),
    [
        (np.array([0, 2**14, -(2**15)], np.int16), 0.5),
        (torch.tensor([0, 2**30, -(2**31)], dtype=torch.int32), 0.5),
        (np.array([128, 192, 0], np.uint8), 0.5),
        (np.array([[0.0, 0.5, -1.0]]), 0.5),
        ([0.0, 0.5, -1.0], 0.5),
    ],
)
def test_samples_of_every_type_have_the_same_scale(samples, largest):
    assert Excerpt(samples).read(RATE, 2).tolist() == [[[0.0, largest, -1.0]] * 2]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Excerpt("x.wav", start=1, last=1), "not both"),
        (lambda: Excerpt("x.wav", start=-1), "0 or more seconds"),
        (lambda: Excerpt("x.wav", seconds=float("nan")), "more than 0 seconds"),
        (lambda: Excerpt("x.wav", sample_rate=RATE), "that of an array"),
        (lambda: Excerpt(np.zeros(9), sample_rate=10**12), "between 1 and 768000 Hz"),
        (lambda: Excerpt(np.zeros(9), start=10**400), "0 or more seconds"),
        (lambda: Excerpt("nowhere.wav").read(RATE, 1), r"nowhere\.wav: there is no such file"),
        (lambda: Excerpt(tone(1), last=2).read(RATE, 1), "lasts 1 s: it has no last 2 s"),
        (lambda: Excerpt(tone(1), start=1).read(RATE, 1), "nothing follows 1 s"),
        (lambda: Excerpt(tone(1, channels=2).T).read(RATE, 1), r"transpose it with \.T"),
        (lambda: Excerpt(np.zeros((1, 1, 1, 9))).read(RATE, 1), r"not \[1, 1, 1, 9\]"),
        (lambda: Excerpt(np.zeros(0)).read(RATE, 1), r"not \[0\]"),
        (lambda: Excerpt(np.array([3000.0])).read(RATE, 1), "reach 3000: divide them"),
        (lambda: Excerpt(np.array([np.nan])).read(RATE, 1), "not finite"),
        (lambda: Excerpt(np.array([True])).read(RATE, 1), "torch.bool"),
        (lambda: Excerpt(np.array([1j])).read(RATE, 1), "complex"),
    ],
)
def test_what_is_no_excerpt_is_one_message(make, word):
    with pytest.raises(partita.PartitaError, match=word):
        make()


@pytest.mark.parametrize("known", [4 * RATE, 4 * RATE - 137, 300])
def test_the_original_goes_over_into_the_generated_without_a_click(known):
    original = torch.from_numpy(tone(4, channels=2))[None]
    made = 0.8 * torch.from_numpy(tone(6, channels=2))[None] + 0.1  # what a codec makes of it: quieter, and shifted
    result = spliced(made, original, known, RATE)
    fade = min(round(FADE * RATE), known)
    assert torch.equal(result[..., : known - fade], original[..., : known - fade])
    assert torch.equal(result[..., known:], made[..., known:])
    bend = result.diff(n=2).abs()
    for joint in (known - fade, known):
        if joint:
            near = slice(max(0, joint - 3), joint + 3)
            around = torch.cat([bend[..., max(0, joint - 200) : near.start], bend[..., near.stop : joint + 200]], -1)
            assert bend[..., near].amax() <= 1.02 * around.amax()


def test_a_continuation_starts_with_the_very_recording(saved_toy, song):
    system = partita.load(saved_toy)
    excerpt = Excerpt(song, start=2.0, seconds=0.81)
    original = excerpt.read(system.sample_rate, 1)
    audio = system.generate(["tone 1", "tone 2"], duration=2, continuation=excerpt)
    coded = system.generate(["tone 1", "tone 2"], duration=2, continuation=excerpt, splice=False)
    known, fade = 3200, round(FADE * 4000)  # 32 whole frames of 100 samples
    assert torch.equal(audio[..., : known - fade], original.expand(2, -1, -1)[..., : known - fade])
    assert torch.equal(audio[..., known:], coded[..., known:])
    assert not torch.equal(coded[..., : known - fade], original.expand(2, -1, -1)[..., : known - fade])


def test_what_is_too_long_to_continue_is_refused_before_it_is_read(saved_toy, song, monkeypatch):
    monkeypatch.setattr("partita.core.excerpt.read_clip", lambda *_: pytest.fail("it was read"))
    with pytest.raises(partita.PartitaError, match=r"6\.00 s to continue.*longer than 2 s: set a longer duration"):
        partita.load(saved_toy).generate(["tone 1"], duration=2, continuation=song)
