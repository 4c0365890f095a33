"""Fréchet distance of embeddings (FAD, 1812.08466), its limit for infinite audio (2311.01616), and their intervals.

Values are comparable only for the same embedding, activations, windows and reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from ..errors import PartitaError
from .gaussian import Gaussian, Side, frechet_distance, packed, pooled
from .piece_means import Gathered, Pieces, check_confidence, membership, piece_numbers
from .significance import jackknife, mean_interval

AT_ONCE = 2**23
"""Maximum number of values in the covariances of a batch of sets of clips."""

LEFT_OUT = 64
"""Maximum number of sets of clips or pieces that are left out in turn. If there are more, a set has several."""

MIN_CLIPS = 8
"""Minimum number of clips for a limit, so that half of them still have a covariance."""


class FrechetDistance(Metric):
    """Fréchet distance between the embeddings of generated and of reference audio, over the frames of all clips.

    Args:
        dim: Width of the embeddings.
        reference: Precomputed statistics of the reference. ``None`` collects its embeddings in :meth:`update`.

    Example:
        >>> metric = FrechetDistance(1)
        >>> metric.update(torch.tensor([[0.0], [2.0]]), reference=True)
        >>> metric.update(torch.tensor([[3.0], [5.0]]))
        >>> metric.compute()["frechet"].item()  # the means differ by 3, the deviations are equal
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
        # count, mean and moment in one tensor, because they can only be pooled together
        self.add_state("evaluated", torch.zeros((dim + 2, dim), dtype=torch.float64), dist_reduce_fx=pooled)
        self.add_state("referred", torch.zeros((dim + 2, dim), dtype=torch.float64), dist_reduce_fx=pooled)

    def update(self, embeddings: Tensor, reference: bool = False) -> None:
        """Add embeddings ``[N, D]`` of the evaluated audio or of the reference.

        Raises:
            PartitaError: Their width differs, they are not finite, or the reference is precomputed.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise PartitaError(f"embeddings must be [N, {self.dim}], not {list(embeddings.shape)}")
        if not embeddings.isfinite().all():
            raise PartitaError("embeddings must be finite: look for silence or overflow in the embedded audio")
        if reference and self.known is not None:
            raise PartitaError("the reference has precomputed statistics: do not add embeddings to it")
        side = "referred" if reference else "evaluated"
        if len(embeddings):
            setattr(self, side, pooled(torch.stack([getattr(self, side), packed(embeddings.detach())])))

    def compute(self) -> dict[str, Tensor]:
        """Return ``frechet``, float64, and the numbers of embeddings ``evaluated`` and ``referred``, int64.

        Raises:
            PartitaError: One side has fewer than two embeddings.
        """
        evaluated, reference = self.evaluation_statistics, self.reference_statistics
        counts = {"evaluated": torch.tensor(evaluated.count), "referred": torch.tensor(reference.count)}
        return {"frechet": frechet_distance(reference, evaluated)} | counts

    @property
    def evaluation_statistics(self) -> Gaussian:
        """The statistics of the evaluated embeddings."""
        return Gaussian.unpacked(self.evaluated)

    @property
    def reference_statistics(self) -> Gaussian:
        """The statistics of the reference, which can be saved and reused."""
        if self.known is None:
            return Gaussian.unpacked(self.referred)
        known = self.known
        return Gaussian(known.count, known.mean.to(self.evaluated), known.moment.to(self.evaluated))


class FrechetInfinity(FrechetDistance, Gathered):
    """The Fréchet distance, its limit for infinitely many clips (FAD∞), and their intervals. It stores all embeddings.

    The distance of ``n`` clips has a bias of about ``slope / n``, which is estimated by leaving out whole clips.
    Leaving out frames does not work, because the frames of a clip are similar: FAD∞ as in arXiv 2311.01616 and fadtk
    draws frames, and hardly differs from the distance itself. If pieces have several clips each, clips are left out
    within their piece (stratified jackknife; Jones 1974), because they vary around their piece only.

    The reference is fixed. Its finite number of clips also adds a bias to limits, which is equal for all systems that
    are compared with it. The limit of real clips shows its size.

    Args:
        dim: Width of the embeddings.
        reference: Precomputed statistics of the reference. ``None`` collects its embeddings in :meth:`update`.
        confidence: Confidence level of the intervals.
    """

    def __init__(self, dim: int, *, reference: Gaussian | None = None, confidence: float = 0.95) -> None:
        super().__init__(dim, reference=reference)
        check_confidence(confidence)
        self.confidence = confidence
        self.add_rows("frames", dim, dtype=torch.float32)
        self.add_rows("sizes", dtype=torch.int64)
        self.add_rows("pieces", dtype=torch.int64)

    def update(
        self, embeddings: Tensor, reference: bool = False, sizes: Tensor | None = None, pieces: Pieces = None
    ) -> None:
        """Add embeddings ``[N, D]`` of the evaluated audio or of the reference.

        Args:
            embeddings: One embedding per frame, clip by clip. They are stored in float32.
            reference: Whether they belong to the reference.
            sizes: Number of frames of each clip, in order, ``[clips]`` int64; required for evaluated audio.
            pieces: Names of the clips' pieces, for the intervals. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: See :meth:`FrechetDistance.update`; or the sizes are missing or do not match.
        """
        if reference:
            super().update(embeddings, reference)
            return
        if sizes is None:
            raise PartitaError("sizes is missing: pass the number of frames of each clip")
        if (sizes < 1).any() or int(sizes.sum()) != len(embeddings):
            raise PartitaError(f"sizes must be at least 1 and add up to {len(embeddings)}, not {sizes.tolist()}")
        numbers = piece_numbers(pieces, len(sizes))
        super().update(embeddings)
        self.frames.append(embeddings.detach().float())  # type: ignore[operator, union-attr]
        self.sizes.append(sizes.to(embeddings.device))  # type: ignore[operator, union-attr]
        self.pieces.append(numbers.to(embeddings.device))  # type: ignore[operator, union-attr]

    def compute(self) -> dict[str, Tensor]:
        """Return the distance and its limit, with intervals.

        Returns:
            The results of :meth:`FrechetDistance.compute`, and

            - ``frechet_low`` and ``frechet_high``, the interval of the mean distance of this number of clips;
            - ``limit``, ``limit_low`` and ``limit_high``, the distance for infinitely many clips of these pieces, which
              can be negative by chance if both sides are alike;
            - ``drift``, the difference between the limit and that of half as many clips, relative to half the width of
              its interval: beyond ±1, there are too few clips to estimate the limit;
            - ``clips`` and ``pieces``, the numbers of both.

            Intervals are NaN for clips of a single piece, and limits for fewer than 8 clips.

        Raises:
            PartitaError: One side has fewer than two embeddings.
        """
        results = super().compute()
        member = membership(self.rows("pieces").cpu())
        pieces, clips = member.shape
        nan = results["frechet"].new_tensor(torch.nan)
        results |= {"clips": torch.tensor(clips), "pieces": torch.tensor(pieces)}
        results |= dict.fromkeys(("frechet_low", "frechet_high", "limit", "limit_low", "limit_high", "drift"), nan)
        if clips < 2:
            return results
        sets = ClipSets(self.rows("frames"), self.rows("sizes"), self.reference_statistics)
        half, dealt = nan, member[:, sets.order]
        dealt = dealt[dealt.argmax(1).argsort()]  # the pieces also in random order
        if pieces > 1:
            parts = split(dealt[:, sets.order.argsort()], LEFT_OUT)
            value, without = results["frechet"].cpu().numpy(), sets.distances(1 - parts).cpu().numpy()
            _, error = jackknife(value, without)
            low, high = (nan.new_tensor(bound) for bound in mean_interval(value, error, len(parts), self.confidence))
            half = (high - low) / 2
            results |= {"frechet_low": low.clamp(min=0), "frechet_high": high}  # no distance is negative
        if clips >= MIN_CLIPS:
            strata = [sets.order[row > 0] for row in dealt]
            limit, every = sets.limit(strata), torch.cat(strata)
            halves = [[some[torch.isin(some, every[side::2])] for some in strata] for side in range(2)]
            earlier = torch.stack([sets.limit(clips) for clips in halves]).mean()
            results |= {"limit": limit, "limit_low": limit - half, "limit_high": limit + half}
            results["drift"] = (limit - earlier) / half
        return results


class ClipSets:
    """Computes the distances of subsets of clips to a reference.

    Args:
        embeddings: Embeddings ``[N, D]`` of all clips, clip by clip.
        sizes: Number of frames of each clip, in order, ``[C]`` int64.
        reference: Statistics of the reference.
    """

    def __init__(self, embeddings: Tensor, sizes: Tensor, reference: Gaussian) -> None:
        self.side, self.middle = Side(reference), embeddings.double().mean(0)
        clips = (embeddings.double() - self.middle).split(sizes.tolist())  # centered, so that sums do not cancel
        self.sizes, self.sums = sizes.double(), torch.stack([clip.sum(0) for clip in clips])
        self.spread = torch.stack([clip.square().sum() for clip in clips])
        self.seen = [clip @ self.side.factor for clip in clips]  # the projection that the matrix root depends on
        # a random order, independent of the order of the clips
        directions = torch.randn(self.sums.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        ordered = (self.sums @ directions.to(self.sums)).argsort(stable=True)
        self.order = ordered.cpu()[torch.randperm(len(ordered), generator=torch.Generator().manual_seed(0))]

    def distances(self, chosen: Tensor) -> Tensor:
        """Return the distances ``[R]`` of weighted sets of clips, given the weights ``[R, C]``."""
        frames, width = int(self.sizes.sum()), self.side.factor.shape[1]
        roots, found = _roots_by_frames if frames < width else _roots_by_moments, []
        at_once = max(1, AT_ONCE // min(frames, width) ** 2)
        for weights in chosen.to(self.sums).split(at_once):
            count = weights @ self.sizes
            mean = weights @ self.sums / count[:, None]
            trace = weights @ self.spread - count * mean.square().sum(1)
            root = roots(self.seen, weights, count, mean @ self.side.factor)
            apart = (mean + self.middle - self.side.mean).square().sum(1)
            distance = apart + self.side.trace + trace / (count - 1) - 2 * root / (count - 1).sqrt()
            found.append(distance.clamp(min=0))
        return torch.cat(found)

    def limit(self, dealt: list[Tensor]) -> Tensor:
        """Return the distance of a set of clips without its first-order bias.

        Args:
            dealt: The numbers of the clips of each piece, int64, in random order. Pieces with a single clip are
                grouped at random.
        """
        strata = [clips for clips in dealt if len(clips) > 1]
        strata.append(torch.cat([clips for clips in dealt if len(clips) == 1] or [torch.empty(0, dtype=torch.int64)]))
        whole = torch.zeros(len(self.sizes), dtype=torch.float64)
        whole[torch.cat(strata)] = 1
        weights, factors = [whole], []
        for clips in strata:
            sets = min(len(clips), max(2, LEFT_OUT * len(clips) // int(whole.sum())))
            for left in clips.tensor_split(sets) if sets > 1 else ():
                rest = len(clips) - len(left)
                row = whole.clone()
                row[clips], row[left] = len(clips) / rest, 0  # the weight of a piece stays the same
                weights.append(row)
                factors.append(rest / len(clips))
        distances = self.distances(torch.stack(weights))
        return distances[0] - (distances[1:] - distances[0]) @ distances.new_tensor(factors)


def split(rows: Tensor, most: int) -> Tensor:
    """Sum groups of rows ``[R, C]`` of zeros and ones, so that at most ``most`` rows remain."""
    return torch.stack([some.sum(0) for some in rows.tensor_split(min(most, len(rows)))])


def _roots_by_moments(seen: list[Tensor], weights: Tensor, count: Tensor, mean: Tensor) -> Tensor:
    """Return the sums ``[R]`` of the square roots of the eigenvalues of the moments of resampled clips.

    Args:
        seen: Frames ``[S, D]`` of each clip.
        weights: How often each resample contains each clip, ``[R, C]``.
        count: Number of frames of each resample, ``[R]``.
        mean: Mean of these frames, ``[R, D]``.
    """
    dim, moment = mean.shape[1], mean.new_zeros(len(weights), mean.shape[1] ** 2)
    at_once = max(1, AT_ONCE // dim**2)
    for first in range(0, len(seen), at_once):
        some = seen[first : first + at_once]
        moment += weights[:, first : first + len(some)] @ torch.stack([clip.mT @ clip for clip in some]).flatten(1)
    moment = moment.unflatten(1, (dim, dim)) - count[:, None, None] * mean[:, :, None] * mean[:, None]
    return torch.linalg.eigvalsh(moment).clamp(min=0).sqrt().sum(1)


def _roots_by_frames(seen: list[Tensor], weights: Tensor, count: Tensor, mean: Tensor) -> Tensor:
    """Return the sums of :func:`_roots_by_moments` from inner products, which is faster for fewer than ``D`` frames."""
    frames = torch.cat(seen)
    often = torch.repeat_interleave(weights, torch.tensor([len(clip) for clip in seen], device=weights.device), dim=1)
    along = mean @ frames.mT
    products = frames @ frames.mT - along[:, :, None] - along[:, None] + mean.square().sum(1)[:, None, None]
    scale = often.sqrt()
    return torch.linalg.eigvalsh(products * scale[:, :, None] * scale[:, None]).clamp(min=0).sqrt().sum(1)
