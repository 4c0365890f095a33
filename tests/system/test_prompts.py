"""Prompts from files, what is made of them, and what is probably not meant."""

import json
import os
import warnings

import pytest
import soundfile
import torch

import partita
from command_line import run
from partita.conditioners.lookup import Lookup
from partita.system.batches import generate_each
from partita.system.prompts import Row, input_warnings, read_prompts
from toys import told


@pytest.fixture
def system(saved_toy):
    return partita.load(saved_toy)


@pytest.fixture
def command(monkeypatch, capfd):
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capfd=capfd)


def test_a_text_has_a_prompt_on_each_line(system, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufefftone 1\r\n\n  ton é 2 \n".encode())
    rows = read_prompts(path, system)
    assert [(row.inputs, row.seed, row.duration) for row in rows] == [
        ({"text": "tone 1"}, None, None),
        ({"text": "ton é 2"}, None, None),
    ]
    assert rows[1].where.endswith("prompts.txt line 3")


def test_every_mistake_in_a_file_is_said_with_its_line(system, tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [
        '{"text": "tone 1", "seed": 4, "duration": 0.5}',
        '{"txet": "tone 1"}',
        '{"text": "tone 1", "seed": 1.5}',
        '{"text": "tone 1", "duration": -1}',
        '{"text": "tone 1", "duration": NaN}',
        '{"text": "tone 1"',
        "[1]",
        '{"text": 7}',
        "[" * 3000,
        '{"text": "tone 2", "file": "clip-1.wav"}',
        '{"text": "tone 2", "seed": true}',
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n')
    with pytest.raises(partita.PartitaError) as caught:
        read_prompts(path, system)
    said = str(caught.value).splitlines()
    expected = {
        2: "nothing in this system reads 'txet': did you mean 'text'",
        3: "seed must be a whole number",
        4: "more than 0 seconds",
        5: "NaN is not a number",
        6: "not valid JSON",
        7: "not a JSON object; expected a line such as",
        8: "text: ",
        9: "not valid JSON",
        11: "seed must be a whole number",
        12: "not UTF-8",
    }
    assert said[0].startswith(f"{len(expected)} mistakes")
    assert len(said) == 1 + len(expected)
    for line, (number, word) in zip(said[1:], expected.items(), strict=True):
        assert f"{path} line {number}: " in line
        assert word in line
    path.write_text("\n".join(lines[:1] + lines[9:10]))
    assert [row.seed for row in read_prompts(path, system)] == [4, None]


@pytest.mark.parametrize(("name", "content"), [("none.txt", None), ("empty.txt", "\n \n"), ("folder", 0)])
def test_files_without_prompts_are_one_message(system, tmp_path, name, content):
    path = tmp_path / name
    if content == 0:
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(partita.PartitaError, match=name):
        read_prompts(path, system)


def test_rows_of_equal_duration_are_made_together_and_each_is_its_own(system, monkeypatch):
    sizes, fulfill = [], partita.System.fulfill

    def watched(self, request, **options):
        sizes.append((request.seconds, len(request.seeds)))
        return fulfill(self, request, **options)

    monkeypatch.setattr(partita.System, "fulfill", watched)
    durations = [0.5, 1.0, 0.5, None, 0.5, 0.5]
    rows = [Row({"text": f"tone {i}"} if i else {}, 40 + i, d) for i, d in enumerate(durations)]
    made = dict(generate_each(system, rows, duration=1.0, at_once=3))
    assert sizes == [(0.5, 3), (1.0, 2), (0.5, 1)]
    for i, row in enumerate(rows):
        alone = system.generate([row.inputs.get("text")], seed=row.seed, duration=row.duration or 1.0)
        torch.testing.assert_close(made[i], alone[0])
    sizes.clear()
    list(generate_each(system, [Row(duration=100.0)] * 3))
    assert sizes == [(100.0, 2), (100.0, 1)]


def test_clips_from_a_file_are_numbered_and_listed(command, saved_toy, tmp_path):
    path, output = tmp_path / "in.jsonl", tmp_path / "out" / "clip.wav"
    wanted = [
        {"text": "[/b] tone", "duration": 0.5},
        {"text": "tone 2", "seed": 9, "duration": 0.25},
        {"duration": 0.5},
    ]
    path.write_text("\n".join(map(json.dumps, wanted)))
    status, text = command("generate", saved_toy, "--prompts", path, "-o", output, "--seed", 5)
    assert status == 0, text
    assert "1 of 3 clips have no prompt" in text
    listed = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    assert listed == [
        {"file": "clip-1.wav", "text": "[/b] tone", "seed": 5, "duration": 0.5},
        {"file": "clip-2.wav", "text": "tone 2", "seed": 9, "duration": 0.25},
        {"file": "clip-3.wav", "seed": 7, "duration": 0.5},
    ]
    first = {row["file"]: soundfile.read(output.with_name(row["file"]))[0] for row in listed}
    assert [len(sound) for sound in first.values()] == [2000, 1000, 2000]
    again = tmp_path / "again.wav"
    status, text = command("generate", saved_toy, "--prompts", output.with_suffix(".jsonl"), "-o", again)
    assert status == 0, text
    for i, sound in enumerate(first.values()):
        assert (soundfile.read(tmp_path / f"again-{i + 1}.wav")[0] == sound).all()


def test_clips_whose_name_is_no_utf8_are_listed_too(command, saved_toy, tmp_path):
    path, output = tmp_path / "in.txt", tmp_path / os.fsdecode(b"clip\xff.wav")
    path.write_text("tone 1\ntone 2\n")
    status, text = command("generate", saved_toy, "--prompts", path, "-o", output, "-d", 0.5)
    assert status == 0, text
    listed = [json.loads(line)["file"] for line in output.with_suffix(".jsonl").read_bytes().splitlines()]
    assert [os.fsencode(name) for name in listed] == [b"clip\xff-1.wav", b"clip\xff-2.wav"]
    assert all((tmp_path / name).is_file() for name in listed)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["tone 1", "--prompts", "in.jsonl"], "remove the other prompts"),
        (["--prompts", "in.jsonl", "-o", "in.wav"], "would overwrite"),
        (["tone 1", "--continue-last", "3"], "require --continue FILE"),
        (["tone 1", "--continue", "in.wav", "--continue-last", "3", "--continue-from", "1"], "not both"),
        (["tone 1", "-s", "temperature=["], "is not a YAML value"),
        (["tone 1", "-s", "temperature=!!python/object:os.system {}"], "is not a YAML value"),
        (["tone 1", "-s", "temperature=" + "9" * 9000], "is not a YAML value"),
    ],
)
def test_options_that_contradict_each_other_are_one_message(command, saved_toy, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"text": "tone 1"}\n')
    status, text = command("generate", saved_toy, *arguments)
    assert (status, word in text) == (2, True), text
    assert not list(tmp_path.glob("*.wav"))


def test_what_is_probably_not_meant_is_said(command, saved_toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("tone 1\n")
    for arguments, warned in (
        (["tone 1"], ""),
        (["prompts.txt"], "is the name of a file"),
        ([], "there is no prompt, but this system reads text"),
        (["x" * 300], ""),
    ):
        status, text = command("generate", saved_toy, *arguments, "-d", 0.1)
        assert status == 0, text
        assert ("warning: " in text) == bool(warned)
        assert warned in " ".join(text.split())


def test_a_continuation_from_the_command_line(command, saved_toy, tmp_path):
    song, output = tmp_path / "song.wav", tmp_path / "out.wav"
    sound = torch.sin(torch.arange(8000) / 7).numpy() * 0.5
    soundfile.write(song, sound, 4000, subtype="PCM_16")
    for part, begin, length in ((["--continue-last", 0.75], 5000, 3000), (["--continue-from", 1.5], 6000, 2000)):
        status, text = command("generate", saved_toy, "tone 1", "--continue", song, *part, "-d", 2, "-o", output)
        assert status == 0, text
        made = soundfile.read(output)[0]
        assert len(made) == 8000
        assert abs(made)[length:].max() <= 1
        assert abs(made[: length - 400] - sound[begin : begin + length - 400]).max() < 2**-14
    arguments = ["--continue", song, "--continue-from", 0.5, "--continue-for", 0.75, "--no-splice", "-d", 2]
    status, text = command("generate", saved_toy, "tone 1", *arguments, "-o", output)
    assert status == 0, text
    assert abs(soundfile.read(output)[0][:2600] - sound[2000:4600]).max() > 0.01
    assert command("generate", saved_toy, "tone 1", "--continue", song, "-d", 2)[0] == 2


def test_lookup_tells_words_that_it_was_trained_with(tmp_path):
    part = Lookup(dim=4)
    assert part.knows("anything")  # nothing is known of its training
    part.train()
    part(part.prepare(told(["Slow flute", None, ""])))
    part.eval()
    part(part.prepare(told(["organ"])))
    part.save(tmp_path / "part")
    found = Lookup.load(tmp_path / "part")
    assert [found.knows(text) for text in ("flute!", "an ORGAN with a flute", "organ", "", "xylophone jazz", 3)] == [
        True,
        True,
        False,
        True,
        False,
        True,
    ]


def test_prompts_of_unknown_words_are_warned_about(system):
    part = Lookup(dim=4)
    part.train()
    part(part.prepare(told(["slow flute"])))
    system.conditioners["text"].knows = part.knows
    with pytest.warns(UserWarning, match=r"saw no word of 'jazz' and of 1 more in training"):
        system.generate(["jazz", "rock", "flute"], duration=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system.generate(["slow jazz"], duration=0.1)
    assert input_warnings(system, {}) == []
