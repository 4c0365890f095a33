"""Audio that is decoded while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Generated, RepresentationSpec, finite
from ..core.excerpt import spliced
from ..core.resample import convert
from ..errors import PartitaError
from ..layers.chunks import Chunks
from .assembly import Assembly
from .checked_request import CheckedRequest
from .generation import continuation_samples, decoded, not_finite_error
from .new_frames import NewFrames


def check_streamable(system: Assembly, request: CheckedRequest) -> None:
    """Check that the audio of a request can be decoded while it is generated.

    Raises:
        PartitaError: It cannot. The message says why.
    """
    advice = "use generate, which decodes whole clips"
    if len(request.groups()) > 1:
        raise PartitaError("the stories of a stream must change at the same times: stream them one by one")
    ends, streamed = system.plan.ends, {target.source for target in system.plan.last_stage.targets}
    for end in ends:
        if end.source not in streamed:
            continue
        tokenizer = system.tokenizer_of(end)
        if tokenizer.decoding_steps() is None:
            raise PartitaError(
                f"the tokenizer {end.tokenizer} decodes only whole clips, so they cannot stream: {advice}"
            )
        if tokenizer.spec.sample_rate != system.sample_rate:
            raise PartitaError(
                f"{end.source} is decoded at {tokenizer.spec.sample_rate} Hz and mixed at {system.sample_rate} Hz, so "
                f"it cannot stream: {advice}"
            )


class StreamDecoder:
    """Decodes the frames of a batch as they arrive, and mixes the ends of the chain.

    Args:
        system: System that generates.
        request: Request of the stream.
        receive: Function that gets the next audio ``[B, C, n]``.
    """

    def __init__(self, system: Assembly, request: CheckedRequest, receive: Callable[[Tensor], None]) -> None:
        self.system, self.receive, self.batch = system, receive, len(request.seeds)
        self.lanes: list[list[_Lane]] = [[] for _ in range(self.batch)]
        self.ends: dict[str, list[_Lane]] = {}  # of the last stage
        self.position = 0
        self.head: Tensor | None = None
        self.continuation = request.original_start

    def start(self, generated: Mapping[str, Generated]) -> None:
        """Decode the ends that earlier stages generated, and prepare the decoders of the others."""
        output, streamed = self.system.output.spec, {r.source for r in self.system.plan.last_stage.targets}
        for end in self.system.plan.ends:
            tokenizer = self.system.tokenizer_of(end)
            steps = tokenizer.decoding_steps()
            if end.source in streamed and steps is not None:
                lanes = self.ends[end.source] = [_Lane(Chunks(steps), end.tokenizer, output) for _ in self.lanes]
            else:
                audio = decoded(tokenizer, generated[end.source]).float()
                audio = convert(audio, tokenizer.spec.sample_rate, output.sample_rate, output.channels)
                lanes = [_Lane(None, end.tokenizer, output, clip) for clip in audio]
            for own, lane in zip(self.lanes, lanes, strict=True):
                own.append(lane)

    def push(self, frames: NewFrames) -> None:
        """Decode new frames, and pass on the audio that becomes final."""
        for source, values in frames.values.items():
            for i, (lane, length) in enumerate(zip(self.ends.get(source, ()), frames.lengths.tolist(), strict=False)):
                left = max(0, length - frames.start)
                lane.push(values[i : i + 1, :, :left], last=left <= values.shape[-1])
        self._pass_on()

    def finish(self) -> None:
        """Pass on the rest of the audio, when all frames have arrived."""
        for own in self.lanes:
            for lane in own:
                lane.push(None, last=True)
        self._pass_on()
        if self.head is not None:
            self._splice(self.head, True)

    def _pass_on(self) -> None:
        lanes = [lane for own in self.lanes for lane in own]
        going = [lane.position for lane in lanes if not lane.done]
        stop = min(going) if going else max(lane.position for lane in lanes)
        if stop <= self.position:
            return
        samples = [torch.stack([lane.take(self.position, stop) for lane in own]).sum(0) for own in self.lanes]
        self.position = stop
        audio = torch.stack(samples).clamp(-1, 1)
        if self.continuation is None:
            self.receive(audio)
        else:
            self._splice(audio if self.head is None else torch.cat([self.head, audio], -1), False)

    def _splice(self, head: Tensor, last: bool) -> None:
        """Put the original start in the place of the decoded one as soon as all of the latter is there."""
        assert self.continuation is not None
        spec = self.system.output.spec
        known = continuation_samples(self.continuation.shape[-1], spec)
        if head.shape[-1] < known and not last:
            self.head = head
            return
        self.receive(spliced(head, self.continuation, known, spec.sample_rate))
        self.head = self.continuation = None


class _Lane:
    """Audio of one sample at one end of the chain, from the position that was taken last.

    Args:
        chunks: The decoder; ``None`` if all audio is there.
        tokenizer: Name of the tokenizer, for messages.
        output: Spec with the sample rate and the channels of the mix.
        audio: Audio ``[C, n]`` so far.
    """

    def __init__(
        self, chunks: Chunks | None, tokenizer: str, output: RepresentationSpec, audio: Tensor | None = None
    ) -> None:
        self.chunks, self.tokenizer, self.output, self.audio = chunks, tokenizer, output, audio
        self.position = 0 if audio is None else audio.shape[-1]

    @property
    def done(self) -> bool:
        return self.chunks is None

    def push(self, frames: Tensor | None, last: bool) -> None:
        if self.chunks is None:
            return
        if frames is not None and not frames.shape[-1]:
            frames = None
        made = self.chunks.push(frames, last)
        if last:
            self.chunks = None
        if made is None:
            return
        if not finite(made):
            raise not_finite_error(f"the tokenizer {self.tokenizer} returns audio that is not finite numbers")
        new = convert(made.float(), self.output.sample_rate, self.output.sample_rate, self.output.channels)[0]
        self.audio = new if self.audio is None else torch.cat([self.audio, new], -1)
        self.position += new.shape[-1]

    def take(self, start: int, stop: int) -> Tensor:
        """Remove and return the audio from ``start`` to ``stop``, with silence after the end."""
        assert self.audio is not None
        kept = self.audio[..., : stop - start]
        self.audio = self.audio[..., stop - start :]
        return F.pad(kept, (0, stop - start - kept.shape[-1]))
