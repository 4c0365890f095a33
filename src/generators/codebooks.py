"""The ids that an autoregressive stage reads and predicts: codes of each codebook, the end of a clip, and no code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec


class Codebooks(nn.Module):
    """Which ids there are in each codebook, and where their embeddings and outputs stand in tables of all codebooks.

    Codebooks can be of unequal size. An id past the codes, :attr:`special`, stands where a sequence holds no code.

    Args:
        target: What a stage generates; must be discrete.
        ends: Whether the stage says where a clip ends, by an id of the first codebook: the one that the target reserves
            for it, or one more than the codebook has.

    Attributes:
        end: The id that ends a clip; ``None`` for a stage that does not say so.
        special: The id that stands where no code does.
        sizes: Ids of each codebook that can be predicted.
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
        # each codebook has one more embedding than ids, that of `special`
        self.register_buffer("offsets", starts + torch.arange(len(sizes))[:, None], persistent=False)
        self.register_buffer("rows", starts + torch.minimum(ids, top - 1), persistent=False)
        self.register_buffer("refused", refused, persistent=False)

    @property
    def embedded(self) -> int:
        """Rows of the table of embeddings."""
        return sum(self.sizes) + len(self.sizes)

    @property
    def predicted(self) -> int:
        """Rows of the table of outputs."""
        return sum(self.sizes)

    def places(self, sequence: Tensor) -> Tensor:
        """Rows of the table of embeddings ``[B, K, N]`` for ids ``[B, K, N]``."""
        if not self.even:
            sequence = torch.minimum(sequence, self.rows.new_tensor(self.sizes)[:, None])
        return sequence + self.offsets

    def weights(self, table: Tensor) -> Tensor:
        """A table of outputs ``[predicted, width]`` by codebook, ``[K, most, width]``."""
        return table.view(len(self.sizes), self.most, -1) if self.even else table[self.rows]

    def split(self, logits: Tensor) -> Tensor:
        """Logits of all outputs ``[B, predicted]`` by codebook, ``[B, K, most]``."""
        return logits.view(-1, len(self.sizes), self.most) if self.even else logits[:, self.rows]

    def allow(self, logits: Tensor, books: int = -2) -> Tensor:
        """Logits ``[..., most]`` with those of ids that cannot be drawn at minus infinity.

        Args:
            logits: Logits of some shape.
            books: The axis of the codebooks.
        """
        if not self.any_refused:
            return logits
        shape = [1] * logits.dim()
        shape[books], shape[-1] = self.refused.shape
        return logits.masked_fill(self.refused.view(shape), -torch.inf)

    def with_end(self, codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Codes ``[B, K, T]`` with the end after the last frame of each clip, and where it stands, ``[B, T]`` bool.

        A clip that fills all frames may go on after them: it shows no end.
        """
        at = torch.arange(codes.shape[2], device=codes.device) == mask.sum(1, keepdim=True)
        if self.end is None:
            return codes, torch.zeros_like(at)
        first = codes[:, :1].masked_fill(at[:, None], self.end)
        return torch.cat([first, codes[:, 1:]], dim=1), at

    def cross_entropy(self, logits: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        """Cross-entropy in nats ``[B, K, T]`` of codes under logits ``[B, K, T, most]``, 0 where they do not count."""
        if self.any_refused:  # padding may hold what cannot be predicted
            codes = codes.masked_fill(~valid, 0)
        entropy = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view_as(codes)
        return entropy.masked_fill(~valid, 0.0)
