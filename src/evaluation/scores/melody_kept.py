"""Similarity of clips to the melodies that the system was conditioned on."""

from __future__ import annotations

import logging
from typing import ClassVar

from torch import Tensor

from ...core.registry import register
from ...metrics.melody_similarity import MelodySimilarity
from ..comparison import Comparison
from ..embedders import batches
from ..rows import Rows, make_row
from ..score import Score

log = logging.getLogger(__name__)


@register("score", "melody")
class Melody(Score):
    """Cosine similarity of the chroma of clips and of the pieces whose melodies the system was conditioned on.

    The chance level is the similarity to other pieces.
    """

    about: ClassVar = {
        "melody kept": "Mean cosine similarity of the chroma of clip and piece over time; 1 if they match."
    }
    needs_stages = True
    needs_inputs = frozenset({"melody"})

    def measure(self, comparison: Comparison) -> Rows:
        """Return one row, measured on the clips whose pieces have a melody."""
        having = [i for i, fields in enumerate(comparison.fields) if fields.get("melody")]
        if not having:
            return {}
        log.info("melody")

        def similarity(pieces: Tensor) -> dict[str, Tensor]:
            metric = MelodySimilarity(comparison.spec.sample_rate)
            ids = iter([comparison.piece_ids[i] for i in having])
            for clip, piece in zip(batches(comparison.generated[having]), batches(pieces), strict=True):
                metric.update(clip, piece, pieces=[next(ids) for _ in clip])
            return metric.compute()

        others = comparison.from_other_pieces(having)
        more = {"chance": similarity(comparison.real[others])["chroma_cosine"]} if others else {}
        found = similarity(comparison.real[having])
        return {"melody kept": make_row(found, "chroma_cosine", "higher", "chroma", len(having), **more)}
