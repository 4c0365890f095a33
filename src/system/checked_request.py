"""A request checked against a system: what generation runs on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from torch import Tensor

from ..core.contracts import Clip
from ..core.excerpt import excerpt_of
from ..core.registry import did_you_mean
from ..data.clips import clip_for, prepared
from ..data.fields.base import cropped, parsed
from ..errors import PartitaError
from ..generators.base import Term, classifier_free
from ..layers.guidance import checked_terms
from ..limits import LONGEST_CLIP, MOST_STEPS, TooMuch, beyond
from .assembly import Assembly
from .request import Continuation, Prompts, Request, Story, segments_of


@dataclass(frozen=True)
class CheckedRequest:
    """What is generated: a :class:`~partita.system.request.Request` that a system can fulfill.

    Attributes:
        inputs: Per input field the prompts, one per sample.
        seeds: One per sample.
        negative: Per input field what guidance leads away from, one prompt per sample.
        seconds: How much is generated.
        generate_options: By stage, the arguments of its ``generate`` that say how it generate_options.
        continuation: Audio ``[B, C, T]`` to start with, at the rate and channels of the output.
        transition: Seconds that the next part of a story goes on from.
        splice: Whether the result starts with the very samples of ``continuation``.
    """

    inputs: dict[str, list[Any]]
    seeds: list[int]
    negative: dict[str, list[Any]]
    seconds: float
    generate_options: dict[str, dict[str, Any]]
    continuation: Tensor | None
    transition: float | None
    splice: bool

    @classmethod
    def of(cls, system: Assembly, request: Request) -> Self:
        """Check a request.

        Raises:
            PartitaError: The system cannot fulfill it; the message says what it can.
        """
        if not system.stages:
            raise PartitaError("this system has no stage: it can encode and decode, but not generate")
        inputs = _inputs(system, request.prompts)
        seeds = _seeds(request.seed, len(next(iter(inputs.values()))) if inputs else None)
        negative = _negative(_inputs(system, request.negative, "negative: "), len(seeds))
        window = system.plan.last_stage.window
        latest = max((p.times[-1] for values in inputs.values() for p in values if isinstance(p, Story)), default=0.0)
        seconds = _seconds("duration", latest + window if request.duration is None else request.duration)
        if latest >= seconds:
            raise PartitaError(
                f"the story goes on at {latest:g} s, but the clip ends at {seconds:g} s: set a longer duration"
            )
        generate_options = {
            name: {"guidance": _guidance(system, name, request.guidance), "sampling": drawn}
            for name, drawn in _sampling(system, request.sampling or {}).items()
        }
        if negative and not any(_guided(**draw) for draw in generate_options.values()):
            raise PartitaError(
                "a negative prompt is what guidance leads away from, and no stage is guided here: set guidance above 1"
            )
        for asked in (inputs, negative):
            _check_prompts(system, asked, seconds)
        continuation = (
            None
            if request.continuation is None
            else _read_continuation(system, request.continuation, len(seeds), seconds)
        )
        over = None if request.transition is None else _seconds("transition", request.transition, least=0.0)
        if over is not None and over >= window:
            raise PartitaError(f"transition must be shorter than the window of {window:g} s, not {over:g}")
        return cls(inputs, seeds, negative, seconds, generate_options, continuation, over, request.splice)

    def groups(self) -> dict[tuple[float, ...], list[int]]:
        """Samples whose prompts change at the same times, by these: they have the same windows.

        Raises:
            PartitaError: The prompts of one sample change at different times.
        """
        groups: dict[tuple[float, ...], list[int]] = {}
        for i in range(len(self.seeds)):
            times = {p.times for values in self.inputs.values() for p in [values[i]] if isinstance(p, Story)} or {
                (0.0,)
            }
            if len(times) > 1:
                raise PartitaError(
                    f"the stories of clip {i} change at different times in different inputs: {sorted(times)}"
                )
            groups.setdefault(times.pop(), []).append(i)
        return groups


def _check_prompts(system: Assembly, inputs: dict[str, list[Any]], seconds: float) -> None:
    """See that every conditioner can read its prompts, before a stage that is not given it takes its time."""
    rate = system.output.spec.sample_rate
    for conditioner in system.conditioners.values():
        clips = []
        for name in conditioner.inputs:
            for part in (part for value in inputs.get(name, ()) for part in segments_of(value)):
                known = cropped({name: part}, 0.0, seconds)
                clips.append(clip_for(conditioner, Clip(known, seconds, known.pop("audio", None), rate)))
        if clips:
            prepared(conditioner, clips)


def _negative(prompts: dict[str, list[Any]], batch: int) -> dict[str, list[Any]]:
    for name, values in prompts.items():
        if len(values) != batch or any(isinstance(value, Story) for value in values):
            raise PartitaError(
                f"negative takes {batch} prompts, one for each clip, and no story, not {name}={values!r}"
            )
    return prompts


def _seconds(name: str, value: Any, least: float = 1e-9) -> float:
    if not isinstance(value, int | float) or not least <= value < math.inf:
        raise PartitaError(f"{name} is {'more than 0' if least else '0 or more'} seconds, not {value!r}")
    value = min(value, 1e300)  # a whole number can be larger than any other
    if beyond(value, LONGEST_CLIP):
        raise TooMuch(f"{name}: {value:g} s, and a clip is at most {LONGEST_CLIP:g} s long: refused")
    return float(value)


def _inputs(system: Assembly, prompts: Prompts, where: str = "") -> dict[str, list[Any]]:
    if prompts is None:
        return {}
    if isinstance(prompts, str | Story):
        prompts = [prompts]
    if not isinstance(prompts, Mapping):
        prompts = {"text": prompts}
    readable = set(system.inputs)
    for name, values in prompts.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise PartitaError(f"{where}{name} takes a list with one prompt for each clip, not {values!r}")
        if name not in readable:
            raise PartitaError(f"{where}nothing in this system reads {name!r}{did_you_mean(name, sorted(readable))}")
    if len({len(values) for values in prompts.values()}) > 1:
        raise PartitaError(f"as many prompts for every input, please: got { {k: len(v) for k, v in prompts.items()} }")
    return {name: [_parsed(f"{where}{name}", name, value) for value in values] for name, values in prompts.items()}


def _parsed(where: str, name: str, value: Any) -> Any:
    """A prompt, or every prompt of a story, as the parser of its field has it."""
    if isinstance(value, Story):
        return Story([(time, _parsed(where, name, part)) for time, part in value.segments])
    try:
        return parsed(name, value)
    except ValueError as error:
        raise PartitaError(f"{where}: {error}") from None


def _seeds(seed: Any, batch: int | None) -> list[int]:
    if not isinstance(seed, int) and not (isinstance(seed, Sequence) and all(isinstance(s, int) for s in seed)):
        raise PartitaError(f"seed is a whole number, or one for each sample, not {seed!r}")
    asked = [seed, seed + (batch or 1)] if isinstance(seed, int) else seed
    if any(abs(number) >= 1 << 63 for number in asked):
        raise PartitaError("a seed is a whole number of less than 64 bits")
    if isinstance(seed, int):
        return [seed + i for i in range(batch or 1)]
    if len(seed) != (batch or len(seed)):
        raise PartitaError(f"{batch} prompts, but {len(seed)} seeds: give one seed, or one per prompt")
    return list(seed)


def _read_continuation(system: Assembly, audio: Continuation, batch: int, seconds: float) -> Tensor:
    spec = system.output.spec
    excerpt = excerpt_of(audio)
    length = excerpt.length(spec.sample_rate)  # known before anything of it is read
    if length >= seconds:
        raise PartitaError(
            f"the result starts with the {length:,.2f} s to continue, so it must be longer than {seconds:g} s: "
            "set a longer duration, or continue less of it"
        )
    continuation = excerpt.read(spec.sample_rate, spec.channels)
    if len(continuation) not in (1, batch):
        raise PartitaError(f"{batch} clips continue one recording, or one each, not {len(continuation)}")
    return continuation.to(system.device).expand(batch, -1, -1)


def _guidance(system: Assembly, name: str, guidance: Any) -> list[Term] | None:
    """The terms of one stage; conditions that only other stages are given do not count in it."""
    if isinstance(guidance, Mapping):
        for stage in guidance.keys() - system.stages.keys():
            raise PartitaError(f"guidance names no stage {stage!r}{did_you_mean(stage, system.stages)}")
        guidance = guidance.get(name)
    if guidance is None:
        return None
    asked = guidance
    if isinstance(guidance, int | float):
        guidance = classifier_free(float(guidance))
    if (
        not isinstance(guidance, Sequence)
        or not guidance
        or not all(isinstance(t, Term) and math.isfinite(t.weight) for t in guidance)
    ):
        raise PartitaError(f"guidance is a number, or a list of partita.Term, not {asked!r}")
    everything = {given for stage in system.stages.values() for given in stage.given}
    for kept in {kept for term in guidance for kept in term.keep or ()} - everything:
        raise PartitaError(f"guidance keeps {kept!r}, which no stage is given{did_you_mean(kept, sorted(everything))}")
    own = system.stages[name].given
    terms = [t if t.keep is None else replace(t, keep=tuple(k for k in t.keep if k in own)) for t in guidance]
    try:
        return checked_terms(terms, list(own))
    except ValueError as error:
        raise PartitaError(str(error)) from None


def _guided(guidance: list[Term] | None, sampling: Any) -> bool:
    """Whether a stage predicts with less than all its conditions, too, in whose place others can be."""
    if guidance is None:
        return getattr(sampling, "guidance", None) != 1  # of a stage with a way of its own, nobody knows
    return any(term.keep is not None for term in guidance)


def _sampling(system: Assembly, changes: Mapping[str, Any]) -> dict[str, Any]:
    """How each stage generate_options: its own way, with those changes that it knows."""
    known = {name: {f.name for f in fields(stage.sampling)} for name, stage in system.stages.items()}
    everything = sorted(set().union(*known.values()))
    if not isinstance(changes, Mapping):
        raise PartitaError(f"sampling is a mapping such as {{{everything[0]!r}: …}}, not {changes!r}")
    for key, value in changes.items():
        if isinstance(value, Mapping) and key not in known:
            raise PartitaError(f"sampling: no stage is called {key!r}{did_you_mean(key, known)}")
        if key not in known and key not in everything:
            raise PartitaError(f"sampling: no stage has {key!r}{did_you_mean(key, everything)}")
        if key in known and not isinstance(value, Mapping):
            raise PartitaError(f"sampling: {key} is a stage: give it a mapping from names to values, not {value!r}")
    drawn = {}
    for name, stage in system.stages.items():
        common = {key: value for key, value in changes.items() if key not in known and key in known[name]}
        own = {**common, **changes.get(name, {})}
        try:
            drawn[name] = stage.changed_sampling(own) if own else stage.sampling
            if beyond(steps := getattr(drawn[name], "steps", None) or 0, MOST_STEPS):
                raise TooMuch(f"{steps:,} steps, and nothing takes more than {MOST_STEPS:,}: refused")
        except PartitaError as error:
            raise PartitaError(f"sampling of {name}: {error}") from None
    return drawn
