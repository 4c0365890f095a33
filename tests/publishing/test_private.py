"""Nothing that is published tells of the machine it is from, nor of who uses it."""

import base64
import html
import json
import re
import shutil
import socket
import struct
from urllib.parse import quote, unquote

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

import partita
from command_line import run as run_cli
from partita.publishing.card import collect
from partita.publishing.private import Owner
from partita.publishing.push import push, write_out

USER = "zanzibar-user"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a peculiar name, and its user."""
    folder = tmp_path / "home" / USER
    folder.mkdir(parents=True)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setattr(socket, "gethostname", lambda: "kilimanjaro.example.org")
    return folder


def told(home):
    """A path in the notations in which texts may name it."""
    path = f"{home}/My Music/secret song.wav"
    return [
        path,
        f"'{home}/takes/a.wav'",
        f"file://{home}/takes/a.wav",
        f"file://{quote(path)}",
        quote(path, safe=""),
        quote(path, safe="").lower(),
        quote(quote(path, safe=""), safe=""),
        json.dumps(path).replace("/", "\\/"),
        json.dumps(path).replace("/", "\\u002f"),
        html.escape(path).replace("/", "&#x2F;"),
        html.escape(path).replace("/", "&#47;"),
        str(home).replace("/", "\\"),
        str(home).replace("/", "\\\\"),
        f"C:\\Users\\{USER}\\Music\\a.wav",
        f"C:\\\\Users\\\\{USER}\\\\Music\\\\a.wav",
        f"C:/Users/{USER}",
        f"/Users/{USER}",
        "/".join(["", "root", USER, "x"]),
        f"~{USER}/takes",
        f"made by {USER} on kilimanjaro",
        f"({home})",
        f"{home}.",
        f"PYTHONPATH={home}:/usr/lib",
    ]


def readings(content):
    """Bytes, and what they read as in addresses, pages, JSON, data URIs and wide letters, after each other."""
    texts = [content.decode("utf-8", "replace"), content.decode("utf-16-le", "replace")]
    for encoded in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content):
        texts.append(base64.b64decode(encoded).decode("utf-8", "replace"))
    for _ in range(2):
        texts += [read(text) for text in texts for read in (unquote, html.unescape, unescaped)]
    return texts


def unescaped(text):
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    return text.replace("\\/", "/").replace("\\\\", "\\")


@pytest.fixture
def run(home, saved_toy):
    """A run in that home, whose data lies there too, and whose texts name it in every way."""
    music = home / "My Music"
    music.mkdir()
    noise = np.random.default_rng(0)
    for i in range(40):
        soundfile.write(music / f"{i}.wav", 0.1 * noise.standard_normal(16000), 8000)
        (music / f"{i}.txt").write_text(f"tone {i} of {music}/{i}.wav, played by {USER}")
    folder = home / "projects" / "mine"
    shutil.copytree(saved_toy, folder)
    (folder / "logs").mkdir()
    index = yaml.safe_load((folder / "recipe.yaml").read_text())
    index["description"] = f"Tones of {music} and ~/takes, see file://{home}/notes.md, by {USER}"
    index["data"] = {"name": "folder", "path": str(music), "validation": 0.2, "test": 0.4}
    index["tokenizers"]["acoustic"] |= {"weights": "../../secret/codec.safetensors", "fit": {}}
    index["stages"]["main"]["generator"] |= {"weights": f"{home}/weights", "fit": {}}
    (folder / "recipe.yaml").write_text(f"# of {home}\n{yaml.safe_dump(index)}")
    texts = told(home)
    (folder / "evaluation").mkdir()
    figures = {"frechet": {"value": 12.5, "embedding": f"{home}/vggish.pth"}, f"{home}/clips": 48}
    evaluation = {"metrics": figures, "notes": texts, "captions": {text: [text] for text in texts}}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
    script = f"<script>const data = {json.dumps(texts)};</script>"
    inner = base64.b64encode(f"<p>{music}</p>".encode()).decode()
    body = "".join(f'<p title="{html.escape(text)}">{text}</p><!-- {text} -->' for text in texts)
    page = f'<html>{script}{body}<img src="data:image/svg+xml;base64,{inner}"><b>C/G and/or 3/4</b></html>'
    (folder / "report.html").write_text(page)
    part = folder / "tokenizers" / "acoustic"
    (part / "notes.txt").write_text("\n".join(texts))
    (part / "table.csv").write_text("".join(f'1,"{text}"\n' for text in texts))
    (part / "more.yaml").write_text(yaml.safe_dump({"text": texts, "path": "takes/old/best"}))
    config = json.loads((part / "config.json").read_text())
    (part / "config.json").write_text(json.dumps(config | {"name_or_path": f"{home}/codec"}))
    return folder


def test_no_byte_of_what_is_pushed_tells_of_home_or_user_and_it_generates_the_same(hub, run, home, monkeypatch, capfd):
    status, text = run_cli("push", run, "alice/toy", "--report", monkeypatch=monkeypatch, capfd=capfd)
    assert status == 0, text
    files = hub.repositories["alice/toy"].commits[hub.repositories["alice/toy"].refs["main"]].files
    expected = {"README.md", "recipe.yaml", "evaluation.json", "report.html", "samples/1.flac", "samples/1.png"}
    assert expected <= files.keys()
    for name, content in files.items():
        for reading in readings(content):
            for secret in (USER, "kilimanjaro", str(home), str(home.parent), "/My Music", "../", "secret/"):
                assert secret not in reading, (name, secret, reading[max(0, reading.find(secret) - 99) :][:200])
    system = partita.load("alice/toy")
    mine = partita.load(run)
    clips = [s.generate(["tone 1", "tone 3"], duration=0.5, seed=7) for s in (system, mine)]
    assert torch.equal(*clips)
    values = system.plan.values
    assert values["data"]["path"] == "My Music"
    assert values["tokenizers"]["acoustic"]["weights"] == "codec.safetensors"
    assert values["stages"]["main"]["generator"]["weights"] == "weights"
    assert "C/G and/or 3/4" in files["report.html"].decode()
    assert json.loads(files["evaluation.json"])["metrics"]["frechet"]["value"] == 12.5


def test_a_dry_run_shows_the_same(run, home, tmp_path):
    write_out(collect(run, "alice/toy", report=True, examples=0), tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.*"):
        assert not any(USER in reading for reading in readings(path.read_bytes())), path


@pytest.mark.parametrize(
    ("written", "published"),
    [
        ("songs of /home/x/takes/a.wav", "songs of a.wav"),
        ("file:///mnt/disk/a.wav", "a.wav"),
        ("see C:\\Users\\x\\a.wav, D:/takes/b.wav", "see a.wav, b.wav"),
        ("\\\\server\\share\\a.wav", "a.wav"),
        ("~/takes/a.wav and ~x/b.wav", "a.wav and b.wav"),
        ("../../secret/data", "data"),
        ("/home/x", "home"),
        ("%2Fhome%2Fx%2Fa.wav", "a.wav"),
        *[(text, text) for text in (
            "a slow chorale in C/G, 3/4 or 6/8 and/or 120 bpm",
            "https://example.org/home/x/a.wav",
            "facebook/musicgen-small",
            "samples/1.flac",
            "user/name/tokenizers/acoustic",
            "</b><br/> 1 / 2 // 3",
            "~5 minutes, root position, at home",
            "data:audio/flac;base64,AA/home/BB/CC+/tmp/xx",
        )],
    ],
)  # fmt: skip
def test_paths_in_free_texts_lose_their_folders_and_other_texts_stay(written, published):
    assert Owner([]).text(written) == published


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ({"weights": "facebook/musicgen-small"}, {"weights": "facebook/musicgen-small"}),
        ({"weights": "runs/codec/tokenizers/acoustic"}, {"weights": "acoustic"}),
        ({"path": "secret/data"}, {"path": "data"}),
        ({"manifest": "./captions.csv"}, {"manifest": "captions.csv"}),
        ({"path": "/My Music/of mine"}, {"path": "of mine"}),
        ([{"name": "folder", "path": "~"}], [{"name": "folder", "path": "data"}]),
    ],
)
def test_paths_as_values_become_their_last_name(value, published):
    assert Owner([]).value(value) == published


@pytest.mark.parametrize("escape", ["\\x{:02x}", "\\u{{{:x}}}", "\\u{:04X}", "\\U{:08x}", "%{:02X}", "&#x{:x};"])
@pytest.mark.parametrize("name", ["notes.txt", "page.html", "figures.JSON"])
def test_a_home_in_escapes_of_any_kind_is_taken_out(escape, name):
    home = "".join(escape.format(ord(letter)) for letter in "/home/zanzibar-user/takes")
    written = Owner(["/home/zanzibar-user"], ["zanzibar-user"]).file(name, json.dumps(f"of {home}").encode())
    letters = "".join(escape.format(ord(letter)) for letter in "zanzibar")
    assert letters.encode() not in written.replace(b"\\\\", b"\\")
    assert b"of " in written


@pytest.mark.parametrize(
    ("head", "encode"),
    [
        ("DATA:text/plain;BASE64,", base64.b64encode),
        ('data:text/plain;charset="utf-8";base64,', base64.b64encode),
        ("data:text/plain; charset=utf-8; base64, ", base64.b64encode),
        ("data:application/json;base64,", base64.urlsafe_b64encode),
        ("data:text/plain;base64,", lambda content: base64.b64encode(content).rstrip(b"=")[:-3]),
        ("data:text/plain;base64,", lambda content: base64.b64encode(content.decode().encode("utf-16"))),
    ],
)
def test_a_home_in_embedded_texts_of_any_notation_is_taken_out(head, encode):
    content = encode("/home/zanzibar-user/??>>~~ÿÿ".encode()).decode()
    written = Owner(["/home/zanzibar-user"]).text(f'<a href="{head}{content}">')
    inner = base64.b64decode(re.search(r"base64,([A-Za-z0-9+/=]*)", written, re.IGNORECASE)[1])
    assert b"zanzibar" not in inner.replace(b"\0", b"")
    assert content not in written


def test_anchors_and_halves_of_characters_are_no_way_round():
    owner = Owner(["/home/zanzibar-user"], ["zanzibar-user"])
    assert b"zanzibar" not in owner.file("a.yaml", b"a: &zanzibar-user 1\nb: *zanzibar-user")
    written = owner.file("a.json", rb'{"a": "\ud83d of /home/zanzibar-user/x"}')
    assert json.loads(written) == {"a": "\ud83d of x"}


def test_a_weights_folder_that_looks_like_a_hub_id_is_a_path_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret" / "codec").mkdir(parents=True)
    assert Owner([]).value({"weights": "secret/codec"}) == {"weights": "codec"}


def test_a_recipe_means_the_same_for_users_with_the_names_of_parts():
    owner = Owner([], ["acoustic", "corpus", "lookup", "seed"])
    recipe = {
        "tokenizers": {"acoustic": {"name": "acoustic"}},
        "conditioners": {"text": "lookup"},
        "stages": {"main": {"target": "acoustic"}},
        "data": {"name": "corpus"},
        "seed": 1,
    }
    assert owner.value(recipe) == recipe
    assert owner.value({"description": "tones by lookup"}) == {"description": "tones by user"}


def test_ordinary_names_and_the_id_of_the_repository_stay(home, monkeypatch):
    owner = Owner([], ["root", "music", "alice"], "alice/toy")
    assert owner.text("music with a root") == "music with a root"
    card = owner.file("README.md", b'partita.load("alice/toy"), made by alice')
    assert card == b'partita.load("alice/toy"), made by user'


@pytest.mark.parametrize("where", ["metadata", "tensor"])
def test_a_header_that_tells_is_refused(hub, run, home, where):
    weights = run / "stages/main/model.safetensors"
    tensors = load_file(weights)
    if where == "metadata":
        save_file(tensors, weights, metadata={"format": "pt", "from": f"{home}/old"})
    else:  # which no system would have
        header = json.dumps({f"{home}/x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
        weights = run / "stages/main/other.safetensors"
        weights.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(partita.PartitaError, match=rf"{weights.name}: the header .*save it with system.save"):
        push(run, "alice/toy", examples=0)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clip.flac", b"fLaC\x00 artist=%s/takes \xff\xf8"),
        ("clip.ogg", b"OggS\xff TITLE=%s"),
        ("tokenizer/tokenizer.json", b'{"model": {"vocab": {"%s": 0}}}'),
        ("notes.txt", b"\xff\xfe %s"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(home, name, content):
    owner = Owner.here(home / "run", {}, "alice/toy")
    with pytest.raises(partita.PartitaError, match=name):
        owner.file(name, content % str(home).encode())


def test_words_of_a_text_tokenizer_are_never_changed(home):
    words = b'{"model": {"vocab": {"/home/x/y": 0, "../": 1, "zanzibar-user": 2}}}'
    assert Owner.here(home / "run", {}).file("conditioners/text/tokenizer/tokenizer.json", words) == words


def test_who_uploads_a_report_is_told_that_it_holds_audio(run, tmp_path, monkeypatch, capfd):
    arguments = ["push", run, "alice/toy", "--report", "--examples", "0", "--dry-run"]
    _, silent = run_cli(*arguments, "-o", tmp_path / "a", monkeypatch=monkeypatch, capfd=capfd)
    with (run / "report.html").open("a") as page:
        page.write('<audio src="data:audio/flac;base64,ZkxhQw==">')
    status, told = run_cli(*arguments, "-o", tmp_path / "b", monkeypatch=monkeypatch, capfd=capfd)
    assert (status, "audio of test pieces" in silent, "audio of test pieces" in told) == (0, False, True)
    _, usage = run_cli("push", "--help", monkeypatch=monkeypatch, capfd=capfd)
    assert "audio of test pieces" in " ".join(re.sub("[│\n]", " ", usage).split())
