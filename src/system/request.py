"""Requests for generation: prompts, duration, guidance, sampling and continuation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..core.contracts import Generated
from ..core.excerpt import Excerpt
from ..core.registry import did_you_mean
from ..errors import PartitaError
from ..generators.base import Term
from ..layers.lowered import InferencePrecision

Prompts = str | Sequence[Any] | Mapping[str, Sequence[Any]] | None
Guidance = float | Sequence[Term] | None
Continuation = Excerpt | Tensor | str | Path | Mapping[str, Tensor | Generated] | None
Recordings = Excerpt | Tensor | str | Path | Sequence[Any] | None
Chords = str | Path | Sequence[Any] | None

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Story:
    """A prompt that changes over time (story mode of MusicLM, arXiv 2301.11325 §5.6).

    Args:
        segments: Pairs (start in seconds, prompt) in ascending order, the first at 0.

    Raises:
        PartitaError: The segments are not such pairs.
    """

    segments: Sequence[tuple[float, Any]]

    def __post_init__(self) -> None:
        segments = self.segments
        if not segments or not all(isinstance(s, tuple | list) and len(s) == 2 for s in segments):
            raise PartitaError(f"a story must be a list of pairs (seconds, prompt), not {segments!r}")
        times = [time for time, _ in segments]
        valid = all(isinstance(t, int | float) and math.isfinite(t) for t in times) and times[0] == 0
        if not valid or any(not later > earlier for earlier, later in pairwise(times)):
            raise PartitaError(f"the times of a story must start at 0 and increase, unlike {times}")

    @property
    def times(self) -> tuple[float, ...]:
        """Start of each segment, in seconds."""
        return tuple(float(time) for time, _ in self.segments)


def segments_of(prompt: Any) -> list[Any]:
    """Return the prompts of a story, or a list of the one prompt if it is not a story."""
    return [part for _, part in prompt.segments] if isinstance(prompt, Story) else [prompt]


@dataclass(frozen=True)
class Request:
    """A request for generation. ``system.generate`` takes the same fields as keyword arguments.

    Args:
        prompts: A text, a list of texts, or a mapping from input fields (``text``, ``melody`` …) to lists. ``None``
            generates unconditionally. Instead of a prompt, a :class:`partita.Story` contains several prompts with their
            times. Audio fields take the path of a file, samples ``[C, T]`` at the output's sample rate, or a
            :class:`partita.Excerpt`. Times in prompts are in seconds from the start of the clip; in a story, from the
            start of the segment.
        duration: Length of the clips in seconds. ``None`` uses the longest window of the stages, counted from the
            last segment of a story.
        melody: A hummed, whistled or played melody for all clips, or a list with one for each clip (``None`` for a clip
            without one): a path, samples or excerpt, like audio fields of ``prompts``. It is the same as the field
            ``cover`` of ``prompts``, or ``melody`` where the system reads notes.
        style: A recording whose style all clips follow, or a list with one for each clip: like ``melody``. It is the
            same as the field ``excerpt`` of ``prompts``.
        style_streams: Number of codebooks of the style, which follow the recording the more closely the more there are,
            or a list with one for each clip; the same as the field ``style_streams`` of ``prompts``.
        chords: Chords of all clips, or a list with one for each clip: a progression such as ``"C G Am F"``, a ``.lab``,
            ``.json`` or ``.csv`` file, or rows (start, end, chord). A progression is spread evenly over the clip; with
            ``bpm``, each chord lasts a bar of four beats, and the progression is repeated.
        bpm: Tempo in beats per minute, or a list with one for each clip; the field ``tempo`` of ``prompts``.
        key: Key, such as ``A minor``, or a list with one for each clip.
        beats: Times of the beats in seconds, or a recording whose beats are taken (a path or excerpt), or a list with
            one recording for each clip.
        seed: A seed for each sample, or the first of consecutive seeds. A sample depends only on its own seed and
            prompt.
        guidance: Scale of classifier-free guidance or a list of :class:`partita.Term` for all stages, or a mapping from
            stage names to either. ``None`` keeps the guidance of each stage.
        sampling: Changes of sampling options, such as ``{"temperature": 0.8, "steps": 50}``. Each applies to all stages
            that have the option, or to one stage: ``{"semantic": {"temperature": 0.8}}``.
        negative: Negative prompts in the format of ``prompts``, without stories. They replace the null condition of
            guidance.
        continuation: Audio that the result starts with, shorter than ``duration``: the path of a file, audio
            ``[B, C, T]`` at the output's sample rate, or a :class:`partita.Excerpt` of either at any sample rate.
            Instead of audio, a mapping contains codes ``[B, K, S]`` or latents ``[B, D, S]`` by name, such as the
            result of ``generate_representations``, which are continued as they are.
        transition: Seconds of audio that the next segment of a story continues. 0 starts anew, and ``None`` uses the
            overlap of windows.
        splice: Whether the result starts with the original samples of ``continuation``, with a crossfade to the codec's
            reconstruction in the last 0.1 s. Otherwise, the beginning is the codec's reconstruction.
        precision: Precision of the weights of all stages: ``fp32``, or ``bf16`` or ``int8``, which are faster and less
            exact; ``auto`` takes the fastest that the device has instructions for.
        compile: Whether to compile the steps of all stages, on CUDA only. The first generation of a length takes a
            minute longer, which pays for long clips and many of them.
    """

    prompts: Prompts = None
    duration: float | None = None
    melody: Recordings = None
    style: Recordings = None
    style_streams: int | Sequence[int | None] | None = None
    chords: Chords = None
    bpm: float | Sequence[float] | None = None
    key: str | Sequence[str] | None = None
    beats: Recordings = None
    seed: int | Sequence[int] = 0
    guidance: Guidance | Mapping[str, Guidance] = None
    sampling: Mapping[str, Any] | None = None
    negative: Prompts = None
    continuation: Continuation = None
    transition: float | None = None
    splice: bool = True
    precision: InferencePrecision = "fp32"
    compile: bool = False


def build_request(given: Prompts | Request, options: Mapping[str, Any]) -> Request:
    """Build a request from the arguments of a call.

    Args:
        given: Prompts or a request.
        options: Fields that override those of the request.

    Raises:
        PartitaError: An option is not a field of requests.
    """
    known = [field.name for field in fields(Request)]
    for name in options:
        if name not in known:
            raise PartitaError(f"generation has no option {name!r}{did_you_mean(name, known)}")
    request = given if isinstance(given, Request) else Request(given)
    return replace(request, **options)


def takes_request(method: Method) -> Method:
    """Replace ``**options`` in the signature of a method by the fields of :class:`Request`."""
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
