"""Self-supervised features of our own: masked prediction of random-projection targets (BEST-RQ, arXiv 2202.01855)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.optimizers import hidden_matrices
from ..core.processes import mean_of_all, per_example
from ..core.rates import exact
from ..core.registry import register
from ..layers.conformer import Conformer
from ..layers.convolution import Conv1d, pad_to_multiple
from ..layers.mel import log_magnitude, mel_filterbank
from ..layers.random_projection import RandomProjectionQuantizer
from ..layers.standardize import Standardize
from ..layers.stft import STFT
from ..metrics.codec import CodebookUsage
from .base import Tokenizer
from .encoding_windows import WINDOWS, Windows
from .random_targets import ChromaCodes, RandomTargets


@dataclass(frozen=True)
class MelInput:
    """The log-mel spectrum that the network reads and from which its targets are made.

    Args:
        bands: Number of mel bands.
        f_min: Lower edge of the lowest band, in Hz.
        f_max: Upper edge of the highest band, in Hz. ``None`` takes half the sample rate.
        stack: Mel frames per frame of features.
        overlap: Length of the window in mel frames, 2 or more. Longer windows resolve pitch better, and time worse.
        updates: Number of training batches that provide the mean and deviation of each band.
    """

    bands: int = 80
    f_min: float = 0.0
    f_max: float | None = None
    stack: int = 4
    overlap: int = 4
    updates: int = 50

    def __post_init__(self) -> None:
        for name in ("bands", "stack", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class ConformerShape:
    """Shape of the network: convolutions that subsample the spectrum, and a Conformer with rotary positions.

    Args:
        width: Width of the features.
        depth: Number of Conformer blocks.
        num_heads: Heads of every attention; twice their number must divide the width.
        feed_forward: Width between the feed-forward projections, as a multiple of the width.
        kernel: Taps of the convolutions of the blocks, an odd number.
        dropout: Dropout of the output of every layer, in training.
        checkpointing: Whether to recompute each block in the backward pass, which saves memory.
    """

    width: int = 576
    depth: int = 12
    num_heads: int = 8
    feed_forward: float = 4.0
    kernel: int = 31
    dropout: float = 0.0
    checkpointing: bool = False


@dataclass(frozen=True)
class Masking:
    """Which frames the network must predict without hearing them. The defaults are those of BEST-RQ.

    Args:
        probability: Probability that a masked span begins at a mel frame. Spans may overlap.
        seconds: Length of a span.
        noise: Deviation of the normal noise that replaces the normalized spectrum of masked frames.
        heard: Weight of the mean loss on the other frames (as in HuBERT, arXiv 2106.07447). The network hears them,
            except those beside a masked span whose windows reach into it.
    """

    probability: float = 0.01
    seconds: float = 0.4
    noise: float = 0.1
    heard: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"probability must be between 0 and 1, not {self.probability}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be positive and finite, not {self.seconds}")
        for name in ("noise", "heard"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, but is {getattr(self, name)}")


SPECTRUM, ENCODER, MASKING, TARGETS = MelInput(), ConformerShape(), Masking(), RandomTargets()


@register("tokenizer", "best-rq")
class BestRQ(Tokenizer):
    """Features of mono audio, learned by predicting masked stretches from what surrounds them (BEST-RQ; for music
    MusicFM, arXiv 2311.03318).

    The log-mel spectrum is normalized per band by statistics of the first training batches. Spans of it are replaced by
    noise, and the network predicts their codes under random projections, which are never trained but saved with the
    part. To predict what sounds in a span of several tenths of a second, it must know what fits the music around it:
    the key, the chord, the meter. Every mel frame whose window reaches into a masked span is replaced, so that nothing
    of the span's sound is left. ``targets.chroma`` adds codes of the harmony, which do not depend on the instrument.

    Convolutions subsample the spectrum to ``frame_rate``. Attention then sees the whole window (:class:`Windows`), so a
    frame depends on how the clip was cut. The features cannot be decoded to audio. Their clusters (``kmeans`` with
    these ``features``) are semantic tokens.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        frame_rate: Features per second; a mel frame, a fraction ``1 / stack`` of it, holds a whole number of samples.
        layer: Conformer block whose output is the features, from 1 to the depth. Middle blocks represent content
            best; the last ones represent the targets. ``None`` takes the middle one.
        spectrum: The spectrum.
        encoder: Shape of the network.
        masking: Which frames are masked in training.
        targets: The random quantizers whose codes are predicted.
        windows: The windows in which long clips are encoded.

    Raises:
        ValueError: A value is out of range.
    """

    filterbank: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        frame_rate: float = 25.0,
        layer: int | None = None,
        spectrum: MelInput = SPECTRUM,
        encoder: ConformerShape = ENCODER,
        masking: Masking = MASKING,
        targets: RandomTargets = TARGETS,
        windows: Windows = WINDOWS,
    ) -> None:
        super().__init__()
        if sample_rate < 1:
            raise ValueError(f"sample_rate must be at least 1, not {sample_rate}")
        if not frame_rate > 0 or (exact(sample_rate) / exact(frame_rate) / spectrum.stack).denominator > 1:
            raise ValueError(
                f"a mel frame must hold a whole number of samples: {frame_rate} frames per second, each of "
                f"{spectrum.stack} mel frames, do not divide {sample_rate}"
            )
        highest = sample_rate / 2 if spectrum.f_max is None else spectrum.f_max
        if not 0 <= spectrum.f_min < highest <= sample_rate / 2:
            raise ValueError(
                f"bands go up, from 0 to {sample_rate / 2:g} Hz, not from {spectrum.f_min:g} to {highest:g}"
            )
        self.layer = (encoder.depth + 1) // 2 if layer is None else layer
        if not 1 <= self.layer <= encoder.depth:
            raise ValueError(f"layer must be from 1 to {encoder.depth}, the depth of the network, not {layer}")
        self.sample_rate, self.frame_rate = sample_rate, frame_rate
        self.masking, self.targets, self.windows, self.stack = masking, targets, windows, spectrum.stack
        self.stft = STFT(int(exact(sample_rate) / exact(frame_rate) / spectrum.stack), spectrum.overlap)
        filterbank = mel_filterbank(self.stft.bins, spectrum.bands, sample_rate, spectrum.f_min, highest)
        self.register_buffer("filterbank", filterbank, persistent=False)
        self.standardize = Standardize(spectrum.bands, spectrum.updates)
        width, number, cardinality = encoder.width, targets.total, targets.cardinality
        size = spectrum.stack * spectrum.bands
        self.quantizer = RandomProjectionQuantizer(size, targets.number, cardinality, targets.dim)
        hop = self.stft.hop * spectrum.stack
        if targets.chroma and targets.chroma_seconds > windows.seconds:
            raise ValueError(
                f"targets: chroma_seconds must be at most the {windows.seconds:g} s of windows, not "
                f"{targets.chroma_seconds:g}"
            )
        self.chroma_codes = ChromaCodes(targets, sample_rate, hop, spectrum.updates) if targets.chroma else None
        self.subsampling = nn.Sequential(
            Conv1d(spectrum.bands, width, 3),
            nn.GELU(),
            Conv1d(width, width, 2 * spectrum.stack, stride=spectrum.stack),
        )
        self.network = Conformer(
            width,
            encoder.depth,
            encoder.num_heads,
            feed_forward=encoder.feed_forward,
            kernel=encoder.kernel,
            dropout=encoder.dropout,
            checkpointing=encoder.checkpointing,
        )
        self.heads = nn.Linear(width, number * cardinality)
        nn.init.normal_(self.heads.weight, std=0.02)
        nn.init.zeros_(self.heads.bias)
        self.usage = CodebookUsage(number, cardinality)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the features of one layer."""
        return RepresentationSpec(self.sample_rate, 1, self.frame_rate, dim=self.network.width)

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The Conformer."""
        return [self.network]

    @property
    def recomputes(self) -> bool:
        """Whether the Conformer recomputes its activations in the backward pass."""
        return self.network.checkpointing

    @property
    def repeated_blocks(self) -> list[nn.Module]:
        """The blocks of the Conformer."""
        return list(self.network.blocks)

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """The weights of the Conformer's linear layers."""
        return hidden_matrices(self, ("heads.",))

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` to features ``[B, width, ceil(T · frame_rate / sample_rate)]``."""

        def features(window: Tensor) -> Tensor:
            return self._states(self.standardize(self.spectrum(window)), self.layer).mT

        with torch.autocast(audio.device.type, enabled=False):
            return self.windows.encode(features, audio, self.stft.hop * self.stack, self.frame_rate)

    def spectrum(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` to natural-log magnitudes in mel bands ``[B, bands, S · stack]``, not yet normalized."""
        with torch.autocast(audio.device.type, enabled=False):
            scale = self.stft.window.square().sum().rsqrt()  # a window of unit energy
            return log_magnitude(self.stft(self._whole_frames(audio)).abs() * scale @ self.filterbank).mT

    def target_codes(self, mel: Tensor, audio: Tensor) -> Tensor:
        """Codes ``[B, quantizers, S]`` of a normalized spectrum ``[B, bands, S · stack]`` and of its audio."""
        codes = self.quantizer(mel.unflatten(-1, (-1, self.stack)).permute(0, 2, 3, 1).flatten(2))
        if self.chroma_codes is None:
            return codes
        return torch.cat([codes, self.chroma_codes(self._whole_frames(audio))], 1)

    def draw_mask(self, examples: int, frames: int) -> Tensor:
        """Frames that are masked, ``[examples, frames]`` bool: spans that begin at random mel frames."""
        span = max(1, round(min(self.masking.seconds * self.frame_rate, frames)))

        def draw(number: int) -> Tensor:
            return torch.rand(number, frames, self.stack, device=self.device)

        starts = (per_example(draw, examples, self.device) < self.masking.probability).any(-1)
        return F.max_pool1d(F.pad(starts.float()[:, None], (span - 1, 0)), span, 1)[:, 0] > 0

    def hide(self, mel: Tensor, mask: Tensor) -> Tensor:
        """Replace masked frames ``[B, S]`` of a normalized spectrum ``[B, bands, S · stack]`` by noise.

        Mel frames beside a masked frame are replaced, too, if their window reaches into it.
        """
        before, after = self.stft.reach
        padded = F.pad(mask.repeat_interleave(self.stack, 1).float()[:, None], (before, after))
        hidden = F.max_pool1d(padded, before + after + 1, 1) > 0
        noise = per_example(lambda n: torch.randn(n, *mel.shape[1:], device=mel.device), len(mel), mel.device)
        return torch.where(hidden, noise * self.masking.noise, mel)

    def predict(self, mel: Tensor) -> Tensor:
        """Logits ``[B, S, number, cardinality]`` of the codes, from a normalized spectrum ``[B, bands, S · stack]``."""
        return self._logits(self._states(mel))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss on the masked frames of ``batch["audio"]`` ``[B, 1, T]``."""
        mel = self.spectrum(batch["audio"])
        self.standardize.observe(mel)
        return self._log("train", *self._loss(mel, batch["audio"]))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss on ``batch["audio"]`` ``[B, 1, T]``, with the same masks in every validation."""
        mel = self.spectrum(batch["audio"])
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(batch_idx * self.trainer.world_size + self.trainer.global_rank)
            loss, correct, codes = self._loss(mel, batch["audio"])
        self.usage.update(codes)
        self._log("val", loss, correct, codes)

    def on_validation_epoch_end(self) -> None:
        """Log the usage of the targets' codes: few used ones make a task that is too easy."""
        usage = self.usage.compute()
        self.log("val/target_perplexity", usage["perplexity"].mean(), sync_dist=True)
        self.log("val/target_usage", usage["usage"].mean(), sync_dist=True)
        self.usage.reset()

    def outline_step(self, examples: int, seconds: float) -> Callable[[], Tensor]:
        """The loss of a batch with the expected number of frames whose codes are predicted."""

        def loss() -> Tensor:
            mel = self.spectrum(torch.zeros(examples, 1, round(seconds * self.sample_rate)))
            span = self.masking.seconds * self.frame_rate * self.stack
            share = 1.0 if self.masking.heard else 1 - (1 - self.masking.probability) ** span
            states = self._states(self.standardize(mel))
            logits = self._logits(states[:, : max(1, round(share * states.shape[1]))])
            return F.cross_entropy(logits.flatten(0, 2), torch.zeros(logits.shape[:3], dtype=torch.long).flatten())

        return loss

    def _loss(self, mel: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, accuracy on masked frames, and the codes ``[B, quantizers, S]``.

        Means over frames are sums over this process's frames, divided by the mean number of frames over all processes.

        Args:
            mel: The spectrum ``[B, bands, M]``.
            audio: Its audio ``[B, 1, T]``.
        """
        mel = self.standardize(mel)
        codes = self.target_codes(mel, audio)
        mask = self.draw_mask(len(mel), codes.shape[-1])
        states = self._states(self.hide(mel, mask))
        loss, accuracy = self._errors(states, codes, mask)
        if self.masking.heard:
            loss = loss + self.masking.heard * self._errors(states, codes, ~mask)[0]
        return loss, accuracy, codes

    def _errors(self, states: Tensor, codes: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of the codes ``[B, quantizers, S]`` in some frames ``[B, S]``."""
        logits, wanted = self._logits(states[where]), codes.mT[where]
        number = where.sum() * codes.shape[1]
        number = (mean_of_all(number) if self.training else number).clamp(min=1)
        loss = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="sum") / number
        return loss, (logits.argmax(-1) == wanted).sum() / number

    def _log(self, split: str, loss: Tensor, correct: Tensor, codes: Tensor) -> Tensor:
        examples = len(codes)
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=examples)
        self.log(f"{split}/accuracy", correct, batch_size=examples)
        if split == "train":
            self.log("train/target_perplexity", _perplexity(codes, self.targets.cardinality), batch_size=examples)
        return loss

    def _logits(self, states: Tensor) -> Tensor:
        """Logits ``[..., number, cardinality]`` of states ``[..., width]``."""
        return self.heads(states).unflatten(-1, (self.targets.total, self.targets.cardinality))

    def _whole_frames(self, audio: Tensor) -> Tensor:
        """Audio ``[B, 1, T]`` with its last frame filled up, ``[B, S · samples of a frame]``."""
        return pad_to_multiple(audio.mean(1), self.stft.hop * self.stack)

    def _states(self, mel: Tensor, depth: int | None = None) -> Tensor:
        """The output of the first ``depth`` blocks, or of all, ``[B, S, width]`` for a normalized spectrum."""
        return self.network(self.subsampling(mel).mT, depth)


def _perplexity(codes: Tensor, cardinality: int) -> Tensor:
    """Perplexity of codes ``[B, number, S]``, averaged over the quantizers."""
    usage = CodebookUsage(codes.shape[1], cardinality).to(codes.device)
    usage.update(codes)
    return usage.compute()["perplexity"].mean()
