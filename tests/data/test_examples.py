"""What a run reads: the same examples however they are read, and others in the place of what is damaged."""

import gc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from partita.core.contracts import Example
from partita.data.base import UnreadableClip
from partita.data.examples import Collate, ExampleLoader, Examples
from partita.data.folder import Folder
from partita.data.overlay import overlaid
from partita.errors import PartitaError
from toys import ToySines

RATE = 8000


class Worn(ToySines):
    """Sines of which some pieces, or some clips, cannot be read.

    Args:
        pieces: Number of them.
        broken: Those of which no clip can be read.
        odd: Whether clips drawn with an odd seed cannot be read, either.
    """

    def __init__(self, pieces=8, broken=(), odd=False):
        super().__init__(pieces=pieces)
        self.broken, self.odd = broken, odd

    def read(self, split, index, *, seed, **options):
        if index in self.broken or (self.odd and seed % 2):
            raise UnreadableClip(f"piece {index}", "it is worn")
        return super().read(split, index, seed=seed, **options)


def examples(source, length=64, seed=1):
    return Examples(source, "train", length=length, seconds=0.1, sample_rate=RATE, channels=1, seed=seed)


def names(read):
    return [example.fields["id"] for example in read]


def test_every_piece_comes_once_in_a_round_in_a_new_order():
    read = names(examples(ToySines(pieces=8))[i] for i in range(64))
    rounds = [read[start : start + 8] for start in range(0, 64, 8)]
    assert all(sorted(one) == sorted(rounds[0]) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 4


def test_another_piece_takes_the_place_of_a_damaged_one():
    """The others keep their places, and whoever reads example ``i``, whenever, gets the same."""
    whole, worn = (examples(source) for source in (ToySines(), Worn(broken=(2, 5))))
    before, after = ([read[i] for i in range(64)] for read in (whole, worn))
    for a, b in zip(before, after, strict=True):
        if a.fields["id"] in ("2", "5"):
            assert b.fields["id"] not in ("2", "5")
            assert b.damaged
        else:
            assert torch.equal(a.audio, b.audio)
            assert not b.damaged
    for i in (40, 3, 40):
        assert torch.equal(examples(Worn(broken=(2, 5)))[i].audio, after[i].audio)
    assert worn.source.report == ["piece 2: it is worn", "piece 5: it is worn"]


def test_a_piece_is_used_where_it_can_be_read():
    worn = examples(Worn(pieces=1, odd=True), length=20)
    assert {worn[i].fields["id"] for i in range(20)} == {"0"}
    assert len({float(worn[i].audio[0, 0]) for i in range(20)}) > 10  # and not the same clip over and over


def test_where_nearly_everything_is_damaged_it_ends_with_one_message():
    with pytest.raises(PartitaError, match=r"50 clips in a row .* piece \d: it is worn.*check RECIPE --data"):
        examples(Worn(broken=range(8)))[0]
    assert examples(Worn(pieces=30, broken=range(1, 30)))[0].fields["id"] == "0"


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_left_out_is_logged_once(workers, lines):
    source = Worn(broken=(2, 5))
    loader = ExampleLoader(examples(source), batch_size=8, num_workers=workers, collate_fn=Collate())
    batches = [*loader, *loader]
    assert len(batches) == 16
    assert sorted(lines) == ["  skipped: piece 2: it is worn", "  skipped: piece 5: it is worn"]
    assert source.report == ["piece 2: it is worn", "piece 5: it is worn"]


def test_a_worker_says_what_is_wrong_without_a_traceback(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # how long the worker's end may take
    source = Worn(broken=range(8))
    loader = ExampleLoader(examples(source), batch_size=8, num_workers=1, collate_fn=Collate())
    with pytest.raises(PartitaError) as caught:
        next(iter(loader))
    assert str(caught.value).startswith("50 clips in a row cannot be read")
    assert "Traceback" not in str(caught.value)
    del caught  # which keeps the worker
    gc.collect()


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Stereo of 44.1 kHz: three files that are whole, and one of each kind of damage, all unharmed at their ends."""
    folder = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    clips = (0.2 * rng.standard_normal((6, 3 * 44100, 2))).astype(np.float32).clip(-1, 1)
    for i in range(3):
        soundfile.write(folder / f"whole{i}.flac", clips[i], 44100)
    clips[3, 44100:88200, 1] = np.nan
    clips[4, 44100:88200] = 3.4e38
    soundfile.write(folder / "nan.wav", clips[3], 44100, subtype="FLOAT")
    soundfile.write(folder / "huge.wav", clips[4], 44100, subtype="FLOAT")
    path = folder / "damaged.flac"
    soundfile.write(path, clips[5], 44100)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(2 * len(data) // 3 - len(data) // 3)
    path.write_bytes(data)
    return folder


def test_damage_inside_files_stops_nothing(music: Path):
    source = Folder(str(music), validation=0.0, test=0.0)
    read = Examples(source, "train", length=60, seconds=0.5, sample_rate=24000, channels=2, seed=0)
    clips = [read[i] for i in range(60)]
    assert all(torch.isfinite(clip.audio).all() and clip.audio.abs().max() <= 1 for clip in clips)
    assert {line.split(":")[0] for line in source.report} == {"nan.wav", "huge.wav", "damaged.flac"}
    assert "nan.wav" in names(clips)  # where it is whole


def test_a_file_that_vanishes_stops_nothing(music: Path, tmp_path):
    for path in music.glob("whole*.flac"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = Folder(str(tmp_path), validation=0.0, test=0.0)
    read = Examples(source, "train", length=30, seconds=0.5, sample_rate=24000, channels=2, seed=0)
    before = [read[i] for i in range(30)]
    (tmp_path / "whole1.flac").unlink()
    after = [read[i] for i in range(30)]
    assert set(names(after)) == {"whole0.flac", "whole2.flac"}
    assert source.report == ["whole1.flac: there is no such file"]
    for old, new in zip(before, after, strict=True):
        assert old.fields["id"] == "whole1.flac" or torch.equal(old.audio, new.audio)


def test_clips_laid_over_each_other_have_both_captions():
    """Half of the examples, each the sum of two of the sines, which is the same when read again."""
    mixed = examples(ToySines(pieces=8), length=200)
    mixed.overlay = 0.5
    alone, read = examples(ToySines(pieces=8), length=200), [mixed[i] for i in range(200)]
    sums = [i for i in range(200) if not torch.equal(read[i].audio, alone[i].audio)]
    assert 75 < len(sums) < 125
    captions = {alone[i].fields["text"] for i in range(8)}
    for i in sums:
        first, caption = alone[i], read[i].fields["text"]
        assert caption.startswith(first.fields["text"])
        assert read[i].fields["id"] == first.fields["id"]
        assert any(caption == f"{first.fields['text']} {other}" for other in captions - {first.fields["text"]})
        assert read[i].audio.abs().max() <= 0.99
        assert torch.equal(mixed[i].audio, read[i].audio)
    added = torch.stack([read[i].audio - alone[i].audio for i in sums])
    assert (added[..., added.shape[-1] // 2 :].abs().amax(-1) > 0).all()  # the second half always has both


def rms(audio):
    return float(audio.square().mean().sqrt())


def test_the_second_clip_is_as_loud_as_drawn():
    """Levels of -5 to 5 dB and starts in the first half, both uniform (audiocraft's AudioGen)."""
    noise = torch.Generator().manual_seed(0)
    loud, soft = (0.01 * k * torch.randn(1, 4000, generator=noise) for k in (8, 1))
    first, second = (Example(audio, 4000, {"text": "one", "id": "1", "key": "C major"}) for audio in (loud, soft))
    levels, starts = [], []
    for seed in range(300):
        added = overlaid(first, second, seed).audio - loud
        start = int(added[0].ne(0).nonzero()[0])
        starts.append(start / 4000)
        levels.append(20 * np.log10(rms(loud) / rms(added[:, start:])))
    assert 0 <= min(starts) < 0.02
    assert 0.48 < max(starts) <= 0.501
    assert abs(np.mean(starts) - 0.25) < 0.03
    assert -5.2 < min(levels) < -4.7
    assert 4.7 < max(levels) < 5.2
    assert abs(np.mean(levels)) < 0.6
    assert overlaid(first, second, 0).fields == {"id": "1", "text": "one"}  # said once, and no key of half of it


def test_silence_and_missing_captions_can_be_mixed():
    tone = torch.sin(torch.arange(1000) / 5)[None]
    short = Example(torch.zeros(1, 1000), 100, {"text": None})
    assert torch.equal(overlaid(short, Example(tone, 1000), 3).audio[:, :1], torch.zeros(1, 1))
    mix = overlaid(Example(tone, 1000, {"text": "a tone"}), short, 3)
    assert mix.fields == {"text": None}
    assert mix.num_samples == 1000
    assert torch.isfinite(mix.audio).all()
