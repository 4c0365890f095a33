"""The instruments as learned embeddings."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.processes import largest_of_all
from ..core.registry import register
from .base import Conditioner
from .words import padded_words


@register("conditioner", "instruments")
class Instruments(Conditioner):
    """An embedding for each instrument, trained together with the stage.

    Where ``lookup`` embeds words, this embeds whole names: ``church organ`` is one of them. Names are lower-cased and
    hashed into a fixed number of embeddings, so there is no vocabulary. Their order and their number are ignored. The
    state records which embeddings occurred in training, which :meth:`knows` reports.

    Args:
        dim: Width of an embedding.
        num_embeddings: Number of embeddings that names are hashed into.
        most: Maximum number of instruments of a clip; the rest is left out.
        inputs: Names of the fields of names that the conditioner reads.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("instruments",)
    kinds: ClassVar[tuple[str, ...]] = ("names",)
    trained_with_stage: ClassVar[bool] = True
    met: Tensor

    def __init__(
        self,
        *,
        dim: int = 256,
        num_embeddings: int = 1024,
        most: int = 16,
        inputs: tuple[str, ...] = ("instruments",),
    ) -> None:
        super().__init__(inputs)
        if min(dim, num_embeddings, most) < 1:
            raise ValueError("dim, num_embeddings and most must be at least 1")
        self.most = most
        self.embeddings = nn.Embedding(num_embeddings, dim)
        # which embeddings occurred in training; the last one is for padding
        self.register_buffer("met", torch.zeros(num_embeddings + 1, dtype=torch.uint8))

    @property
    def spec(self) -> ConditionSpec:
        """One embedding per instrument."""
        return ConditionSpec(dim=self.embeddings.embedding_dim)

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``names`` ``[B, L]`` int64 and ``mask`` ``[B, L]`` bool, in ascending order and padded to the longest."""
        rows = []
        for clip in clips:
            found = [name for field in self.inputs for name in clip.fields.get(field) or ()]
            numbers = dict.fromkeys(map(self._hash, filter(str.strip, found)))
            rows.append(sorted([*numbers][: self.most]))
        names, mask = padded_words(rows)
        return {"names": names, "mask": mask}

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Embeddings ``[B, L, dim]``, zero where masked."""
        names, mask = prepared["names"], prepared["mask"]
        if self.training:
            now = torch.zeros_like(self.met)
            now[torch.where(mask, names, len(now) - 1)] = 1
            self.met |= largest_of_all(now)
        return Condition(self.embeddings(names) * mask[..., None], mask)

    def knows(self, value: Any) -> bool:
        """Whether the name of an instrument shares its embedding with one that occurred in training."""
        met = self.met[:-1]
        return not bool(met.any()) or not isinstance(value, str) or bool(met[self._hash(value)])

    def _hash(self, name: str) -> int:
        plain = " ".join(name.lower().split())
        return zlib.crc32(plain.encode()) % self.embeddings.num_embeddings
