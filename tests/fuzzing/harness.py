"""One case: its files, its commands, and everything that is wrong with how they end."""

import io
import json
import os
import re
import shutil
import sys
import time
import traceback
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from huggingface_hub import constants

from partita.cli.main import main

from . import KINDS
from .confined import MEMORY, Hang, confined, peak, resident
from .place import Command, Place, World

STATUSES = (0, 2)
"""Of commands that succeed, and of mistakes that a message explains."""
LONGEST = 50_000
"""Letters of a message."""
MARKER = "PARTITA_CANARY"
"""An environment variable that only something foreign sets."""
FULL = ("MemoryError", "can't allocate memory", "Unable to allocate", "cannot allocate", "not enough memory")
"""What libraries say when the bound of memory is met."""


@dataclass
class Outcome:
    """How a case ended.

    Args:
        kind: Of the case.
        index: Its number.
        commands: Run one after the other.
        said: What each wrote, the output and then the messages.
        statuses: Of each.
        failures: What is wrong; nothing, for a case that is handled as it should be.
        seconds: Of the processor, of the slowest command.
        memory: Bytes that the process took beyond what it had.
    """

    kind: str
    index: int
    commands: list[Command] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    statuses: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory: int = 0

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.kind}:{self.index}"

    @property
    def verdict(self) -> str:
        """A word on it."""
        return "failed" if self.failures else "refused" if 2 in self.statuses else "done"


def run_case(world: World, kind: str, index: int, seed: int = 0, *, keep: bool = False) -> Outcome:
    """Make a case and run it.

    Args:
        world: Around it.
        kind: One of :data:`fuzzing.KINDS`.
        index: Its number: with the seed, it decides everything about it.
        seed: Of the attack.
        keep: Whether its folder stays.
    """
    outcome = Outcome(kind, index)
    place = Place(world, world.home / "cases" / f"{kind}-{index}")
    shutil.rmtree(place.folder, ignore_errors=True)
    place.folder.mkdir(parents=True)
    outcome.commands = KINDS[kind](Random(f"{seed} {kind} {index}"), place)
    try:
        with _inside(world, place.folder):
            for command in outcome.commands:
                _run(outcome, command, world)
        outcome.failures += _published(place)
    finally:
        if world.canary.exists() or MARKER in os.environ:
            outcome.failures.append("something foreign was executed")
            world.canary.unlink(missing_ok=True)
            os.environ.pop(MARKER, None)
        if not keep:
            shutil.rmtree(place.folder, ignore_errors=True)
    return outcome


def _run(outcome: Outcome, command: Command, world: World) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    before = sys.stdout, sys.stderr, sys.argv
    held, began, status, notes = resident(), time.process_time(), 0, []
    try:
        with confined(world.root) as notes:
            sys.stdout, sys.stderr, sys.argv = *streams, ["partita", *command]
            main()
    except SystemExit as exit:
        status = exit.code or 0  # type: ignore[assignment]
    except Hang as hang:
        outcome.failures.append(str(hang))
    except BaseException:
        outcome.failures.append(f"an exception: {traceback.format_exc()[-3000:]}")
    finally:
        sys.stdout, sys.stderr, sys.argv = before
    took = peak() - held
    outcome.seconds = max(outcome.seconds, time.process_time() - began)
    outcome.memory = max(outcome.memory, took)
    output, messages = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams)  # type: ignore[attr-defined]
    outcome.statuses.append(status)
    outcome.said.append(output + messages)
    outcome.failures += [f"it did what nothing needs: {note}" for note in dict.fromkeys(notes)]
    if took > MEMORY or any(word in messages for word in FULL):
        outcome.failures.append(f"memory: {took / 1e9:.2f} GB: {messages[-500:]}")
    if "Traceback (most recent" in messages or "This is a bug in Partita" in messages:
        outcome.failures.append(f"a traceback: {messages[-3000:]}")
    elif status not in STATUSES:
        outcome.failures.append(f"status {status}: {messages[-1000:]}")
    elif status and not messages.strip():
        outcome.failures.append("refused without a message")
    if len(messages) > LONGEST:
        outcome.failures.append(f"a message of {len(messages):,} letters: {messages[:300]}")
    shown = re.sub(r"\r|\n|\x1b\[A", "", output + messages)  # bars of downloads
    if unseen := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown):
        outcome.failures.append(f"a control character reaches the terminal: {unseen[0]!r}")


@contextmanager
def _inside(world: World, folder: Path) -> Iterator[None]:
    """The folder as the working folder, and the home folder as that of the world."""
    before, home = Path.cwd(), {"HOME": str(world.home), "PARTITA_CACHE": str(world.root / "cache")}
    address = {"ENDPOINT": world.hub.url, "HF_HUB_CACHE": str(world.root / "hub"), "HF_HUB_DISABLE_XET": True}
    address["HUGGINGFACE_CO_URL_TEMPLATE"] = f"{world.hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    os.chdir(folder)
    try:
        with mock.patch.dict(os.environ, home), mock.patch.multiple(constants, **address):
            yield
    finally:
        os.chdir(before)


def _published(place: Place) -> list[str]:
    """What in the files that would be uploaded tells where the home folder is."""
    home = str(place.world.home)
    forms = [form.encode() for form in (home, json.dumps(home)[1:-1], urllib.parse.quote(home), place.world.home.name)]
    found = []
    for path in sorted((place.folder / "upload").rglob("*")):
        if path.is_file() and any(form in path.read_bytes() for form in forms):
            found.append(f"{path.relative_to(place.folder)} tells where the home folder is")
    return found
