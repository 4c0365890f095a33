"""Fields: read from what people write, cut to clips, joined over stories, and refused by name."""

import json

import numpy as np
import pytest
import soundfile
import torch

import partita
from partita.core.contracts import Clip
from partita.core.registry import names
from partita.data.annotations import closest_field, parse_row
from partita.data.clips import clip_for, tokenizer_audio
from partita.data.corpus import Corpus
from partita.data.examples import Collate, Examples
from partita.data.fields.base import Segment, crop_fields, field, parse_value
from partita.data.folder import Folder

AS_WRITTEN = {
    "text": ("a  slow\nwaltz", "a slow waltz"),
    "lyrics": ("la  la\n la", "la la\nla"),
    "key": ("G minor", "G minor"),
    "tune": ("Greensleeves", "Greensleeves"),
    "instruments": ("organ; harp", ["organ", "harp"]),
    "tempo": ("90", 90.0),
    "beats": ("[0.5, 1]", [0.5, 1.0]),
    "downbeats": ("[0.5]", [0.5]),
    "chords": ('[[0, 1.5, "C:maj7/3"], [1.5, 2, "N"]]', [(0.0, 1.5, "C:maj7/3"), (1.5, 2.0, "N")]),
    "melody": ("[[0, 1, 60]]", [(0.0, 1.0, 60)]),
    "seconds_start": ("3", 3.0),
    "seconds_total": ("200", 200.0),
    "stems": ('{"drums": "d.wav"}', None),
    "audio": ("a.wav", None),
    "excerpt": ("b.wav", None),
    "cover": ("c.wav", None),
    "style_streams": ("3", 3),
}


def test_every_field_reads_what_people_write_and_what_it_read_itself():
    known = {name for name in names("field") if name not in ("color", "energy")}  # of other tests
    assert known == set(AS_WRITTEN)
    for name, (text, value) in AS_WRITTEN.items():
        read = parse_value(name, text)
        assert value is None or read == value, name
        assert parse_value(name, read) == read, name
        assert parse_value(name, None) is None
        assert isinstance(field(name).expected, str)


def test_values_in_time_are_ordered_and_pitches_rounded():
    assert parse_value("beats", [1, 0.5]) == [0.5, 1.0]
    assert parse_value("chords", [[1, 2, "G"], [0, 1, "C"]]) == [(0, 1, "C"), (1, 2, "G")]
    assert parse_value("melody", [[1, 2, 59.999999], [0, 1, "60.4"]]) == [(0, 1, 60), (1, 2, 60)]


def test_times_and_chords_are_put_in_order():
    """mir_eval, which compares them with audio, refuses others."""
    assert parse_value("beats", [1.0, 0.0, 0.5]) == [0.0, 0.5, 1.0]
    chords = [(0.0, 1.0, "C:maj"), (1.0, 2.0, "G:7"), (2.5, 3.0, "N")]
    assert parse_value("chords", [(2.5, 3.0, "N"), (0.0, 1.001, "C:maj"), (1.0, 2.0, "G:7")]) == chords


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 7),
        ("tempo", "fast"),
        ("tempo", True),
        ("tempo", -90),
        ("tempo", float("nan")),
        ("beats", "[1, 2"),
        ("beats", 3),
        ("chords", '[[0, 1, "H:maj"]]'),
        ("chords", '[[1, 0, "C:maj"]]'),
        ("chords", '[[0, 2, "C:maj"], [1, 3, "G:7"]]'),
        ("chords", '[[0, 4, "C:maj"], [1, 2, "G:7"]]'),
        ("chords", '[[0, 4, "C:maj"], [0, 4, "C:maj"]]'),
        ("chords", '[[0, "C:maj"]]'),
        ("chords", "[" * 5000),
        ("melody", '[[0, 1, "high"]]'),
        ("melody", [[0, 1, 128]]),
        ("melody", [[0, 1, True]]),
        ("seconds_total", 0),
        ("stems", "d.wav"),
        ("audio", 3),
        ("audio", " "),
    ],
)
def test_what_is_no_such_value_is_refused_with_what_is_expected(name, value):
    with pytest.raises(ValueError, match=f"cannot be .*; expected {field(name).expected[:10]}"):
        parse_value(name, value)


def test_fields_in_time_are_cut_and_joined_by_seconds_alone():
    piece = {
        "beats": [0.0, 0.5, 1.0, 1.5],
        "chords": [(0.0, 1.2, "C:maj"), (1.2, 2.0, "G:maj")],
        "seconds_start": 10.0,
        "seconds_total": 60.0,
        "text": "waltz",
        "id": "of no field",
        "tempo": None,
    }
    clip = crop_fields(piece, 1.0, 0.6)
    assert clip.pop("beats").tolist() == [0.0, 0.5]
    assert [(round(a, 9), round(b, 9), c) for a, b, c in clip.pop("chords")] == [(0, 0.2, "C:maj"), (0.2, 0.6, "G:maj")]
    assert clip == {"seconds_start": 11.0, "seconds_total": 60.0, "text": "waltz", "id": "of no field", "tempo": None}
    # what a segment says of the time after its end does not count, and a segment may say nothing
    story = [Segment(0, 2, [(0, 9, "C:maj")]), Segment(2, 3, None), Segment(3, 5, [(0.5, 1, "A:min")])]
    assert field("chords").join(story) == [(0, 2, "C:maj"), (3.5, 4, "A:min")]
    assert field("beats").join([Segment(0, 1, [0.0, 1.0]), Segment(1, 3, [0.25])]).tolist() == [0.0, 1.25]
    assert field("beats").join([Segment(0, 1, None)]) is None


@pytest.fixture
def songs(tmp_path):
    for name, level in (("a", 0.1), ("b", 0.2), ("drums", 0.3)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(32000, level) * np.linspace(0, 1, 32000), 8000)
    return tmp_path


def test_a_manifest_carries_any_field(songs):
    row = {"file": "a.wav", "caption": "a waltz", "seconds_start": 30, "seconds_total": 99, "excerpt": "b.wav"}
    row |= {name: json.loads(text) for name, (text, _) in AS_WRITTEN.items() if name in ("beats", "chords", "melody")}
    row |= {"lyrics": "la\nla", "stems": {"drums": "drums.wav"}, "mood": "of no field", "tempo": None}
    (songs / "list.jsonl").write_text(json.dumps(row))
    source = Folder(str(songs), "list.jsonl")
    source.setup()
    expected = {"text", "seconds_start", "seconds_total", "excerpt", "beats", "chords", "melody", "lyrics", "stems"}
    assert source.fields == expected | {"id"}
    example = source.read("train", 0, seed=3, seconds=1.0, sample_rate=4000, channels=1)
    start = example.fields["seconds_start"] - 30
    assert 0 < start <= 3
    assert (example.fields["seconds_total"], example.fields["lyrics"]) == (99, "la\nla")

    class Hears:
        inputs, sample_rate, channels = ("stems", "excerpt", "audio"), 8000, 2

    clip = clip_for(Hears, Clip(example.fields, 1.0, example.audio, 4000))
    assert clip.audio.shape == clip.fields["stems"]["drums"].shape == (2, 8000)
    torch.testing.assert_close(
        clip.fields["stems"]["drums"][:, 100:-100], 3 * clip.audio[:, 100:-100], atol=3e-3, rtol=0
    )
    assert clip.fields["excerpt"].shape == (2, 32000)
    unheard = clip_for(type("", (), {"inputs": ("text",), "sample_rate": None}), Clip({}, 1.0, example.audio, 4000))
    assert unheard.audio is None


def test_a_cover_of_a_manifest_is_its_whole_file(songs):
    soundfile.write(songs / "hum.wav", np.full(24000, 0.25), 8000)
    (songs / "list.csv").write_text("file,cover\na.wav,hum.wav\n")
    source = Folder(str(songs), "list.csv")
    source.setup()
    example = source.read("train", 0, seed=3, seconds=1.0, sample_rate=4000, channels=1)

    class Hears:
        inputs, sample_rate, channels = ("audio", "cover"), 8000, 1

    clip = clip_for(Hears, Clip(example.fields, 1.0, example.audio, 4000))
    assert clip.fields["cover"].shape == (1, 24000)
    torch.testing.assert_close(clip.fields["cover"], torch.full((1, 24000), 0.25), atol=1e-3, rtol=0)


def test_stems_that_end_before_a_clip_are_silent(songs):
    soundfile.write(songs / "short.wav", np.full(8000, 0.5), 8000)
    (songs / "list.jsonl").write_text('{"file": "a.wav", "stems": {"drums": "drums.wav", "short": "short.wav"}}')
    source = Folder(str(songs), "list.jsonl")
    source.setup()
    for seed in range(20):
        example = source.read("train", 0, seed=seed, seconds=1.0, sample_rate=8000, channels=1)
        start = example.fields["seconds_start"]
        short = tokenizer_audio(example, "stems.short", 8000)
        assert short.shape == (1, 8000)
        sounding = max(0, 8000 - round(start * 8000))
        assert not short[:, sounding:].any()
        torch.testing.assert_close(short[:, :sounding], torch.full((1, sounding), 0.5), atol=1e-3, rtol=0)
        torch.testing.assert_close(tokenizer_audio(example, "stems.drums", 8000), 3 * example.audio, atol=1e-3, rtol=0)


def test_misspelt_fields_are_errors_that_say_what_was_meant(songs):
    assert {
        name: closest_field(name) for name in ("txet", "chord", "kye", "Text", "artist", "text_en", "title", "split")
    } == {
        **{"txet": "text", "chord": "chords", "kye": "key", "Text": "text"},
        **dict.fromkeys(["artist", "text_en", "title", "split"]),
    }
    (songs / "list.csv").write_text("file,text,tepmo\na.wav,a waltz,90\n")
    with pytest.raises(partita.PartitaError, match=r"list.csv: there is no field 'tepmo': did you mean 'tempo'\?"):
        Folder(str(songs), "list.csv").setup()
    (songs / "list.jsonl").write_text('{"file": "a.wav", "lyric": "la"}\n{"file": "b.wav", "lyrics": "la"}')
    source = Folder(str(songs), "list.jsonl")
    with pytest.warns(UserWarning, match="1 skipped"):
        source.setup()
    assert source.report == ["list.jsonl line 1 (a.wav): there is no field 'lyric': did you mean 'lyrics'?"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chords": [[0, 1, "huge"]]}, "chords cannot be .*huge.*; expected rows of start, end and chord"),
        ({"excerpt": "gone.wav"}, "excerpt: .*gone.wav: there is no such file"),
        ({"cover": "gone.wav"}, "cover: .*gone.wav: there is no such file"),
        ({"stems": {"drums": "list.jsonl"}}, "stems.drums: .*list.jsonl: cannot be read as audio"),
        ({"tempo": [1]}, r"tempo cannot be \[1\]; expected beats per minute"),
        ({"caption": "a", "text": "b"}, "the row has two values for text"),
    ],
)
def test_every_mistake_names_file_row_and_field(songs, row, words):
    (songs / "list.jsonl").write_text(json.dumps({"file": "a.wav"} | row) + '\n{"file": "b.wav"}')
    source = Folder(str(songs), "list.jsonl")
    with pytest.warns(UserWarning, match=rf"list.jsonl line 1 \(a.wav\): {words}"):
        source.setup()
    assert source.size("train") == 1


def test_keys_of_a_row_keep_their_types():
    assert parse_row({"tempo": "90", "split": "dev", "mood": 3}) == ({"tempo": 90.0}, "validation")


def test_unknown_values_have_a_stand_in_where_one_is_true():
    class TimesField:
        inputs, sample_rate, channels = ("seconds_start", "seconds_total", "text"), None, 1

    assert clip_for(TimesField, Clip({}, 7.5)).fields == {"seconds_start": 0.0, "seconds_total": 7.5}


def test_a_second_excerpt_of_the_same_piece_is_there_for_who_reads_it():
    read = Examples(
        Corpus(limit=4, validation=0.0, test=0.0),
        "train",
        length=3,
        seconds=0.5,
        sample_rate=8000,
        channels=1,
        seed=1,
        excerpts=True,
    )
    for i in range(3):
        one, again = read[i], read[i]
        assert one.fields["excerpt"].shape == one.audio.shape
        assert torch.equal(one.fields["excerpt"], again.fields["excerpt"])
        assert not torch.equal(one.fields["excerpt"], one.audio)

    class Hears:
        inputs, sample_rate, channels = ("excerpt",), 4000, 1

        def prepare(self, clips):
            return {"heard": torch.stack([clip.fields["excerpt"] for clip in clips])}

    batch = Collate({"style": Hears()}, 8000)([read[0], read[1]])
    assert batch["prepared"]["style"]["heard"].shape == (2, 1, 2000)
