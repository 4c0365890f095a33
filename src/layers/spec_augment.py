"""SpecAugment: masking stripes of a spectrum in training (arXiv 1904.08779)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.processes import per_example


@dataclass(frozen=True)
class SpecAugment:
    """Numbers and widths of the stripes of a spectrum that are masked in training.

    Args:
        time_masks: Number of stripes in time; 0 masks nothing.
        longest: Maximum length of each, as a fraction of the spectrum.
        band_masks: Number of stripes in frequency; 0 masks nothing.
        widest: Maximum width of each, as a fraction of the bands.

    Raises:
        ValueError: A number is out of range.
    """

    time_masks: int = 2
    longest: float = 0.1
    band_masks: int = 2
    widest: float = 0.15

    def __post_init__(self) -> None:
        for name in ("time_masks", "band_masks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("longest", "widest"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")

    def __call__(self, spectrum: Tensor) -> Tensor:
        """Set stripes of spectra ``[N, frames, bands]`` to zero, drawn for each spectrum on its own."""
        frames = _stripes(spectrum, 1, self.time_masks, self.longest)
        bands = _stripes(spectrum, 2, self.band_masks, self.widest)
        return spectrum.masked_fill(frames[:, :, None] | bands[:, None], 0.0)


DEFAULT_AUGMENT = SpecAugment()


def _stripes(spectrum: Tensor, axis: int, number: int, largest: float) -> Tensor:
    """Which places of an axis are masked, ``[N, places]`` bool."""
    device, places = spectrum.device, spectrum.shape[axis]
    drawn = per_example(lambda count: torch.rand(count, 2, number, device=device), len(spectrum), device)
    widths = (drawn[:, 0] * (int(largest * places) + 1)).floor()
    starts = (drawn[:, 1] * (places - widths + 1)).floor()
    at = torch.arange(places, device=device)[:, None]
    return ((at >= starts[:, None]) & (at < (starts + widths)[:, None])).any(2)
