"""Generating many clips, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..core.console import bars
from ..errors import PartitaError
from .prompts import Row
from .request import Continued, Request
from .system import System

MOST_AT_ONCE = 8
"""Clips that are generated together unless somebody says otherwise."""

LONGEST_AT_ONCE = 240.0
"""Seconds of all clips that are generated together; one may be longer."""


def generate_each(
    system: System,
    rows: Sequence[Row],
    *,
    duration: float | None = None,
    seed: int = 0,
    negative: str | None = None,
    continuation: Continued = None,
    at_once: int = MOST_AT_ONCE,
    splice: bool = True,
    progress: bool = True,
    **options: Any,
) -> Iterator[tuple[int, Tensor]]:
    """The clips of some rows, each as soon as it is there: its place among the rows and its audio ``[C, T]``.

    Rows of equal duration are generated together, as many as the memory of eight clips, or of four minutes, allows. A
    clip is the same whatever is generated with it, up to rounding.

    Args:
        system: That generates.
        rows: From :func:`read_prompts`, or made.
        duration: In seconds, of rows that have none.
        seed: Of the first row; those of the next count up, unless a row has its own.
        negative: What guidance leads all clips away from.
        continuation: What every clip starts with; see ``System.generate``.
        at_once: Most clips that are generated together.
        splice: As of ``System.generate``.
        progress: Whether a terminal shows how much is done.
        options: The other arguments of ``System.generate``.

    Raises:
        PartitaError: What is asked cannot be, before anything is generated.
    """
    if at_once < 1:
        raise PartitaError(f"at least 1 clip is generated at once, not {at_once}")

    def request(members: Sequence[int], heard: Continued = None) -> Request:
        names = dict.fromkeys(name for i in members for name in rows[i].inputs)
        inputs = {name: [rows[i].inputs.get(name) for i in members] for name in names}
        return Request.of(
            system,
            inputs or None,
            duration=duration if rows[members[0]].duration is None else rows[members[0]].duration,
            seed=[seed + i if (own := rows[i].seed) is None else own for i in members],
            negative=None if negative is None else [negative] * len(members),
            continuation=heard,
            **options,
        )

    groups: dict[float, list[int]] = {}
    for i in range(len(rows)):
        groups.setdefault(request([i]).seconds, []).append(i)
    requests = []
    for seconds, members in groups.items():
        several = max(1, min(at_once, int(LONGEST_AT_ONCE / seconds)))
        requests += [members[i : i + several] for i in range(0, len(members), several)]
    requests.sort(key=lambda members: members[0])
    heard = None
    if continuation is not None:  # read once, and refused where the shortest clip is not longer
        heard = request(groups[min(groups)][:1], continuation).heard
    with bars(progress) as bar:
        done = 0
        for members in requests:
            if len(requests) > 1:
                bar("clips", done, len(rows))
            audio = system.fulfill(request(members, heard), splice=splice, progress=bar)
            yield from zip(members, audio.cpu(), strict=True)
            done += len(members)
