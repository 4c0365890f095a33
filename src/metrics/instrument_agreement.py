"""Instruments that are heard in clips, by a classifier that is fitted to labeled clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.resample import convert
from ..errors import PartitaError
from ..layers.mel import MelSpectrum, log_magnitude
from .piece_means import ClipMeans, Pieces

RATE = 16000
"""Sample rate at which instruments are told apart, in Hz."""
WINDOW, HOP, BANDS = 1280, 320, 80
"""Samples of a window, samples between windows, and mel bands of the spectra."""
DEPTH = 5.0
"""Nepers (43 dB) below the loudest band of a clip to which its spectra are limited: below are noise and silence."""
SHRINKAGE = 0.01
"""Weight of the squared weights in the loss of the classifier."""


class InstrumentClassifier:
    """A logistic regression for each instrument, on the means and deviations of the log-mel bands of a clip.

    Means are relative to the mean of all bands, so that the level of a clip does not matter. Clips can have several
    instruments.

    Args:
        sample_rate: Sample rate of the clips, in Hz.

    Attributes:
        names: The instruments, after :meth:`fit`.
    """

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate, self.names = sample_rate, list[str]()
        self.spectrum = MelSpectrum(RATE, WINDOW, hop=HOP, bands=BANDS)
        self._statistics: list[Tensor] = []
        self._instruments: list[tuple[str, ...]] = []

    def statistics(self, audio: Tensor) -> Tensor:
        """Return what the classifier hears of audio ``[B, C, T]``: ``[B, 2 · bands]`` float32."""
        frames = log_magnitude(self.spectrum(convert(audio.cpu(), self.sample_rate, RATE, 1))[:, 0])
        frames = frames.maximum(frames.amax((1, 2), keepdim=True) - DEPTH)
        means = frames.mean(1)
        return torch.cat([means - means.mean(1, keepdim=True), frames.std(1)], 1)

    def add(self, audio: Tensor, instruments: Sequence[Sequence[str]]) -> None:
        """Add clips ``[B, C, T]`` with the names of their instruments to those that :meth:`fit` uses."""
        self._statistics.append(self.statistics(audio))
        self._instruments += [tuple(names) for names in instruments]

    def fit(self) -> Self:
        """Fit the classifier to all clips that were added. Equal clips make equal classifiers.

        Raises:
            PartitaError: The clips have fewer than two different instruments.
        """
        self.names = sorted({name for names in self._instruments for name in names})
        if len(self.names) < 2:
            raise PartitaError(f"instruments cannot be told apart, because the clips have {self.names or 'none'}")
        statistics = torch.cat(self._statistics)
        self._middle, self._spread = statistics.mean(0), statistics.std(0).clamp(min=1e-3)
        inputs = self._standardized(statistics)
        heard = torch.tensor([[float(name in names) for name in self.names] for names in self._instruments])
        weights = torch.zeros(inputs.shape[1], len(self.names), requires_grad=True)
        offsets = torch.zeros(len(self.names), requires_grad=True)
        optimizer = torch.optim.LBFGS([weights, offsets], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            entropy = F.binary_cross_entropy_with_logits(inputs @ weights + offsets, heard, reduction="none")
            total: Tensor = entropy.sum(1).mean() + SHRINKAGE * weights.square().sum()
            total.backward()
            return total

        with torch.inference_mode(False), torch.enable_grad():
            optimizer.step(loss)
        self._weights, self._offsets = weights.detach(), offsets.detach()
        return self

    def __call__(self, audio: Tensor) -> Tensor:
        """Return the log-odds ``[B, instruments]`` that each instrument sounds in audio ``[B, C, T]``."""
        return self._standardized(self.statistics(audio)) @ self._weights + self._offsets

    def _standardized(self, statistics: Tensor) -> Tensor:
        return (statistics - self._middle) / self._spread


class InstrumentAgreement(ClipMeans):
    """Mean fraction of the instruments of a clip that are heard: among as many instruments with the highest log-odds.

    For a clip with one instrument, this is whether that one has the highest log-odds, so the mean is the accuracy; for
    several, it is the R-precision.

    Args:
        names: The instruments that are told apart, in the order of the log-odds.
        confidence: Confidence level of the interval.

    Example:
        >>> metric = InstrumentAgreement(["flute", "harp", "piano"])
        >>> metric.update(torch.tensor([[2.0, -1.0, 0.0], [0.0, 3.0, 1.0]]), [["flute"], ["flute", "harp"]])
        >>> metric.compute()["instruments"].item()
        0.75
    """

    higher_is_better = True
    names = ("instruments",)
    rates = names

    def __init__(self, names: Sequence[str], *, confidence: float = 0.95) -> None:
        super().__init__(confidence=confidence)
        self.instruments = list(names)

    def update(self, log_odds: Tensor, instruments: Sequence[Sequence[str]], pieces: Pieces = None) -> None:
        """Compare log-odds ``[B, instruments]`` with the instruments of the clips.

        Args:
            log_odds: Log-odds of each instrument, such as :class:`InstrumentClassifier` returns.
            instruments: Names of the instruments of each clip, at least one.
            pieces: Names of the clips' pieces, for the interval. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: A clip has no instrument, or one that is not told apart.
        """
        found = []
        for odds, names in zip(log_odds, instruments, strict=True):
            wanted = set(names)
            if not wanted or (unknown := wanted.difference(self.instruments)):
                what = f"{sorted(unknown)} is not among" if wanted else "a clip has none of"
                raise PartitaError(f"{what} the instruments that are told apart: {', '.join(self.instruments)}")
            heard = {self.instruments[i] for i in odds.topk(len(wanted)).indices.tolist()}
            found.append(len(heard & wanted) / len(wanted))
        self.record(torch.tensor(found, dtype=torch.float64, device=log_odds.device)[:, None], pieces=pieces)

    def compute(self) -> dict[str, Tensor]:
        """Return ``instruments``, its bounds ``instruments_low`` and ``instruments_high``, ``clips`` and ``pieces``."""
        return super().compute()
