"""What people are told of the data: what there is, and what is missing for what they want to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.progress import progress
from ..core.registry import did_you_mean
from .base import UNKNOWN_LICENSE, Source
from .clips import ALWAYS


def overview(source: Source) -> list[str]:
    """After its setup: a line on what there is, or one on each of several sources."""
    members = source.members
    if len(members) == 1:
        return [str(source.summary)]
    return [f"{m.label}, {m.share:.0%} of the clips: {m.source.summary}" for m in members]


def supplies(source: Source) -> list[str]:
    """Before its setup: a line on what examples can carry, of each of its sources."""
    return [
        f"{m.label}{f', {m.share:.0%} of the clips' if m.share < 1 else ''}: "
        f"{'supplies' if m.source.fields_known else 'may supply'} {', '.join(sorted(m.source.fields))}"
        for m in source.members
    ]


def provenance(source: Source) -> list[str]:
    """Also before its setup: a line on everything that it is made of, with the license."""
    yours = {UNKNOWN_LICENSE: f"{UNKNOWN_LICENSE}; it is yours to state (`license` of a folder)"}
    return [f"made of {origin.what}: {yours.get(origin.license, origin.license)}" for origin in source.origins]


def gaps(source: Source, reads: Mapping[str, Sequence[str]], *, advise: bool = True) -> list[str]:
    """After its setup: a line for each reader that gets nothing of some pieces.

    A reader of the clips themselves learns from all of them, whatever else is known.

    Args:
        source: The data.
        reads: By reader, such as ``conditioners.text``, the fields.
        advise: Whether to say what the owner of the data can do about it.
    """
    lines = []
    for reader, field in _supplied_by_some(reads):
        for label, share, member in source.members:
            summary = member.summary
            lacking = summary.pieces - summary.known.get(field, 0)
            if not lacking:
                continue
            advice = f": {advice}" if advise and (advice := member.advice(field)) else ""
            lines.append(
                f"{lacking:,} of {summary.counted(summary.pieces)}{f' in {label}' if share < 1 else ''} "
                f"{'has' if lacking == 1 else 'have'} no {_in_words(field)}, and {reader} learns nothing from "
                f"{'it' if lacking == 1 else 'them'}{advice}"
            )
    return lines


def _supplied_by_some(reads: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Readers with each of the fields that not every source supplies in training."""
    return [
        (who, field)
        for who, fields in reads.items()
        if "audio" not in fields
        for field in fields
        if field not in ALWAYS
    ]


def untold(told: Sequence[Mapping[str, Any]], reads: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reader that is told nothing of some clips that are going to be generated.

    Args:
        told: The fields of each clip's piece.
        reads: By reader, such as ``conditioners.text``, the fields.
    """
    lines = []
    for reader, fields in reads.items():
        if lacking := sum(not any(known.get(field) is not None for field in fields) for known in told):
            without = " or ".join(_in_words(field) for field in fields if field != "audio") or "audio"
            lines.append(
                f"{lacking:,} of {len(told):,} clips are of pieces without {without}: {reader} is told "
                "nothing, and they show only what is generated then"
            )
    return lines


def not_supplied(source: Source, field: str, reader: str) -> tuple[str, str]:
    """What is wrong where a reader is not going to get its field of any piece, and what can be done.

    Args:
        source: The data.
        field: That none of its examples carries.
        reader: Such as ``conditioners.text``.
    """
    if advice := source.advice(field):
        counted = source.summary.counted(source.summary.pieces)
        return f"none of {counted} in {source.label} has a {_in_words(field)}, which {reader} reads", f": {advice}"
    message = f"{source.label} does not supply {field!r}, which {reader} reads"
    return message, did_you_mean(field, sorted(source.fields))


def damage(source: Source) -> list[str]:
    """After its setup: a line on everything that cannot be read, or not all of it; decodes everything once.

    Its progress goes to :func:`partita.core.progress.reporting`.
    """
    lines, pieces = source.report, source.summary.pieces
    for done, (piece, wrong) in enumerate(source.verify(), 1):
        progress("decoding", done, pieces)
        if wrong is not None:
            lines.append(f"{piece}: {wrong}")
    return lines


def _in_words(field: str) -> str:
    """What people call a field."""
    return "caption" if field == "text" else field
