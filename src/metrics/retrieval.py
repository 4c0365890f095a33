"""Retrieval: how often the partner of an embedding is among those nearest to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class EmbeddedPairs(Metric):
    """Collects pairs of embeddings over batches and processes.

    :meth:`collected` returns the embeddings of either side, both ``[N, D]``, and the keys ``[N]``, which :func:`recall`
    compares.
    """

    full_state_update = False
    first: list[Tensor]
    second: list[Tensor]
    keys: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("first", "second", "keys"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, first: Tensor, second: Tensor, keys: Tensor) -> None:
        """Add pairs of embeddings ``[B, D]`` and their keys ``[B]`` int64; equal keys mean equal partners."""
        self.first.append(first)
        self.second.append(second)
        self.keys.append(keys)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs and their keys; the key of a single pair has no axis, because torchmetrics removes it."""
        return dim_zero_cat(self.first), dim_zero_cat(self.second), dim_zero_cat(self.keys)

    def collected(self) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs of all processes, ``[N, D]``, and their keys ``[N]``."""
        first, second, keys = self.compute()
        return first, second, keys.reshape(-1)


def recall(queries: Tensor, candidates: Tensor, number: int, keys: Tensor | None = None) -> Tensor:
    """The fraction of queries whose partner is among the ``number`` most similar candidates.

    A candidate that is as similar as the partner counts as more similar, so an embedding that is the same for
    everything finds nothing.

    Args:
        queries: Embeddings ``[N, D]``.
        candidates: The embeddings ``[N, D]`` of the partners, in the same order.
        number: Number of candidates to look at.
        keys: ``[N]`` int64; a candidate whose key is that of the query is as good as its partner. ``None`` if all
            differ.

    >>> queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> partners = queries.flip(0)  # that of the second is the same, and the others prefer each other's
    >>> round(recall(queries, partners, 1).item(), 2), recall(queries, partners, 3).item()
    (0.33, 1.0)
    """
    return recall_of(queries.float() @ candidates.float().T, number, keys)


def recall_of(similarity: Tensor, number: int, keys: Tensor | None = None) -> Tensor:
    """The :func:`recall` of queries and candidates with similarities ``[N, N]``, with partners on the diagonal."""
    return found_of(similarity, number, keys).float().mean()


def found_of(similarity: Tensor, number: int, keys: Tensor | None = None) -> Tensor:
    """Whether the partner of each query is among the ``number`` most similar candidates, ``[N]`` bool.

    Args:
        similarity: Similarities of queries and candidates ``[N, N]``, with partners on the diagonal.
        number: Number of candidates to look at.
        keys: As for :func:`recall`.
    """
    keys = torch.arange(len(similarity), device=similarity.device) if keys is None else keys
    same = keys[:, None] == keys
    partner = similarity.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
    better = (~(similarity < partner) & ~same).sum(1)  # also what cannot be compared, because it is not a number
    return better < number
