"""The key as a learned embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.chord_names import parse_key
from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.processes import largest_of_all
from ..core.registry import register
from .base import Conditioner

KEYS = 24


@register("conditioner", "key")
class Key(Conditioner):
    """An embedding of the key, one of twelve major and twelve minor ones, trained together with the stage.

    Keys that are written differently but sound alike, such as F# and Gb major, have the same embedding. What names no
    such key, and the null condition, has an embedding of its own, so nothing is masked. The state records which keys
    occurred in training, which :meth:`knows` reports.

    Args:
        dim: Width of an embedding.
        inputs: Names of the text fields that the conditioner reads; of several, the first that is known.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("key",)
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    reads_one: ClassVar[bool] = True
    trained_with_stage: ClassVar[bool] = True
    met: Tensor

    def __init__(self, *, dim: int = 64, inputs: tuple[str, ...] = ("key",)) -> None:
        super().__init__(inputs)
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        self.embeddings = nn.Embedding(KEYS + 1, dim)  # the last one is for an unknown key
        self.register_buffer("met", torch.zeros(KEYS + 1, dtype=torch.uint8))

    @property
    def spec(self) -> ConditionSpec:
        """One embedding."""
        return ConditionSpec(dim=self.embeddings.embedding_dim)

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """``keys`` ``[B, 1]`` int64: two times the tonic, plus 1 in minor; 24 if the key is unknown."""
        names = [next((clip.fields[n] for n in self.inputs if clip.fields.get(n)), None) for clip in clips]
        return {"keys": torch.tensor([[_number(name)] for name in names])}

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Embeddings ``[B, 1, dim]``."""
        keys = prepared["keys"]
        if self.training:
            now = torch.zeros_like(self.met)
            now[keys] = 1
            self.met |= largest_of_all(now)
        return Condition(self.embeddings(keys), torch.ones_like(keys, dtype=torch.bool))

    def null(self, condition: Condition) -> Condition:
        """The embedding of an unknown key."""
        return Condition(self.embeddings.weight[KEYS].expand_as(condition.values), condition.mask)

    def knows(self, value: Any) -> bool:
        """Whether a text names a key, one that occurred in training."""
        number = _number(value)
        return number < KEYS and (not bool(self.met.any()) or bool(self.met[number]))


def _number(name: Any) -> int:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"a key must be text, not {type(name).__name__}: {name!r}")
    key = None if name is None else parse_key(name)
    return KEYS if key is None else 2 * key[0] + key[1]
