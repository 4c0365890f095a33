"""What is asked of a system: prompts, a duration, and how its stages draw."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..core.excerpt import Excerpt
from ..core.registry import did_you_mean
from ..errors import PartitaError
from ..generators.base import Term

Prompts = str | Sequence[Any] | Mapping[str, Sequence[Any]] | None
Guidance = float | Sequence[Term] | None
Continuation = Excerpt | Tensor | str | Path | None

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Story:
    """A prompt that changes in time (MusicLM's story mode, arXiv 2301.11325 §5.6).

    Args:
        segments: Pairs (seconds, prompt) in order, the first at 0.

    Raises:
        PartitaError: They are not.
    """

    segments: Sequence[tuple[float, Any]]

    def __post_init__(self) -> None:
        segments = self.segments
        if not segments or not all(isinstance(s, tuple | list) and len(s) == 2 for s in segments):
            raise PartitaError(f"a story is a list of pairs (seconds, prompt), not {segments!r}")
        times = [time for time, _ in segments]
        rising = all(isinstance(t, int | float) and math.isfinite(t) for t in times) and times[0] == 0
        if not rising or any(not later > earlier for earlier, later in pairwise(times)):
            raise PartitaError(f"the times of a story begin at 0 and rise, unlike {times}")

    @property
    def times(self) -> tuple[float, ...]:
        """When each segment begins, in seconds."""
        return tuple(float(time) for time, _ in self.segments)


def segments_of(prompt: Any) -> list[Any]:
    """The prompts of a story, or the one prompt that it is."""
    return [part for _, part in prompt.segments] if isinstance(prompt, Story) else [prompt]


@dataclass(frozen=True)
class Request:
    """What a system is asked to generate. ``system.generate`` takes the same as keyword arguments.

    Args:
        prompts: Texts, or per input field (``text``, ``melody`` …) a list; ``None`` generates unconditionally. In the
            place of a prompt, a :class:`partita.Story` holds several with their times. Fields of audio take the path of
            a file, samples ``[C, T]`` at the rate of the output, or a :class:`partita.Excerpt`. Times are in seconds
            from the start of the clip, in a story from the start of the segment.
        duration: Seconds; ``None`` for the last stage's window, after the last change of a story.
        seed: One per sample, or the first of consecutive ones. A sample depends on its own seed and prompt alone.
        guidance: Scale of classifier-free guidance, or a list of :class:`partita.Term`, for every stage, or a mapping
            from a stage's name to either. ``None`` leaves each stage its own.
        sampling: Changes to how stages draw, such as ``{"temperature": 0.8, "steps": 50}``: each for the stages that
            know it, or for one alone, ``{"semantic": {"temperature": 0.8}}``.
        negative: What guidance leads away from in the place of nothing: prompts as above, without stories.
        continuation: What the result starts with, shorter than ``duration``: the path of a file, audio ``[B, C, T]`` at
            the rate of the output, or a :class:`partita.Excerpt` of either, at any rate.
        transition: Seconds of what came before from which a story's next prompt goes on: 0 to begin anew, ``None`` for
            as much as between windows.
        splice: Whether the result starts with the very samples of ``continuation``, which a codec changes: they go over
            into its version within the last tenth of a second. Without it, all is as the codec has it.
    """

    prompts: Prompts = None
    duration: float | None = None
    seed: int | Sequence[int] = 0
    guidance: Guidance | Mapping[str, Guidance] = None
    sampling: Mapping[str, Any] | None = None
    negative: Prompts = None
    continuation: Continuation = None
    transition: float | None = None
    splice: bool = True


def build_request(given: Prompts | Request, options: Mapping[str, Any]) -> Request:
    """The request that a call makes.

    Args:
        given: Prompts, or a request.
        options: Fields of the request, in the place of those that it has.

    Raises:
        PartitaError: A request has no such field.
    """
    known = [field.name for field in fields(Request)]
    for name in options:
        if name not in known:
            raise PartitaError(f"nothing that can be asked of a system is called {name!r}{did_you_mean(name, known)}")
    request = given if isinstance(given, Request) else Request(given)
    return replace(request, **options)


def takes_request(method: Method) -> Method:
    """Make the signature of a method with ``**options`` show the fields of :class:`Request` in their place."""
    own = inspect.signature(method)
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Request)
        if field.name != "prompts"
    ]
    given = list(own.parameters.values())
    positional = [parameter for parameter in given if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    others = [parameter for parameter in given if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    method.__signature__ = own.replace(parameters=[*positional, *options, *others])  # type: ignore[attr-defined]
    return method
