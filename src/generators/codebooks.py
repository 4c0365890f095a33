"""The ids that an autoregressive stage reads and predicts: codes, the end of a clip, and the absence of a code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..core.contracts import RepresentationSpec
from ..layers.patterns import Layout

AT_ONCE = 1 << 21
"""Number of logits up to which those of all codebooks are computed at once, in one product. Larger products gain
nothing by it, and the gradient of the output table would have to be rearranged."""

MOST_LOGITS = 1 << 23
"""Maximum number of logits that training computes at once; in float32 they take 32 MB, and as much for each of their
gradient and their logarithms of probabilities."""


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

        More than :data:`MOST_LOGITS` logits never exist at once: they are computed in chunks of one codebook and some
        frames, and again in the backward pass.
        """
        if self.any_refused:  # padding may hold ids that cannot be predicted
            codes = codes.masked_fill(~valid, 0)
        weights = self.weights(outputs.table)
        if codes.numel() * self.most <= min(AT_ONCE, MOST_LOGITS):
            entropy = _entropy(self.allow(outputs.logits(weights), books=1), codes)
        else:
            frames = max(1, MOST_LOGITS // (len(codes) * self.most))
            entropy = torch.stack(
                [
                    torch.cat(
                        [
                            self._some(outputs.hidden, weight, refused, at, some)
                            for at, some in zip(places.split(frames), book.split(frames, dim=1), strict=True)
                        ],
                        dim=1,
                    )
                    for weight, refused, places, book in zip(
                        weights.unbind(), self.refused, outputs.layout.steps - 1, codes.unbind(1), strict=True
                    )
                ],
                dim=1,
            )
        return entropy.masked_fill(~valid, 0.0)

    def _some(self, hidden: Tensor, weight: Tensor, refused: Tensor, places: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy ``[B, T]`` of some codes of one codebook, whose logits are not kept for the backward pass."""

        def entropy(hidden: Tensor, weight: Tensor) -> Tensor:
            logits = F.linear(hidden[:, places], weight)
            return _entropy(logits.masked_fill(refused, -torch.inf) if self.any_refused else logits, codes)

        if not torch.is_grad_enabled():
            return entropy(hidden, weight)
        return checkpoint(entropy, hidden, weight, use_reentrant=False, preserve_rng_state=False)


def _entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy in nats of codes ``[…]`` under logits ``[…, ids]``."""
    return F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none").view_as(codes)
