"""Spectral distance between real clips and their reconstructions by the system's codec."""

from __future__ import annotations

import logging
from typing import ClassVar

import torch

from ...core.registry import register
from ...metrics.codec import ConstantSpectrum, MelDistance
from ...tokenizers.base import LatentView
from ..comparison import Comparison
from ..embedders import batches
from ..rows import Rows, mean_row
from ..score import Score

log = logging.getLogger(__name__)


@register("score", "codec")
class Codec(Score):
    """Log-mel distance between real clips and their reconstructions by the codec of the system's output.

    The chance level is the distance to the best sound that is constant over time, fitted to other real clips.
    """

    about: ClassVar = {
        "codec distance": "Mean difference between the log-mel spectra of real clips and of their reconstructions, in "
        "nepers; stages can hardly come nearer to real audio than their codec."
    }
    subject = "codec"

    def measure(self, comparison: Comparison) -> Rows:
        """Return one row."""
        log.info("codec")
        rate = comparison.spec.sample_rate
        constant = ConstantSpectrum(rate)
        for batch in batches([clip.audio for clip in comparison.reference]):
            constant.fit(batch)
        distances = []
        for after, before in zip(comparison.reconstructed, comparison.real, strict=True):
            distance = MelDistance(rate)
            distance.update(after[None], before[None])
            distances.append(distance.compute())
            constant.update(before[None])
        output = comparison.system.output
        name = (output.codec if isinstance(output, LatentView) else output).registered_name
        more = {"chance": constant.compute(), "reference_clips": len(comparison.reference)}
        embedding = f"log-mel spectrum, {name}"
        row = mean_row(torch.stack(distances), comparison.piece_ids, "lower", embedding, **more)
        return {"codec distance": row}
