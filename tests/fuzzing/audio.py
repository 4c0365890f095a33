"""Audio files that are damaged, lie, or are none; read as data, and as what is to be continued."""

import io
import os
import struct
from random import Random

import numpy as np
import soundfile

from .place import Command, Place
from .values import TEXTS, hostile, noisy, yaml_of

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
}
FORMATS |= {
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "FLOAT"),
    "w64": ("W64", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "mp3": ("MP3", None),
}
SAMPLES = [float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e30, 150.0, 1e-45]


def audio(random: Random, place: Place) -> list[Command]:
    """A folder of good files and bad ones with what is said of them, checked as data or measured; or one continued."""
    folder = place.folder / "music"
    folder.mkdir()
    for i in range(2):
        (folder / f"good{i}.wav").write_bytes(_sound(random, "wav", 0.5))
    names = [_bad(random, place) for _ in range(random.randrange(1, 4))]
    data = "{name: folder, path: music}"
    if random.random() < 0.4:
        _captions(random, place, names)
        data = random.choice(
            [data, f"{{name: folder, path: music, manifest: {random.choice(['music/m.csv', 'music/m.jsonl'])}}}"]
        )
    commands = [["check", str(place.world.recipe), f"data={data}", "--data"]]
    named = [name for name in names if "\n" not in name]
    if named and random.random() < 0.6:
        path = os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(random.choice(named)))
        last = random.choice(
            [[], [], ["--continue-last", "0.2"], ["--continue-from", "0.1"], ["--continue-for", "0.2"]]
        )
        commands.append(
            ["generate", str(place.world.system), "tone 1", "-d", "0.9", "--continue", path, *last, "-o", "out.wav"]
        )
    return commands


def _sound(random: Random, ending: str, seconds: float, samples: np.ndarray | None = None) -> bytes:
    kind, subtype = FORMATS[ending]
    rate = random.choice([8000, 16000, 44100])
    if samples is None:
        samples = 0.5 * np.sin(np.arange(int(seconds * rate)) * 0.1)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([samples] * random.choice([1, 2]), 1), rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def _bad(random: Random, place: Place) -> str:
    """Add a file to the folder, and return its name."""
    ending = random.choice(list(FORMATS))
    stem = random.choice(
        ["bad", "bäd", "日本語", "a b", "[bold]x", "\x1b[31mred", "x" * 200, "line\nbreak", "$(touch x)", "-o"]
    )
    name, content = f"{stem}.{ending}", _sound(random, ending, 0.3)
    match random.randrange(11):
        case 0:
            content = content[: random.randrange(len(content))]
        case 1:
            content = noisy(random, content)
        case 2 | 3:
            samples = 0.5 * np.sin(np.arange(4000) * 0.1)
            samples[random.randrange(4000)] = random.choice(SAMPLES)
            ending = random.choice(["float.wav", "au"])
            name, content = f"{stem}.{ending}", _sound(random, ending, 0, samples)
        case 4:
            content = b""
        case 5:  # an ending that lies
            name = f"{stem}.{random.choice(['wav', 'mp3', 'm4a', 'opus', 'flac'])}"
            content = random.choice(
                [content, b"#!/bin/sh\ntouch x\n", os.urandom(0), b"RIFF", b"<html>" * 999, bytes(9999)]
            )
        case 6:
            content = _header(random)
            name = f"{stem}.wav"
        case 7:
            place.pipe(f"music/{name}")
            return name
        case 8:
            link = random.choice(
                ["/dev/zero", "/dev/random", "/proc/kmsg", "/etc/passwd", name, "..", "nowhere", "/dev"]
            )
            (place.folder / "music" / name).symlink_to(link)
            return name
        case 9:  # a name that is not UTF-8
            name = os.fsdecode(b"\xff\xfe" + os.fsencode(name)[:200])
        case 10:
            (place.folder / "music" / name).mkdir()
            return name
    (place.folder / "music" / name).write_bytes(content)
    return name


def _header(random: Random) -> bytes:
    """A WAV whose header claims what no file has."""
    big = [0, 1, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1]
    channels, rate, bits = (
        random.choice([0, 1, 2, 65, 255, 65_535]),
        random.choice([*big, 8000]),
        random.choice([0, 1, 8, 16, 24, 64, 65_535]),
    )
    block = random.choice([0, 1, 2, 4, 65_535])
    form = struct.pack(
        "<HHIIHH",
        random.choice([1, 3, 0xFFFE, 0, 85]),
        channels,
        rate,
        random.choice([0, rate]) & 0xFFFFFFFF,
        block,
        bits,
    )
    chunks = b"fmt " + struct.pack("<I", random.choice([16, len(form), *big])) + form
    chunks += random.choice([b"", b"LIST" + struct.pack("<I", random.choice(big)) + b"x" * 20, b"fact" + bytes(8)])
    chunks += b"data" + struct.pack("<I", random.choice([*big, 4000])) + bytes(random.choice([0, 1, 4000]))
    return b"RIFF" + struct.pack("<I", random.choice([*big, len(chunks) + 4])) + b"WAVE" + chunks


def _captions(random: Random, place: Place, names: list[str]) -> None:
    """Side-car files and manifests that say too much."""
    told = {
        "text": "a tone",
        "key": "C major",
        "tempo": 90,
        "beats": [0.0, 0.1],
        "chords": [[0, 1, "C"]],
        "instruments": ["flute"],
        "lyrics": "la\nla",
        "excerpt": random.choice(["good1.wav", "/dev/zero", "pipe", ".", "x" * 300, names[0]]),
        "stems": {"flute": random.choice(["good1.wav", "/dev/zero", "", "../.."])},
        random.choice(["lyric", "mood", "", "seconds_start"]): 1,
    }
    told[random.choice(list(told))] = hostile(random, place.canary)
    place.write(
        "music/good0.json",
        random.choice([yaml_of(told), "[" * 100_000, '{"text": 1e999}', "{}", '{"tempo": ' + "9" * 5000 + "}"]),
    )
    place.write("music/good1.txt", random.choice([*TEXTS, "\xff", "x" * 100_000]).encode("latin-1", "replace"))
    lines = [
        "file,text,tempo,split",
        "good0.wav,a tone,90,train",
        f"{names[0]},{random.choice(TEXTS)},nan,{random.choice(TEXTS)}",
    ]
    lines += [f"{random.choice(TEXTS)},x,1,test"]
    content = "\n".join(lines).encode("utf-8", "replace")
    place.write("music/m.csv", noisy(random, content) if random.random() < 0.3 else content)
    rows = (
        '{"file": "good0.wav", "text": "a"}\n{"file": "/dev/zero"}\n{"file": ["x"]}\n'
        + "[" * 50_000
        + '\n{"file": "x'
        + "y" * 300
        + '"}\n'
    )
    place.write("music/m.jsonl", rows)
