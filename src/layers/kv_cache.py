"""Keys and values kept between the steps of a generation, in memory allocated once."""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """What one layer keeps.

    Args:
        capacity: Most places the sequence will have.
        cross: Keys and values ``[B, heads, L, head width]`` of what is attended to, computed once; none without it.
    """

    def __init__(self, capacity: int, cross: tuple[Tensor, Tensor] | None = None) -> None:
        self.capacity = capacity
        self.cross = cross
        self.length = 0
        self._memory: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values ``[B, heads, N, head width]`` of ``N`` new places; those of all places so far.

        The memory is allocated here, the first time, because autocast decides the dtype.
        """
        if self._memory is None:
            batch, num_heads, _, width = keys.shape
            self._memory = keys.new_empty(2, batch, num_heads, self.capacity, width)
        start, self.length = self.length, self.length + keys.shape[2]
        if self.length > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} places, not {self.length}")
        self._memory[0, :, :, start : self.length] = keys
        self._memory[1, :, :, start : self.length] = values
        return self._memory[0, :, :, : self.length], self._memory[1, :, :, : self.length]


class KeyValueCache:
    """What a transformer keeps: a :class:`LayerCache` per layer, and the masks.

    Args:
        layers: One per layer.
        mask: ``[B, capacity]`` bool, false on places that pad a prefix; none where there is no such place.
        cross_mask: ``[B, L]`` bool, false on padding of what is attended to; none where there is none.
    """

    def __init__(self, layers: list[LayerCache], mask: Tensor | None, cross_mask: Tensor | None) -> None:
        self.layers = layers
        self.mask = mask
        self.cross_mask = cross_mask

    @property
    def length(self) -> int:
        """Places kept so far."""
        return self.layers[0].length
