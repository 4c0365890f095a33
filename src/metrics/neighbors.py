"""Whether generated music follows the style of an excerpt, or copies it (MusicGen-Style, 2407.12563 §4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from .piece_means import ClipMeans, Pieces


class StyleNeighbors(ClipMeans):
    """How far an excerpt and what was generated from it have the same neighbors, and how often they are too near.

    ``common`` is ``|N_K(x_C) ∩ N_K(x_G)| / K``, with the ``K`` songs of a database that are nearest to the excerpt
    ``x_C`` and to the generated ``x_G``: high where the style is followed. ``overfit`` is the fraction of copies: high
    is bad. ``K``, the distance and the inequality are choices; figures compare only where all of them agree.

    A clip's embedding is the average over its chunks (:func:`~partita.metrics.similarity.clip_means`).

    Args:
        database: Embeddings ``[M, D]`` of the songs to look for neighbors among.
        neighbors: ``K``.
        distance: ``cosine`` or ``euclidean``.
        overfit: ``closer`` counts a copy where ``x_G`` is closer to ``x_C`` than any song of the database is,
            ``source`` where the song nearest to ``x_G`` is the one that ``x_C`` was cut from.
        strict: Whether ``closer`` requires a smaller distance, rather than at most an equal one.
        exclude_source: Whether the song that ``x_C`` was cut from is excluded from the neighbors in ``common`` and
            ``closer``: otherwise it is always among the nearest.
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
            raise ValueError(f"neighbors must be between 1 and what the database has ({songs}), not {neighbors}")
        if distance not in ("cosine", "euclidean"):
            raise ValueError(f"distance must be cosine or euclidean, not {distance!r}")
        if overfit not in ("closer", "source"):
            raise ValueError(f"overfit must be closer or source, not {overfit!r}")
        self.neighbors, self.distance, self.overfit = neighbors, distance, overfit
        self.strict, self.exclude_source = strict, exclude_source
        self.register_buffer("database", self._prepared(database), persistent=False)

    def update(self, excerpt: Tensor, generated: Tensor, source: Tensor | None = None, pieces: Pieces = None) -> None:
        """Compare generated clips with the excerpts they were conditioned on.

        Args:
            excerpt: Embeddings ``[B, D]``.
            generated: Embeddings ``[B, D]``.
            source: Which song of the database each excerpt was cut from, ``[B]`` int64, −1 for none of them. ``None``
                if unknown.
            pieces: Names of the clips' pieces, for the intervals. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: The shapes do not fit, or ``overfit: source`` lacks a source.
        """
        width = self.database.shape[1]
        if excerpt.shape != generated.shape or excerpt.ndim != 2 or excerpt.shape[1] != width:
            shapes = f"{list(excerpt.shape)} and {list(generated.shape)}"
            raise PartitaError(f"excerpt and generated must be embeddings [B, {width}], not {shapes}")
        source = torch.full((len(excerpt),), -1) if source is None else source
        source = source.to(self.database.device)
        if len(source) != len(excerpt) or ((source < -1) | (source >= len(self.database))).any():
            raise PartitaError(
                f"source must be {len(excerpt)} numbers of songs of the database, or −1 for none of them"
            )
        if self.overfit == "source" and (source < 0).any():
            raise PartitaError("overfit: source needs to know the source of every excerpt, a song of the database")
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
        """``common`` and ``overfit`` in [0, 1], their bounds ``…_low`` and ``…_high``, and ``clips`` and ``pieces``."""
        return super().compute()

    def _prepared(self, embeddings: Tensor) -> Tensor:
        """Embeddings whose Euclidean distances have the same order as ``distance``."""
        embeddings = embeddings.double()
        return F.normalize(embeddings, dim=1) if self.distance == "cosine" else embeddings

    def _distances(self, embeddings: Tensor) -> Tensor:
        """Distances ``[B, M]`` to all songs, without the cancellation of a product form."""
        return torch.cdist(embeddings, self.database, compute_mode="donot_use_mm_for_euclid_dist")
