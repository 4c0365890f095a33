"""What people ask of a system that is as it should be: prompts, lengths, seeds, settings, and audio to go on from."""

import json
from random import Random

from .place import Command, Place
from .recipes import argument
from .values import NUMBERS, TAGGED, TEXTS, hostile, noisy

ABSURD = [*NUMBERS, "9" * 5000, "1e400", "", "abc", "0x10", "1_000", "−1", "½", "1e-400", "True"]


def request(random: Random, place: Place) -> list[Command]:
    """A command that generates, with one to four things in it that nobody means."""
    place.pipe()
    if random.random() < 0.2:
        return [_other(random, place)]
    command = ["generate", str(place.world.system)]
    options: list[list[str]] = [["-d", "0.3"]]
    prompts = ["tone 1"]
    for _ in range(random.choice([1, 1, 2, 3, 4])):
        match random.randrange(10):
            case 0 | 1:
                prompts = [argument(random.choice([*TEXTS, *TAGGED])) for _ in range(random.randrange(1, 4))]
            case 2:
                names = ["duration", "seed", "guidance", "transition", "loudness", "peak", "fade", "bits", "at-once"]
                names += ["continue-from", "continue-for", "continue-last"]
                options.append([f"--{random.choice(names)}={random.choice(ABSURD)}"])
            case 3 | 4:
                key = random.choice(
                    ["temperature", "top_k", "main.temperature", "main", "steps", "x.y.z", "", "9" * 300]
                )
                value = random.choice(
                    [*ABSURD, *TAGGED, *TEXTS, hostile(random, place.canary), '"0.5"', "[1]", "{a: 1}"]
                )
                options.append(["-s", argument(f"{key}={getattr(value, 'text', value)}")])
            case 5:
                options.append(["--prompts", str(_prompts(random, place))])
                prompts = []
            case 6:
                path = random.choice(
                    [str(place.world.sound), "pipe", "/dev/zero", "/proc/kmsg", ".", "x" * 300, "none.wav"]
                )
                options.append(["--continue", path])
                options.append([f"--continue-last={random.choice([0.1, *NUMBERS])}"] if random.random() < 0.5 else [])
                options.append(["-d", random.choice(["1.2", "0.9", "3601"])])
            case 7:
                options.append(["--then", argument(f"{random.choice(ABSURD)}:{random.choice(TEXTS)}")])
            case 8:
                field = random.choice(["tempo", "chords", "audio", "stems", "text", "", "x" * 300])
                options.append(["--input", argument(f"{field}={random.choice([*TEXTS, *ABSURD])}")])
            case 9:
                other = [
                    "/dev/full",
                    "/proc/x.wav",
                    ".",
                    "x" * 300 + ".wav",
                    "out.xyz",
                    "a\nb.wav",
                    "[/b].wav",
                    "deep/er/out.flac",
                ]
                options.append(
                    random.choice([["-o", random.choice(other)], [f"--negative={argument(random.choice(TEXTS))}"]])
                )
    if not any(option[:1] == ["-o"] for option in options):
        options.append(["-o", "out.wav"])
    return [[*command, *(word for option in options for word in option), "--", *prompts]]


def _other(random: Random, place: Place) -> Command:
    """A command that asks for something else than a clip, with something in it that nobody means."""
    system, absurd = str(place.world.system), str(random.choice(ABSURD))
    text = argument(random.choice([*TEXTS, *TAGGED]))
    number = random.choice(["--clips", "--reference-clips", "--duration", "--seed"])
    part = random.choice(["--score", "--no-score", "--score=fad", "data", "data.pieces"])
    few = ["--clips", "1", "--reference-clips", "1", "-d", "0.5"]
    measured = ["--loudness", "--trials", "--catch", "--duration", "--prompts"]
    return random.choice(
        [
            ["evaluate", system, "-o", "out", *few, f"{number}={absurd}"],
            ["evaluate", system, "-o", "out", *few, f"{part}={text}"],
            ["listen", "make", system, system, "-o", "out", "-d", "0.5", f"{random.choice(measured)}={absurd}"],
            ["listen", "make", system, text, "-o", "out", "--prompts", random.choice(["pipe", "1", text])],
            ["list", text],
            ["pull", text],
            ["push", system, text, "--dry-run", "-o", "upload"],
            ["push", system, "user/toy", "--dry-run", "-o", "upload", f"--license={text}"],
            ["generate", text, "tone 1", "-o", "out.wav"],
            ["check", text],
            ["--import", text, "list"],
        ]
    )


def _prompts(random: Random, place: Place) -> str:
    rows = []
    for _ in range(random.randrange(1, 5)):
        row = {"text": "tone 2", "seed": random.randrange(9), "duration": 0.2}
        row[random.choice([*row, "file", "tempo", "audio", "chords", "", "x" * 300])] = random.choice(
            [*NUMBERS, *TEXTS, [], {}, None, [1] * 50, 10**30, -(10**30), 10**400]
        )
        rows.append(json.dumps(row))
    rows.append(random.choice(["", "[" * 100_000, '{"text": 1' + "0" * 5000 + "}", "null", '{"a": 1, "a": 2}', "{}"]))
    content = "\n".join(rows).encode("utf-8", "surrogatepass")
    if random.random() < 0.3:
        content = noisy(random, content)
    name = random.choice(["prompts.jsonl", "prompts.jsonl", "prompts.txt"])
    place.write(name, content)
    return random.choice([name, name, name, name, "pipe", "/dev/zero", ".", "y" * 300 + ".jsonl"])
