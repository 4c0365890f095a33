"""The corpus: exact notes, beats and tempo, estimated keys and chords, exact repetition."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from partita.core.harmony import PITCH_CLASSES
from partita.core.schema import build
from partita.data.arrangement import INSTRUMENTS, Arrangements
from partita.data.corpus import Corpus
from partita.data.soundfont import SoundFont
from partita.data.synthesizer import Synthesizer

RATE = 16000


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def corpus(cache):
    source = Corpus(limit=6, stems=True, cache_dir=cache, arrangements=Arrangements(mixed=0.5))
    source.setup()
    return source


def read(source, index=0, seed=0, seconds=2.0, split="train", sample_rate=RATE, channels=1):
    return source.read(split, index, seed=seed, seconds=seconds, sample_rate=sample_rate, channels=channels)


@pytest.mark.parametrize("seed", range(6))
def test_an_example_is_what_the_contract_says(corpus, seed):
    example = read(corpus, seed % 4, seed, seconds=3.0)
    assert example.audio.shape == (1, 3 * RATE)
    assert example.audio.dtype == torch.float32
    assert example.audio.abs().max() <= 0.9501
    assert example.num_samples == 3 * RATE
    fields = example.fields
    assert set(fields) == corpus.fields
    assert 50 <= fields["tempo"] <= 140
    assert all(name in fields["text"] for name in fields["instruments"])
    for start, end, _ in fields["chords"] + fields["melody"]:
        assert 0 <= start < end <= 3.0
    for first, then in zip(fields["chords"], fields["chords"][1:], strict=False):
        assert first[1] == pytest.approx(then[0])
    for name in ("beats", "downbeats"):
        assert all(0 <= time < 3.0 for time in fields[name])
    assert np.allclose(np.diff(fields["beats"]), 60 / fields["tempo"])
    assert all(np.abs(fields["beats"] - time).min() < 1e-9 for time in fields["downbeats"])


def test_stems_sum_to_the_mix(corpus):
    found = [read(corpus, 0, seed, channels=2) for seed in range(8)]
    assert any(len(example.fields["stems"]) > 1 for example in found)
    for example in found:
        stems = example.fields["stems"]
        assert set(stems) == set(example.fields["instruments"])
        assert torch.allclose(sum(stems.values()), example.audio, atol=1e-6)
        assert all(stem.shape == example.audio.shape for stem in stems.values())


def test_stems_only_when_asked_for(cache):
    source = Corpus(limit=6, cache_dir=cache)
    assert "stems" not in source.fields
    assert "stems" not in read(source).fields


def test_the_same_in_another_process(corpus, cache):
    """Bit for bit, whatever was rendered before."""
    program = f"""
import hashlib
from partita.data.arrangement import Arrangements
from partita.data.corpus import Corpus
source = Corpus(limit=6, stems=True, cache_dir={cache!r}, arrangements=Arrangements(mixed=0.5))
example = source.read("train", 1, seed=7, seconds=2.0, sample_rate={RATE}, channels=1)
print(hashlib.sha256(example.audio.numpy().tobytes()).hexdigest(), example.fields["text"], sep="|")
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    example = read(corpus, 1, 7)
    assert output.strip().split("|") == [
        hashlib.sha256(example.audio.numpy().tobytes()).hexdigest(),
        example.fields["text"],
    ]
    assert torch.equal(read(pickle.loads(pickle.dumps(corpus)), 1, 7).audio, example.audio)


def test_other_seeds_give_other_clips(corpus):
    clips = [read(corpus, 0, seed) for seed in range(6)]
    assert len({clip.fields["seconds_start"] for clip in clips}) == 6
    assert len({clip.fields["tempo"] for clip in clips}) > 4
    assert len({tuple(clip.fields["instruments"]) for clip in clips}) > 2


def test_the_arrangement_does_not_depend_on_rate_and_length(corpus):
    one, other = read(corpus, 2, 5), read(corpus, 2, 5, seconds=4.0, sample_rate=24000, channels=2)
    for name in ("instruments", "tempo", "seconds_total"):
        assert one.fields[name] == other.fields[name]
    other = read(corpus, 2, 5, sample_rate=24000, channels=2)
    for name in ("text", "instruments", "key", "tempo", "seconds_total"):
        assert one.fields[name] == other.fields[name]


def test_the_key_is_that_of_the_clip(cache):
    """A piece in C major with a middle in A flat minor; the caption tells the key of what is heard."""
    source = Corpus(limit=6, cache_dir=cache, arrangements=Arrangements(transposition=(0, 0), tempo=(60.0, 60.0)))
    source.setup()
    piece = source._pieces[source._splits["train"][0]]
    scales = [(60, 64, 67, 65, 69, 71, 62, 67)] * 8 + [(68, 71, 75, 73, 76, 79, 70, 75)] * 4 + [(60, 64, 67, 62, 60)]
    piece.pitch = np.array([pitch for scale in scales for pitch in scale])
    piece.onset, piece.part = np.arange(float(len(piece.pitch))), np.zeros(len(piece.pitch), np.int64)
    piece.duration, piece.beat_length = np.ones(len(piece.pitch)), 1.0
    piece.key, piece.melody, piece.melody_part = (0, 0), [], 0
    keys = {}
    for seed in range(40):
        fields = read(source, 0, seed, seconds=8.0, sample_rate=4000).fields
        start = fields["seconds_start"]
        where = "C major" if start < 56 else "Ab minor" if 64 <= start <= 88 else None
        if where:
            keys.setdefault(where, set()).add(fields["key"])
            other = "minor" if where == "C major" else "major"
            assert other not in fields["text"]
    assert keys == {"C major": {"C major"}, "Ab minor": {"Ab minor"}}
    assert read(source, 0, 1, seconds=None, sample_rate=4000).fields["key"] == "C major"


@pytest.mark.parametrize(
    ("instruments", "ranges"),
    [
        (("oboe",), {68: (58, 93)}),  # B flat 3 to A 6
        (("flute", "trumpet"), {73: (59, 96), 56: (54, 86)}),
    ],
)
def test_instruments_play_only_what_they_have(cache, monkeypatch, instruments, ranges):
    """Nothing that is too high or low for the real instrument, or has no sample; the melody is labeled as played."""
    played = []

    def render(self, notes, program, num_samples):
        played.extend((program, note) for note in notes)
        return np.zeros((self.channels, num_samples), np.float32)

    monkeypatch.setattr(Synthesizer, "render", render)
    source, font = (
        Corpus(limit=6, cache_dir=cache, arrangements=Arrangements(instruments=instruments, mixed=0.5)),
        SoundFont(),
    )
    for seed in range(12):
        played.clear()
        fields = read(source, seed % 4, seed, seconds=None).fields
        for program, note in played:
            assert ranges[program][0] <= note.pitch <= ranges[program][1]
            assert any(zone.keys[0] <= note.pitch <= zone.keys[1] for zone in font.zones(program))
        heard = {(round(note.onset, 4), note.pitch) for _, note in played}
        assert {(round(start, 4), pitch) for start, _, pitch in fields["melody"]} <= heard


def test_every_key_in_the_range_of_an_instrument_has_a_sample():
    font = SoundFont()
    for instrument in INSTRUMENTS.values():
        covered = {key for zone in font.zones(instrument.program) for key in range(zone.keys[0], zone.keys[1] + 1)}
        assert set(range(instrument.lowest, instrument.highest + 1)) <= covered


def test_a_piece_shorter_than_the_clip_is_padded(corpus):
    whole = read(corpus, 0, 1, seconds=None)
    assert whole.audio.shape[1] == whole.num_samples
    assert whole.num_samples / RATE == pytest.approx(whole.fields["seconds_total"], abs=1e-3)
    padded = read(corpus, 0, 1, seconds=300.0)
    assert padded.audio.shape == (1, 300 * RATE)
    assert padded.num_samples == whole.num_samples
    assert torch.equal(padded.audio[:, : whole.num_samples], whole.audio)
    assert not padded.audio[:, whole.num_samples :].any()
    assert padded.fields["seconds_start"] == 0


def test_a_clip_is_what_the_whole_piece_has_there(corpus):
    whole, clip = read(corpus, 0, 3, seconds=None), read(corpus, 0, 3)
    start = round(clip.fields["seconds_start"] * RATE)
    there = whole.audio[:, start : start + 2 * RATE]
    assert torch.allclose(clip.audio / clip.audio.norm(), there / there.norm(), atol=1e-4)


def test_the_melody_is_heard_where_the_label_says(cache):
    """One flute alone on a tune: its strongest low partial is the labeled pitch."""
    source = Corpus(
        limit=6, cache_dir=cache, arrangements=Arrangements(instruments=("recorder",), mixed=0.0, tempo=(50.0, 60.0))
    )
    source.setup()
    piece = source._pieces[source._splits["train"][0]]
    only = piece.part == piece.melody_part
    for name in ("onset", "duration", "pitch", "part"):
        setattr(piece, name, getattr(piece, name)[only])
    example = read(source, 0, 2, seconds=None)
    held = [note for note in example.fields["melody"] if note[1] - note[0] > 0.8][:6]
    assert held
    for start, end, pitch in held:
        sound = example.audio[0, round((start + 0.2) * RATE) : round((end - 0.05) * RATE)].numpy()
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 17))
        frequency = np.fft.rfftfreq(1 << 17, 1 / RATE)[spectrum.argmax()]
        above = 12 * np.log2(frequency / 440) + 69 - pitch
        assert min(abs(above), abs(above - 12), abs(above - 19)) < 0.5


def test_the_key_agrees_with_what_sounds(corpus):
    """The chroma of the audio fits the labeled key's scale better than that of the key a tritone away."""
    for seed in range(4):
        example = read(corpus, seed, seed, seconds=None)
        tonic, mode = example.fields["key"].split()
        scale = [0, 2, 4, 5, 7, 9, 11] if mode == "major" else [0, 2, 3, 5, 7, 8, 10]
        spectrum = np.abs(np.fft.rfft(example.audio[0].numpy())) ** 2
        frequencies = np.fft.rfftfreq(example.num_samples, 1 / RATE)
        heard = (frequencies > 80) & (frequencies < 1000)
        classes = np.round(12 * np.log2(frequencies[heard] / 440) + 69).astype(int) % 12
        chroma = np.bincount(classes, weights=spectrum[heard], minlength=12)
        fit = [chroma[[(PITCH_CLASSES.index(tonic) + shift + s) % 12 for s in scale]].sum() for shift in (0, 6)]
        assert fit[0] > 1.5 * fit[1]


def test_transposition_moves_key_chords_and_melody(cache):
    plain, higher = (
        read(
            Corpus(
                limit=6,
                cache_dir=cache,
                arrangements=Arrangements(transposition=(by, by), mixed=0.0, instruments=("piano",)),
            ),
            1,
            4,
        ).fields
        for by in (0, 3)
    )

    def moved(name):
        return PITCH_CLASSES[(PITCH_CLASSES.index(name) + 3) % 12]

    assert higher["key"].split()[0] == moved(plain["key"].split()[0])
    assert [pitch for *_, pitch in higher["melody"]] == [pitch + 3 for *_, pitch in plain["melody"]]
    for one, other in zip(plain["chords"], higher["chords"], strict=True):
        root, _, quality = one[2].partition(":")
        assert other == (*one[:2], "N" if root == "N" else f"{moved(root)}:{quality}")


def test_instruments_and_mixed_are_obeyed(cache):
    source = Corpus(limit=6, cache_dir=cache, arrangements=Arrangements(instruments=("flute", "cello"), mixed=1.0))
    assert {tuple(sorted(read(source, i, i, 0.5).fields["instruments"])) for i in range(4)} == {("cello", "flute")}
    alone = Corpus(limit=6, cache_dir=cache, arrangements=Arrangements(instruments=("church organ",), mixed=0.0))
    assert read(alone, 0, 1, 0.5).fields["instruments"] == ["church organ"]


def test_splits_do_not_share_pieces(corpus):
    sizes = [corpus.size(split) for split in ("train", "validation", "test")]
    assert sum(sizes) == 6
    assert min(sizes) >= 1
    ids = [
        {read(corpus, i, 0, 0.2, split).fields["id"] for i in range(corpus.size(split))}
        for split in ("train", "validation", "test")
    ]
    assert len(set.union(*ids)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"collections": ("back",)}, "did you mean 'bach'"),
        ({"collections": ()}, "collections is empty"),
        ({"arrangements": {"instruments": ["orgel"]}}, "no instrument is called 'orgel'"),
        ({"arrangements": {"instruments": []}}, "instruments is empty"),
        ({"arrangements": {"mixed": 2.0}}, "probability"),
        ({"arrangements": {"tempo": [120.0, 60.0]}}, "range of beats per minute"),
        ({"arrangements": {"transposition": [3, -3]}}, "must be a range within"),
        ({"validation": 0.6, "test": 0.5}, "fractions"),
        ({"limit": 0}, "at least 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(Corpus, arguments)


def place_in(whole, clip):
    """Where a clip is in a whole recording, in samples, and the correlation of the two there."""
    size = len(whole) + len(clip)
    product = torch.fft.irfft(torch.fft.rfft(whole, size) * torch.fft.rfft(clip, size).conj(), size)
    at = int(product[: len(whole) - len(clip) + 1].argmax())
    found = whole[at : at + len(clip)]
    return at, float((found @ clip) / (found.norm() * clip.norm()))


def test_another_excerpt_is_of_the_same_performance(corpus):
    """So that it shows the style of the clip, and elsewhere in the piece, so that it does not show its notes."""
    for index in range(3):
        clip = {"seconds": 4.0, "sample_rate": 8000, "channels": 1, "seed": index + 5}
        whole = corpus.read("train", index, **(clip | {"seconds": None})).audio[0]
        own, beside = corpus.read("train", index, **clip).audio[0], corpus.read_beside("train", index, **clip)[0]
        (start, likeness), (other, other_likeness) = place_in(whole, own), place_in(whole, beside)
        assert min(likeness, other_likeness) > 0.95
        assert abs(start - other) >= 32000 - 1
        assert torch.equal(beside, corpus.read_beside("train", index, **clip)[0])
