"""Generating many clips, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..core.console import showing_progress
from ..core.progress import progress as report_progress
from ..errors import PartitaError
from .checked_request import CheckedRequest
from .prompts import Row
from .request import Continuation, Request, build_request, takes_request
from .system import System

MOST_AT_ONCE = 8
"""Clips that are generated together unless somebody says otherwise."""

LONGEST_AT_ONCE = 240.0
"""Seconds of all clips that are generated together; one may be longer."""


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
    """The clips of some rows, each as soon as it is there: its place among the rows and its audio ``[C, T]``.

    Rows of equal duration are generated together, as many as the memory of eight clips, or of four minutes, allows. A
    clip is the same whatever is generated with it, up to rounding.

    Args:
        system: That generates.
        rows: From :func:`read_prompts`, or made.
        request: What is asked of all rows beside their prompts. ``duration`` is of rows that have none, ``seed`` of the
            first row (those of the next count up, unless a row has its own), ``negative`` one text for all clips, and
            ``continuation`` what every clip starts with.
        at_once: Most clips that are generated together.
        progress: Whether a terminal shows how much is done.
        options: Fields of :class:`partita.Request`, in the place of those that ``request`` has.

    Raises:
        PartitaError: What is asked cannot be, before anything is generated.
    """
    common = build_request(request or Request(), options)
    if at_once < 1:
        raise PartitaError(f"at least 1 clip is generated at once, not {at_once}")
    if common.prompts is not None:
        raise PartitaError("the rows have the prompts: a request for all of them has none")
    first, negative = common.seed, common.negative
    if not isinstance(first, int):
        raise PartitaError(f"seed is a whole number here, that of the first row, not {first!r}")
    if negative is not None and not isinstance(negative, str):
        raise PartitaError(f"negative is one text here, which all clips are led away from, not {negative!r}")

    def checked(members: Sequence[int], heard: Continuation = None) -> CheckedRequest:
        names = dict.fromkeys(name for i in members for name in rows[i].inputs)
        inputs = {name: [rows[i].inputs.get(name) for i in members] for name in names}
        own = replace(
            common,
            prompts=inputs or None,
            duration=common.duration if rows[members[0]].duration is None else rows[members[0]].duration,
            seed=[first + i if (seed := rows[i].seed) is None else seed for i in members],
            negative=None if negative is None else [negative] * len(members),
            continuation=continuation,
        )
        return CheckedRequest.of(system, own)

    groups: dict[float, list[int]] = {}
    for i in range(len(rows)):
        groups.setdefault(checked([i]).seconds, []).append(i)
    requests = []
    for seconds, members in groups.items():
        several = max(1, min(at_once, int(LONGEST_AT_ONCE / seconds)))
        requests += [members[i : i + several] for i in range(0, len(members), several)]
    requests.sort(key=lambda members: members[0])
    continuation = None
    if common.continuation is not None:  # read once, and refused where the shortest clip is not longer
        continuation = checked(groups[min(groups)][:1], common.continuation).continuation
    done = 0
    for members in requests:
        with showing_progress(progress):
            if len(requests) > 1:
                report_progress("clips", done, len(rows))
            audio = system.fulfill(checked(members, continuation), progress=progress)
        yield from zip(members, audio.cpu(), strict=True)
        done += len(members)
