"""Kullback–Leibler divergence between classifier outputs for generated clips and for real clips of their captions."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.registry import register
from ...metrics.divergence import KLDivergence
from ...system.system import System
from ..comparison import Clips, Comparison
from ..embedders import Embedder, Embedders
from ..rows import Rows, make_row
from ..score import Score

log = logging.getLogger(__name__)


@register("score", "kld")
class KLD(Score):
    """Divergence (KLD) of classifier outputs between generated clips and the real clips of the same captions.

    The chance level compares each generated clip with the real clip of another caption. There is no score of real
    clips, because each caption has only one real clip.

    Args:
        classifiers: Tokenizers that return logits, by name or as recipe slots with ``weights``, such as
            ``ast-audioset``.
    """

    about: ClassVar = {
        "KLD": "Kullback–Leibler divergence between a classifier's outputs for a clip and for the real clip of its "
        "caption."
    }
    runs_by_default = False

    def __init__(self, *, classifiers: tuple[Any, ...]) -> None:
        self.classifiers = classifiers

    def load(self, embedders: Embedders) -> None:
        """Load the classifiers."""
        for slot in self.classifiers:
            embedders.slot(slot).check_classifier()

    def obstacle(self, system: System) -> str | None:
        """Return a reason if a generating system has no conditioner, because its clips need not resemble the pieces."""
        if system.stages and not system.conditioners:
            return "it compares clips with the real clips of their captions, and this system has no conditioner"
        return super().obstacle(system)

    def measure(self, comparison: Comparison) -> Rows:
        """Return a row for each classifier."""
        rows: Rows = {}
        for slot in self.classifiers:
            embedder = comparison.embedders.slot(slot)
            log.info("KLD (%s)", embedder.name)
            rows[f"KLD ({embedder.name})"] = _divergence(comparison, embedder)
        return rows


def _divergence(comparison: Comparison, embedder: Embedder) -> dict[str, Any]:
    generated, real = (comparison.embedded(embedder, clips) for clips in _PAIR)
    sizes = torch.full((len(generated),), generated.shape[1])

    def from_target(target: Tensor) -> dict[str, Tensor]:
        metric = KLDivergence()
        metric.update(generated.flatten(0, 1), target.flatten(0, 1), sizes, comparison.piece_ids)
        return metric.compute()

    reconstructed = KLDivergence()
    reconstructed.update(comparison.embedded(embedder, "reconstructed").flatten(0, 1), real.flatten(0, 1))
    more: dict[str, Any] = {"fingerprint": embedder.fingerprint, "codec": reconstructed.compute()["kld"]}
    if others := comparison.from_other_pieces(range(len(generated))):
        more["chance"] = from_target(real[others])["kld"]
    return make_row(from_target(real), "kld", "lower", embedder.label, len(generated), **more)


_PAIR: tuple[Clips, Clips] = ("generated", "real")
