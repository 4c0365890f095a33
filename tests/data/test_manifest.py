"""Manifests of a folder: their rows, columns and paths, and the splits of what they list."""

import json
from pathlib import Path

import pytest
import soundfile

from folder_toys import quiet, read, report_of, tone
from partita.data.folder import Folder
from partita.errors import PartitaError

MANIFESTS = {
    "list.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows) + "{broken\n\n[1]\n",
    "list.csv": lambda rows: (
        "file,text,split,tempo,instruments\n"
        + "".join(f'{r.get("file", "")},"{r["text"]}",{r["split"]},{r.get("tempo", "")},"organ, harp"\n' for r in rows)
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(songs, name):
    rows = [
        {"file": "stereo0.ogg", "text": "one", "split": "train", "tempo": 100, "instruments": ["organ", "harp"]},
        {"file": "stereo0.ogg", "text": "one, again", "split": "train", "instruments": ["organ", "harp"]},
        {"file": str(songs / "stereo1.ogg"), "text": "two", "split": "val", "instruments": ["organ", "harp"]},
        {"file": "gone.wav", "text": "three", "split": "train"},
        {"file": "cut.ogg", "text": "four", "split": "train"},
        {"file": "sub/mono0.wav", "text": "five", "split": "train", "tempo": "quick"},
        {"file": "sub/mono1.wav", "text": "six", "split": "someday"},
        {"text": "seven", "split": "train"},
    ]
    (songs / name).write_text(MANIFESTS[name](rows))
    source = quiet(Folder(str(songs), manifest=name))
    assert [source.size(split) for split in ("train", "validation")] == [2, 1]
    first, second = read(source, 0), read(source, 1)
    assert (first.fields["text"], second.fields["text"]) == ("one", "one, again")
    assert first.fields["id"] != second.fields["id"]
    assert first.fields["tempo"] == 100
    assert first.fields["instruments"] == ["organ", "harp"]
    assert read(source, 0, split="validation").fields["text"] == "two"
    report = "\n".join(source.report)
    for expected in ("gone.wav: there is no such file", "cut.ogg: the file is truncated", "tempo cannot be 'quick'"):
        assert expected in report
    assert "split cannot be 'someday'" in report
    assert f"{name} line" in report
    assert ("not valid JSON" in report and "not a JSON object" in report) == (name == "list.jsonl")


def test_captions_of_one_file_stay_in_one_split(songs):
    rows = [{"file": f, "text": t} for f in ("stereo0.ogg", "stereo1.ogg", "sub/mono0.wav") for t in ("a", "b")]
    (songs / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = quiet(Folder(str(songs), manifest=str(songs / "list.jsonl")))
    for split in ("train", "validation", "test"):
        assert {read(source, i, split=split).fields["text"] for i in range(source.size(split))} == {"a", "b"}
        assert len({read(source, i, split=split).fields["id"].split("#")[0] for i in range(source.size(split))}) == 1


def test_a_file_is_in_one_split_whatever_its_rows_say(songs):
    """No test file is trained on because another row of it names no split, or another one."""
    rows = [
        {"file": "stereo0.ogg", "text": "one"},
        {"file": "stereo1.ogg", "text": "two"},
        {"file": "stereo0.ogg", "text": "three", "split": "test"},
        {"file": "sub/mono0.wav", "text": "four", "split": "validation"},
        {"file": "sub/mono0.wav", "text": "five", "split": "train"},
    ]
    (songs / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = quiet(Folder(str(songs), manifest="list.jsonl"))
    texts = {
        split: [read(source, i, split=split).fields["text"] for i in range(source.size(split))]
        for split in ("train", "validation", "test")
    }
    assert texts == {"train": ["two"], "validation": ["four"], "test": ["one", "three"]}
    assert "list.jsonl line 5 (sub/mono0.wav): an earlier row puts it into validation" in "\n".join(source.report)


def test_manifest_paths_lead_from_three_places(songs, tmp_path_factory, monkeypatch):
    elsewhere, here = tmp_path_factory.mktemp("lists"), tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    for name, folder in (("beside.wav", elsewhere), ("from here.wav", here)):
        soundfile.write(folder / name, tone(440, 1, 16000), 16000)
    files = ["sub/mono0.wav", "beside.wav", "from here.wav", str(songs / "stereo0.ogg"), "nowhere.wav"]
    (elsewhere / "list.csv").write_text("file,text\n" + "".join(f"{file},a\n" for file in files))
    report, used = report_of(songs, manifest=str(elsewhere / "list.csv"))
    assert used == {"sub/mono0.wav", "beside.wav", "from here.wav", "stereo0.ogg"}
    assert report.startswith("nowhere.wav: there is no such file: list.csv line 6, tried ")
    for folder in (elsewhere, songs, here):
        assert str(folder / "nowhere.wav") in report


def test_what_a_manifest_leaves_out_is_counted(songs):
    whole = quiet(Folder(str(songs))).summary.pieces
    (songs / "list.csv").write_text("file,text\nstereo0.ogg,one\nstereo0.ogg,one again\nsub/mono0.wav,two\n")
    source = quiet(Folder(str(songs), manifest="list.csv"))
    unreadable = len(quiet(Folder(str(songs))).report)
    assert str(source.summary).endswith(f"; {whole - 2 + unreadable} more in the folder are not used (not in list.csv)")
    rows = "".join(f"{path.relative_to(songs).as_posix()},a\n" for path in songs.rglob("*.*") if path.suffix != ".csv")
    (songs / "list.csv").write_text("file,text\n" + rows)
    assert "not used" not in str(quiet(Folder(str(songs), manifest="list.csv")).summary)


def test_a_link_in_a_circle_beside_a_manifest(songs):
    (songs / "round.wav").symlink_to("round.wav")
    (songs / "list.csv").write_text("file,text\nstereo0.ogg,one\n")
    assert "not used" in str(quiet(Folder(str(songs), manifest="list.csv")).summary)


def test_the_manifest_itself_is_looked_for_in_two_places(songs):
    ((argument, message),) = Folder(str(songs), manifest="lists/mine.csv").missing()
    assert argument == "manifest"
    assert str(songs / "lists" / "mine.csv") in message
    assert str(Path.cwd() / "lists" / "mine.csv") in message
    assert dict(Folder(str(songs / "none"), manifest="mine.csv").missing()).keys() == {"path", "manifest"}
    assert "is a file" in dict(Folder(str(songs / "empty.wav")).missing())["path"]
    assert not Folder(str(songs)).missing()
    (songs / "lists").mkdir()
    assert "no audio files" in dict(Folder(str(songs / "lists")).missing())["path"]


TABLES = {
    "spreadsheet": (b"\xef\xbb\xbfFile ; Caption\r\nstereo0.ogg;one, two\r\n\r\nstereo1.ogg;three\r\n", "", "one, two"),
    "utf-16": ("file,text\nstereo0.ogg,one\nstereo1.ogg,two\n".encode("utf-16"), "", "one"),
    "latin-1": (b"file,text\nstereo0.ogg,plain\nstereo1.ogg,caf\xe9\n", "text is not UTF-8", "plain"),
    "comma": (b"file,text\nstereo0.ogg,plain\nstereo1.ogg,slow, sad\n", "more cells than columns", "plain"),
    "nul": (b"file,text\nstereo0.ogg,plain\n\0.wav,x\n", "no such file", "plain"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_as_programs_write_them(songs, kind):
    content, said, text = TABLES[kind]
    (songs / "list.csv").write_bytes(content)
    report, used = report_of(songs, manifest="list.csv")
    assert said in report
    assert used == ({"stereo0.ogg"} if said else {"stereo0.ogg", "stereo1.ogg"})
    source = quiet(Folder(str(songs), manifest="list.csv"))
    assert text in [read(source, i).fields["text"] for i in range(source.size("train"))]


@pytest.mark.parametrize("head", ["file,text,Text", "file,caption,text", "file,file"])
def test_columns_that_say_the_same(songs, head):
    (songs / "list.csv").write_text(f"{head}\nstereo0.ogg,a,b\n")
    with pytest.raises(PartitaError, match=r"several columns are called (text|file)"):
        Folder(str(songs), manifest="list.csv").setup()
