"""Metrics that store a row per clip, and means of these rows with confidence intervals over pieces.

Frames of one clip are similar, and so are clips of one piece; only pieces are independent. The standard error of a mean
is estimated by leaving out one piece at a time (:func:`~partita.metrics.significance.jackknife`).
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchmetrics import Metric

from ..errors import PartitaError
from .significance import jackknife, mean_interval, rate_interval, sign_flip_test

Pieces = Sequence[str | None] | None
"""Names of the pieces of clips, one per clip. A clip without a name is its own piece."""


def piece_numbers(pieces: Pieces, clips: int) -> Tensor:
    """Return numbers ``[clips]`` int64 of pieces, the same in every process and at least 0; −1 for unnamed pieces.

    Raises:
        PartitaError: The numbers of names and clips differ.
    """
    if pieces is None:
        return torch.full((clips,), -1, dtype=torch.int64)
    if len(pieces) != clips:
        raise PartitaError(f"pieces must contain a name for each of {clips} clips, not {len(pieces)} names")
    hashes = [None if name is None else hashlib.blake2b(name.encode(), digest_size=8).digest() for name in pieces]
    numbers = [-1 if digest is None else int.from_bytes(digest) >> 1 for digest in hashes]
    return torch.tensor(numbers, dtype=torch.int64)


def membership(numbers: Tensor) -> Tensor:
    """Return the membership matrix ``[pieces, clips]`` float64 of zeros and ones, from numbers ``[clips]``."""
    own = numbers < 0
    # hashes of names are at least 0, so negative numbers are free
    distinct = torch.where(own, -1 - torch.arange(len(numbers), device=numbers.device), numbers)
    found, piece = distinct.unique(return_inverse=True)
    return torch.nn.functional.one_hot(piece, len(found)).T.double()


def mean_over_pieces(
    sums: Tensor, weights: Tensor, numbers: Tensor, *, confidence: float = 0.95, rate: bool = False
) -> dict[str, Tensor]:
    """Return a mean over clips, and its confidence interval over their pieces.

    Args:
        sums: Sum of the values of each clip's segments, ``[N]``.
        weights: Number of segments of each clip, ``[N]``.
        numbers: Numbers of the pieces, from :func:`piece_numbers`, ``[N]``.
        confidence: Confidence level of the interval.
        rate: Whether the values, and therefore the bounds, are between 0 and 1.

    Returns:
        ``value``, ``low`` and ``high``, float64, and ``pieces``, their number, int64. The bounds are NaN for
        fewer than two pieces.

    Raises:
        PartitaError: There are no clips.
    """
    if not len(sums):
        raise PartitaError("there are no clips to average: call update first")
    rows = torch.stack([sums, weights], 1).double().cpu()
    pieces = (membership(numbers.cpu()) @ rows).numpy()
    total = pieces.sum(0)
    value, left = total[0] / total[1], total - pieces
    _, error = jackknife(value, left[:, 0] / left[:, 1] if len(pieces) > 1 else left[:, 0])
    if rate:
        if ((sums == 0) | (sums == weights)).all():  # binary clips vary at least as if independent
            error = np.fmax(error, np.sqrt(value * (1 - value) / len(sums))) if len(pieces) > 1 else error
        low, high = rate_interval(value, error, len(pieces), confidence)
    else:
        low, high = mean_interval(value, error, len(pieces), confidence)
    found = {"value": value, "low": low, "high": high}
    return {name: torch.tensor(float(figure), dtype=torch.float64) for name, figure in found.items()} | {
        "pieces": torch.tensor(len(pieces))
    }


def sign_flip_over_pieces(differences: Tensor, pieces: Pieces) -> float:
    """Return the two-sided p-value that paired values of clips are equal on average.

    Under the null hypothesis, the differences of all clips of a piece are as likely with the opposite sign, as when a
    score of clips with their own captions is compared with that of the same clips with captions of other pieces.

    Args:
        differences: Difference of the two values of each clip, ``[N]``.
        pieces: Names of the clips' pieces. ``None`` takes each clip as its own piece.
    """
    numbers = piece_numbers(pieces, len(differences))
    return sign_flip_test((membership(numbers) @ differences.double().cpu()).tolist())


def check_confidence(confidence: float) -> None:
    """Raise ``ValueError`` for an invalid confidence level."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")


class Gathered(Metric):
    """A metric with rows per clip, gathered from all processes, including those without rows."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self._without_rows: dict[str, Tensor] = {}

    def add_rows(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """Add a state that is a list of tensors ``[N, *shape]``."""
        self.add_state(name, [], dist_reduce_fx="cat")
        self._without_rows[name] = torch.zeros((0, *shape), dtype=dtype)

    def rows(self, name: str) -> Tensor:
        """Return all rows ``[N, *shape]`` of a state."""
        value = getattr(self, name)  # a list until it is gathered, then a tensor
        value = value if isinstance(value, list) else [value]
        return torch.cat([self._without_rows[name].to(self.device), *value])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather from all processes. A process without rows contributes an empty tensor of the right shape and type."""
        for name, none in self._without_rows.items():
            if isinstance(getattr(self, name), list):
                getattr(self, name).append(none.to(self.device))
        super().sync(*args, **kwargs)


class ClipMeans(Gathered):
    """Means of the values that a subclass measures on each clip, with confidence intervals over pieces.

    Attributes:
        names: Names of the means.
        rates: Names of the means that, like their bounds, are between 0 and 1.

    Args:
        confidence: Confidence level of the intervals.
    """

    names: ClassVar[tuple[str, ...]]
    rates: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, confidence: float = 0.95) -> None:
        super().__init__()
        check_confidence(confidence)
        self.confidence = confidence
        self.add_rows("sums", len(self.names))
        self.add_rows("weights")
        self.add_rows("pieces", dtype=torch.int64)

    def record(self, sums: Tensor, weights: Tensor | None = None, pieces: Pieces = None) -> None:
        """Store sums ``[C, F]`` over the segments of each clip, their number ``[C]`` (1 by default) and the piece."""
        weights = sums.new_ones(len(sums)) if weights is None else weights
        numbers = piece_numbers(pieces, len(sums))
        self.sums.append(sums.detach().double())  # type: ignore[operator, union-attr]
        self.weights.append(weights.to(sums.device).double())  # type: ignore[operator, union-attr]
        self.pieces.append(numbers.to(sums.device))  # type: ignore[operator, union-attr]

    @property
    def values(self) -> Tensor:
        """The mean of each clip and name ``[N, F]`` float64, in the order of the updates."""
        sums, weights = self.rows("sums"), self.rows("weights")
        return sums / weights.reshape(len(sums), -1)

    def compute(self) -> dict[str, Tensor]:
        """The mean of each name, float64, and its bounds ``…_low`` and ``…_high``, NaN for a single piece.

        ``clips`` and ``pieces`` are the numbers of both, int64.

        Raises:
            PartitaError: No clip was measured.
        """
        return self.means(torch.ones(len(self.rows("sums")), dtype=torch.bool))

    def means(self, kept: Tensor) -> dict[str, Tensor]:
        """Return the results of :meth:`compute` for the clips selected by ``kept`` ``[N]`` bool."""
        sums, weights, numbers = (self.rows(name).cpu()[kept.cpu()] for name in ("sums", "weights", "pieces"))
        if not len(sums):
            raise PartitaError(f"{type(self).__name__} has no clips: call update first")
        results: dict[str, Tensor] = {"clips": torch.tensor(len(sums))}
        for i, name in enumerate(self.names):
            found = self.mean(name, sums[:, i], weights, numbers)
            results |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
            results["pieces"] = found["pieces"]
        return results

    def mean(self, name: str, sums: Tensor, weights: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """Return the :func:`mean_over_pieces` of one name, given sums, weights and numbers of pieces ``[C]``."""
        return mean_over_pieces(sums, weights, numbers, confidence=self.confidence, rate=name in self.rates)


class LabelMeans(ClipMeans):
    """Means of the agreement of clips with their labels, with confidence intervals over pieces.

    Each mean has a weight of its own for each clip, such as the seconds that have a label of its kind. Clips whose
    weight is 0 count neither in the mean nor in its interval.

    Args:
        confidence: Confidence level of the intervals.
    """

    def __init__(self, *, confidence: float = 0.95) -> None:
        super().__init__(confidence=confidence)
        self.add_rows("weights", len(self.names))  # replaces the single weight of all means

    @abstractmethod
    def compare(self, clip: Tensor, labels: Mapping[str, Any]) -> tuple[ArrayLike, ArrayLike] | None:
        """Compare a clip ``[C, T]`` with its labels.

        Returns:
            The weighted sum and the weight of each mean, both ``[F]``, or ``None`` if none of the labels is known.
        """

    def update(
        self,
        audio: Tensor,
        reference: Sequence[Mapping[str, Any]],
        lengths: Sequence[int] | None = None,
        pieces: Pieces = None,
    ) -> None:
        """Compare audio ``[B, C, T]`` with the fields of the examples.

        Args:
            audio: Audio in [-1, 1].
            reference: Fields of each example. Examples without the label do not count.
            lengths: Number of samples of each clip that are not padding. ``None`` means no padding.
            pieces: Names of the clips' pieces, for the intervals. ``None`` treats each clip as a piece of its own.

        Raises:
            PartitaError: A label is not in the notation of its field.
        """
        lengths, pieces = lengths or [audio.shape[-1]] * len(audio), pieces or [None] * len(audio)
        for clip, labels, length, piece in zip(audio, reference, lengths, pieces, strict=True):
            if (compared := self.compare(clip[:, :length], labels)) is not None:
                sums, weights = (torch.tensor(np.asarray(x, np.float64), device=self.device)[None] for x in compared)
                self.record(sums, weights, [piece])

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each name, float64, with bounds ``…_low`` and ``…_high``.

        ``…_clips`` and ``…_pieces`` are the numbers of clips and pieces with the label. The mean is NaN without clips
        with the label, and the bounds are NaN for fewer than two pieces.
        """
        sums, weights, numbers = (self.rows(name).cpu() for name in ("sums", "weights", "pieces"))
        results: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            labeled = weights[:, i] > 0
            results[f"{name}_clips"] = labeled.sum()
            if not labeled.any():
                nothing = dict.fromkeys((name, f"{name}_low", f"{name}_high"), sums.new_tensor(torch.nan))
                results |= nothing | {f"{name}_pieces": torch.tensor(0)}
                continue
            found = self.mean(name, sums[labeled, i], weights[labeled, i], numbers[labeled])
            results |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
            results[f"{name}_pieces"] = found["pieces"]
        return results


def sums_per_clip(values: Tensor, sizes: Tensor) -> Tensor:
    """Sum values ``[N, ...]`` of segments to ``[C, ...]`` per clip, given the ``sizes`` ``[C]`` int64 of the clips.

    Raises:
        PartitaError: The sizes are not positive or do not add up to ``N``.
    """
    sizes = sizes.to(values.device)
    if (sizes < 1).any() or int(sizes.sum()) != len(values):
        raise PartitaError(f"sizes must be at least 1 and add up to {len(values)} segments, not {sizes.tolist()}")
    clip = torch.repeat_interleave(torch.arange(len(sizes), device=values.device), sizes)
    return values.new_zeros(len(sizes), *values.shape[1:]).index_add_(0, clip, values)
