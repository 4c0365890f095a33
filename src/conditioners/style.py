"""The style of a recording as a few codes (MusicGen-Style)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.registry import lookup, register
from ..core.seeds import derive_seed
from ..layers.transformer_blocks import BlockConfig, Transformer
from ..tokenizers.base import Tokenizer
from ..tokenizers.bottlenecks.base import Bottleneck
from .base import Conditioner

LONGEST_SECONDS = 60.0
"""Longest excerpt, in seconds."""

BLOCK = BlockConfig()


@dataclass(frozen=True)
class StyleNetwork:
    """The transformer between the features and the quantizer; its positions are sinusoidal, and it is not causal.

    Args:
        width: Width of the transformer and of the condition.
        depth: Number of its blocks; 0 for no transformer.
        num_heads: Heads of its attention.
        block: Configuration of its blocks.

    Raises:
        ValueError: A number is out of range.
    """

    width: int = 512
    depth: int = 8
    num_heads: int = 8
    block: BlockConfig = BLOCK

    def __post_init__(self) -> None:
        if min(self.width, self.num_heads) < 1 or self.depth < 0:
            raise ValueError("width and num_heads must be at least 1, and depth at least 0")

    def make(self) -> Transformer | None:
        """The transformer, if there is one."""
        if not self.depth:
            return None
        made = Transformer(self.width, self.depth, self.num_heads, block=self.block, causal=False)
        made.norm = nn.Identity()  # the normalization over the batch takes its place
        return made


@dataclass(frozen=True)
class ExcerptLength:
    """How much of a recording is heard.

    Args:
        shortest: Shortest excerpt in training, in seconds.
        longest: Longest excerpt in training, in seconds.
        seconds: Length of the excerpt after training, in seconds. Of a shorter recording, all is heard.

    Raises:
        ValueError: A length is out of range.
    """

    shortest: float = 1.5
    longest: float = 4.5
    seconds: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest <= LONGEST_SECONDS or not 0 < self.seconds <= LONGEST_SECONDS:
            raise ValueError(
                f"an excerpt lasts more than 0 and at most {LONGEST_SECONDS:g} seconds, not shortest "
                f"{self.shortest:g}, longest {self.longest:g} and seconds {self.seconds:g}"
            )

    def of(self, seed: int | None) -> float:
        """Seconds for a batch, drawn from a seed in training."""
        if seed is None:
            return self.seconds
        fraction = np.random.default_rng(derive_seed(seed, "style", "length")).random()
        return self.shortest + fraction * (self.longest - self.shortest)


NETWORK, LENGTH = StyleNetwork(), ExcerptLength()


@register("conditioner", "style")
class Style(Conditioner):
    """The style of an excerpt through a narrow bottleneck (MusicGen-Style, arXiv 2407.12563 §3).

    Frozen features of the excerpt pass a transformer, a normalization over the batch and a residual quantizer, and
    every ``stride``-th frame remains. The fewer codebooks (streams) the quantizer uses, the less of the excerpt is
    left: its instruments and mood rather than its notes. The condition learns together with the stage, with a random
    number of streams in each batch; in generation, ``streams`` are used, or as many as the field ``style_streams`` of a
    clip says.

    In training, the excerpt is of the same recording as the clip, but not of the clip itself: a stage cannot copy it.
    (The published conditioner takes it from the clip, and leaves its frames out of the loss.) Its length is drawn for
    each batch. In generation, it is the middle of the recording.

    Args:
        features: The tokenizer that hears the excerpt, which stays frozen: of latents, such as MERT's, or of codes,
            such as those of the first codebooks of EnCodec, which get learned embeddings.
        bottleneck: The quantizer. Its ``codebook_choices`` are the numbers of streams in training.
        network: The transformer, whose width is that of the condition.
        stride: Frames of the features for each frame of the condition.
        streams: Codebooks in use after training; ``None`` uses all.
        length: Length of the excerpts.
        inputs: Names of the fields that the conditioner reads: one of audio, and the number of streams.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("excerpt", "style_streams")
    kinds: ClassVar[tuple[str, ...]] = ("audio", "number")
    trained_with_stage: ClassVar[bool] = True
    training_only = ("step",)
    mean: Tensor
    variance: Tensor
    step: Tensor

    def __init__(
        self,
        *,
        features: Tokenizer,
        bottleneck: Bottleneck,
        network: StyleNetwork = NETWORK,
        stride: int = 15,
        streams: int | None = 3,
        length: ExcerptLength = LENGTH,
        inputs: tuple[str, ...] = ("excerpt", "style_streams"),
    ) -> None:
        super().__init__(inputs)
        if [lookup("field", name).kind for name in self.inputs].count("audio") != 1:
            raise ValueError(f"inputs must name one field of audio, not {', '.join(self.inputs)}")
        spec = features.spec
        if stride < 1:
            raise ValueError(f"stride must be at least 1, not {stride}")
        bottleneck.build(network.width)
        most = len(bottleneck.cardinalities)
        if not most:
            raise ValueError(f"bottleneck must be a quantizer, and {bottleneck.registered_name} has no codebooks")
        if streams is not None and not 1 <= streams <= most:
            raise ValueError(f"streams must be from 1 to the {most} codebooks of the bottleneck, not {streams}")
        self.sample_rate, self.channels = spec.sample_rate, spec.channels
        self.features, self.bottleneck = features, bottleneck
        self.stride, self.streams, self.length, self.width = stride, streams or most, length, network.width
        self.embeddings = nn.ModuleList(nn.Embedding(size, self.width) for size in spec.cardinalities)
        self.projection = nn.Linear(spec.dim, self.width) if spec.dim is not None else None
        self.transformer = network.make()
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("variance", torch.ones(self.width))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def spec(self) -> ConditionSpec:
        """A few embeddings without a frame rate."""
        return ConditionSpec(dim=self.width)

    @property
    def draws(self) -> bool:
        """The length of the excerpt and its place are random in training."""
        return True

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Excerpts ``audio`` ``[B, C, T]``, padded, with their ``lengths`` in samples, 0 without one, and ``streams``.

        Raises:
            ValueError: A number of streams exceeds the codebooks.
        """
        assert self.sample_rate is not None
        # one length for a batch, so that excerpts of training need no padding
        seconds = self.length.of(next((clip.seed for clip in clips if clip.seed is not None), None))
        excerpts = [self._excerpt(clip, max(1, round(seconds * self.sample_rate))) for clip in clips]
        most = max(1, *(excerpt.shape[-1] for excerpt in excerpts))
        audio = torch.stack([F.pad(excerpt, (0, most - excerpt.shape[-1])) for excerpt in excerpts])
        streams = [clip.fields.get("style_streams") or self.streams for clip in clips]
        if max(streams) > (most := len(self.bottleneck.cardinalities)):
            raise ValueError(f"the style has {most} streams, not {max(streams)}")
        lengths = torch.tensor([excerpt.shape[-1] for excerpt in excerpts])
        return {"audio": audio, "lengths": lengths, "streams": torch.tensor(streams)}

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Embeddings ``[B, L, width]``, zero where masked: clips without a recording are masked as a whole."""
        lengths = prepared["lengths"]
        hidden, mask = self._heard(prepared["audio"], lengths)
        present = hidden[mask]  # [N, width]
        if len(present):
            with torch.autocast(hidden.device.type, enabled=False):
                frames = self._quantized(
                    self._normalized(present.float()), prepared["streams"][:, None].expand(mask.shape)[mask]
                )
            hidden = torch.zeros_like(hidden, dtype=frames.dtype).masked_scatter(mask[..., None], frames)
        mask = mask[:, :: self.stride]
        return Condition(hidden[:, :: self.stride] * mask[..., None], mask)

    def _heard(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the transformer ``[B, S, width]`` and which frames are of an excerpt, ``[B, S]``.

        Excerpts of one length are heard together, so that padding has no effect on any.
        """
        groups = {}
        for length in lengths.unique().tolist():
            if length:
                groups[length] = self._frames(audio[lengths == length, :, :length])
        most = max((frames.shape[1] for frames in groups.values()), default=1)
        dtype = next((frames.dtype for frames in groups.values()), torch.float32)
        hidden = torch.zeros(len(audio), most, self.width, device=audio.device, dtype=dtype)
        mask = torch.zeros(len(audio), most, device=audio.device, dtype=torch.bool)
        for length, frames in groups.items():
            rows, places = torch.where(lengths == length)[0], frames.shape[1]
            hidden[rows, :places] = frames
            mask[rows, :places] = True
        return hidden, mask

    def _frames(self, audio: Tensor) -> Tensor:
        """The output of the transformer ``[B, S, width]`` for excerpts ``[B, C, T]`` of one length."""
        with torch.no_grad():
            features = self.features.encode(audio)
        if self.projection is not None:
            x = self.projection(features.mT.to(self.projection.weight.dtype))
        else:
            x = torch.stack([table(codes) for table, codes in zip(self.embeddings, features.unbind(1), strict=True)])
            x = x.sum(0)
        if self.transformer is None:
            return x
        ids = torch.arange(x.shape[1], device=x.device)[None]
        return self.transformer(x, self.transformer.positions(ids))

    def _normalized(self, frames: Tensor) -> Tensor:
        """Frames ``[N, width]`` normalized over those of the batch in training, and as they were there otherwise."""
        batch = self.training and len(frames) > 1
        return F.batch_norm(frames, self.mean, self.variance, training=batch, momentum=0.1, eps=1e-5)

    def _quantized(self, frames: Tensor, streams: Tensor) -> Tensor:
        """Frames ``[N, width]`` through the bottleneck, in training with a random number of streams."""
        if self.training:
            passed = self.bottleneck(frames.mT[None], self.step)
            self.step += 1
            return passed.latents[0].mT
        result = torch.zeros_like(frames)
        for number in streams.unique().tolist():
            chosen = streams == number
            codes = self.bottleneck.encode(frames[chosen].mT[None], number)
            result[chosen] = self.bottleneck.decode(codes)[0].mT.to(frames.dtype)
        return result

    def _excerpt(self, clip: Clip, samples: int) -> Tensor:
        """An excerpt ``[C, T]`` of at most so many samples, at random in training; without any if a clip has none."""
        name = next(name for name in self.inputs if lookup("field", name).kind == "audio")
        recording = clip.audio if name == "audio" else clip.fields.get(name)
        if recording is None:
            return torch.zeros(self.channels, 0)
        fraction = 0.5
        if clip.seed is not None:
            fraction = np.random.default_rng(derive_seed(clip.seed, "style")).random()
        start = round(fraction * max(0, recording.shape[-1] - samples))
        return recording[:, start : start + samples]
