"""Saved systems, runs, and snapshots and repositories of the Hub, with something in them that should not be."""

import json
import os
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import yaml

from .place import Command, Place
from .values import mutated, noisy, yaml_of

TOKENIZER = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    "added_tokens": [{"id": 0, "content": "a", "special": True}],
    "normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "yy"},
    "pre_tokenizer": {"type": "Whitespace"},
    "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
}


def folder(random: Random, place: Place) -> list[Command]:
    """A copy of a system that is spoiled in one to three ways, loaded, or looked at before it is published."""
    kind = random.choice(["export", "export", "run", "snapshot", "published", "repository"])
    target = place.folder / "system"
    if kind == "snapshot":
        target = place.folder / "models--a--b" / "snapshots" / "c"
    shutil.copytree(place.world.run if kind in ("run", "published") else place.world.system, target)
    for _ in range(random.choice([0, 1, 1]) if kind == "published" else random.choice([1, 1, 1, 2, 3])):
        _spoil(random, place, target)
    name = str(target.relative_to(place.folder))
    load = ["generate", name, "tone 1", "-d", "0.2", "-o", "out.wav"]
    if kind == "repository":
        return [["pull", _uploaded(random, place, target), "-o", "pulled"]]
    if kind == "published":
        return [["push", name, "user/toy", "--dry-run", "-o", "upload", "--report"]]
    return random.choice(
        [
            [load],
            [load],
            [["evaluate", name, "--clips", "0"], load],
            [["listen", "make", name, name, "-o", "t", "--prompts", "0"]],
            [["list", name]],
            [["check", f"{name}/recipe.yaml"]],
        ]
    )


def _uploaded(random: Random, place: Place, target: Path) -> str:
    """The id of a repository with the files of a folder, and perhaps one whose name leads elsewhere."""
    paths = [path for path in target.rglob("*") if path.is_file() and not path.is_symlink()]
    files = {path.relative_to(target).as_posix(): path.read_bytes() for path in paths}
    if random.random() < 0.3:
        evil = [
            "../x.yaml",
            "/etc/x.yaml",
            "a//b.json",
            "stages/../../x.json",
            "a\\b.yaml",
            "\x1b[31m.json",
            "~/x.yaml",
        ]
        files[random.choice(evil)] = b"evil"
    repo_id = f"mallory/{place.folder.name}"
    place.world.hub.put(repo_id, files)
    return repo_id


def _spoil(random: Random, place: Place, target: Path) -> None:
    index = target / "recipe.yaml"
    part = target / random.choice(["tokenizers/acoustic", "conditioners/text", "stages/main"])
    match random.randrange(12):
        case 0 | 1 | 2 if index.is_file():
            values = yaml.safe_load(index.read_text(encoding="utf-8", errors="replace").replace("\0", ""))
            _replace(index, yaml_of(mutated(random, values, place.canary)).encode("utf-8", "surrogatepass"))
        case 3 | 4:
            _replace(
                part / "config.json",
                _json(random, place, {"family": "tokenizer", "name": "toy-codec", "arguments": {"hop": 100}}),
            )
        case 5 | 6 | 7:
            _replace(part / "model.safetensors", _tensors(random, part / "model.safetensors"))
        case 8:
            _elsewhere(
                random,
                place,
                random.choice([index, part, part / "config.json", part / "model.safetensors", part.parent]),
            )
        case 9:
            place_of_words = part / "tokenizer"
            place_of_words.mkdir(parents=True, exist_ok=True)
            _replace(place_of_words / "tokenizer.json", _json(random, place, TOKENIZER))
            _replace(
                place_of_words / "tokenizer_config.json",
                _json(random, place, {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}),
            )
        case 10:
            stem = random.choice(
                ["x" * 250, "日本語", "\x1b[31m", "line\nbreak", "[/b]", "-rf", "..x", " ", "$(touch x)"]
            )
            suffix = random.choice([".pt", ".bin", ".ckpt", ".pkl", ".py", ".yaml", ".json", ".safetensors", ""])
            _replace(
                random.choice([target, part]) / f"{stem[: 255 - len(suffix)]}{suffix}",
                f"cos\nsystem\n(S'touch {place.canary}'\ntR.".encode(),
            )
        case _:
            for path in random.sample(sorted(p for p in target.rglob("*") if p.is_file()), 1):
                _replace(path, noisy(random, path.read_bytes()))
    if random.random() < 0.2:
        evaluation = {
            "metrics": {"fad": {"value": 1.0, "low": 0.5, "high": 2.0}},
            "notes": ["x"],
            "request": {"clips": 2},
        }
        _replace(target / "evaluation" / "evaluation.json", _json(random, place, evaluation))


def _replace(path: Path, content: bytes) -> None:
    """Write a file where there may be something else, or a link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    with suppress(OSError):  # where something else is in the way by now
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(content)


def _elsewhere(random: Random, place: Place, path: Path) -> None:
    """A link or a pipe in the place of a file or folder."""
    outside = place.folder / "outside"
    if path.is_symlink() or not path.exists() or outside.exists():
        return
    shutil.move(path, outside)
    if random.random() < 0.3:
        os.mkfifo(path)
    else:
        places = [
            str(outside),
            "/dev/zero",
            "/dev/random",
            "/proc/kmsg",
            "/etc/passwd",
            path.name,
            "../" * 9,
            "nowhere",
            "/",
        ]
        path.symlink_to(random.choice(places))


def _json(random: Random, place: Place, values: dict[str, Any]) -> bytes:
    if random.random() < 0.2:
        return random.choice(
            [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\xff", b"null", b'{"a": 1, "a": 2}', b" " * 2_000_000]
        )
    tree = mutated(random, values, place.canary)
    content = json.dumps(tree, default=str).encode("utf-8", "surrogatepass")
    return noisy(random, content) if random.random() < 0.2 else content


def _tensors(random: Random, path: Path) -> bytes:
    """Weights whose header, or whose values, are changed."""
    if not path.is_file():
        return b""
    content = path.read_bytes()
    if len(content) < 8 or (size := struct.unpack("<Q", content[:8])[0]) > len(content) - 8:
        return content
    try:
        entries = json.loads(content[8 : 8 + size])
    except ValueError:
        return content
    data = bytearray(content[8 + size :])
    match random.randrange(7):
        case 0:
            return noisy(random, content)
        case 1:  # numbers that are none
            values = random.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f"])
            data = bytearray(values * (len(data) // 4))
        case 2:
            entries |= {
                f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                for i in range(random.choice([3, 20_000]))
            }
        case 3:
            return struct.pack("<Q", random.choice([2**63, 2**64 - 1, size + 1, 0, len(content)])) + content[8:]
        case 4 if entries:
            entry = entries[random.choice(list(entries))]
            entry["dtype"] = random.choice(["I32", "C64", "BOOL", "F16", "PICKLE", 5, None])
        case 5 if entries:
            entry = entries[random.choice(list(entries))]
            entry["shape"] = random.choice([[], [0], [-1], [2**40], [1] * 5000, [True], [1.5], "x", [2**47] * 20])
        case _:
            entries = mutated(random, entries, "canary")
    text = json.dumps(entries, default=str).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + bytes(data)
