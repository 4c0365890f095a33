"""Rows: the results of scores.

A row is a mapping. Every row has these keys:

- ``value``: the score;
- ``better``: ``lower`` or ``higher``;
- ``clips``: the number of clips;
- ``embedding``: the embedding or feature in which clips were compared;
- ``score``, ``about`` and ``subject``: the name of the score, a sentence that explains the row, and what it measures
  (see :class:`~partita.evaluation.score.Score`). :func:`~partita.evaluation.scoring.measure` adds these keys.

A row has these keys if they apply:

- ``low`` and ``high``: bounds of the 95 % confidence interval over pieces, and ``pieces``: the number of pieces;
- ``reference_clips``: the number of real clips that distributions were compared with;
- ``fingerprint``: digest of the weights of the embedding;
- ``real``: the score of real clips;
- ``codec``: the score of real clips reconstructed by the system's codec, which stages can hardly surpass;
- ``chance``: the score of clips that are unrelated to the prompt;
- ``p``: the two-sided p-value of the difference between the score and that of the same clips with the prompts of other
  pieces, by the exact sign-flip test over pieces;
- ``required``: the score that real clips must reach for the row to be reliable;
- ``beats_chance``: whether the whole interval is better than ``chance``. The key is missing if the value is better than
  ``chance`` but has no interval.
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
    """Return a row for one result of a metric.

    Args:
        found: Results of the metric by name, with bounds under the names ``<figure>_low`` and ``<figure>_high`` (NaN
            if they are unknown).
        figure: Name of the result that becomes the value of the row.
        better: ``lower`` or ``higher``.
        embedding: Embedding or feature in which clips were compared.
        clips: Number of clips.
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


def mean_row(
    values: Tensor, pieces: Sequence[str | None], better: str, embedding: str, rate: bool = False, **more: Any
) -> dict[str, Any]:
    """Return a row for the mean of one value per clip, with its 95 % interval over pieces.

    Args:
        values: Values of the clips ``[N]``.
        pieces: Id of the piece that each clip belongs to, such as :attr:`Comparison.piece_ids`.
        better: ``lower`` or ``higher``.
        embedding: Embedding or feature in which clips were compared.
        rate: Whether the values are between 0 and 1, as of a fraction.
        more: Other keys of the row, such as ``real`` or ``chance``.
    """
    mean = mean_over_pieces(values, torch.ones(len(values)), piece_numbers(list(pieces), len(values)), rate=rate)
    found = {"value_low": mean["low"], "value_high": mean["high"]} | mean
    return make_row(found, "value", better, embedding, len(values), **more)


def beats_chance(row: Mapping[str, Any]) -> bool | None:
    """Return whether the whole interval of a row is better than its chance level; ``None`` if this is unknown.

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


def below_required(row: Mapping[str, Any]) -> bool:
    """Return whether real clips do not reach the score that they must reach for the row to be reliable."""
    return "required" in row and row["real"] < row["required"]


def clips_text(row: Mapping[str, Any]) -> str:
    """Return the number of clips of a row as text, with the number of pieces if it differs.

    >>> clips_text({"clips": 64, "pieces": 26}), clips_text({"clips": 5, "pieces": 5})
    ('64 of 26 pieces', '5')
    """
    clips, pieces = row["clips"], row.get("pieces", row["clips"])
    return f"{clips}" if clips == pieces else f"{clips} of {pieces} piece{'s' * (pieces != 1)}"
