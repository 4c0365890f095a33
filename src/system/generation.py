"""Generation with a chain of stages, window by window."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Condition, Generated, RepresentationSpec, finite
from ..core.rates import at_least, exact, nearest
from ..core.reference import OutputReference, Reference, unstacked
from ..core.resample import convert
from ..core.seeds import derive_seed
from ..errors import PartitaError
from ..generators.base import Generator
from ..layers.compiled import compiling
from ..layers.lowered import InferencePrecision, lowered
from ..limits import MOST_WINDOWS, TooMuch, beyond
from ..recipe.chain import StagePlan
from ..tokenizers.base import LatentView, Tokenizer
from ..tokenizers.chunked import decode_long, encode_long
from .assembly import Assembly
from .checked_request import CheckedRequest
from .clip_inputs import ClipInputs, changes_in_time
from .encoded_inputs import encode_clips
from .new_frames import FrameSender, Receiver
from .stream import Stream
from .windows import Window, common_grid, windows

CUT = 0.4
"""Seconds before the end of a continued recording whose codes are generated if they are not decoded to audio.

There, a tokenizer such as a semantic one encodes the silence after the end as well. A stage that continues these codes
predicts worse than one that generates them: the next semantic code of `musiclm-tiny` by 1.2 nats.
"""

Progress = Callable[[str, int, int], None]
"""Function that receives the name of a stage, the number of finished steps and the total number of steps."""


def generate(
    system: Assembly,
    request: CheckedRequest,
    progress: Progress | None = None,
    receiver: Receiver | None = None,
    every: float = 0.5,
) -> dict[str, Generated]:
    """Return the output of all stages of a system, by name of the representation.

    Args:
        system: System that generates.
        request: Request of samples.
        progress: Called after each step.
        receiver: What receives the frames of the last stage as soon as they are generated. The prompts of all samples
            must then change at the same times.
        every: Seconds of new frames that are received at a time, if the last stage delivers them within its windows.
    """
    results, groups = [], request.groups()
    for starts, members in groups.items():
        chain = ChainRun(
            system,
            {name: [values[i] for i in members] for name, values in request.inputs.items()},
            starts,
            [request.seeds[i] for i in members],
            request.seconds,
            request.generate_options,
            {name: [values[i] for i in members] for name, values in request.negative.items()},
            _members(request.continuation, members),
            request.transition,
            request.precision,
            request.compile,
            progress,
            receiver,
            every,
        )
        results.append(chain.run())
    order = torch.tensor([i for members in groups.values() for i in members], device=system.device).argsort()
    return {
        source: Generated(
            torch.cat([made[source].values for made in results])[order],
            torch.cat([made[source].lengths for made in results])[order],
        )
        for source in results[0]
    }


@dataclass
class ChainRun:
    """Generation of one batch by all stages. The prompts of all samples change at the same times.

    Attributes:
        system: System that generates.
        inputs: Prompt or story of each sample, by input field.
        times: Start of each segment of the stories, in seconds.
        seeds: One seed per sample.
        seconds: Length of the clips, in seconds.
        generate_options: Guidance and sampling arguments of each stage's ``generate``, by stage.
        negative: Negative prompt of each sample, by input field.
        continuation: Audio, or codes and latents, to continue; see :class:`CheckedRequest`.
        transition: Seconds of audio that the next segment of a story continues. ``None`` uses the overlap of windows.
        precision: Precision of the weights of all stages.
        compile: Whether to compile the steps of all stages.
        progress: Called after each step.
        receiver: What receives new frames of the last stage, or ``None``.
        every: Seconds of frames that are received at a time.
        generated: Generated representations, by source.
        outputs: Side outputs of stages that later stages take as input, by name (``plan:hidden``).
    """

    system: Assembly
    inputs: dict[str, list[Any]]
    times: tuple[float, ...]
    seeds: list[int]
    seconds: float
    generate_options: dict[str, dict[str, Any]]
    negative: dict[str, list[Any]]
    continuation: Tensor | dict[str, Tensor] | None
    transition: float | None
    precision: InferencePrecision
    compile: bool
    progress: Progress | None
    receiver: Receiver | None = None
    every: float = 0.5
    generated: dict[str, Generated] = field(default_factory=dict)
    outputs: dict[str, Condition] = field(default_factory=dict)

    def run(self) -> dict[str, Generated]:
        """Run all stages one after the other over the whole duration, and return their output by source."""
        for name, plan in self.system.plan.stages.items():
            whole = self._stage(name, plan)
            specs = [self.system.spec(target) for target in plan.targets]
            for target, part in zip(plan.targets, unstacked(whole.values, specs), strict=True):
                source, new = target.source, Generated(part, whole.lengths)
                if source in self.generated:
                    before = self.generated[source]
                    values = torch.cat([before.values, new.values], dim=1)
                    new = Generated(values, torch.minimum(before.lengths, new.lengths))
                self.generated[source] = new
        return self.generated

    def _stage(self, name: str, plan: StagePlan) -> Generated:
        """Run one stage over the whole duration, window by window."""
        whole = self.system.stages[name].eval()
        prepare = Generator.compile_steps if self.compile else None
        stage = lowered(whole, self.precision, stepwise=whole.stepwise, prepare=prepare)
        spec = self.system.catalog.target_spec(plan)
        known = None
        if self.continuation is not None and spec.frame_rate is not None:
            encoded_targets = [self._continued(target, self.continuation) for target in plan.targets]
            shortest = min(part.shape[-1] for part in encoded_targets)
            stacked = [part[..., :shortest] for part in encoded_targets]
            known = stacked[0] if len(stacked) == 1 else torch.cat(stacked, 1)
        stream = Stream(spec.frames(self.seconds), [o.output for o in self._wanted_outputs(name)], known)
        sender = None
        if self.receiver is not None and plan is self.system.plan.last_stage:
            targets = {target.source: self.system.spec(target) for target in plan.targets}
            self.receiver.start(self.generated)
            sender = FrameSender(self.receiver, targets, self.generated, len(self.seeds), stream.total)
            if known is not None:
                sender.send(0, Generated(known))
        ranges, parts = self._windows(name, plan, 0 if known is None else known.shape[-1])
        conditions: dict[tuple[Any, ...], tuple[Condition, Condition]] = {}
        for index, ((start, begin, stop), part) in enumerate(zip(ranges, parts, strict=True)):
            given = {}
            for source in plan.given:
                rate = stage.given[source].spec.frame_rate
                own, time_range = spec.frame_rate, (0.0, self.seconds)
                timed = source in plan.conditioners and changes_in_time(self.system.conditioners[source])
                if rate is None and own is not None and timed:
                    time_range = (float(start / exact(own)), float((stop - start) / exact(own)))
                key = (source, part, *time_range)
                if key not in conditions:
                    conditions[key] = self._condition(plan, source, part, time_range)
                pair = conditions[key]
                if rate is not None and own is not None:
                    first = round(start * exact(rate) / exact(own))
                    full = stage.plain_prefix and "prepend" in stage.given[source].fusions
                    shown = spec.frames(plan.window) if full else stop - start
                    last = first + max(1, ceil(shown * exact(rate) / exact(own)))  # as many as in training
                    pair = (pair[0].crop(first, last), pair[1].crop(first, last))
                given[source] = pair
            generate_options = self.generate_options[name] | ({"outputs": stream.names} if stream.names else {})
            if sender is not None and stage.delivers:
                generate_options["delivery"] = sender.delivery(start, spec.frames(self.every))
            try:
                with compiling() if self.compile else nullcontext():
                    new = stage.generate(
                        given,
                        stop - start,
                        seeds=[derive_seed(seed, name, index) for seed in self.seeds],
                        prefix=None if stream.values is None or start == begin else stream.values[..., start:],
                        progress=self._progress(name, index, len(ranges)),
                        **generate_options,
                    )
            except FloatingPointError as error:
                raise not_finite_error(f"the stage {name} fails because {error}") from None
            stream.extend(start, new)
            if sender is not None:
                sender.send(start, new)
            if stream.finished:
                break
        made = stream.result()
        if not finite(made.values):
            raise not_finite_error(
                f"the stage {name} generates values of {plan.named_targets} that are not finite numbers"
            )
        self.outputs |= {f"{name}:{output}": condition for output, condition in made.outputs.items()}
        return made

    def _wanted_outputs(self, name: str) -> list[OutputReference]:
        """Return the side outputs of a stage that other stages take as input."""
        given = [o for stage in self.system.plan.stages.values() for o in stage.outputs.values()]
        return [o for o in dict.fromkeys(given) if o.stage == name]

    def _windows(self, name: str, plan: StagePlan, known: int) -> tuple[list[Window], list[int]]:
        """Return the windows of a stage, and the index of the story's segment that each belongs to."""
        spec = self.system.catalog.target_spec(plan)
        if spec.frame_rate is None:  # the length is unknown, so one window covers it all
            return [Window(0, 0, spec.frames(self.seconds))], [0]
        rate = spec.frame_rate
        window, overlap, grid = spec.frames(plan.window), at_least(plan.overlap, rate), self._grid(name, plan)
        times = self._changes() if self._follows_story(plan) else [Fraction(0)]
        starts = [round(time * exact(rate) / grid) * grid for time in times]
        transition = None if self.transition is None else nearest(self.transition, rate)
        total = spec.frames(self.seconds)
        ahead = windows(total, window, overlap, known=known, grid=grid, changes=starts[1:], transition=transition)
        made = []
        for one in ahead:
            made.append(one)
            if beyond(len(made), MOST_WINDOWS):
                raise TooMuch(f"{name} needs more than {MOST_WINDOWS:,} windows for {self.seconds:g} s: refused")
        return made, [max(0, sum(window.known >= start for start in starts) - 1) for window in made]

    def _grid(self, name: str, plan: StagePlan) -> int:
        """Return the number of frames of a stage after which the frames of what it is given start, too."""
        spec = self.system.catalog.target_spec(plan)
        assert spec.frame_rate is not None
        others = [g.spec.frame_rate for g in self.system.stages[name].given.values() if g.spec.frame_rate is not None]
        longest = spec.frames(plan.window) - at_least(plan.overlap, spec.frame_rate)
        return common_grid(spec.frame_rate, others, longest)

    def _follows_story(self, plan: StagePlan) -> bool:
        """Whether a stage is conditioned on one of the inputs of the samples, so that a story changes it."""
        return any(self.inputs.keys() & set(self.system.conditioners[given].inputs) for given in plan.conditioners)

    def _changes(self) -> list[Fraction]:
        """Return the starts of the story's segments, in seconds, where all stages that follow it can change."""
        grids = [
            self._grid(name, plan) / exact(rate)
            for name, plan in self.system.plan.stages.items()
            if (rate := self.system.catalog.target_spec(plan).frame_rate) is not None and self._follows_story(plan)
        ]
        coarsest = max(grids)
        return [round(exact(time) / coarsest) * coarsest for time in self.times]

    def _condition(
        self, plan: StagePlan, name: str, part: int, time_range: tuple[float, float]
    ) -> tuple[Condition, Condition]:
        """Return the pair (condition, null condition) of an input. A negative prompt replaces the null condition.

        Args:
            plan: Plan of the stage.
            name: Name of the input.
            part: Index of the story's segment.
            time_range: Start and length of the excerpt that the condition covers, in seconds.
        """
        if name in plan.outputs:
            return self.outputs[name], self.outputs[name].absent()
        if name in plan.references:
            made = self.generated[plan.references[name].source]
            condition = Condition.of(plan.references[name].take(made.values), made.mask)
            return condition, condition.absent()
        conditioner, batch = self.system.conditioners[name].eval(), len(self.seeds)
        rate = self.system.output.spec.sample_rate
        positive = ClipInputs(self.inputs, self.times, self.seconds, rate).clips(conditioner, batch, part, time_range)
        negative = []
        if self.negative.keys() & set(conditioner.inputs):
            negative = ClipInputs(self.negative, (0.0,), self.seconds, rate).clips(conditioner, batch, 0, time_range)
        condition = encode_clips(conditioner, [*positive, *negative], self.seconds)
        if not finite(condition.values):
            raise not_finite_error(f"the conditioner {name} returns values that are not finite numbers")
        if not negative:
            return condition, conditioner.null(condition)
        return (
            Condition(condition.values[:batch], condition.mask[:batch]),
            Condition(condition.values[batch:], condition.mask[batch:]),
        )

    def _continued(self, target: Reference, continuation: Tensor | dict[str, Tensor]) -> Tensor:
        """Return the representation that the result starts with: that of audio is encoded without incomplete frames."""
        if not isinstance(continuation, Tensor):
            return target.take(continuation[target.source])
        spec = self.system.tokenizer_of(target).spec
        frames = continuation_frames(continuation.shape[-1], self.system.output.spec.sample_rate, spec)
        if target.source not in {end.source for end in self.system.plan.ends} and spec.frame_rate is not None:
            frames = max(1, frames - nearest(CUT, spec.frame_rate))
        return target.take(representation_of(self.system, target, continuation))[..., :frames]

    def _progress(self, stage: str, index: int, windows: int) -> Callable[[int, int], None] | None:
        """Return a callback that reports the steps of one window as steps of all windows."""
        report = self.progress
        if report is None:
            return None
        return lambda done, total: report(stage, index * total + done, windows * total)


def _members(continuation: Tensor | dict[str, Tensor] | None, members: list[int]) -> Any:
    """Return what some of the samples continue."""
    if isinstance(continuation, dict):
        return {source: values[members] for source, values in continuation.items()}
    return None if continuation is None else continuation[members]


def representation_of(system: Assembly, target: Reference, audio: Tensor) -> Tensor:
    """Return the whole representation that a target is part of, for audio ``[B, C, T]`` of a system's output.

    Raises:
        PartitaError: The tokenizer reads something else than the mix, or returns values that are not finite.
    """
    if (read := system.plan.reads(target)) is not None:
        raise PartitaError(
            f"a continuation is a mix, but {target.tokenizer} reads only {read}: generate without a continuation"
        )
    tokenizer, output = system.tokenizer_of(target), system.output.spec
    audio = convert(audio, output.sample_rate, tokenizer.spec.sample_rate, tokenizer.spec.channels)
    # One clip at a time: in a batch, rounding errors could change the latents or codes of a clip.
    encoded = torch.cat([encode_long(tokenizer, clip[None]) for clip in audio])
    if not finite(encoded):
        raise not_finite_error(f"the tokenizer {target.tokenizer} returns latents that are not finite numbers")
    return encoded


def continuation_frames(samples: int, sample_rate: int, spec: RepresentationSpec) -> int:
    """Return the number of complete frames in the audio to continue, at least one."""
    return max(1, spec.whole_frames(samples, sample_rate))


def continuation_samples(samples: int, spec: RepresentationSpec) -> int:
    """Return the number of output samples that represent the audio to continue, of ``samples`` samples."""
    return round(continuation_frames(samples, spec.sample_rate, spec) * exact(spec.sample_rate) / exact(spec.rate))


def decoded(tokenizer: Tokenizer | LatentView, made: Generated) -> Tensor:
    """Decode a generated representation to audio ``[B, C, T]``. Samples that end early are padded with silence.

    Long clips are decoded in chunks, where the tokenizer can, so that the memory does not grow with their length.

    Raises:
        NotImplementedError: The tokenizer cannot decode to audio.
    """
    # One clip at a time: in a batch, the samples of a clip would depend on the others by rounding errors.
    clips = [
        decode_long(tokenizer, made.values[i : i + 1, :, :length].contiguous())
        for i, length in enumerate(made.lengths.tolist())
    ]
    longest = max(clip.shape[-1] for clip in clips)
    return torch.cat([F.pad(clip, (0, longest - clip.shape[-1])) for clip in clips])


def not_finite_error(finding: str) -> PartitaError:
    """Return the error for a result with NaN or infinity, from a clause that says which part returns which values."""
    return PartitaError(
        f"{finding} (NaN or infinite): its weights are damaged or its training diverged; if its values overflow in "
        "half precision, use float32"
    )
