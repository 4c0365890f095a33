"""Similarity of the melody of clips to the melody that the system was given."""

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
    """Cosine of the chroma of clips and of the pieces whose melodies the system was given.

    Its chance level is the similarity to other pieces.
    """

    about: ClassVar = {
        "melody kept": "How alike the notes of clip and piece are over time (cosine of chroma); 1 where they are the "
        "same."
    }
    needs_stages = True
    needs_inputs = frozenset({"melody"})

    def measure(self, comparison: Comparison) -> Rows:
        """A row, of the clips whose pieces have a melody."""
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
