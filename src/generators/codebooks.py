"""The ids that an autoregressive stage reads and predicts: codes, the end of a clip, and the absence of a code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..core.contracts import RepresentationSpec
from ..layers.patterns import Layout

MOST_KEPT = 1 << 21
"""Maximum number of logits that are kept for the backward pass rather than computed again."""

MOST_LOGITS = 1 << 23
"""Maximum number of logits that training computes at once; in float32 they take 32 MB, and as much for each of their
gradient and their logarithms of probabilities."""

NO_CODE = -100
"""Stands for a code that is not there, in targets alone."""


class Outputs(NamedTuple):
    """What the logits of codes are computed from.

    Attributes:
        hidden: Hidden states ``[B, N, width]``.
        layout: The layout of the codes.
        table: The output table ``[predicted, width]``.
    """

    hidden: Tensor
    layout: Layout
    table: Tensor

    @property
    def dense(self) -> bool:
        """Whether almost every hidden state predicts a code of each codebook."""
        return self.hidden.shape[1] <= 1.25 * self.layout.steps.shape[1]

    def logits(self, weights: Tensor) -> Tensor:
        """All logits at once, ``[B, K, T, most]``, with the table as ``weights`` ``[K, most, width]``."""
        return torch.einsum("bktd,kcd->bktc", self.layout.predicted(self.hidden), weights)


class Codebooks(nn.Module):
    """The ids of each codebook, and the rows of their embeddings and outputs in tables of all codebooks.

    Codebooks can be of unequal size. An extra id, :attr:`special`, marks positions without a code.

    Args:
        target: Spec of the representation that the stage generates; must be discrete.
        ends: Whether the stage predicts the end of a clip, as an id of the first codebook: the one that the target
            reserves for it, or one more than the codebook has.

    Attributes:
        end: The id that ends a clip; ``None`` if the stage does not predict the end.
        special: The id of positions without a code.
        sizes: Number of ids of each codebook that can be predicted.
    """

    offsets: Tensor
    rows: Tensor
    refused: Tensor

    def __init__(self, target: RepresentationSpec, ends: bool = False) -> None:
        super().__init__()
        sizes = list(target.cardinalities)
        self.end = (sizes[0] if target.end is None else target.end) if ends else None
        if self.end == sizes[0]:
            sizes[0] += 1
        self.sizes = tuple(sizes)
        self.most = self.special = max(sizes)
        self.even = min(sizes) == self.most
        starts = torch.tensor([sum(sizes[:k]) for k in range(len(sizes))])[:, None]
        top, ids = torch.tensor(sizes)[:, None], torch.arange(self.most)
        refused = ids >= top
        if target.end is not None and not ends:
            refused[0, target.end] = True
        self.any_refused = not self.even or (target.end is not None and not ends)
        # each codebook has one more embedding than ids, for `special`
        self.register_buffer("offsets", starts + torch.arange(len(sizes))[:, None], persistent=False)
        self.register_buffer("rows", starts + torch.minimum(ids, top - 1), persistent=False)
        self.register_buffer("refused", refused, persistent=False)

    @property
    def embedded(self) -> int:
        """Number of rows of the embedding table."""
        return sum(self.sizes) + len(self.sizes)

    @property
    def predicted(self) -> int:
        """Number of rows of the output table."""
        return sum(self.sizes)

    def places(self, sequence: Tensor) -> Tensor:
        """Rows ``[B, K, N]`` of the embedding table for ids ``[B, K, N]``."""
        if not self.even:
            sequence = torch.minimum(sequence, self.rows.new_tensor(self.sizes)[:, None])
        return sequence + self.offsets

    def weights(self, table: Tensor) -> Tensor:
        """Split the output table ``[predicted, width]`` by codebook into ``[K, most, width]``."""
        return table.view(len(self.sizes), self.most, -1) if self.even else table[self.rows]

    def split(self, logits: Tensor) -> Tensor:
        """Split the logits of all outputs ``[B, predicted]`` by codebook into ``[B, K, most]``."""
        return logits.view(-1, len(self.sizes), self.most) if self.even else logits[:, self.rows]

    def allow(self, logits: Tensor, books: int = -2) -> Tensor:
        """Set the logits ``[..., most]`` of ids that cannot be drawn to minus infinity.

        Args:
            logits: Logits of any shape.
            books: The axis of the codebooks.
        """
        if not self.any_refused:
            return logits
        shape = [1] * logits.dim()
        shape[books], shape[-1] = self.refused.shape
        return logits.masked_fill(self.refused.view(shape), -torch.inf)

    def with_end(self, codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Insert the end after the last frame of each clip in codes ``[B, K, T]``; also returns its places, ``[B, T]``
        bool.

        A clip that fills all frames may go on after them, and therefore gets no end.
        """
        at = torch.arange(codes.shape[2], device=codes.device) == mask.sum(1, keepdim=True)
        if self.end is None:
            return codes, torch.zeros_like(at)
        first = codes[:, :1].masked_fill(at[:, None], self.end)
        return torch.cat([first, codes[:, 1:]], dim=1), at

    def cross_entropy(self, outputs: Outputs, codes: Tensor, valid: Tensor) -> Tensor:
        """Cross-entropy in nats ``[B, K, T]`` of codes ``[B, K, T]``, 0 where ``valid`` is false.

        More than :data:`MOST_LOGITS` logits never exist at once: they are computed in chunks, and again in the backward
        pass. A chunk has some hidden states and all codebooks or, where a hidden state does not predict a code of each,
        some frames of one codebook.
        """
        if self.any_refused:  # padding may hold ids that cannot be predicted
            codes = codes.masked_fill(~valid, 0)
        compute = self._by_state if outputs.dense else self._by_codebook
        keep = codes.numel() * self.most <= min(MOST_KEPT, MOST_LOGITS)
        return compute(outputs, codes, keep).masked_fill(~valid, 0.0)

    def _by_state(self, outputs: Outputs, codes: Tensor, keep: bool) -> Tensor:
        """Cross-entropy ``[B, K, T]``, in chunks of some hidden states and all codebooks."""
        hidden, places, weights = outputs.hidden, outputs.layout.steps - 1, self.weights(outputs.table)
        books = torch.arange(len(places), device=places.device)[:, None]
        targets = codes.new_full((len(codes), hidden.shape[1], len(places)), NO_CODE)
        targets[:, places, books] = codes
        size = len(codes) * len(places) * self.most
        parts = zip(_chunks(hidden, size), _chunks(targets, size), strict=True)
        chunks = [self._some(part, weights, self.refused, some, keep) for part, some in parts]
        return torch.cat(chunks, dim=1)[:, places, books]

    def _by_codebook(self, outputs: Outputs, codes: Tensor, keep: bool) -> Tensor:
        """Cross-entropy ``[B, K, T]``, in chunks of some frames of one codebook."""
        places, weights, size = outputs.layout.steps - 1, self.weights(outputs.table), len(codes) * self.most
        books = []
        for k in range(len(places)):
            parts = zip(_chunks(places[k], size, dim=0), _chunks(codes[:, k, :, None], size), strict=True)
            table, refused = weights[k : k + 1], self.refused[k]
            chunks = [self._some(outputs.hidden, table, refused, some, keep, at) for at, some in parts]
            books.append(torch.cat(chunks, dim=1))
        return torch.cat(books, dim=2).transpose(1, 2)

    def _some(
        self,
        hidden: Tensor,
        weights: Tensor,
        refused: Tensor,
        codes: Tensor,
        keep: bool,
        at: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of some codes.

        Args:
            hidden: Hidden states ``[B, N, width]``.
            weights: Output tables of some codebooks, ``[K, most, width]``.
            refused: ``[K, most]`` bool, ids of these codebooks that cannot be predicted.
            codes: ``[B, N', K]``, codes of these codebooks.
            keep: Whether the logits are kept for the backward pass.
            at: ``[N']``, the places of the hidden states that predict the codes; ``None`` means all.
        """

        def entropy(hidden: Tensor, weights: Tensor) -> Tensor:
            logits = F.linear(hidden if at is None else hidden[:, at], weights.flatten(0, 1))
            logits = logits.unflatten(-1, weights.shape[:2])
            if self.any_refused:
                logits = logits.masked_fill(refused, -torch.inf)
            flat = logits.flatten(0, -2), codes.flatten()
            return F.cross_entropy(*flat, reduction="none", ignore_index=NO_CODE).view_as(codes)

        if keep or not torch.is_grad_enabled():
            return entropy(hidden, weights)
        return checkpoint(entropy, hidden, weights, use_reentrant=False, preserve_rng_state=False)


def _chunks(x: Tensor, logits: int, dim: int = 1) -> tuple[Tensor, ...]:
    """Split an axis so that no more than :data:`MOST_LOGITS` logits exist at once, given how many each place has."""
    return x.split(max(1, MOST_LOGITS // logits), dim=dim)
