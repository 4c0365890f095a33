"""A key-value cache for generation, in memory that is allocated once."""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """The key-value cache of one layer.

    Args:
        capacity: Maximum length of the sequence.
        cross: Keys and values ``[B, heads, L, head width]`` for cross-attention, computed once; ``None`` without it.
    """

    def __init__(self, capacity: int, cross: tuple[Tensor, Tensor] | None = None) -> None:
        self.capacity = capacity
        self.cross = cross
        self.length = 0
        self._memory: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values ``[B, heads, N, head width]`` of ``N`` new places, and return those of all places.

        The memory is allocated in the first call, because autocast decides the dtype.
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
    """The cache of a transformer: a :class:`LayerCache` per layer, and the masks.

    Args:
        layers: One cache per layer.
        mask: ``[B, capacity]`` bool, false on padding of a prefix; ``None`` means no padding.
        cross_mask: ``[B, L]`` bool, false on padding of the cross-attention sequence; ``None`` means no padding.
    """

    def __init__(self, layers: list[LayerCache], mask: Tensor | None, cross_mask: Tensor | None) -> None:
        self.layers = layers
        self.mask = mask
        self.cross_mask = cross_mask

    @property
    def length(self) -> int:
        """Number of places in the cache."""
        return self.layers[0].length
