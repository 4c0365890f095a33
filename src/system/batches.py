"""Generation of many clips in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..core.console import showing_progress
from ..core.progress import progress as report_progress
from ..errors import PartitaError
from .checked_request import CheckedRequest
from .prompts import Row
from .request import Continuation, Request, build_request, takes_request
from .structure import Structure, is_several
from .system import System

MOST_AT_ONCE = 8
"""Default maximum number of clips in a batch."""

LONGEST_AT_ONCE = 240.0
"""Maximum total length of the clips in a batch, in seconds; a single clip may be longer."""


@takes_request
def generate_each(
    system: System,
    rows: Sequence[Row],
    request: Request | None = None,
    *,
    at_once: int = MOST_AT_ONCE,
    progress: bool = True,
    **options: Any,
) -> Iterator[tuple[int, Tensor]]:
    """Generate a clip for each row, and yield the index of its row and audio ``[C, T]`` as soon as it is done.

    Rows of equal duration are generated in batches of at most ``at_once`` clips and four minutes in total. A clip does
    not depend on the other clips of its batch, up to rounding.

    Args:
        system: System to generate with.
        rows: Rows, for example from :func:`read_prompts`.
        request: Options common to all rows, without prompts. ``duration`` applies to rows that have none. ``seed`` is
            that of the first row; it increases by 1 for each further row, unless a row has its own. ``negative`` is one
            text for all clips, ``melody``, ``chords``, ``bpm``, ``key`` and ``beats`` are theirs, and ``continuation``
            is the start of every clip.
        at_once: Maximum number of clips in a batch.
        progress: Whether to show the progress on a terminal.
        options: Fields of :class:`partita.Request`, which override those of ``request``.

    Raises:
        PartitaError: The request or a row is invalid. Nothing has been generated yet.
    """
    if at_once < 1:
        raise PartitaError(f"at_once must be at least 1, not {at_once}")
    common = common_request(request, options)

    def checked(members: Sequence[int], continuation: Continuation = None) -> CheckedRequest:
        return CheckedRequest.of(system, replace(row_request(rows, members, common), continuation=continuation))

    groups: dict[float, list[int]] = {}
    for i in range(len(rows)):
        groups.setdefault(checked([i]).seconds, []).append(i)
    requests = []
    for seconds, members in groups.items():
        several = max(1, min(at_once, int(LONGEST_AT_ONCE / seconds)))
        requests += [members[i : i + several] for i in range(0, len(members), several)]
    requests.sort(key=lambda members: members[0])
    continuation = None
    if groups and common.continuation is not None:  # read once, and checked against the shortest clip
        continuation = checked(groups[min(groups)][:1], common.continuation).continuation
    done = 0
    for members in requests:
        with showing_progress(progress):
            if len(requests) > 1:
                report_progress("clips", done, len(rows))
            audio = system.fulfill(checked(members, continuation), progress=progress)
        yield from zip(members, audio.cpu(), strict=True)
        done += len(members)


def common_request(request: Request | None, options: Mapping[str, Any]) -> Request:
    """Return the options common to all rows after checking them.

    Raises:
        PartitaError: An option cannot be common to several rows.
    """
    common = build_request(request or Request(), options)
    if common.prompts is not None:
        raise PartitaError("the rows contain the prompts: leave out the prompts of the request")
    if not isinstance(common.seed, int):
        raise PartitaError(f"seed must be a whole number, the seed of the first row, not {common.seed!r}")
    if isinstance(common.melody, list | tuple):
        raise PartitaError("melody must be one recording for all clips: put several into the inputs of the rows")
    for name in Structure._fields:
        if is_several(name, getattr(common, name)):
            raise PartitaError(f"{name} must be one for all clips: put several into the inputs of the rows")
    if common.negative is not None and not isinstance(common.negative, str):
        raise PartitaError(f"negative must be one text for all clips, not {common.negative!r}")
    return common


def row_request(rows: Sequence[Row], members: Sequence[int], common: Request) -> Request:
    """Return the request of a batch of rows.

    Args:
        rows: All rows.
        members: Indices of the rows of the batch, which have the same duration.
        common: Options common to all rows, as in :func:`generate_each`.
    """
    names = dict.fromkeys(name for i in members for name in rows[i].inputs)
    inputs = {name: [rows[i].inputs.get(name) for i in members] for name in names}
    first, duration = common.seed, rows[members[0]].duration
    assert isinstance(first, int)
    return replace(
        common,
        prompts=inputs or None,
        duration=common.duration if duration is None else duration,
        seed=[first + i if (seed := rows[i].seed) is None else seed for i in members],
        negative=None if common.negative is None else [common.negative] * len(members),
    )
