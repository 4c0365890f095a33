"""Validation of a generation request against a system."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ..core.contracts import Clip
from ..core.excerpt import Excerpt, excerpt_of
from ..core.registry import did_you_mean
from ..data.clips import clip_for, prepare_clips
from ..data.fields.base import crop_fields, parse_value
from ..errors import PartitaError
from ..generators.base import Term, classifier_free
from ..layers.guidance import checked_terms
from ..layers.lowered import InferencePrecision, check_precision
from ..limits import LONGEST_CLIP, MOST_STEPS, TooMuch, beyond
from .assembly import SHORTCUTS, Assembly
from .continued_frames import continued_frames
from .request import Prompts, Request, Story, segments_of
from .structure import structures_of, with_structures

STRONGEST_GUIDANCE = 1e6
"""Largest scale of guidance, beyond which a difference of predictions is lost in single precision."""


@dataclass(frozen=True)
class CheckedRequest:
    """A valid :class:`~partita.system.request.Request` for a system, with parsed values.

    Attributes:
        inputs: Prompts by input field, one per sample.
        seeds: One seed per sample.
        negative: Negative prompts by input field, one per sample.
        seconds: Length of the clips, in seconds.
        generate_options: Guidance and sampling arguments of each stage's ``generate``, by stage.
        continuation: Audio ``[B, C, T]`` to continue, with the sample rate and channels of the output; or codes
            ``[B, K, S]`` and latents ``[B, D, S]`` to continue, by name; or ``None``.
        transition: Seconds of audio that the next segment of a story continues. ``None`` uses the overlap of windows.
        splice: Whether the result starts with the original samples of ``continuation``.
        precision: Precision of the weights of all stages.
        compile: Whether to compile the steps of all stages.
    """

    inputs: dict[str, list[Any]]
    seeds: list[int]
    negative: dict[str, list[Any]]
    seconds: float
    generate_options: dict[str, dict[str, Any]]
    continuation: Tensor | dict[str, Tensor] | None
    transition: float | None
    splice: bool
    precision: InferencePrecision
    compile: bool

    @classmethod
    def of(cls, system: Assembly, request: Request) -> Self:
        """Check a request.

        Raises:
            PartitaError: The system cannot fulfill the request. The message says what it accepts.
        """
        if not system.stages:
            raise PartitaError("this system has no stage: it can encode and decode, but not generate")
        prompts = _with_shortcuts(system, request)
        inputs = _inputs(system, prompts)
        seeds = _seeds(request.seed, len(next(iter(inputs.values()))) if inputs else None)
        negative = _negative(_inputs(system, request.negative, "negative: "), len(seeds))
        latest = max((p.times[-1] for values in inputs.values() for p in values if isinstance(p, Story)), default=0.0)
        seconds = _seconds("duration", latest + system.plan.window if request.duration is None else request.duration)
        if latest >= seconds:
            raise PartitaError(
                f"the story's last segment starts at {latest:g} s, but the clip ends at {seconds:g} s: "
                "set a longer duration"
            )
        structures = structures_of(request, len(seeds))
        if any(any(option is not None for option in structure) for structure in structures):
            inputs = _inputs(system, with_structures(system, prompts, structures, seconds))
        generate_options = {
            name: _guidance(system, name, request.guidance, sampling)
            for name, sampling in _sampling(system, request.sampling or {}).items()
        }
        if negative and not any(_guided(**options) for options in generate_options.values()):
            raise PartitaError("a negative prompt has no effect because no stage uses guidance: set guidance above 1")
        for prompts in (inputs, negative):
            _check_prompts(system, prompts, seconds)
        continuation = (
            None
            if request.continuation is None
            else continued_frames(system, request.continuation, len(seeds), seconds)
            if isinstance(request.continuation, Mapping)
            else _read_continuation(system, request.continuation, len(seeds), seconds)
        )
        transition = None if request.transition is None else _seconds("transition", request.transition, least=0.0)
        shortest = min(stage.window for stage in system.plan.stages.values())
        if transition is not None and transition >= shortest:
            raise PartitaError(f"transition must be shorter than the window of {shortest:g} s, not {transition:g}")
        check_precision(request.precision)
        if not isinstance(request.splice, bool):
            raise PartitaError(f"splice must be true or false, not {request.splice!r:.80}")
        _check_compile(request.compile, system)
        return cls(
            inputs,
            seeds,
            negative,
            seconds,
            generate_options,
            continuation,
            transition,
            request.splice,
            request.precision,
            request.compile,
        )

    @property
    def original_start(self) -> Tensor | None:
        """The audio ``[B, C, T]`` that the result starts with instead of its reconstruction, or ``None``."""
        return self.continuation if self.splice and isinstance(self.continuation, Tensor) else None

    def groups(self) -> dict[tuple[float, ...], list[int]]:
        """Group the samples by the times at which their prompts change; the samples of a group have the same windows.

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


def _check_compile(compiled: Any, system: Assembly) -> None:
    """Check that the steps of a system can be compiled where it is."""
    if not isinstance(compiled, bool):
        raise PartitaError(f"compile must be true or false, not {compiled!r}")
    if compiled and system.device.type != "cuda":
        own = ": CPUs generate with kernels of their own" if system.device.type == "cpu" else ""
        raise PartitaError(
            f"compile is only for CUDA GPUs, but this system is on {system.device.type}{own}. Leave it out, or load "
            "the system on a GPU with device=cuda"
        )
    if compiled and find_spec("triton") is None:
        raise PartitaError(
            "compile needs the package triton, which this PyTorch lacks: install it, or leave compile out"
        )


def _check_prompts(system: Assembly, inputs: dict[str, list[Any]], seconds: float) -> None:
    """Check that every conditioner can read its prompts before any stage generates."""
    rate = system.output.spec.sample_rate
    for conditioner in system.conditioners.values():
        clips = []
        for name in conditioner.inputs:
            for part in (part for value in inputs.get(name, ()) for part in segments_of(value)):
                known = crop_fields({name: part}, 0.0, seconds)
                clip = Clip(known, seconds, known.pop("audio", None), rate)
                clips.append(clip_for(conditioner, clip, conditioner.longest_audio))
        if clips:
            prepare_clips(conditioner, clips)


def _negative(prompts: dict[str, list[Any]], batch: int) -> dict[str, list[Any]]:
    for name, values in prompts.items():
        if len(values) != batch or any(isinstance(value, Story) for value in values):
            raise PartitaError(
                f"negative takes {batch} prompts, one for each clip, without stories, not {name}={values!r}"
            )
    return prompts


def _seconds(name: str, value: Any, least: float = 1e-9) -> float:
    if not isinstance(value, int | float) or not least <= value < math.inf:
        raise PartitaError(f"{name} must be {'more than 0' if least else '0 or more'} seconds, not {value!r}")
    value = min(value, 1e300)  # an integer can exceed the range of floats
    if beyond(value, LONGEST_CLIP):
        raise TooMuch(f"{name}: {value:g} s exceeds the limit of {LONGEST_CLIP:g} s for a clip: refused")
    return float(value)


def _with_shortcuts(system: Assembly, request: Request) -> Mapping[str, Any]:
    """Return the prompts by field, with what options such as ``melody`` stand for."""
    prompts = dict(_by_field(request.prompts))
    for option in SHORTCUTS:
        given = getattr(request, option)
        if given is None:
            continue
        field = system.field_for(option)
        if field in prompts:
            what = option.replace("_", " ")
            raise PartitaError(f"the {what} is given twice, as `{option}` and as the input {field}: leave one out")
        if not isinstance(given, list | tuple):
            counted = next(iter(prompts.values()), request.seed)
            clips = len(counted) if isinstance(counted, Sequence) else 1
            given = [given] * max(1, clips)  # the checks of prompts and seeds report those that are missing
        prompts[field] = given
    return prompts


def _by_field(prompts: Prompts) -> Mapping[str, Any]:
    if prompts is None:
        return {}
    if isinstance(prompts, str | Story):
        prompts = [prompts]
    return prompts if isinstance(prompts, Mapping) else {"text": prompts}


def _inputs(system: Assembly, given: Prompts, where: str = "") -> dict[str, list[Any]]:
    prompts = _by_field(given)
    readable = set(system.inputs)
    for name, values in prompts.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise PartitaError(f"{where}{name} takes a list with one prompt for each clip, not {values!r}")
        if name not in readable:
            raise PartitaError(f"{where}nothing in this system reads {name!r}{did_you_mean(name, sorted(readable))}")
    if len({len(values) for values in prompts.values()}) > 1:
        raise PartitaError(
            f"{where}every input must have the same number of prompts, not { {k: len(v) for k, v in prompts.items()} }"
        )
    return {name: [_parsed(f"{where}{name}", name, value) for value in values] for name, values in prompts.items()}


def _parsed(where: str, name: str, value: Any) -> Any:
    """Parse a prompt, or every prompt of a story, with the parser of its field."""
    if isinstance(value, Story):
        return Story([(time, _parsed(where, name, part)) for time, part in value.segments])
    try:
        return parse_value(name, value)
    except ValueError as error:
        raise PartitaError(f"{where}: {error}") from None


def _seeds(seed: Any, batch: int | None) -> list[int]:
    if not isinstance(seed, int) and not (isinstance(seed, Sequence) and all(isinstance(s, int) for s in seed)):
        raise PartitaError(f"seed must be a whole number, or a list with one for each sample, not {seed!r}")
    extremes = [seed, seed + (batch or 1)] if isinstance(seed, int) else seed
    if any(abs(number) >= 1 << 63 for number in extremes):
        raise PartitaError("seed must be a whole number of less than 64 bits")
    if isinstance(seed, int):
        return [seed + i for i in range(batch or 1)]
    if len(seed) != (batch or len(seed)):
        raise PartitaError(f"{batch} prompts, but {len(seed)} seeds: give one seed, or one per prompt")
    return list(seed)


def _read_continuation(system: Assembly, audio: Excerpt | Tensor | str | Path, batch: int, seconds: float) -> Tensor:
    spec = system.output.spec
    excerpt = excerpt_of(audio)
    length = excerpt.length(spec.sample_rate)  # known before any audio is read
    if length >= seconds:
        raise PartitaError(
            f"the result starts with the {length:,.2f} s to continue, so it must be longer than {seconds:g} s: "
            "set a longer duration, or continue less of it"
        )
    continuation = excerpt.read(spec.sample_rate, spec.channels)
    if len(continuation) not in (1, batch):
        raise PartitaError(f"continuation must have one recording, or one per clip ({batch}), not {len(continuation)}")
    return continuation.to(system.device).expand(batch, -1, -1)


def _guidance(system: Assembly, name: str, guidance: Any, sampling: Any) -> dict[str, Any]:
    """Return the guidance terms of one stage, without conditions that only other stages use, and its sampling.

    A number changes the outer scale of double guidance.
    """
    if isinstance(guidance, Mapping):
        for stage in guidance.keys() - system.stages.keys():
            raise PartitaError(f"guidance names no stage {stage!r}{did_you_mean(stage, system.stages)}")
        guidance = guidance.get(name)
    if guidance is None:
        return {"guidance": None, "sampling": sampling}
    original = guidance
    if isinstance(guidance, int | float) and _is_finite(guidance):
        if abs(guidance) > STRONGEST_GUIDANCE:
            raise PartitaError(f"guidance must be between ±{STRONGEST_GUIDANCE:g}, not {guidance:g}")
        if getattr(sampling, "inner", ()):
            return {"guidance": None, "sampling": replace(sampling, guidance=float(guidance))}
        guidance = classifier_free(float(guidance))
    if (
        not isinstance(guidance, Sequence)
        or not guidance
        or not all(isinstance(t, Term) and _is_finite(t.weight) for t in guidance)
    ):
        raise PartitaError(f"guidance must be a number or a list of partita.Term, not {original!r}")
    everything = {given for stage in system.stages.values() for given in stage.given}
    for kept in {kept for term in guidance for kept in term.keep or ()} - everything:
        raise PartitaError(
            f"guidance keeps the condition {kept!r}, which no stage uses{did_you_mean(kept, sorted(everything))}"
        )
    own = system.stages[name].given
    terms = [t if t.keep is None else replace(t, keep=tuple(k for k in t.keep if k in own)) for t in guidance]
    try:
        return {"guidance": checked_terms(terms, list(own)), "sampling": sampling}
    except ValueError as error:
        raise PartitaError(str(error)) from None


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer can exceed the range of floats
        return False


def _guided(guidance: list[Term] | None, sampling: Any) -> bool:
    """Return whether a stage also predicts with some conditions dropped, which negative prompts can replace."""
    if guidance is None:
        return getattr(sampling, "guidance", None) != 1  # unknown for a stage that handles guidance itself
    return any(term.keep is not None for term in guidance)


def _sampling(system: Assembly, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling options of each stage: its own, with the changes that apply to it."""
    known = {name: {f.name for f in fields(stage.sampling)} for name, stage in system.stages.items()}
    everything = sorted(set().union(*known.values()))
    if not isinstance(changes, Mapping):
        raise PartitaError(f"sampling must be a mapping such as {{{everything[0]!r}: …}}, not {changes!r}")
    for key, value in changes.items():
        if isinstance(value, Mapping) and key not in known:
            raise PartitaError(f"sampling: no stage is called {key!r}{did_you_mean(key, known)}")
        if key not in known and key not in everything:
            raise PartitaError(f"sampling: no stage has {key!r}{did_you_mean(key, everything)}")
        if key in known and not isinstance(value, Mapping):
            raise PartitaError(f"sampling: {key} is a stage: give it a mapping from names to values, not {value!r}")
    options = {}
    for name, stage in system.stages.items():
        common = {key: value for key, value in changes.items() if key not in known and key in known[name]}
        own = {**common, **changes.get(name, {})}
        try:
            options[name] = stage.changed_sampling(own) if own else stage.sampling
            if beyond(steps := getattr(options[name], "steps", None) or 0, MOST_STEPS):
                raise TooMuch(f"{steps:,} steps exceed the limit of {MOST_STEPS:,}: refused")
        except PartitaError as error:
            raise PartitaError(f"sampling of {name}: {error}") from None
    return options
