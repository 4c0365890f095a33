"""Reconstruction error of codecs, and use of their codebooks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from ..layers.mel import MelSpectrum, log_magnitude

BANDS = 80


def log_mel_spectrum(sample_rate: int) -> MelSpectrum:
    """Return the spectrum whose logarithms :class:`MelDistance` compares.

    It has 80 mel bands up to half the sample rate, a Hann window of unit energy, whose length is the smallest power of
    two of at least 40 ms (1024 samples at 16 and 24 kHz, 2048 at 32, 44.1 and 48 kHz), and a hop of a quarter of it.
    """
    return MelSpectrum(sample_rate, 2 ** math.ceil(math.log2(0.04 * sample_rate)), bands=BANDS)


class MelDistance(Metric):
    """Mean absolute difference of natural-log mel spectra, over clips, channels, frames and bands.

    Each logarithm is at least ``log(1e-5)``, 122 dB below a full-scale sine. The spectrum is :func:`log_mel_spectrum`.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
    """

    full_state_update = False
    higher_is_better = False
    sum: Tensor
    count: Tensor

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.spectrum = log_mel_spectrum(sample_rate)
        self.add_state("sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, estimate: Tensor, target: Tensor) -> None:
        """Compare audio ``[B, C, T]`` with audio of the same shape."""
        difference = log_magnitude(self.spectrum(estimate)) - log_magnitude(self.spectrum(target))
        self.sum += difference.abs().sum()
        self.count += difference.numel()

    def compute(self) -> Tensor:
        """Return the mean difference, in nepers."""
        return self.sum / self.count


class ConstantSpectrum(MelDistance):
    """The :class:`MelDistance` of the best constant spectrum: the score of a codec that learns nothing.

    Under an absolute difference, the best constant log spectrum is the median of each band over the training frames.

    Args:
        sample_rate: Sample rate of the audio, in Hz.

    Example:
        >>> noise = torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0))
        >>> constant = ConstantSpectrum(16000)
        >>> constant.fit(noise[:1])
        >>> constant.update(noise[1:])
        >>> 0 < float(constant.compute()) < 1
        True
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        self._frames: list[Tensor] = []

    def fit(self, audio: Tensor) -> None:
        """Add training audio ``[B, C, T]`` to the audio from which the medians are computed."""
        self._frames.append(log_magnitude(self.spectrum(audio)).flatten(0, -2))

    def update(self, audio: Tensor) -> None:  # type: ignore[override]
        """Compare held-out audio ``[B, C, T]`` with the medians.

        Raises:
            RuntimeError: There are no medians: call :meth:`fit` first.
        """
        if not self._frames:
            raise RuntimeError("call fit with training audio before update")
        self._frames = [torch.cat(self._frames)]
        difference = log_magnitude(self.spectrum(audio)) - self._frames[0].median(0).values
        self.sum += difference.abs().sum()
        self.count += difference.numel()


class CodebookUsage(Metric):
    """Fraction of used entries of each codebook, and the perplexity of their distribution.

    Args:
        num_codebooks: Codes per frame.
        cardinality: Entries per codebook.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, num_codebooks: int, cardinality: int) -> None:
        super().__init__()
        self.cardinality = cardinality
        counts = torch.zeros((num_codebooks, cardinality), dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Count codes ``[B, K, S]`` of all codebooks, or of the first ones."""
        for k, book in enumerate(codes.unbind(1)):
            self.counts[k] += torch.bincount(book.flatten(), minlength=self.cardinality)

    def compute(self) -> dict[str, Tensor]:
        """Return ``usage`` ``[K]`` in [0, 1] and ``perplexity`` ``[K]`` in [1, cardinality], both 0 without codes."""
        total = self.counts.sum(1, keepdim=True)
        share = self.counts / total.clamp(min=1)
        perplexity = torch.exp(-torch.xlogy(share, share).sum(1)) * (total[:, 0] > 0)
        return {"usage": (self.counts > 0).float().mean(1), "perplexity": perplexity}
