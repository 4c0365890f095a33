"""The codes that masked prediction predicts: of a spectrum (BEST-RQ, arXiv 2202.01855), and of its chroma."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.chroma import CLASSES, chroma_filterbank
from ..layers.random_projection import RandomProjectionQuantizer
from ..layers.standardize import Standardize
from ..layers.stft import STFT


@dataclass(frozen=True)
class RandomTargets:
    """The random quantizers whose codes the network predicts. The defaults are those of BEST-RQ.

    Quantizers of the spectrum make codes of its sound. Those of its chroma make codes of its harmony, whatever the
    instrument; MERT (arXiv 2306.00107) predicts a constant-Q spectrum beside acoustic codes for the same reason.

    Args:
        number: Number of independent quantizers of the spectrum, each with an output layer of its own.
        cardinality: Codes of each quantizer.
        dim: Width of the random projection.
        chroma: Number of further quantizers, of the chroma: the magnitudes from 60 to 2000 Hz of the twelve pitch
            classes, relative to their norm.
        chroma_seconds: Length of the window of the chroma.
    """

    number: int = 1
    cardinality: int = 8192
    dim: int = 16
    chroma: int = 0
    chroma_seconds: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("number", 0), ("cardinality", 2), ("dim", 2), ("chroma", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.total:
            raise ValueError("number and chroma are both 0: there is nothing to predict")
        if not self.chroma_seconds > 0:
            raise ValueError(f"chroma_seconds must be positive, not {self.chroma_seconds}")

    @property
    def total(self) -> int:
        """Number of all quantizers."""
        return self.number + self.chroma


class ChromaCodes(nn.Module):
    """Codes of the chroma of audio, which tell its harmony, whatever the instrument and the level.

    Args:
        targets: Number, cardinality and width of the quantizers, and the length of the window.
        sample_rate: Sample rate of the audio, in Hz.
        hop: Samples per frame.
        updates: Number of training batches that provide the mean and deviation of each pitch class.
    """

    filterbank: Tensor

    def __init__(self, targets: RandomTargets, sample_rate: int, hop: int, updates: int) -> None:
        super().__init__()
        self.stft = STFT(hop, max(2, round(targets.chroma_seconds * sample_rate / hop)))
        filterbank = chroma_filterbank(self.stft.bins, sample_rate, octave_width=None, band=(60.0, 2000.0))
        self.register_buffer("filterbank", filterbank, persistent=False)
        self.standardize = Standardize(CLASSES, updates)
        self.quantizer = RandomProjectionQuantizer(CLASSES, targets.chroma, targets.cardinality, targets.dim)

    def chroma(self, audio: Tensor) -> Tensor:
        """Audio ``[B, S · hop]`` to the chroma ``[B, 12, S]``, of length one in every frame."""
        with torch.autocast(audio.device.type, enabled=False):
            return F.normalize(self.stft(audio).abs() @ self.filterbank, dim=-1).mT

    def forward(self, audio: Tensor) -> Tensor:
        """Audio ``[B, S · hop]`` to codes ``[B, chroma, S]`` int64."""
        chroma = self.chroma(audio)
        if self.training:
            self.standardize.observe(chroma)
        return self.quantizer(self.standardize(chroma).mT)
