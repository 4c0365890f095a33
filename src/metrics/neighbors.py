"""Nearest-neighbor metrics of style following and copying (MusicGen-Style, 2407.12563 §4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from .piece_means import ClipMeans, Pieces


class StyleNeighbors(ClipMeans):
    """Fraction of common neighbors of excerpts and the music generated from them, and fraction of copies.

    ``common`` is ``|N_K(x_C) ∩ N_K(x_G)| / K``, with the ``K`` songs of a database nearest to the excerpt ``x_C`` and
    to the generated clip ``x_G``; it is high if the style is followed. ``overfit`` is the fraction of copies, which
    should be low. Values are comparable only for the same database and arguments.

    The embedding of a clip is the mean over its segments (:func:`~partita.metrics.similarity.clip_means`).

    Args:
        database: Embeddings ``[M, D]`` of the songs in which neighbors are searched.
        neighbors: Number of neighbors ``K``.
        distance: Distance between embeddings: ``cosine`` or ``euclidean``.
        overfit: Definition of a copy. With ``closer``, ``x_G`` is closer to ``x_C`` than any song of the database. With
            ``source``, the song nearest to ``x_G`` is the source of ``x_C``.
        strict: Whether ``closer`` requires a strictly smaller distance.
        exclude_source: Whether the source of ``x_C`` is excluded from the neighbors in ``common`` and ``closer``.
            Otherwise it is always among the nearest.
        confidence: Confidence level of the intervals.
    """

    names = rates = ("common", "overfit")
    database: Tensor

    def __init__(
        self,
        database: Tensor,
        *,
        neighbors: int = 10,
        distance: Literal["cosine", "euclidean"] = "cosine",
        overfit: Literal["closer", "source"] = "closer",
        strict: bool = True,
        exclude_source: bool = True,
        confidence: float = 0.95,
    ) -> None:
        super().__init__(confidence=confidence)
        if database.ndim != 2:
            raise ValueError(f"database must be embeddings [M, D], not {list(database.shape)}")
        if not 1 <= neighbors <= len(database) - exclude_source:
            songs = f"{len(database)} songs" + (", one of them excluded" if exclude_source else "")
            raise ValueError(f"neighbors must be between 1 and the size of the database ({songs}), not {neighbors}")
        if distance not in ("cosine", "euclidean"):
            raise ValueError(f"distance must be cosine or euclidean, not {distance!r}")
        if overfit not in ("closer", "source"):
            raise ValueError(f"overfit must be closer or source, not {overfit!r}")
        self.neighbors, self.distance, self.overfit = neighbors, distance, overfit
        self.strict, self.exclude_source = strict, exclude_source
        self.register_buffer("database", self._prepared(database), persistent=False)

    def update(self, excerpt: Tensor, generated: Tensor, source: Tensor | None = None, pieces: Pieces = None) -> None:
        """Compare generated clips with the excerpts on which they were conditioned.

        Args:
            excerpt: Embeddings ``[B, D]`` of the excerpts.
            generated: Embeddings ``[B, D]`` of the generated clips.
            source: Number of the database song from which each excerpt was cut, ``[B]`` int64, −1 for other songs.
                ``None`` if unknown.
            pieces: Names of the clips' pieces, for the intervals. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: The shapes do not match, or a source is missing for ``overfit: source``.
        """
        width = self.database.shape[1]
        if excerpt.shape != generated.shape or excerpt.ndim != 2 or excerpt.shape[1] != width:
            shapes = f"{list(excerpt.shape)} and {list(generated.shape)}"
            raise PartitaError(f"excerpt and generated must be embeddings [B, {width}], not {shapes}")
        source = torch.full((len(excerpt),), -1) if source is None else source
        source = source.to(self.database.device)
        if len(source) != len(excerpt) or ((source < -1) | (source >= len(self.database))).any():
            raise PartitaError(f"source must be {len(excerpt)} numbers of database songs, or −1 for other songs")
        if self.overfit == "source" and (source < 0).any():
            raise PartitaError("overfit: source needs the source of every excerpt: pass the numbers of database songs")
        excerpt, generated = self._prepared(excerpt), self._prepared(generated)
        to_excerpt, to_generated = self._distances(excerpt), self._distances(generated)
        nearest = to_generated.argmin(1)
        if self.exclude_source:
            is_source = torch.arange(len(self.database), device=source.device) == source[:, None]
            to_excerpt, to_generated = (d.masked_fill(is_source, torch.inf) for d in (to_excerpt, to_generated))
        near = [d.topk(self.neighbors, largest=False).indices for d in (to_excerpt, to_generated)]
        common = (near[0][:, :, None] == near[1][:, None]).any(2).double().mean(1)
        if self.overfit == "source":
            copied = nearest == source
        else:
            apart, least = (excerpt - generated).norm(dim=1), to_excerpt.amin(1)
            copied = apart < least if self.strict else apart <= least
        self.record(torch.stack([common, copied.double()], 1), pieces=pieces)

    def compute(self) -> dict[str, Tensor]:
        """Return ``common`` and ``overfit`` in [0, 1], with bounds ``…_low`` and ``…_high``.

        ``clips`` and ``pieces`` are the numbers of both.
        """
        return super().compute()

    def _prepared(self, embeddings: Tensor) -> Tensor:
        """Return embeddings whose Euclidean distances have the same order as ``distance``."""
        embeddings = embeddings.double()
        return F.normalize(embeddings, dim=1) if self.distance == "cosine" else embeddings

    def _distances(self, embeddings: Tensor) -> Tensor:
        """Return the distances ``[B, M]`` to all songs, computed without cancellation."""
        return torch.cdist(embeddings, self.database, compute_mode="donot_use_mm_for_euclid_dist")
