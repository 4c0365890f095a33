"""Similarity of clips to the melodies that the system was conditioned on."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from torch import Tensor

from ...core.registry import register
from ...metrics.melody_similarity import MelodySimilarity
from ...metrics.piece_means import sign_flip_over_pieces
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

        ids = [comparison.piece_ids[i] for i in having]

        def similarity(pieces: Tensor) -> MelodySimilarity:
            metric = MelodySimilarity(comparison.spec.sample_rate)
            names = iter(ids)
            for clip, piece in zip(batches(comparison.generated[having]), batches(pieces), strict=True):
                metric.update(clip, piece, pieces=[next(names) for _ in clip])
            return metric

        others = comparison.from_other_pieces(having)
        found, more = similarity(comparison.real[having]), dict[str, Any]()
        if others:
            shuffled = similarity(comparison.real[others])
            more["chance"] = shuffled.compute()["chroma_cosine"]
            more["p"] = sign_flip_over_pieces((found.values - shuffled.values)[:, 0], ids)
        return {"melody kept": make_row(found.compute(), "chroma_cosine", "higher", "chroma", len(having), **more)}
