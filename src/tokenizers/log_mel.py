"""Log-mel spectra as a representation without weights, decoded by the Griffin-Lim algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.contracts import RepresentationSpec
from ..core.rates import exact
from ..core.registry import register
from ..layers.chunks import Local, Step
from ..layers.convolution import pad_to_multiple
from ..layers.mel import log_magnitude, mel_filterbank
from ..layers.stft import STFT
from .base import Tokenizer

MOMENTUM = 0.99
"""Momentum of the phase estimation: the fast Griffin-Lim algorithm (Perraudin, Balazs and Søndergaard, 2013)."""
SPREADING = 100
"""Number of iterations that distribute the magnitudes of bands over frequencies."""


@register("tokenizer", "log-mel")
class LogMel(Tokenizer):
    """Natural logarithms of magnitudes in mel bands; decoding estimates the phases (fast Griffin-Lim).

    A frame is centered on its hop, under a Hann window of unit energy. Magnitudes are clamped to at least 1e-5. The
    channels of the audio are concatenated in a frame: ``D = channels · bands``.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        channels: Channels of the audio.
        frame_rate: Frames per second; a frame must hold a whole number of samples.
        overlap: Length of the window in frames, 2 or more. Longer windows resolve pitch better, and time worse.
        bands: Number of mel bands.
        f_min: Lower edge of the lowest band, in Hz.
        f_max: Upper edge of the highest band, in Hz. ``None`` takes half the sample rate.
        iterations: Iterations of the phase estimation in decoding.
    """

    trainable = False
    weightless = True
    filterbank: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        channels: int = 1,
        frame_rate: float = 50.0,
        overlap: int = 4,
        bands: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        iterations: int = 32,
    ) -> None:
        super().__init__()
        for name, value in (("sample_rate", sample_rate), ("channels", channels), ("bands", bands)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not frame_rate > 0 or (exact(sample_rate) / exact(frame_rate)).denominator > 1:
            raise ValueError(f"a frame must hold a whole number of samples: {frame_rate} does not divide {sample_rate}")
        highest = sample_rate / 2 if f_max is None else f_max
        if not 0 <= f_min < highest <= sample_rate / 2:
            raise ValueError(f"bands go up, from 0 to {sample_rate / 2:g} Hz, not from {f_min:g} to {highest:g}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {iterations}")
        self.sample_rate, self.channels, self.frame_rate, self.bands = sample_rate, channels, frame_rate, bands
        self.iterations = iterations
        self.stft = STFT(int(exact(sample_rate) / exact(frame_rate)), overlap)
        filterbank = mel_filterbank(self.stft.bins, bands, sample_rate, f_min, highest)
        self.register_buffer("filterbank", filterbank, persistent=False)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of log magnitudes, with one frame per hop."""
        return RepresentationSpec(self.sample_rate, self.channels, self.frame_rate, dim=self.channels * self.bands)

    @property
    def _scale(self) -> Tensor:
        """Factor that normalizes the window to unit energy."""
        return self.stft.window.square().sum().rsqrt()

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to natural-log magnitudes ``[B, C · bands, S]``."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = self.stft(pad_to_multiple(audio, self.stft.hop))
            return log_magnitude(spectrum.abs() * self._scale @ self.filterbank).mT.flatten(1, 2)

    def decode(self, representation: Tensor) -> Tensor:
        """Log magnitudes ``[B, C · bands, S]`` to audio ``[B, C, S · hop]`` with estimated phases. Deterministic."""
        with torch.autocast(representation.device.type, enabled=False):
            bands = representation.float().unflatten(1, (self.channels, self.bands)).mT
            # a limit far above full scale prevents overflow
            return self._with_phases(self._spread(bands.clamp(max=10).exp()) / self._scale)

    def encoding_steps(self, latents: bool = False) -> list[Step] | None:
        """The transform. Decoding has no steps, because it estimates the phases of the whole clip together."""
        return None if latents else [Local(self.encode, *self.stft.reach, inputs=self.stft.hop)]

    def _spread(self, bands: Tensor) -> Tensor:
        """Magnitudes of bands ``[..., S, bands]`` to non-negative magnitudes of frequencies ``[..., S, bins]``.

        Least squares by multiplicative updates (Lee and Seung, 2001), starting from the bands' mean magnitudes.
        """
        wanted, banks = bands @ self.filterbank.T, self.filterbank
        found = bands / banks.sum(0).clamp(min=1e-8) @ banks.T
        for _ in range(SPREADING):
            found = found * wanted / (found @ banks @ banks.T).clamp(min=1e-8)
        return found

    def _with_phases(self, magnitude: Tensor) -> Tensor:
        """Audio ``[..., S · hop]`` whose spectrum has approximately the magnitudes ``[..., S, bins]``."""
        stft, device = self.stft, magnitude.device
        frames, bins = (torch.arange(n, device=device) for n in magnitude.shape[-2:])
        # initial phases are those of steady tones, the same for every sample
        turns = (frames[:, None] * bins * stft.hop % stft.length) / stft.length
        phases = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)
        before = torch.zeros_like(phases)
        for _ in range(self.iterations):
            consistent = stft(stft.inverse(magnitude * phases))
            phases = consistent - before * (MOMENTUM / (1 + MOMENTUM))
            phases = phases / phases.abs().clamp(min=1e-16)
            before = consistent
        return stft.inverse(magnitude * phases)
