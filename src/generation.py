"""Generating with a whole chain: stage by stage, window by window, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .contracts import Condition, finite
from .data.audio_file import read_clip
from .errors import PartitaError
from .generators.base import Term, classifier_free
from .layers.guidance import checked_terms
from .layers.resample import convert
from .rates import at_least, exact, nearest
from .reference import Reference
from .registry import did_you_mean
from .seeds import derive_seed
from .windows import Window, common_grid, windows

if TYPE_CHECKING:
    from .recipe import StagePlan
    from .system import System

Prompts = str | Sequence[Any] | Mapping[str, Sequence[Any]] | None
Guidance = float | Sequence[Term] | None
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Story:
    """A prompt that changes in time (MusicLM's story mode, arXiv 2301.11325 §5.6).

    Args:
        parts: Pairs (seconds, prompt) in order, the first at 0.

    Raises:
        PartitaError: They are not.
    """

    parts: Sequence[tuple[float, Any]]

    def __post_init__(self) -> None:
        parts = self.parts
        if not parts or not all(isinstance(p, tuple | list) and len(p) == 2 for p in parts):
            raise PartitaError(f"a story is a list of pairs (seconds, prompt), not {parts!r}")
        times = [time for time, _ in parts]
        rising = all(isinstance(t, int | float) and math.isfinite(t) for t in times) and times[0] == 0
        if not rising or any(not later > earlier for earlier, later in pairwise(times)):
            raise PartitaError(f"the times of a story begin at 0 and rise, unlike {times}")

    @property
    def times(self) -> tuple[float, ...]:
        """When each part begins, in seconds."""
        return tuple(float(time) for time, _ in self.parts)


def generate(
    system: System,
    prompts: Prompts = None,
    *,
    duration: float | None = None,
    seed: int | Sequence[int] = 0,
    guidance: Guidance | Mapping[str, Guidance] = None,
    sampling: Mapping[str, Any] | None = None,
    negative: Prompts = None,
    continuation: Tensor | str | Path | None = None,
    transition: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """What every stage of a system generates, by representation; the arguments are those of ``System.generate``."""
    if not system.stages:
        raise PartitaError("this system has no stage: it can encode and decode, but not generate")
    inputs = _inputs(system, prompts)
    seeds = _seeds(seed, len(next(iter(inputs.values()))) if inputs else None)
    avoided = _avoided(_inputs(system, negative, "negative: "), len(seeds))
    window = list(system.plan.stages.values())[-1].window
    latest = max((p.times[-1] for values in inputs.values() for p in values if isinstance(p, Story)), default=0.0)
    seconds = latest + window if duration is None else _seconds("duration", duration)
    if latest >= seconds:
        raise PartitaError(
            f"the story goes on at {latest:g} s, but the clip ends at {seconds:g} s: set a longer duration"
        )
    draws = {
        name: {"guidance": _guidance(system, name, guidance), "sampling": drawn}
        for name, drawn in _sampling(system, sampling or {}).items()
    }
    if avoided and not any(_guided(**draw) for draw in draws.values()):
        raise PartitaError(
            "a negative prompt is what guidance leads away from, and no stage is guided here: set guidance above 1"
        )
    heard = None if continuation is None else _heard(system, continuation, len(seeds), seconds)
    over = None if transition is None else _seconds("transition", transition, least=0.0)
    if over is not None and over >= window:
        raise PartitaError(f"transition must be shorter than the window of {window:g} s, not {over:g}")
    # Clips whose prompts change at other times have other windows: each group is a batch of its own.
    groups: dict[tuple[float, ...], list[int]] = {}
    for i in range(len(seeds)):
        times = {p.times for values in inputs.values() for p in [values[i]] if isinstance(p, Story)} or {(0.0,)}
        if len(times) > 1:
            raise PartitaError(
                f"the stories of clip {i} change at different times in different inputs: {sorted(times)}"
            )
        groups.setdefault(times.pop(), []).append(i)
    results = []
    for starts, members in groups.items():
        chain = Chain(
            system,
            {
                name: [[_part(values[i], part) for i in members] for part in range(len(starts))]
                for name, values in inputs.items()
            },
            starts,
            [seeds[i] for i in members],
            seconds,
            draws,
            {name: [values[i] for i in members] for name, values in avoided.items()},
            None if heard is None else heard[members],
            over,
            progress,
        )
        results.append(chain.run())
    order = torch.tensor([i for members in groups.values() for i in members], device=system.device).argsort()
    return {source: torch.cat([made[source] for made in results])[order] for source in results[0]}


@dataclass
class Chain:
    """One batch on its way through all stages; its prompts change at the same times.

    Attributes:
        system: What generates.
        inputs: Per input field the prompts, ``[part of the story][sample]``.
        times: When each part begins, in seconds.
        seeds: One per sample.
        seconds: How much is generated.
        draws: By stage, the arguments of its ``generate`` that say how it draws.
        avoided: Per input field what guidance leads away from, one prompt per sample.
        heard: Audio ``[B, C, T]`` to start with, at the rate and channels of the output.
        transition: Seconds that the next part of a story goes on from.
        progress: Called with (stage, steps done, steps in all).
        made: By source, what has been generated.
    """

    system: System
    inputs: dict[str, list[list[Any]]]
    times: tuple[float, ...]
    seeds: list[int]
    seconds: float
    draws: dict[str, dict[str, Any]]
    avoided: dict[str, list[Any]]
    heard: Tensor | None
    transition: float | None
    progress: Progress | None
    made: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> dict[str, Tensor]:
        """Every stage over the whole duration, one after the other."""
        for name, plan in self.system.plan.stages.items():
            source, new = plan.target.source, self._stage(name, plan)
            self.made[source] = torch.cat([self.made[source], new], dim=1) if source in self.made else new
        return self.made

    def _stage(self, name: str, plan: StagePlan) -> Tensor:
        """One stage over the whole duration, window by window."""
        stage, facts = self.system.stages[name].eval(), self.system.facts(plan.target)
        known = None if self.heard is None else self._known(plan.target, self.heard)
        stretches, parts = self._windows(name, plan, 0 if known is None else known.shape[-1])
        conditions: dict[tuple[str, int], tuple[Condition, Condition]] = {}
        for index, ((start, begin, stop), part) in enumerate(zip(stretches, parts, strict=True)):
            given = {}
            for source in plan.given:
                if (source, part) not in conditions:
                    conditions[source, part] = self._condition(plan, source, part)
                rate = stage.given[source].spec.frame_rate
                pair = conditions[source, part]
                if rate is not None:
                    first, last = (round(frame * exact(rate) / exact(facts.frame_rate)) for frame in (start, stop))
                    pair = (pair[0].part(first, max(last, first + 1)), pair[1].part(first, max(last, first + 1)))
                given[source] = pair
            try:
                new = stage.generate(
                    given,
                    stop - start,
                    seeds=[derive_seed(seed, name, index) for seed in self.seeds],
                    prompt=None if known is None or start == begin else known[..., start:],
                    progress=self._progress(name, index, len(stretches)),
                    **self.draws[name],
                )
            except FloatingPointError as error:
                raise not_finite(f"the stage {name}", str(error)) from None
            known = new if known is None else torch.cat([known[..., :start], new], dim=-1)
        assert known is not None
        if not finite(known):
            raise not_finite(f"the stage {name}", f"{plan.target} that is not finite numbers")
        return known

    def _windows(self, name: str, plan: StagePlan, known: int) -> tuple[list[Window], list[int]]:
        """The windows of a stage, and the part of the story that each belongs to."""
        facts = self.system.facts(plan.target)
        rate = facts.frame_rate
        others = [g.spec.frame_rate for g in self.system.stages[name].given.values() if g.spec.frame_rate is not None]
        window, overlap = facts.frames(plan.window), at_least(plan.overlap, rate)
        grid = common_grid(rate, others)
        if grid > window - overlap:  # rates that hardly ever meet: what is given starts within half a frame
            grid = 1
        # A story changes only what is given one of its inputs.
        fields = {self.system.conditioners[given].input for given in plan.given if given not in plan.references}
        times = self.times if fields & self.inputs.keys() else (0.0,)
        starts = [round(exact(time) * exact(rate) / grid) * grid for time in times]
        transition = None if self.transition is None else nearest(self.transition, rate)
        total = facts.frames(self.seconds)
        made = list(windows(total, window, overlap, known=known, grid=grid, changes=starts[1:], transition=transition))
        return made, [max(0, sum(window.known >= start for start in starts) - 1) for window in made]

    def _condition(self, plan: StagePlan, name: str, part: int) -> tuple[Condition, Condition]:
        """The pair (condition, null) of something given; what is to be avoided takes the place of the null."""
        if name in plan.references:
            values = plan.references[name].take(self.made[plan.references[name].source])
            condition = Condition.of(values, torch.ones_like(values[:, 0], dtype=torch.bool))
            return condition, condition.absent()
        conditioner, batch = self.system.conditioners[name].eval(), len(self.seeds)
        wanted = self.inputs[conditioner.input][part] if conditioner.input in self.inputs else [None] * batch
        avoided = self.avoided.get(conditioner.input, [])
        try:
            prepared = conditioner.prepare([*wanted, *avoided])  # together, so that both have the same length
        except (TypeError, ValueError) as error:
            raise PartitaError(f"{conditioner.input}: {error}") from None
        condition = conditioner({key: tensor.to(self.system.device) for key, tensor in prepared.items()})
        if not finite(condition.values):
            raise not_finite(f"the conditioner {name}", "a condition that is not finite numbers")
        if not avoided:
            return condition, conditioner.null(condition)
        return (
            Condition(condition.values[:batch], condition.mask[:batch]),
            Condition(condition.values[batch:], condition.mask[batch:]),
        )

    def _known(self, target: Reference, heard: Tensor) -> Tensor:
        """The representation of audio to continue, whole frames only."""
        tokenizer, output = self.system.tokenizer_of(target), self.system.output.representation
        facts = tokenizer.representation
        audio = convert(heard, output.sample_rate, facts.sample_rate, facts.channels)
        frames = max(1, facts.whole_frames(heard.shape[-1], output.sample_rate))
        encoded = tokenizer.encode(audio)
        if not finite(encoded):
            raise not_finite(f"the tokenizer {target.tokenizer}", "latents that are not finite numbers")
        return target.take(encoded)[..., :frames]

    def _progress(self, stage: str, index: int, windows: int) -> Callable[[int, int], None] | None:
        """Steps of one window as steps of all."""
        report = self.progress
        if report is None:
            return None
        return lambda done, total: report(stage, index * total + done, windows * total)


def not_finite(who: str, what: str) -> PartitaError:
    """The refusal of something that is not a result: who made it, and what."""
    return PartitaError(
        f"{who} makes {what} (NaN or infinite): its weights are damaged, or its training went wrong; where its numbers "
        "are too large for half precision, use float32"
    )


def _part(prompt: Any, part: int) -> Any:
    return prompt.parts[part][1] if isinstance(prompt, Story) else prompt


def _avoided(prompts: dict[str, list[Any]], batch: int) -> dict[str, list[Any]]:
    for name, values in prompts.items():
        if len(values) != batch or any(isinstance(value, Story) for value in values):
            raise PartitaError(
                f"negative takes {batch} prompts, one for each clip, and no story, not {name}={values!r}"
            )
    return prompts


def _seconds(name: str, value: Any, least: float = 1e-9) -> float:
    if not isinstance(value, int | float) or not least <= value < math.inf:
        raise PartitaError(f"{name} is {'more than 0' if least else '0 or more'} seconds, not {value!r}")
    return float(value)


def _inputs(system: System, prompts: Prompts, where: str = "") -> dict[str, list[Any]]:
    if prompts is None:
        return {}
    if isinstance(prompts, str | Story):
        prompts = [prompts]
    if not isinstance(prompts, Mapping):
        prompts = {"text": prompts}
    readable = {conditioner.input for conditioner in system.conditioners.values()}
    for name, values in prompts.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise PartitaError(f"{where}{name} takes a list with one prompt for each clip, not {values!r}")
        if name not in readable:
            raise PartitaError(f"{where}nothing in this system reads {name!r}{did_you_mean(name, sorted(readable))}")
    if len({len(values) for values in prompts.values()}) > 1:
        raise PartitaError(f"as many prompts for every input, please: got { {k: len(v) for k, v in prompts.items()} }")
    return {name: list(values) for name, values in prompts.items()}


def _seeds(seed: Any, batch: int | None) -> list[int]:
    if not isinstance(seed, int) and not (isinstance(seed, Sequence) and all(isinstance(s, int) for s in seed)):
        raise PartitaError(f"seed is a whole number, or one for each sample, not {seed!r}")
    if isinstance(seed, int):
        return [seed + i for i in range(batch or 1)]
    if len(seed) != (batch or len(seed)):
        raise PartitaError(f"{batch} prompts, but {len(seed)} seeds: give one seed, or one per prompt")
    return list(seed)


def _heard(system: System, audio: Any, batch: int, seconds: float) -> Tensor:
    facts = system.output.representation
    if isinstance(audio, str | Path):
        audio = read_clip(Path(audio), 0, None, facts.sample_rate, facts.channels)[0][None]
    try:
        audio = torch.as_tensor(audio, dtype=torch.float32, device=system.device)
    except (TypeError, ValueError, RuntimeError):
        raise PartitaError(f"continuation is audio [B, C, T] or a path, not {type(audio).__name__}") from None
    shaped = audio.dim() == 3 and audio.shape[0] in (1, batch) and audio.shape[1] == facts.channels
    if not shaped or not audio.shape[2]:
        shape = f"[{'1' if batch == 1 else f'{batch} or 1'}, {facts.channels}, T]"
        raise PartitaError(f"audio to continue has the shape {shape} here, not {list(audio.shape)}")
    heard = audio.shape[-1] / facts.sample_rate
    if heard >= seconds:
        raise PartitaError(
            f"the result starts with the {heard:.2f} s to continue, so it must be longer than {seconds:g} s: "
            "set a longer duration"
        )
    if not finite(audio):
        raise PartitaError("the audio to continue holds samples that are not finite numbers (NaN or infinite)")
    return audio.expand(batch, -1, -1)


def _guidance(system: System, name: str, guidance: Any) -> list[Term] | None:
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


def _sampling(system: System, changes: Mapping[str, Any]) -> dict[str, Any]:
    """How each stage draws: its own way, with those changes that it knows."""
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
        try:
            drawn[name] = stage.changed_sampling({**common, **changes.get(name, {})})
        except PartitaError as error:
            raise PartitaError(f"sampling of {name}: {error}") from None
    return drawn
