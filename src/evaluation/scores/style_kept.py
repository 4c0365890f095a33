"""Similarity of clips to the recordings whose style the system was to follow."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.registry import register
from ...data.fields.base import field
from ...metrics.piece_means import piece_numbers, sign_flip_over_pieces
from ...metrics.retrieval import found_of
from ..comparison import Clips, Comparison
from ..embedders import Embedder, Embedders
from ..rows import Rows, mean_row
from ..score import Score

COLUMNS: dict[str, Clips] = {"real": "real", "codec": "reconstructed"}
"""Columns for comparison, and the clips that each is measured on."""

log = logging.getLogger(__name__)


@register("score", "style")
class Style(Score):
    """Similarity of clips to the recordings whose style the system was to follow, beside that to other recordings.

    A clip is described by the mean and the standard deviation of its embeddings over time. They are standardized over
    other real clips, so that no feature counts more than another.

    Args:
        embeddings: Embeddings, as recipe slots, in which clips and recordings are compared.
    """

    about: ClassVar = {
        "style kept": "Mean cosine similarity of clips and the recordings whose style they were to follow.",
        "style identified": "Fraction of clips that are more similar to the recording that they were to follow than to "
        "those of all other clips.",
    }
    needs_stages = True
    needs_inputs = frozenset({"excerpt"})

    def __init__(self, *, embeddings: tuple[Any, ...] = ("log-mel-16khz",)) -> None:
        self.embeddings = embeddings

    def load(self, embedders: Embedders) -> None:
        """Load the embeddings."""
        for slot in self.embeddings:
            embedders.slot(slot)

    def measure(self, comparison: Comparison) -> Rows:
        """Return two rows for each embedding, measured on the clips that had a recording."""
        having = [i for i, fields in enumerate(comparison.fields) if fields.get("excerpt") is not None]
        if not having:
            log.info("no clip has an excerpt: style is not measured")
            return {}
        rows: Rows = {}
        for slot in self.embeddings:
            embedder = comparison.embedder(slot)
            log.info("style (%s)", embedder.name)
            rows |= _rows(comparison, embedder, having)
        return rows


def _rows(comparison: Comparison, embedder: Embedder, having: list[int]) -> Rows:
    rate, channels = comparison.spec.sample_rate, comparison.spec.channels
    read = [field("excerpt").to_audio(comparison.fields[i]["excerpt"], rate, channels, rate) for i in having]
    excerpts = torch.cat([_described(embedder(excerpt[None], rate)) for excerpt in read])
    others = _described(embedder.embed_clips([clip.audio for clip in comparison.reference], rate))
    center, spread = others.mean(0), others.std(0, correction=0).clamp(min=1e-6)
    pieces = [comparison.piece_ids[i] for i in having]
    keys = piece_numbers(pieces, len(pieces))
    keys = torch.where(keys < 0, -1 - torch.arange(len(keys)), keys)  # a clip of no known piece is one of its own

    def similarities(clips: Clips) -> Tensor:
        described = _described(comparison.embedded(embedder, clips)[having])
        return _cosines((described - center) / spread, (excerpts - center) / spread)

    found = similarities("generated")
    identified = found_of(found, 1, keys).double()
    columns = {column: similarities(clips) for column, clips in COLUMNS.items()}
    right = {column: found_of(values, 1, keys).double().mean() for column, values in columns.items()}
    more: dict[str, Any] = {"fingerprint": embedder.fingerprint}
    ranked = {**more, **right, "chance": (keys[:, None] == keys).double().mean()}
    kept = {**more, **{column: values.diagonal().mean() for column, values in columns.items()}}
    if shuffled := comparison.from_other_pieces(having):
        row = {clip: i for i, clip in enumerate(having)}
        chance = found[range(len(having)), [row[clip] for clip in shuffled]]
        kept |= {"chance": chance.mean(), "p": sign_flip_over_pieces(found.diagonal() - chance, pieces)}
    return {
        f"style kept ({embedder.name})": mean_row(found.diagonal(), pieces, "higher", embedder.label, **kept),
        f"style identified ({embedder.name})": mean_row(
            identified, pieces, "higher", embedder.label, rate=True, **ranked
        ),
    }


def _described(embedded: Tensor) -> Tensor:
    """Mean and standard deviation over time of embeddings ``[N, S, D]``, ``[N, 2 D]`` float64."""
    embedded = embedded.double()
    return torch.cat([embedded.mean(1), embedded.std(1, correction=0)], 1)


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarities ``[N, M]`` of vectors ``[N, D]`` and ``[M, D]``."""
    return torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T
