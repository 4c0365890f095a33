"""How sure a figure is: percentile bootstrap over clips (Efron 1979), and metrics that are means over clips.

Frames and segments of one clip resemble each other, so it is always whole clips that are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from ..errors import PartitaError

AT_ONCE = 2**22
"""Numbers that a batch of resamples may hold."""


def bootstrap(
    statistic: Callable[[Tensor], Tensor],
    clips: int,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A statistic of all clips, and the interval that its values on resampled clips fall in.

    For a statistic that is biased by the number of clips, such as the Fréchet distance, the interval is off by twice
    that: see :func:`~partita.metrics.frechet.bootstrap_frechet`.

    Args:
        statistic: From the numbers ``[clips]`` int64 of the clips that were drawn, some of them repeatedly, to a tensor
            of any one shape.
        clips: How many there are.
        resamples: How often as many are drawn with replacement.
        confidence: Fraction of the resamples inside the interval, as many left out below as above.
        seed: Decides what is drawn. Statistics of the same number of clips see the same draws.

    Returns:
        ``value``, ``low`` and ``high``, of the shape of the statistic.

    Example:
        >>> clips = torch.tensor([3.0, 4.0, 5.0, 9.0])
        >>> {k: v.item() for k, v in bootstrap(lambda drawn: clips[drawn].median(), 4).items()}
        {'value': 4.0, 'low': 3.0, 'high': 9.0}
    """
    drawn = [statistic(indices) for batch in resampled(clips, resamples, seed) for indices in batch]
    value = statistic(torch.arange(clips))
    low, high = percentiles(torch.stack(drawn), confidence)
    return {"value": value, "low": low, "high": high}


def bootstrap_mean(
    sums: Tensor,
    weights: Tensor | None = None,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The mean over clips and its interval, which does not depend on the order of the clips.

    Args:
        sums: Per clip a value, or the sum of those of its segments, ``[N]`` or ``[N, F]``.
        weights: Per clip the number of its segments, ``[N]``; one each where absent.
        resamples: As for :func:`bootstrap`.
        confidence: As for :func:`bootstrap`.
        seed: As for :func:`bootstrap`.

    Returns:
        ``value``, ``low`` and ``high``, each a float64 scalar or ``[F]``: sums of sums over sums of weights.
    """
    rows = sums.double().reshape(len(sums), -1)
    weights = rows.new_ones(len(rows)) if weights is None else weights.to(rows)
    rows = torch.cat([rows, weights[:, None]], 1)
    rows = rows[canonical_order(rows)]
    totals = [counts_of(batch).to(rows) @ rows for batch in resampled(len(rows), resamples, seed)]
    means = torch.cat([total[:, :-1] / total[:, -1:] for total in totals])
    total = rows.sum(0)
    low, high = percentiles(means, confidence)
    return {
        name: figure.reshape(sums.shape[1:])
        for name, figure in (("value", total[:-1] / total[-1]), ("low", low), ("high", high))
    }


def rate_interval(rate: Tensor, clips: int, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Bounds of a rate of so many clips that are each either right or wrong (Wilson, 1927).

    Unlike resampling, it knows that none of a few clips is not none of all.

    >>> [round(float(bound), 3) for bound in rate_interval(torch.tensor(0.0), 6)]
    [0.0, 0.39]
    """
    z = float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
    scale, middle = 1 + z * z / clips, rate + z * z / (2 * clips)
    half = z * (rate * (1 - rate) / clips + z * z / (4 * clips * clips)).sqrt()
    return ((middle - half) / scale).clamp(min=0), ((middle + half) / scale).clamp(max=1)


def resampled(clips: int, resamples: int, seed: int, at_once: int | None = None) -> Iterator[Tensor]:
    """Numbers ``[B, clips]`` of clips drawn with replacement, in batches of ``at_once`` rows, ``resamples`` in all.

    Raises:
        PartitaError: There are no clips.
    """
    if clips < 1:
        raise PartitaError("there are no clips to resample: call update first")
    generator = torch.Generator().manual_seed(seed)
    at_once = at_once or max(1, AT_ONCE // clips)
    for start in range(0, resamples, at_once):
        yield torch.randint(clips, (min(at_once, resamples - start), clips), generator=generator)


def counts_of(drawn: Tensor) -> Tensor:
    """How often each clip is among numbers ``[B, N]`` of clips, ``[B, N]`` float64."""
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def percentiles(samples: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Bounds, each ``[...]``, that leave equally many of samples ``[B, ...]`` out below and above."""
    tail = (1 - confidence) / 2
    return samples.quantile(tail, dim=0), samples.quantile(1 - tail, dim=0)


def canonical_order(rows: Tensor) -> Tensor:
    """An order of rows ``[N, D]`` that does not depend on the one they are in, so that drawing by number does not."""
    direction = torch.randn(rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (rows.double() @ direction.to(rows.device)).argsort(stable=True)


def check_resampling(resamples: int, confidence: float) -> None:
    """Refuse, with a ValueError, what no interval can be made of."""
    if resamples < 0:
        raise ValueError(f"resamples must be at least 0 (no intervals), not {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")


class Gathered(Metric):
    """A metric with rows of its own per clip, gathered from all processes, also from those that had none."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self._without_rows: dict[str, Tensor] = {}

    def add_rows(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """Add a state that is a list of tensors ``[N, *shape]``."""
        self.add_state(name, [], dist_reduce_fx="cat")
        self._without_rows[name] = torch.zeros((0, *shape), dtype=dtype)

    def rows(self, name: str) -> Tensor:
        """All rows ``[N, *shape]`` of a state."""
        value = getattr(self, name)  # a tensor once gathered, a list before
        value = value if isinstance(value, list) else [value]
        return torch.cat([self._without_rows[name].to(self.device), *value])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather from all processes; one without rows takes part with none, of the right shape and type."""
        for name, none in self._without_rows.items():
            if isinstance(getattr(self, name), list):
                getattr(self, name).append(none.to(self.device))
        super().sync(*args, **kwargs)


class ClipMeans(Gathered):
    """Means of what a subclass measures on each clip, with bootstrap intervals over clips.

    Attributes:
        names: Of the means.
        rates: Those of them that are between 0 and 1; where each clip is either, their interval is Wilson's.

    Args:
        resamples: Of the clips, for the intervals; 0 for none.
        confidence: Of the intervals.
        seed: Of the resamples.
    """

    names: ClassVar[tuple[str, ...]]
    rates: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> None:
        super().__init__()
        check_resampling(resamples, confidence)
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        self.add_rows("sums", len(self.names))
        self.add_rows("weights")

    def record(self, sums: Tensor, weights: Tensor | None = None) -> None:
        """Keep, per clip, sums ``[C, F]`` over its segments and their number ``[C]`` (one where absent)."""
        weights = sums.new_ones(len(sums)) if weights is None else weights
        self.sums.append(sums.detach().double())  # type: ignore[operator, union-attr]
        self.weights.append(weights.to(sums.device).double())  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        """Per name the mean, float64, and its bounds ``…_low`` and ``…_high`` (nan for one clip); ``clips``, int64.

        Raises:
            PartitaError: Nothing was measured.
        """
        sums, weights = self.rows("sums").cpu(), self.rows("weights").cpu()
        return self.means(sums, weights) | {"clips": torch.tensor(len(sums))}

    def means(self, sums: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The means and bounds that :meth:`compute` returns."""
        if not len(sums):
            raise PartitaError(f"{type(self).__name__} has measured nothing yet: call update first")
        results = dict(zip(self.names, sums.sum(0) / weights.sum(), strict=True))
        if not self.resamples:
            return results
        for i, name in enumerate(self.names):
            results |= self.bounds(name, sums[:, i], weights)
        return results

    def bounds(self, name: str, sums: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """``…_low`` and ``…_high`` of one mean, from sums and weights ``[C]``; nan for fewer than two clips."""
        if len(sums) < 2:
            low = high = sums.new_tensor(torch.nan)
        elif name in self.rates and ((sums == 0) | (sums == weights)).all():
            low, high = rate_interval(sums.sum() / weights.sum(), len(sums), self.confidence)
        else:
            found = bootstrap_mean(sums, weights, resamples=self.resamples, confidence=self.confidence, seed=self.seed)
            low, high = found["low"], found["high"]
        return {f"{name}_low": low, f"{name}_high": high}


class LabelMeans(ClipMeans):
    """Means of how far clips have the labels they should have, with bootstrap intervals over clips.

    Each figure has a weight of its own in each clip, such as the seconds that have a label of its kind. Clips where it
    is 0 do not count in the figure, neither in its mean nor in its interval.

    Args:
        resamples: Of the clips, for the intervals; 0 for none.
        confidence: Of the intervals.
        seed: Of the resamples.
    """

    def __init__(self, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> None:
        super().__init__(resamples=resamples, confidence=confidence, seed=seed)
        self.add_rows("weights", len(self.names))  # in the place of one for all figures

    def record_clip(self, sums: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray) -> None:
        """Keep, of one clip, per figure the weighted sum of what was measured and its weight, both ``[F]``."""
        first, second = (torch.tensor(np.asarray(x, np.float64), device=self.device)[None] for x in (sums, weights))
        self.record(first, second)

    def compute(self) -> dict[str, Tensor]:
        """Per name the mean, float64, and its bounds ``…_low`` and ``…_high``; ``…_clips``, how many have the label.

        The mean is not a number where no clip has the label, the bounds where fewer than two have it.
        """
        sums, weights = self.rows("sums").cpu(), self.rows("weights").cpu()
        results: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            labelled = weights[:, i] > 0
            values, counts = sums[labelled, i], weights[labelled, i]
            results[name] = values.sum() / counts.sum()
            results[f"{name}_clips"] = labelled.sum()
            if self.resamples:
                results |= self.bounds(name, values, counts)
        return results


def sums_per_clip(values: Tensor, sizes: Tensor) -> Tensor:
    """Sums ``[C, ...]`` of values ``[N, ...]`` of segments over the ``sizes`` ``[C]`` int64 of the clips, in order.

    Raises:
        PartitaError: The sizes are not positive or do not add up to ``N``.
    """
    sizes = sizes.to(values.device)
    if (sizes < 1).any() or int(sizes.sum()) != len(values):
        raise PartitaError(f"sizes must be at least 1 and add up to {len(values)} segments, not {sizes.tolist()}")
    clip = torch.repeat_interleave(torch.arange(len(sizes), device=values.device), sizes)
    return values.new_zeros(len(sizes), *values.shape[1:]).index_add_(0, clip, values)
