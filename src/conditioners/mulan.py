"""MuLan, which learns to embed texts and audio in one space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.part import OUTLINED
from ..core.processes import of_all, per_example
from ..core.registry import register
from ..errors import PartitaError
from ..layers.contrastive import decoupled_loss, sigmoid_loss, softmax_loss
from ..layers.mel import MelSpectrum, log_magnitude
from ..layers.spec_augment import DEFAULT_AUGMENT, SpecAugment
from ..metrics.retrieval import EmbeddedPairs
from .audio_towers.base import AudioTower
from .joint import JointConditioner, check_embeddable, complete, recalls, windows_of
from .text_towers.base import TextTower

TEMPERATURE, LARGEST_SCALE = 0.1, 100.0
"""Initial temperature, and the largest factor of similarities in training."""
BIAS = -10.0
"""Initial bias of the sigmoid loss (SigLIP, §4.2)."""
MEAN, DEVIATION = -3.5, 3.0
"""Mean and deviation of the log-mel values of the rendered corpus, by which spectra are standardized."""
AT_ONCE = 16
"""Number of windows that are embedded at once outside training, which bounds the memory that a long clip takes."""


@dataclass(frozen=True)
class LogMel:
    """The spectra that an audio tower reads.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        bands: Mel bands.
        window: Samples per frame.
        hop: Samples between frames.
        f_min: Lower edge of the lowest band, in Hz.

    Raises:
        ValueError: A number is out of range.
    """

    sample_rate: int = 16000
    bands: int = 128
    window: int = 1024
    hop: int = 160
    f_min: float = 30.0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "bands", "window", "hop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.window < 2:
            raise ValueError("window must be at least 2 samples")
        if not 0 <= self.f_min < self.sample_rate / 2:
            raise ValueError(f"f_min must be at least 0 and below half the sample rate, not {self.f_min}")


@register("conditioner", "mulan")
class MuLan(JointConditioner):
    """An audio tower and a text tower that are trained contrastively (MuLan, arXiv 2208.12415).

    A clip and its caption get similar embeddings, and the clips and captions of other examples, of all devices, other
    ones. Examples with the same caption are not each other's negatives. If a training clip is longer than a window, a
    random window of it is used. An example without audio or without a text does not count.

    As a condition, a clip is the normalized mean of the embeddings of its windows, and a text its embedding. Audio that
    is shorter than a window is padded with silence.

    Args:
        audio_tower: The network that embeds spectra.
        text_tower: The network that embeds texts.
        dim: Width of the embeddings.
        window: Seconds of audio per embedding.
        stride: Seconds between windows.
        loss: ``softmax`` (cross-entropy over the batch), ``decoupled`` or ``sigmoid``, which also learns a bias.
        spectrum: The spectra that the audio tower reads.
        spec_augment: Stripes of the spectra that are masked in training.
        inputs: Names of the fields of audio and text that the conditioner reads. If a clip has both, the kind that is
            named first is embedded. Training needs both.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("audio", "text")

    def __init__(
        self,
        *,
        audio_tower: AudioTower,
        text_tower: TextTower,
        dim: int = 128,
        window: float = 10.0,
        stride: float = 1.0,
        loss: Literal["softmax", "decoupled", "sigmoid"] = "softmax",
        spectrum: LogMel = LogMel(),
        spec_augment: SpecAugment = DEFAULT_AUGMENT,
        inputs: tuple[str, ...] = ("audio", "text"),
    ) -> None:
        super().__init__(inputs)
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        for name, seconds in (("window", window), ("stride", stride)):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be above 0 seconds, not {seconds}")
        if loss not in ("softmax", "decoupled", "sigmoid"):
            raise ValueError(f"loss must be softmax, decoupled or sigmoid, not {loss!r}")
        self.dim, self.sample_rate, self.loss = dim, spectrum.sample_rate, loss
        self.window, self.stride = (max(1, round(seconds * self.sample_rate)) for seconds in (window, stride))
        self.spectrum = MelSpectrum(
            spectrum.sample_rate, spectrum.window, hop=spectrum.hop, bands=spectrum.bands, f_min=spectrum.f_min
        )
        self.spec_augment = spec_augment
        self.audio_tower, self.text_tower = audio_tower, text_tower
        audio_tower.build(self.window // spectrum.hop + 1, spectrum.bands, dim)
        text_tower.build(dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(TEMPERATURE)))
        self.bias = nn.Parameter(torch.tensor(BIAS)) if loss == "sigmoid" else None
        self.pairs = EmbeddedPairs()

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The field of text, unless there are several, of which one is enough."""
        texts = self._inputs_of("text")
        return tuple(texts) if len(texts) == 1 else ()

    def setup(self, stage: str) -> None:
        """Load what the text tower starts from.

        Raises:
            PartitaError: The conditioner does not read both audio and text, which training compares.
        """
        if stage != "fit":
            return
        if not (self._inputs_of("audio") and self._inputs_of("text")):
            raise PartitaError(
                f"mulan is trained on pairs of audio and text, but its inputs are {', '.join(self.inputs)}: add "
                f"{'text' if self._inputs_of('audio') else 'audio'}"
            )
        self.text_tower.begin()

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Convert texts to the tokens ``[B, L]`` of the text tower and their mask ``[B, L]``."""
        return self.text_tower.tokenize(texts)

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed tokens and mask ``[B, L]`` as ``[B, dim]`` float32 of unit length."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self._of_tokens(tokens, mask)

    @torch.no_grad()
    def embed_audio(self, audio: Tensor) -> Tensor:
        """Embed audio ``[B, 1, T]`` as ``[B, N, dim]`` float32 of unit length, one embedding per window.

        A window begins every ``stride``. If the last one does not end with the clip, another one does. A clip shorter
        than a window is padded with silence.

        Raises:
            PartitaError: The audio is empty, or has more than one channel.
        """
        check_embeddable("mulan", audio)
        with torch.autocast(audio.device.type, enabled=False):
            windows = windows_of(audio[:, 0].float(), self.window, self.stride)
            embedded = [self._of_windows(some) for some in windows.flatten(0, 1).split(AT_ONCE)]
            return torch.cat(embedded).unflatten(0, windows.shape[:2])

    @property
    def scale(self) -> Tensor:
        """The factor of similarities in the loss, the inverse temperature."""
        return (-self.log_temperature).exp()

    def compute_loss(self, audio: Tensor, text: Tensor, captions: Tensor) -> Tensor:
        """The contrastive loss of pairs of embeddings.

        Args:
            audio: Embeddings of clips, ``[N, dim]``.
            text: Embeddings of their captions, ``[N, dim]``.
            captions: Numbers of the captions, ``[N]`` int64, equal for equal captions.
        """
        negatives = captions[:, None] != captions
        with torch.autocast(audio.device.type, enabled=False):
            audio, text = audio.float(), text.float()
            if not len(audio):
                return (audio.sum() + text.sum()) * self.scale
            if self.bias is not None:
                return sigmoid_loss(audio, text, self.scale, self.bias, negatives)
            loss = softmax_loss if self.loss == "softmax" else decoupled_loss
            return loss(audio, text, self.scale, negatives)

    def training_step(self, prepared: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, over the examples of all processes."""
        crops = self._crop(prepared["audio"], prepared["samples"])
        audio = self._embed_spectra(self.spec_augment(self._spectra(crops)))
        text = self._of_tokens(prepared["tokens"], prepared["mask"])
        paired = of_all(complete(prepared))
        loss = self.compute_loss(*(of_all(v)[paired] for v in (audio, text, prepared["caption"])))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(audio))
        self.log("train/temperature", 1 / self.scale.detach(), batch_size=len(audio))
        return loss

    def on_train_batch_end(self, *args: object) -> None:
        """Keep the scale at or below its maximum."""
        with torch.no_grad():
            self.log_temperature.clamp_(min=-math.log(LARGEST_SCALE))

    def validation_step(self, prepared: dict[str, Tensor], batch_idx: int) -> None:
        """Collect the embeddings of the first window of each clip and of its caption."""
        audio = self._of_windows(prepared["audio"][:, : self.window])
        text = self._of_tokens(prepared["tokens"], prepared["mask"])
        paired = complete(prepared)
        self.pairs.update(audio[paired], text[paired], prepared["caption"][paired])

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the recall over all validation clips, which do not depend on the size of a batch.

        Raises:
            PartitaError: None of them has both audio and a text.
        """
        audio, text, captions = self.pairs.collected()
        if not len(captions):
            raise PartitaError("mulan: no validation clip has both audio and a text: use data with captions")
        self.log("val/loss", self.compute_loss(audio, text, captions), prog_bar=True)
        self.log_dict({f"val/{name}": value for name, value in recalls(audio, text, captions).items()}, sync_dist=True)
        self.pairs.reset()

    def outline_step(self, examples: int, seconds: float) -> Callable[[], Tensor]:
        """The loss of a batch of windows and of texts of as many tokens as estimates assume."""

        def loss() -> Tensor:
            audio = self._of_windows(torch.zeros(examples, self.window))
            tokens = torch.zeros(examples, OUTLINED, dtype=torch.long)
            text = self._of_tokens(tokens, torch.ones_like(tokens, dtype=torch.bool))
            return self.compute_loss(audio, text, torch.arange(examples))

        return loss

    def vocabulary(self) -> bytes:
        """The words of the text tower's tokenizer and their numbers."""
        return self.text_tower.vocabulary()

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files of the text tower's tokenizer."""
        self.text_tower.save_tokenizer(folder)

    def load_tokenizer(self, folder: Path) -> None:
        """Read the files of the text tower's tokenizer."""
        self.text_tower.load_tokenizer(folder)

    def _crop(self, audio: Tensor, samples: Tensor) -> Tensor:
        """A random window of each of the clips ``[B, T]``; the clips themselves if none is longer than a window."""
        if audio.shape[1] <= self.window:
            return audio
        device = audio.device
        drawn = per_example(lambda count: torch.rand(count, device=device), len(audio), device)
        starts = (drawn * ((samples - self.window).clamp(min=0) + 1)).long()
        return audio.gather(1, starts[:, None] + torch.arange(self.window, device=device))

    def _of_windows(self, audio: Tensor) -> Tensor:
        """The embeddings ``[N, dim]`` of windows ``[N, T]``."""
        return self._embed_spectra(self._spectra(audio))

    def _spectra(self, audio: Tensor) -> Tensor:
        """The standardized spectra ``[N, frames, bands]`` of windows ``[N, T]``, padded with silence."""
        padded = F.pad(audio, (0, self.window - audio.shape[1]))
        return (log_magnitude(self.spectrum(padded[:, None])[:, 0]) - MEAN) / DEVIATION

    def _embed_spectra(self, spectra: Tensor) -> Tensor:
        return F.normalize(self.audio_tower(spectra).float(), dim=-1)

    def _of_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(self.text_tower(tokens, mask).float(), dim=-1)
