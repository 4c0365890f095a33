"""Rows: the figures that scores give, and how they are built and written.

A row is a mapping. Each has

- ``value``: the score;
- ``better``: ``lower`` or ``higher``;
- ``clips``: the number of clips it was measured on;
- ``embedding``: what it was measured in, such as the name of an embedding;
- ``score``, ``about`` and ``subject``: which score it belongs to, a sentence on it, and what it measures (see
  :class:`~partita.evaluation.score.Score`); these are added for it.

Where there is such a figure it also has

- ``low`` and ``high``: the 95 % confidence interval over pieces, and ``pieces``: the number of pieces;
- ``reference_clips``: the number of real clips that distributions were compared with;
- ``fingerprint``: digest of the weights it was measured with;
- ``real``: what real clips score in the place of generated ones;
- ``codec``: what real clips score after the system's own codec, which its stages can hardly surpass;
- ``chance``: what clips score that have nothing to do with the prompt, and ``beats_chance``: whether the whole interval
  is better than that (without an interval, only ``False`` is known).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..metrics.piece_means import mean_over_pieces, piece_numbers

Rows = dict[str, dict[str, Any]]
"""Rows by name."""


def make_row(
    found: Mapping[str, Tensor], figure: str, better: str, embedding: str, clips: int, **more: Any
) -> dict[str, Any]:
    """A row from what a metric computed.

    Args:
        found: What the metric computed: ``figure``, and its bounds ``figure_low`` and ``figure_high`` (NaN where they
            are not known).
        figure: The one of them that the row is about.
        better: ``lower`` or ``higher``.
        embedding: What it was measured in.
        clips: Number of clips it was measured on.
        more: Other keys of the row, such as ``real`` or ``chance``.
    """
    row: dict[str, Any] = {"value": float(found[figure])}
    for bound in ("low", "high"):
        value = float(found.get(f"{figure}_{bound}", math.nan))
        if not math.isnan(value):
            row[bound] = value
    if (pieces := found.get(f"{figure}_pieces", found.get("pieces"))) is not None:
        row["pieces"] = int(pieces)
    row |= {name: float(value) if isinstance(value, Tensor) else value for name, value in more.items()}
    return row | {"better": better, "clips": clips, "embedding": embedding}


def mean_row(values: Tensor, pieces: Sequence[str | None], better: str, embedding: str, **more: Any) -> dict[str, Any]:
    """A row from one value for each clip: their mean, with its 95 % interval over pieces.

    Args:
        values: One for each clip, ``[N]``.
        pieces: The piece that each clip belongs to, as :attr:`Comparison.piece_ids` has them.
        better: ``lower`` or ``higher``.
        embedding: What it was measured in.
        more: Other keys of the row, such as ``real`` or ``chance``.
    """
    mean = mean_over_pieces(values, torch.ones(len(values)), piece_numbers(list(pieces), len(values)))
    found = {"value_low": mean["low"], "value_high": mean["high"]} | mean
    return make_row(found, "value", better, embedding, len(values), **more)


def beats_chance(row: Mapping[str, Any]) -> bool | None:
    """Whether a row is better than its chance level by more than its interval; ``None`` where that is not known.

    >>> beats_chance({"value": 3, "low": 2, "high": 4, "chance": 1, "better": "higher"})
    True
    >>> beats_chance({"value": 3, "chance": 3, "better": "higher"})
    False
    """
    if "chance" not in row:
        return None
    low, high = (row.get(bound, row["value"]) for bound in ("low", "high"))
    better = low > row["chance"] if row["better"] == "higher" else high < row["chance"]
    return better if not better or "low" in row else None


def clips_text(row: Mapping[str, Any]) -> str:
    """The number of clips of a row, and of pieces where several clips are of one.

    >>> clips_text({"clips": 64, "pieces": 26}), clips_text({"clips": 5, "pieces": 5})
    ('64 of 26 pieces', '5')
    """
    clips, pieces = row["clips"], row.get("pieces", row["clips"])
    return f"{clips}" if clips == pieces else f"{clips} of {pieces} piece{'s' * (pieces != 1)}"
