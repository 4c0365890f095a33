"""The neural codec: an autoencoder and a bottleneck, trained against a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from ..layers.chunks import Local, Step
from ..layers.codec_losses import DISCRIMINATOR, GENERATOR, SpectralDistance, feature_matching
from ..layers.convolution import pad_to_multiple
from ..layers.overlap_add import overlap_add
from ..metrics.codec import CodebookUsage, MelDistance
from .adversarial import AdversarialPart, Losses, Reconstruction
from .autoencoders.base import Autoencoder
from .base import Tokenizer
from .bottlenecks.base import Bottleneck
from .discriminators.base import Discriminator

LOSSES, SPECTRAL = Losses(), SpectralDistance()
"""Default losses of a codec."""


class Segment(NamedTuple):
    """A part of a clip that is encoded by itself.

    Attributes:
        codes: Codes ``[B, K, S]``, or the latents of a continuous bottleneck.
        scale: Loudness of the part, ``[B, 1, 1]``; 1 for codecs that keep levels.
        samples: Length of the part in samples.
    """

    codes: Tensor
    scale: Tensor
    samples: int


@register("tokenizer", "codec")
class NeuralCodec(Tokenizer, AdversarialPart):
    """A trainable codec, composed of an autoencoder, a bottleneck and a discriminator, each chosen by one word.

    SoundStream is ``autoencoder: seanet`` with ``bottleneck: rvq``. With a quantizing bottleneck, the representation is
    codes; with a continuous one, latents. Codebooks follow every batch, even if a step takes several
    (``fit.accumulate``).

    Args:
        autoencoder: The encoder and the decoder.
        bottleneck: The bottleneck between them.
        discriminator: The adversary; ``None`` if ``losses.adversarial`` is 0.
        sample_rate: Sample rate of the audio in Hz.
        channels: Channels of the audio.
        channelwise: Whether each channel is coded by itself, as by a codec with one channel, and the codebooks of the
            channels are interleaved (left, right, left, right, …), as in MusicGen's stereo models. Otherwise, all
            channels share the frames.
        dim: Width of the latents. SoundStream's paper gives none; EnCodec's is 128.
        num_codebooks: Codebooks in use, of all channels; ``None`` uses all.
        losses: Weights of the losses.
        spectral: The spectral distance.
        adversarial_start: Step at which the discriminator starts to contribute.
        level: If set, clips are normalized to unit loudness before they are encoded, each as a whole, which preserves
            its dynamics, and decoded clips get this root mean square, relative to full scale (EnCodec at 48 kHz, which
            stores the loudness of each second beside its codes). ``None`` keeps levels.
    """

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        bottleneck: Bottleneck,
        discriminator: Discriminator | None = None,
        sample_rate: int = 24000,
        channels: int = 1,
        channelwise: bool = False,
        dim: int = 128,
        num_codebooks: int | None = None,
        losses: Losses = LOSSES,
        spectral: SpectralDistance = SPECTRAL,
        adversarial_start: int = 0,
        level: float | None = None,
    ) -> None:
        if level is not None and not 0 < level <= 1:
            raise ValueError(f"level must be above 0 and at most 1, or null for none, not {level}")
        bottleneck.build(dim)
        super().__init__(
            sample_rate=sample_rate,
            channels=channels,
            losses=losses,
            spectral=spectral,
            discriminator=discriminator,
            adversarial_start=adversarial_start,
        )
        self.streams = channels if channelwise else 1
        autoencoder.build(sample_rate, channels // self.streams, bottleneck.encoded_dim, bottleneck.dim)
        self.autoencoder, self.bottleneck = autoencoder, bottleneck
        self.sample_rate, self.channels, self.level = sample_rate, channels, level
        sizes = set(bottleneck.cardinalities)
        if len(sizes) > 1:
            raise ValueError(f"the codebooks of a codec are of one size, not of {sorted(sizes)} entries")
        self.num_codebooks = len(bottleneck.cardinalities) * self.streams or None
        self.latent_dim = dim * self.streams if sizes else None
        if num_codebooks is not None:
            self.set_num_codebooks(num_codebooks)
        self.mel_distance = MelDistance(sample_rate)
        self.usage = CodebookUsage(len(bottleneck.cardinalities) * self.streams, max(sizes)) if sizes else None

    @property
    def spec(self) -> RepresentationSpec:
        """Codes, at the number of codebooks in use, or latents."""
        return RepresentationSpec(
            sample_rate=self.sample_rate,
            channels=self.channels,
            frame_rate=self.sample_rate / self.autoencoder.hop,
            num_codebooks=self.num_codebooks,
            cardinality=next(iter(self.bottleneck.cardinalities), None),
            dim=None if self.num_codebooks else self.bottleneck.dim * self.streams,
        )

    def set_num_codebooks(self, num_codebooks: int) -> None:
        """Use only the first ``num_codebooks`` codebooks from now on. Training still uses all.

        Raises:
            ValueError: The codec has fewer codebooks, or the number is not the same for all channels that are coded by
                themselves.
        """
        most = len(self.bottleneck.cardinalities) * self.streams
        if not most:
            raise ValueError(f"num_codebooks: there are no codebooks in a {self.bottleneck.registered_name} bottleneck")
        if not 1 <= num_codebooks <= most:
            raise ValueError(f"num_codebooks must be 1 to {most}, not {num_codebooks}")
        if num_codebooks % self.streams:
            raise ValueError(
                f"num_codebooks must be a multiple of {self.streams}, the channels that are coded by themselves, not "
                f"{num_codebooks}"
            )
        self.num_codebooks = num_codebooks

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to codes ``[B, K, ceil(T / hop)]``, or to latents ``[B, D, ceil(T / hop)]``."""
        return self._codes(self._encoded(self._normalized(audio)[0]))

    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of the codebooks in use or fewer, or latents, to audio ``[B, C, S · hop]``."""
        return self._leveled(self._decoded(self.bottleneck.decode(self._apart(representation))))

    @torch.no_grad()
    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to latents ``[B, D, ceil(T / hop)]``."""
        return self._latents(self._encoded(self._normalized(audio)[0]))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``."""
        return self._leveled(self._decoded(self._apart(latents)))

    def encode_segments(self, audio: Tensor, seconds: float = 1.0, overlap: float = 0.01) -> list[Segment]:
        """Encode audio ``[B, C, T]`` as overlapping segments with their loudness (EnCodec, 2210.13438 §3.1).

        Args:
            audio: Audio of any length.
            seconds: Length of a segment. The last one may be shorter.
            overlap: Overlap of neighboring segments, as a fraction of their length.
        """
        length = int(seconds * self.sample_rate)
        stride = max(1, int((1 - overlap) * length))
        parts = [audio[..., start : start + length] for start in range(0, audio.shape[-1], stride)]
        with torch.no_grad():
            normal = [self._normalized(part) for part in parts]
            return [Segment(self._codes(self._encoded(part)), scale, part.shape[-1]) for part, scale in normal]

    def decode_segments(self, segments: Sequence[Segment], overlap: float = 0.01) -> Tensor:
        """Decode the result of :meth:`encode_segments` to audio ``[B, C, T]``, cross-faded where segments overlap."""
        clips = [
            self._decoded(self.bottleneck.decode(self._apart(one.codes)))[..., : one.samples] * one.scale
            for one in segments
        ]
        return overlap_add(clips, max(1, int((1 - overlap) * segments[0].samples)))

    def encoding_steps(self, latents: bool = False) -> list[Step] | None:
        """The encoder's steps and the bottleneck."""
        steps = self.autoencoder.encoding_steps()
        if steps is None or not self.bottleneck.framewise or self.level is not None:
            return None
        return [Local(self._apart), *steps, Local(self._latents if latents else self._codes)]

    def decoding_steps(self, latents: bool = False) -> list[Step] | None:
        """The bottleneck and the decoder's steps."""
        steps = self.autoencoder.decoding_steps()
        if steps is None or not self.bottleneck.framewise or self.level is not None:
            return None
        first = self._apart if latents else lambda codes: self.bottleneck.decode(self._apart(codes))
        return [Local(first), *steps, Local(self._together)]

    def doubt(self) -> str | None:
        """A warning if the training is too short for the bottleneck or the discriminator."""
        return self.bottleneck.doubt(self.fit_options.steps) or super().doubt()

    def reconstruct(self, batch: dict[str, Tensor]) -> Reconstruction:
        """``batch["audio"]`` ``[B, C, T]`` reconstructed through the bottleneck in training mode."""
        audio = batch["audio"]
        normal, scale = self._normalized(audio)
        latents, losses = self.bottleneck(self._encoded(normal), self.step)
        return Reconstruction(audio, (self._decoded(latents)[..., : audio.shape[-1]] * scale).float(), losses)

    def outline_step(self, examples: int, seconds: float) -> Callable[[], Tensor]:
        """The losses of a batch without those of the bottleneck, whose operations are few."""

        def loss() -> Tensor:
            audio = torch.zeros(examples, self.channels, round(seconds * self.sample_rate))
            latents = self._encoded(audio)[:, : self.bottleneck.dim]
            estimate = self._decoded(latents)[..., : audio.shape[-1]].float()
            total = self.spectral_loss(estimate, audio)
            if self.discriminator is None:
                return total
            kind, real, fake = self.losses.adversarial_kind, self.discriminator(audio), self.discriminator(estimate)
            total = total + GENERATOR[kind](fake) + feature_matching(real, fake)
            return total + DISCRIMINATOR[kind](real, self.discriminator(estimate.detach()))

        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Reconstruct ``batch["audio"]`` ``[B, C, T]`` from its codes or latents."""
        audio = batch["audio"]
        normal, scale = self._normalized(audio)
        encoded = self._codes(self._encoded(normal))
        estimate = self._decoded(self.bottleneck.decode(self._apart(encoded)))[..., : audio.shape[-1]].float() * scale
        self.mel_distance.update(estimate, audio)
        if self.usage is not None:
            self.usage.update(encoded)
        self.log("val/mel_distance", self.mel_distance, prog_bar=True, batch_size=len(audio))
        self.log("val/spectral", self.spectral_loss(estimate, audio), batch_size=len(audio))

    def on_validation_epoch_end(self) -> None:
        """Log the usage of the codebooks in use."""
        if self.usage is None:
            return
        for name, values in self.usage.compute().items():
            self.log_dict(
                {f"val/{name}_{k}": value for k, value in enumerate(values.reshape(-1)[: self.num_codebooks])}
            )
        self.usage.reset()

    def _encoded(self, audio: Tensor) -> Tensor:
        """The output of the encoder, ``[B, encoded_dim, ceil(T / hop)]``, or as many rows for each channel."""
        return self.autoencoder.encode(self._apart(pad_to_multiple(audio, self.autoencoder.hop)))

    def _normalized(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Audio at unit loudness, and the scale ``[B, 1, 1]`` that restores it; both unchanged without a level."""
        if self.level is None:
            return audio, audio.new_ones(())
        scale = audio.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8
        return audio / scale, scale

    def _leveled(self, audio: Tensor) -> Tensor:
        """Decoded audio at its level."""
        return audio if self.level is None else audio * self.level

    def _codes(self, encoded: Tensor) -> Tensor:
        """The codes of the encoder's output, or the latents of a continuous bottleneck."""
        books = None if self.num_codebooks is None else self.num_codebooks // self.streams
        return self._together(self.bottleneck.encode(encoded, books))

    def _latents(self, encoded: Tensor) -> Tensor:
        """The latents of the encoder's output."""
        return self._together(self.bottleneck.latents(encoded))

    def _decoded(self, latents: Tensor) -> Tensor:
        """The audio of latents, which are apart for each channel that is coded by itself."""
        return self._together(self.autoencoder.decode(latents))

    def _apart(self, values: Tensor) -> Tensor:
        """``[B, N · streams, T]`` to ``[B · streams, N, T]``: channels, codebooks or latents of each stream."""
        if self.streams == 1:
            return values
        if values.shape[1] % self.streams:
            raise ValueError(f"{values.shape[1]} codebooks do not divide by {self.streams} channels")
        return values.unflatten(1, (-1, self.streams)).transpose(1, 2).flatten(0, 1)

    def _together(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`_apart`."""
        if self.streams == 1:
            return values
        return values.unflatten(0, (-1, self.streams)).transpose(1, 2).flatten(1, 2)
