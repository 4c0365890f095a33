"""Reading prompt files, writing manifests, and warnings about prompts that are probably mistaken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.registry import names
from ..data.fields.base import field_kinds, parse_value
from ..errors import PartitaError
from ..limits import LARGEST_PROMPTS
from ..storage.files import kind, replacing_file
from ..storage.untrusted import json_mapping, read_bytes
from .assembly import Assembly
from .checked_request import CheckedRequest
from .request import Request, segments_of
from .structure import Structure, is_several, structures_of, with_structures

MOST_SHOWN = 12
"""Maximum number of mistakes in a prompt file that a message lists."""


@dataclass(frozen=True)
class Row:
    """One clip to generate.

    Args:
        inputs: Prompt for each input of the system (``text``, ``melody`` …).
        seed: Seed of the clip. ``None`` adds the index of the row to the common seed.
        duration: Length of the clip in seconds. ``None`` uses the common duration.
        where: File and line of the row, for messages.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    duration: float | None = None
    where: str = ""

    @property
    def words(self) -> str:
        """The prompts of all inputs as text for messages."""
        texts = [str(prompt) for prompt in segments_of(self.inputs.get("text")) if prompt]
        others = (f"{name}: {value}" for name, value in self.inputs.items() if name != "text")
        return " … ".join([*texts, *others])


def read_prompts(path: str | Path, system: Assembly) -> list[Row]:
    """Read and check the rows of a prompt file.

    A ``.jsonl`` file has an object on each line with the inputs of the system (``text`` …) and optionally ``seed`` and
    ``duration``. Audio paths are relative to the file, or else to the working directory. The key ``file`` of a manifest
    is ignored. Any other file has a text on each line. Blank lines are ignored.

    Raises:
        PartitaError: The file has mistakes. The message lists them with file and line.
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
        raise PartitaError(f"{path} contains no prompts")
    return rows


def with_input(system: Assembly, rows: Sequence[Row], option: str, value: Any) -> list[Row]:
    """Return rows with an input that all of their clips are to have.

    Args:
        system: System that reads the rows.
        rows: The rows.
        option: What the input is: ``melody``, ``style`` or ``style_streams``.
        value: The input, such as the path of a recording.

    Raises:
        PartitaError: The system takes no such input, or a row has one of its own.
    """
    field = system.field_for(option)
    for row in rows:
        if field in row.inputs:
            where = f"{row.where}: " if row.where else ""
            flag = f"--{option.replace('_', '-')}"
            what = option.replace("_", " ")
            raise PartitaError(f"{where}the {what} is given twice, by {flag} and by the input {field}: leave one out")
    return [replace(row, inputs={**row.inputs, field: value}) for row in rows]


def with_structure(system: Assembly, rows: Sequence[Row], request: Request) -> list[Row]:
    """Return rows with the chords, tempo, key and beats of a request, which all of their clips are to have.

    Args:
        system: System that reads them.
        rows: The rows.
        request: The request; ``duration`` applies to rows that have none.

    Raises:
        PartitaError: The system does not read something, something is invalid, or a row has one of its own.
    """
    for name in Structure._fields:
        if is_several(name, getattr(request, name)):
            raise PartitaError(f"{name} must be one for all clips: put several into the inputs of the rows")
    if all(getattr(request, name) is None for name in Structure._fields):
        return list(rows)
    made = []
    for row in rows:
        prompts = {name: [value] for name, value in row.inputs.items()}
        duration = request.duration if row.duration is None else row.duration
        seconds = CheckedRequest.of(system, Request(prompts or None, duration)).seconds
        try:
            prompts = with_structures(system, prompts, structures_of(request, 1), seconds)
        except PartitaError as error:
            raise PartitaError(f"{row.where}: {error}" if row.where else str(error)) from None
        made.append(replace(row, inputs={name: values[0] for name, values in prompts.items()}))
    return made


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a manifest with an object for each generated clip. Used as a prompt file, it reproduces the clips."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with replacing_file(path) as new:
        # File names may not be valid UTF-8, so their invalid bytes are written as JSON escapes.
        new.write_bytes(text.encode(errors="backslashreplace"))


def prompt_warnings(system: Assembly, rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each probable mistake in the prompts of some rows."""
    inputs = {name: [row.inputs.get(name) for row in rows] for name in {name for row in rows for name in row.inputs}}
    return [*input_warnings(system, inputs), *filter(None, [missing_prompt_warning(system, inputs, len(rows))])]


def input_warnings(system: Assembly, inputs: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return a sentence for each probable mistake in prompts.

    Args:
        system: System that reads the prompts.
        inputs: Prompts by input field.
    """
    found = []
    for text in dict.fromkeys(_texts(inputs.get("text", ()))):
        if kind(text) == "file":
            found.append(
                f"the prompt {text!r} is the name of a file but is used as text: read prompts from a file with "
                "--prompts, and continue audio with --continue"
            )
    for name, conditioner in system.conditioners.items():
        prompts = dict.fromkeys(text for name in conditioner.inputs for text in _words(name, inputs.get(name, ())))
        unknown = [value for value in prompts if not conditioner.knows(value)]
        if unknown:
            more = f" and of {len(unknown) - 1} more" if len(unknown) > 1 else ""
            found.append(
                f"{name} ({conditioner.registered_name}) saw no word of {unknown[0]!r}{more} in training, so the "
                "prompt has no reliable effect"
            )
        given = [inputs[field] for field in conditioner.inputs if field in inputs] if conditioner.reads_one else []
        if any(sum(map(_has_prompt, values)) > 1 for values in zip(*given, strict=True)):
            first, *others = (field for field in conditioner.inputs if field in inputs)
            found.append(f"{name} reads {first} instead of {' and '.join(others)} where a prompt has both")
    return found


def missing_prompt_warning(system: Assembly, inputs: Mapping[str, Sequence[Any]], clips: int) -> str:
    """Return a sentence about clips without a prompt in a system that reads text; empty if there are none."""
    if "text" not in system.inputs:
        return ""
    prompted = [any(_has_prompt(values[i]) for values in inputs.values()) for i in range(clips)]
    if all(prompted):
        return ""
    which = "there is no prompt" if not any(prompted) else f"{prompted.count(False)} of {clips} clips have no prompt"
    return f"{which}, but this system reads text: such clips follow no description"


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
        raise PartitaError(f"seed must be a whole number, not {seed!r:.80}")
    if duration is not None and type(duration) not in (int, float):
        raise PartitaError(f"duration must be a number of seconds, not {duration!r:.80}")
    return Row(values, seed, duration, where)


def _resolved_paths(prompts: Path, name: str, value: Any) -> Any:
    """Return a value in which paths of audio files beside the prompt file are absolute."""
    if isinstance(value, dict):
        return {key: _resolved_paths(prompts, name, inner) for key, inner in value.items()}
    if name not in names("field") or field_kinds([name]) != {"audio"} or not isinstance(value, str):
        return value
    beside = prompts.parent / value
    return str(beside.absolute()) if kind(beside) == "file" else value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _words(name: str, values: Sequence[Any]) -> Iterator[str]:
    """Yield the texts or, for a field of names, the names among prompts and the segments of stories."""
    kinds = field_kinds([name])
    if kinds == {"text"}:
        yield from _texts(values)
    elif kinds == {"names"}:
        for part in (part for value in values for part in segments_of(value) if part is not None):
            try:
                yield from parse_value(name, part)
            except ValueError:  # reported when the request is checked
                continue


def _texts(values: Sequence[Any]) -> Iterator[str]:
    """Yield the texts among prompts and the segments of stories, without blank ones."""
    parts = (part for value in values for part in segments_of(value))
    return (part for part in parts if isinstance(part, str) and part.strip())


def _has_prompt(value: Any) -> bool:
    return any(bool(part.strip()) if isinstance(part, str) else part is not None for part in segments_of(value))
