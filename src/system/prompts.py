"""Many prompts: read from a file, and what is probably not meant by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.registry import names
from ..data.fields.base import kinds
from ..errors import PartitaError
from ..limits import LARGEST_PROMPTS
from ..storage.files import kind, replacing_file
from ..storage.untrusted import json_mapping, read_bytes
from .assembly import Assembly
from .checked_request import CheckedRequest
from .request import Request, segments_of

MOST_SHOWN = 12
"""Mistakes in a file that a message lists."""


@dataclass(frozen=True)
class Row:
    """One clip to generate.

    Args:
        inputs: By input of the system (``text``, ``melody`` …), the prompt.
        seed: Of the clip; as its place among the rows has it where none is given.
        duration: In seconds; that of all rows where none is given.
        where: Where it stands, for messages.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    duration: float | None = None
    where: str = ""

    @property
    def words(self) -> str:
        """Its prompt as a message shows it."""
        texts = [str(prompt) for prompt in segments_of(self.inputs.get("text")) if prompt]
        others = (f"{name}: {value}" for name, value in self.inputs.items() if name != "text")
        return " … ".join([*texts, *others])


def read_prompts(path: str | Path, system: Assembly) -> list[Row]:
    """The rows of a file of prompts, all of them checked.

    A ``.jsonl`` file has an object on each line: the inputs of the system (``text`` …), and if wanted ``seed`` and
    ``duration``. Paths of audio are relative to the file, or to where the command runs. The key ``file`` of a manifest
    is passed over. Any other file has a text on each line. Blank lines do
    not count.

    Raises:
        PartitaError: With every mistake, each naming file and line.
    """
    path = Path(path)
    content = read_bytes(path, LARGEST_PROMPTS)
    objects, rows, mistakes = path.suffix.lower() in (".jsonl", ".ndjson"), [], []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = _row(line.decode().strip(), where, objects)
            row = replace(row, inputs={name: _resolved_paths(path, name, value) for name, value in row.inputs.items()})
            inputs = {name: [value] for name, value in row.inputs.items()}
            CheckedRequest.of(system, Request(inputs or None, row.duration))
            rows.append(row)
        except UnicodeDecodeError:
            mistakes.append(f"{where}: this is not UTF-8")
        except PartitaError as error:
            mistakes.append(f"{where}: {error}")
    if mistakes:
        more = f"\n  and {len(mistakes) - MOST_SHOWN} more" if len(mistakes) > MOST_SHOWN else ""
        counted = f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)}"
        raise PartitaError(f"{counted} in the prompts\n  " + "\n  ".join(mistakes[:MOST_SHOWN]) + more)
    if not rows:
        raise PartitaError(f"{path} holds no prompts")
    return rows


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what was made, an object on each line; as a file of prompts it asks for the same once more."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with replacing_file(path) as new:
        new.write_bytes(text.encode(errors="backslashreplace"))  # file names may be no UTF-8; JSON has escapes for it


def prompt_warnings(system: Assembly, rows: Sequence[Row]) -> list[str]:
    """What is probably not meant by some rows, a sentence each."""
    inputs = {name: [row.inputs.get(name) for row in rows] for name in {name for row in rows for name in row.inputs}}
    return [*input_warnings(system, inputs), *filter(None, [missing_prompt_warning(system, inputs, len(rows))])]


def input_warnings(system: Assembly, inputs: Mapping[str, Sequence[Any]]) -> list[str]:
    """What is probably not meant by some prompts, a sentence each.

    Args:
        system: That is going to read them.
        inputs: By input, the prompts.
    """
    found = []
    for text in dict.fromkeys(_texts(inputs.get("text", ()))):
        if kind(text) == "file":
            found.append(
                f"the prompt {text!r} is the name of a file, and is read as words: prompts are read from a file by "
                "--prompts, and audio is continued by --continue"
            )
    for name, conditioner in system.conditioners.items():
        texts = [name for name in conditioner.inputs if kinds([name]) == {"text"}]
        said = dict.fromkeys(text for name in texts for text in _texts(inputs.get(name, ())))
        unknown = [value for value in said if not conditioner.knows(value)]
        if unknown:
            more = f" and of {len(unknown) - 1} more" if len(unknown) > 1 else ""
            found.append(
                f"{name} ({conditioner.registered_name}) met no word of {unknown[0]!r}{more} in training: it can only "
                "guess what is meant"
            )
    return found


def missing_prompt_warning(system: Assembly, inputs: Mapping[str, Sequence[Any]], clips: int) -> str:
    """A sentence on clips that have no prompt although the system reads text; empty where all have one."""
    if "text" not in system.inputs:
        return ""
    told = [any(_has_prompt(values[i]) for values in inputs.values()) for i in range(clips)]
    if all(told):
        return ""
    which = "there is no prompt" if not any(told) else f"{told.count(False)} of {clips} clips have no prompt"
    return f"{which}, and this system reads text: what it generates then is up to chance"


def _row(line: str, where: str, objects: bool) -> Row:
    if not objects:
        return Row({"text": line}, where=where)
    try:
        values = json_mapping(line, parse_constant=_no_constant)
    except ValueError as error:
        raise PartitaError(f'this is {error}; expected a line such as {{"text": "flute", "seed": 1}}') from None
    values.pop("file", None)
    seed, duration = values.pop("seed", None), values.pop("duration", None)
    if seed is not None and type(seed) is not int:
        raise PartitaError(f"seed is a whole number, not {seed!r:.80}")
    if duration is not None and type(duration) not in (int, float):
        raise PartitaError(f"duration is a number of seconds, not {duration!r:.80}")
    return Row(values, seed, duration, where)


def _resolved_paths(prompts: Path, name: str, value: Any) -> Any:
    """A value with the paths in it, of a field of audio, as they are found beside the file of prompts."""
    if isinstance(value, dict):
        return {key: _resolved_paths(prompts, name, inner) for key, inner in value.items()}
    if name not in names("field") or kinds([name]) != {"audio"} or not isinstance(value, str):
        return value
    beside = prompts.parent / value
    return str(beside.absolute()) if kind(beside) == "file" else value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _texts(values: Sequence[Any]) -> Iterator[str]:
    """The texts among prompts and those of stories, which say something."""
    parts = (part for value in values for part in segments_of(value))
    return (part for part in parts if isinstance(part, str) and part.strip())


def _has_prompt(value: Any) -> bool:
    return any(bool(part.strip()) if isinstance(part, str) else part is not None for part in segments_of(value))
