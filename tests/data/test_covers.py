"""Covers of the corpus: the same notes as the clip, in another tempo and key and on other instruments."""

from itertools import chain

import numpy as np
import pytest
import torch

from partita.data.arrangement import INSTRUMENTS, Arrangements, arrange, arrange_differently
from partita.data.corpus import Corpus
from partita.data.synthesizer import Synthesizer

RATE = 8000


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def read(cache, seed=0, seconds=4.0, covers=True, index=0, **options):
    source = Corpus(limit=6, covers=covers, cache_dir=cache, **options)
    return source.read("train", index, seed=seed, seconds=seconds, sample_rate=RATE, channels=1)


def played(monkeypatch, *arguments, **options):
    """An example, and the notes (program, onset, pitch) that are played for the clip and for its cover."""
    calls = []

    def render(self, notes, program, num_samples):
        calls.append([(program, note.onset, note.pitch) for note in notes])
        return np.zeros((self.channels, num_samples), np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(Synthesizer, "render", render)
        read(*arguments, covers=False, **options)
        number = len(calls)
        calls.clear()
        example = read(*arguments, **options)
    clip, cover = (sorted(chain(*part), key=lambda note: note[1]) for part in (calls[:number], calls[number:]))
    return example, clip, cover


@pytest.mark.parametrize("seed", range(4))
def test_a_cover_plays_the_notes_of_the_clip_transposed_and_stretched(cache, monkeypatch, seed):
    wide = Arrangements(instruments=("piano", "harp", "church organ"), mixed=0.0)
    example, clip, cover = played(monkeypatch, cache, seed, seconds=8.0, arrangements=wide, index=seed % 4)
    assert len(clip) > 10
    assert len({program for program, *_ in clip}) == len({program for program, *_ in cover}) == 1
    assert clip[0][0] != cover[0][0]
    # The first and the last note that both play give tempo and key, which all others must share. Before the clip,
    # notes may still ring in one of the two only, because the time of their release does not depend on the tempo.
    clip = [note for note in clip if note[1] >= 0]
    cover = [note for note in cover if note[1] >= -1e-9]
    assert len(clip) == len(cover)
    onsets, others = (np.array(sorted({round(onset, 9) for _, onset, _ in notes})) for notes in (clip, cover))
    ratio = (others[-1] - others[0]) / (onsets[-1] - onsets[0])
    assert abs(ratio - 1) > 1e-3
    np.testing.assert_allclose(others, onsets * ratio, atol=1e-6)
    length = example.fields["cover"].shape[1]
    assert abs(length - ratio * 8 * RATE) <= 1
    shifts = []
    for shift in range(12):
        expected = sorted((round(onset * ratio, 4), (pitch + shift) % 12) for _, onset, pitch in clip)
        found = sorted((round(onset, 4), pitch % 12) for _, onset, pitch in cover)
        if np.allclose(expected, found, atol=2e-4):
            shifts.append(shift)
    assert len(shifts) == 1
    assert shifts[0] != 0
    heard = [(onset, pitch % 12) for _, onset, pitch in cover]
    for start, _, pitch in example.fields["melody"]:
        if start > 0:
            assert any(
                abs(onset - start * ratio) < 1e-3 and sounding == (pitch + shifts[0]) % 12 for onset, sounding in heard
            )


def test_a_cover_is_heard_at_the_level_of_a_clip_and_repeats_exactly(cache):
    one, again = read(cache, 3), read(cache, 3)
    cover = one.fields["cover"]
    assert cover.dtype == torch.float32
    assert cover.shape[0] == 1
    assert torch.equal(cover, again.fields["cover"])
    assert 0.05 < cover.square().mean().sqrt() <= 10 ** (-16 / 20) * 1.001
    assert not torch.equal(cover, read(cache, 4).fields["cover"])


def test_covers_change_nothing_else(cache):
    plain, one = read(cache, 1, covers=False), read(cache, 1)
    assert "cover" not in plain.fields
    assert torch.equal(plain.audio, one.audio)
    assert plain.fields.keys() | {"cover"} == one.fields.keys()
    for name in ("text", "melody", "tempo", "key", "instruments"):
        assert plain.fields[name] == one.fields[name]
    assert "cover" in Corpus(covers=True).fields
    assert "cover" not in Corpus().fields


def test_a_cover_of_a_padded_clip_has_no_padding(cache):
    whole, padded = read(cache, 2, seconds=None), read(cache, 2, seconds=200.0)
    assert padded.num_samples < 200 * RATE
    assert abs(whole.fields["cover"].shape[1] - padded.fields["cover"].shape[1]) <= 2
    tail = padded.fields["cover"][:, -RATE:]
    assert tail.abs().max() > 0


def test_arrangements_differ_in_instruments_tempo_and_key(cache):
    source = Corpus(limit=6, cache_dir=cache)
    source.setup()
    piece = next(iter(source._pieces.values()))
    options = Arrangements(mixed=0.5)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        first = arrange(piece, rng, options)
        other = arrange_differently(piece, rng, options, first)
        assert not set(first.instruments) & set(other.instruments)
        assert first.tempo != other.tempo
        assert (first.transposition - other.transposition) % 12
        assert set(other.instruments) <= set(INSTRUMENTS)


def test_what_cannot_differ_stays_the_same(cache):
    source = Corpus(limit=6, cache_dir=cache)
    source.setup()
    piece = next(iter(source._pieces.values()))
    options = Arrangements(instruments=("harp",), tempo=(90.0, 90.0), transposition=(0, 1))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        first = arrange(piece, rng, options)
        other = arrange_differently(piece, rng, options, first)
        assert other.transposition == 1 - first.transposition
        assert (other.instruments, other.tempo) == (["harp"], 90.0)
