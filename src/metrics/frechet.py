"""Fréchet distance of embeddings (FAD, 1812.08466), what it tends to with more audio (2311.01616), and how sure it is.

Only values of one embedding, with the same activations, windows and reference, can be compared.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from scipy.stats import linregress
from torch import Tensor
from torchmetrics import Metric

from ..errors import PartitaError
from .bootstrap import Gathered, canonical_order, check_resampling, counts_of, percentiles, resampled
from .gaussian import Gaussian, Side, frechet_distance, packed, pooled

AT_ONCE = 2**23
"""Numbers that the covariances of a batch of resamples may hold."""


class FrechetDistance(Metric):
    """Fréchet distance between the embeddings of generated and of reference audio, frames of all clips pooled.

    Args:
        dim: Width of the embeddings.
        reference: Statistics of the reference, known beforehand; without them :meth:`update` takes its embeddings.

    Example:
        >>> metric = FrechetDistance(1)
        >>> metric.update(torch.tensor([[0.0], [2.0]]), reference=True)
        >>> metric.update(torch.tensor([[3.0], [5.0]]))
        >>> metric.compute()["frechet"].item()  # means three apart, deviations equal
        9.0
    """

    full_state_update = False
    higher_is_better = False
    evaluated: Tensor
    referred: Tensor

    def __init__(self, dim: int, *, reference: Gaussian | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        if reference is not None and len(reference.mean) != dim:
            raise ValueError(f"the reference has {len(reference.mean)}-d embeddings, not {dim}-d")
        self.dim, self.known = dim, reference
        # count, mean and moment in one tensor: two of them can only be pooled together
        self.add_state("evaluated", torch.zeros((dim + 2, dim), dtype=torch.float64), dist_reduce_fx=pooled)
        self.add_state("referred", torch.zeros((dim + 2, dim), dtype=torch.float64), dist_reduce_fx=pooled)

    def update(self, embeddings: Tensor, reference: bool = False) -> None:
        """Add embeddings ``[N, D]`` to those of the reference, or of what is evaluated.

        Raises:
            PartitaError: Their width differs, they are not finite, or the reference was known beforehand.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise PartitaError(f"embeddings must be [N, {self.dim}], not {list(embeddings.shape)}")
        if not embeddings.isfinite().all():
            raise PartitaError("embeddings must be finite: look for silence or overflow in what was embedded")
        if reference and self.known is not None:
            raise PartitaError("this metric was given the statistics of its reference: add no embeddings to it")
        side = "referred" if reference else "evaluated"
        if len(embeddings):
            setattr(self, side, pooled(torch.stack([getattr(self, side), packed(embeddings.detach())])))

    def compute(self) -> dict[str, Tensor]:
        """``frechet``, float64, and the numbers of embeddings ``evaluated`` and ``referred``, int64.

        Raises:
            PartitaError: One side has fewer than two embeddings.
        """
        evaluated, reference = self.evaluation_statistics, self.reference_statistics
        counts = {"evaluated": torch.tensor(evaluated.count), "referred": torch.tensor(reference.count)}
        return {"frechet": frechet_distance(reference, evaluated)} | counts

    @property
    def evaluation_statistics(self) -> Gaussian:
        """The statistics of what is evaluated."""
        return Gaussian.unpacked(self.evaluated)

    @property
    def reference_statistics(self) -> Gaussian:
        """The statistics of the reference, to be saved for the next time."""
        if self.known is None:
            return Gaussian.unpacked(self.referred)
        known = self.known
        return Gaussian(known.count, known.mean.to(self.evaluated), known.moment.to(self.evaluated))


class FrechetInfinity(FrechetDistance, Gathered):
    """The Fréchet distance with what it tends to, and its interval; all embeddings that are evaluated are kept.

    The distance falls as the number ``n`` of embeddings grows, by about ``slope / n``, so that unequal sets do not
    compare; ``limit`` is what :func:`frechet_limit` extrapolates to. Both intervals are for the distance of the
    population that the clips are of: the limit's is that of the distance, moved to it and widened by the error of the
    fit.

    Args:
        dim: Width of the embeddings.
        reference: Statistics of the reference, known beforehand; without them :meth:`update` takes its embeddings.
        smallest: The least number of embeddings that the limit is fitted to.
        sizes: How many numbers from there to all.
        replacement: Whether embeddings are drawn with replacement for the limit, as fadtk does.
        resamples: Of the clips, for the interval; 0 for none.
        confidence: Of the interval.
        seed: Of all that is drawn.
    """

    def __init__(
        self,
        dim: int,
        *,
        reference: Gaussian | None = None,
        smallest: int = 500,
        sizes: int = 25,
        replacement: bool = True,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, reference=reference)
        check_resampling(resamples, confidence)
        check_limit(smallest, sizes)
        self.smallest, self.sizes, self.replacement = smallest, sizes, replacement
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        self.add_rows("frames", dim, dtype=torch.float32)
        self.add_rows("clips", dtype=torch.int64)

    def update(self, embeddings: Tensor, reference: bool = False, sizes: Tensor | None = None) -> None:
        """Add embeddings ``[N, D]`` to those of the reference, or of what is evaluated.

        Args:
            embeddings: One per frame, the frames of a clip together. They are kept in float32.
            reference: Which side they are of.
            sizes: How many of them each clip has, in order, ``[clips]`` int64; the interval cannot do without.

        Raises:
            PartitaError: As for :class:`FrechetDistance`, or the sizes are missing or do not fit.
        """
        if not reference and self.resamples:
            if sizes is None:
                raise PartitaError("sizes are missing: the frames of each clip, for an interval (or set resamples=0)")
            if (sizes < 1).any() or int(sizes.sum()) != len(embeddings):
                raise PartitaError(f"sizes must be at least 1 and add up to {len(embeddings)}, not {sizes.tolist()}")
        super().update(embeddings, reference)
        if not reference:
            self.frames.append(embeddings.detach().float())  # type: ignore[operator, union-attr]
            if sizes is not None:
                self.clips.append(sizes.to(embeddings.device))  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        """What :class:`FrechetDistance` returns, and more.

        Returns:
            Also what :func:`frechet_limit` returns, unless there are not more embeddings than ``smallest``;
            ``frechet_corrected``, ``frechet_low`` and ``frechet_high`` of :func:`bootstrap_frechet`, unless
            ``resamples`` is 0; ``limit_low`` and ``limit_high`` unless either.

        Raises:
            PartitaError: One side has fewer than two embeddings.
        """
        results, reference, frames = super().compute(), self.reference_statistics, self.rows("frames")
        if len(frames) > self.smallest:
            results |= frechet_limit(
                frames,
                reference,
                smallest=self.smallest,
                sizes=self.sizes,
                replacement=self.replacement,
                seed=self.seed,
            )
        if self.resamples:
            found = bootstrap_frechet(
                frames,
                self.rows("clips"),
                reference,
                resamples=self.resamples,
                confidence=self.confidence,
                seed=self.seed,
            )
            results |= {f"frechet_{name}": found[name] for name in ("corrected", "low", "high")}
            if "limit" in results:
                # a fit to draws without replacement has left out what the number of embeddings adds, as found has not
                added = 0 if self.replacement else results["slope"] / len(frames)
                centre = found["corrected"] - found["value"] + results["limit"] + added
                noise = NormalDist().inv_cdf((1 + self.confidence) / 2) * results["limit_error"]
                low, high = (torch.hypot(found["corrected"] - found[end], noise) for end in ("low", "high"))
                results |= {"limit_low": (centre - low).clamp(min=0), "limit_high": centre + high}
        return results


def frechet_limit(
    embeddings: Tensor,
    reference: Gaussian,
    *,
    smallest: int = 500,
    sizes: int = 25,
    replacement: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """FAD∞ (2311.01616; ``score_inf`` of fadtk): fit ``limit + slope / n`` to the distances of ``n`` embeddings.

    Drawn with replacement, as published, the fit tends to the distance of the set that was drawn from, which itself is
    above that of its population by about ``slope / N``. Drawn without, it tends to the latter.

    Args:
        embeddings: What is evaluated, ``[N, D]``. Their order has no influence.
        reference: Statistics of the reference, which stays whole.
        smallest: The least ``n``.
        sizes: How many ``n``, equally spaced from there to ``N``.
        replacement: Whether the embeddings are drawn with replacement.
        seed: Of the draws.

    Returns:
        ``limit``, ``slope``, ``r2``, the share of the distances' variance that the fit explains, and ``limit_error``,
        the standard error of the fitted limit, float64; the last two are nan where the distances do not vary. The error
        is of the draws; how much the limit varies with what it is drawn from is not in it.

    Raises:
        PartitaError: There are not more embeddings than ``smallest``.
    """
    check_limit(smallest, sizes)
    number = len(embeddings)
    if number <= smallest:
        raise PartitaError(f"a limit needs more than {smallest} embeddings, not {number}: give more, or lower smallest")
    embeddings = embeddings[canonical_order(embeddings)].double()
    generator, side = torch.Generator().manual_seed(seed), Side(reference)
    counts = [int(n) for n in torch.linspace(smallest, number, sizes, dtype=torch.float64)]
    distances = []
    for n in counts:
        if replacement:
            drawn = torch.randint(number, (n,), generator=generator)
        else:
            drawn = torch.randperm(number, generator=generator)[:n]
        statistics = Gaussian.of(embeddings[drawn.to(embeddings.device)])
        distances.append(side.distance(statistics.mean, statistics.covariance))
    fit = linregress([1 / n for n in counts], torch.stack(distances).tolist())
    found = {"limit": fit.intercept, "slope": fit.slope, "r2": fit.rvalue**2, "limit_error": fit.intercept_stderr}
    return {name: side.mean.new_tensor(value) for name, value in found.items()}


def check_limit(smallest: int, sizes: int) -> None:
    """Refuse, with a ValueError, what no limit can be fitted to."""
    if smallest < 2 or sizes < 2:
        raise ValueError(f"a limit needs at least two sizes, from at least 2 on: not {sizes} from {smallest} on")


def bootstrap_frechet(
    embeddings: Tensor,
    sizes: Tensor,
    reference: Gaussian,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The Fréchet distance and its interval over clips; only sums of each clip are resampled, not its frames.

    A set of clips lies above its population, by more the fewer they are, and a resample above its set by as much again.
    So plain percentiles would mostly miss both. The interval here is that of the resampled errors, taken from the value
    (the basic bootstrap, Davison and Hinkley 1997, §2.4): it holds the population's distance, and may leave out the
    value itself, which is then mostly bias; ``corrected`` is the value without it.

    Args:
        embeddings: What is evaluated, ``[N, D]``, the frames of a clip together.
        sizes: How many of them each clip has, in order, ``[C]`` int64.
        reference: Statistics of the reference, which stays as it is.
        resamples: As for :func:`~partita.metrics.bootstrap.bootstrap`.
        confidence: As for :func:`~partita.metrics.bootstrap.bootstrap`.
        seed: As for :func:`~partita.metrics.bootstrap.bootstrap`.

    Returns:
        ``value``, ``corrected``, ``low`` and ``high``, float64; for one clip all but the value are nan.
    """
    side, whole = Side(reference), Gaussian.of(embeddings)
    value = side.distance(whole.mean, whole.covariance)
    if len(sizes) < 2:
        return {"value": value} | dict.fromkeys(("corrected", "low", "high"), value * torch.nan)
    clips = (embeddings.double() - whole.mean).split(sizes.tolist())  # centred, so that sums do not cancel
    sums = torch.stack([clip.sum(0) for clip in clips])
    order = canonical_order(torch.cat([sums, sizes.to(sums)[:, None]], 1)).tolist()
    clips, sums, sizes = [clips[c] for c in order], sums[order], sizes.to(sums)[order]
    spread = torch.stack([clip.square().sum() for clip in clips])
    seen = [clip @ side.factor for clip in clips]  # all that the root depends on
    few = len(embeddings) < side.factor.shape[1]
    roots = _roots_by_frames if few else _roots_by_moments
    at_once, distances = max(1, AT_ONCE // min(len(embeddings), side.factor.shape[1]) ** 2), []
    for drawn in resampled(len(clips), resamples, seed, at_once):
        weights = counts_of(drawn).to(sums)
        count, mean = weights @ sizes, weights @ sums
        mean = mean / count[:, None]
        trace = weights @ spread - count * mean.square().sum(1)
        root = roots(seen, weights, count, mean @ side.factor)
        apart = (mean + whole.mean - side.mean).square().sum(1)
        distance = apart + side.trace + trace / (count - 1) - 2 * root / (count - 1).sqrt()
        distances.append(distance.clamp(min=0))
    found = torch.cat(distances)
    low, high = percentiles(found, confidence)
    low, high = (2 * value - high).clamp(min=0), 2 * value - low
    return {"value": value, "corrected": 2 * value - found.mean(), "low": low, "high": high}


def _roots_by_moments(seen: list[Tensor], weights: Tensor, count: Tensor, mean: Tensor) -> Tensor:
    """Sums ``[R]`` of the roots of the eigenvalues of the moments of resampled clips.

    Args:
        seen: Frames ``[S, D]`` of each clip.
        weights: How often each resample has each clip, ``[R, C]``.
        count: Frames of each resample, ``[R]``.
        mean: Of them, ``[R, D]``.
    """
    dim, moment = mean.shape[1], mean.new_zeros(len(weights), mean.shape[1] ** 2)
    at_once = max(1, AT_ONCE // dim**2)
    for first in range(0, len(seen), at_once):
        some = seen[first : first + at_once]
        moment += weights[:, first : first + len(some)] @ torch.stack([clip.mT @ clip for clip in some]).flatten(1)
    moment = moment.unflatten(1, (dim, dim)) - count[:, None, None] * mean[:, :, None] * mean[:, None]
    return torch.linalg.eigvalsh(moment).clamp(min=0).sqrt().sum(1)


def _roots_by_frames(seen: list[Tensor], weights: Tensor, count: Tensor, mean: Tensor) -> Tensor:
    """The same from the inner products of frames, whose eigenvalues are those of the moments: for fewer than ``D``."""
    frames = torch.cat(seen)
    often = torch.repeat_interleave(weights, torch.tensor([len(clip) for clip in seen], device=weights.device), dim=1)
    along = mean @ frames.mT
    products = frames @ frames.mT - along[:, :, None] - along[:, None] + mean.square().sum(1)[:, None, None]
    scale = often.sqrt()
    return torch.linalg.eigvalsh(products * scale[:, :, None] * scale[:, None]).clamp(min=0).sqrt().sum(1)
