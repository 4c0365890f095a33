"""Descriptions of the data for users: what it contains, and what a recipe needs that it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.progress import progress
from ..core.registry import did_you_mean
from ..errors import PartitaError
from .base import UNKNOWN_LICENSE, Source
from .clips import ALWAYS_SUPPLIED


def overview(source: Source) -> list[str]:
    """Return a line with the numbers of pieces of each source, after its setup."""
    members = source.members
    if len(members) == 1:
        return [str(source.summary)]
    return [f"{m.label}, {m.share:.0%} of the clips: {m.source.summary}" for m in members]


def check_training_pieces(source: Source) -> None:
    """Check that there is something to train on, after the setup of the source.

    Raises:
        PartitaError: The training split is empty.
    """
    if not source.size("train"):
        raise PartitaError(f"the data has no training pieces: {'; '.join(overview(source))}")


def supplies(source: Source) -> list[str]:
    """Return a line with the fields that each source can supply, before its setup."""
    return [
        f"{m.label}{f', {m.share:.0%} of the clips' if m.share < 1 else ''}: "
        f"{'supplies' if m.source.fields_known else 'may supply'} {', '.join(sorted(m.source.fields))}"
        for m in source.members
    ]


def provenance(source: Source) -> list[str]:
    """Return a line for everything that the data is made of, with its license, also before its setup."""
    lines = []
    for member in source.members:
        yours = {UNKNOWN_LICENSE: f"{UNKNOWN_LICENSE}; state it with {member.source.license_option}"}
        lines += [
            f"made of {origin.what}: {yours.get(origin.license, origin.license)}" for origin in member.source.origins
        ]
    return list(dict.fromkeys(lines))


def training_gaps(source: Source, reads: Mapping[str, Sequence[str]], *, advise: bool = True) -> list[str]:
    """Return a line for each reader whose fields some pieces lack, after the setup of the source.

    A reader of ``audio`` learns from all clips, whatever other fields it reads.

    Args:
        source: The data.
        reads: Fields of each reader, such as ``conditioners.text``.
        advise: Whether to add how the owner of the data can supply the field.
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
    """Return pairs of reader and field for the fields that not every source supplies in training."""
    return [
        (who, field)
        for who, fields in reads.items()
        if "audio" not in fields
        for field in fields
        if field not in ALWAYS_SUPPLIED
    ]


def generation_gaps(fields_of_clips: Sequence[Mapping[str, Any]], reads: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each reader that gets no input for some of the clips that will be generated.

    Args:
        fields_of_clips: The fields of the piece of each clip.
        reads: Fields of each reader, such as ``conditioners.text``.
    """
    lines = []
    for reader, fields in reads.items():
        if lacking := sum(not any(known.get(field) is not None for field in fields) for known in fields_of_clips):
            without = " or ".join(_in_words(field) for field in fields if field != "audio") or "audio"
            lines.append(
                f"{lacking:,} of {len(fields_of_clips):,} clips are of pieces without {without}: they are generated "
                f"without {reader}"
            )
    return lines


def not_supplied(source: Source, field: str, reader: str) -> tuple[str, str]:
    """Return an error about a field that no piece has, and advice on how to supply it.

    Args:
        source: The data.
        field: The missing field.
        reader: The reader of the field, such as ``conditioners.text``.
    """
    if advice := source.advice(field):
        counted = source.summary.counted(source.summary.pieces)
        return f"none of {counted} in {source.label} has a {_in_words(field)}, which {reader} reads", f": {advice}"
    message = f"{source.label} does not supply {field!r}, which {reader} reads"
    for member in source.members:
        if (switch := member.source.switches.get(field)) is not None:
            return message, f": set `{switch}` of {member.label}"
    return message, did_you_mean(field, sorted(source.fields))


def damage(source: Source) -> list[str]:
    """Decode everything once, after the setup of the source, and return a line for each piece that is damaged.

    Progress is reported to :func:`partita.core.progress.reporting`.
    """
    lines, pieces = source.report, source.summary.pieces
    for done, (piece, wrong) in enumerate(source.verify(), 1):
        progress("decoding", done, pieces)
        if wrong is not None:
            lines.append(f"{piece}: {wrong}")
    return lines


def _in_words(field: str) -> str:
    """Return the noun for a field in messages."""
    return "caption" if field == "text" else field
