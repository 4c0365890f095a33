"""Memorization: how often a model continues a training prefix as the training data does (MusicLM, 2301.11325 §4.4)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..errors import PartitaError
from .piece_means import ClipMeans, Pieces

PAIRS_AT_ONCE = 64
"""Number of pairs of sequences in a batch."""
TINY = 1e-300
"""Minimum denominator, so that quotients are finite."""


def entropy(tokens: Tensor, cardinality: int) -> Tensor:
    """Return the entropy of the token distribution of each sequence ``[N, S]``, in bits, ``[N]`` float64."""
    share = histogram(tokens, cardinality)
    return -torch.xlogy(share, share).sum(1) / math.log(2)


def histogram(tokens: Tensor, cardinality: int) -> Tensor:
    """Return the relative frequency of each token in sequences ``[N, S]``, ``[N, cardinality]`` float64."""
    counts = torch.zeros((len(tokens), cardinality), dtype=torch.float64, device=tokens.device)
    return counts.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=torch.float64)) / tokens.shape[1]


def transport_cost(
    generated: Tensor, target: Tensor, centers: Tensor, *, regularization: float = 0.01, iterations: int = 200
) -> Tensor:
    """Return the optimal-transport cost between the token histograms of pairs of sequences.

    It uses Sinkhorn's algorithm (Cuturi 2013) in log space, over the tokens that occur. The regularization starts large
    and decreases, which takes fewer iterations (Schmitzer 2019). The plan is rounded to the exact marginals
    (Altschuler et al. 2017, algorithm 2), so the costs are never below those of the optimal plan.

    Args:
        generated: Tokens ``[N, S]`` int64.
        target: Tokens ``[N, S]`` int64.
        centers: Centers ``[K, D]`` of the tokens. The cost per unit of mass is their Euclidean distance.
        regularization: Entropic regularization, as a fraction of the mean distance between centers.
        iterations: Number of iterations. The regularization decreases during the first half.

    Returns:
        Costs ``[N]`` float64, in the unit of the centers.
    """
    centers = centers.double()
    between = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    least = regularization * between.mean()
    costs = [
        _transport(histogram(first, len(centers)), histogram(second, len(centers)), between, least, iterations)
        for first, second in zip(generated.split(PAIRS_AT_ONCE), target.split(PAIRS_AT_ONCE), strict=True)
    ]
    return torch.cat(costs) if costs else between.new_zeros(0)


def _transport(first: Tensor, second: Tensor, between: Tensor, least: Tensor, iterations: int) -> Tensor:
    """Return the costs ``[N]`` between histograms ``[N, K]``, with the final regularization ``least``."""
    (mass, rows), (other, columns) = _occurring(first), _occurring(second)
    cost = between[rows[:, :, None], columns[:, None, :]]
    mass, other = mass[:, :, None], other[:, None, :]
    log_mass, log_other = mass.log(), other.log()  # −∞ for tokens that only pad shorter sequences
    g = torch.zeros_like(other)
    fall = torch.linspace(1, 0, max(1, iterations // 2)).tolist() + [0.0] * (iterations - iterations // 2)
    most = between.max()
    for step in fall:
        strength = least * (most / least) ** step
        f = -strength * (log_other + (g - cost) / strength).logsumexp(2, keepdim=True)
        g = -strength * (log_mass + (f - cost) / strength).logsumexp(1, keepdim=True)
    plan = (log_mass + log_other + (f + g - cost) / least).exp()
    # scale down excess rows and columns, and distribute the missing mass over all pairs
    plan = plan * (mass / plan.sum(2, keepdim=True).clamp(min=TINY)).clamp(max=1)
    plan = plan * (other / plan.sum(1, keepdim=True).clamp(min=TINY)).clamp(max=1)
    # rounding may leave small negative values, whose quotient by a tiny sum would be unbounded
    mass, other = (mass - plan.sum(2, keepdim=True)).clamp(min=0), (other - plan.sum(1, keepdim=True)).clamp(min=0)
    plan = plan + mass * other / mass.sum(1, keepdim=True).clamp(min=TINY)
    return (plan * cost).sum((1, 2))


def _occurring(share: Tensor) -> tuple[Tensor, Tensor]:
    """Return frequencies and ids, each ``[N, L]``, of the tokens in histograms ``[N, K]``, padded with zeros."""
    longest = int((share > 0).sum(1).max())
    found = share.topk(longest, dim=1)
    return found.values, found.indices


def unrelated_costs(
    generated: Tensor,
    target: Tensor,
    centers: Tensor,
    *,
    pairs: int = 1000,
    pieces: Sequence[Hashable] | None = None,
    min_entropy: float = 0.0,
    seed: int = 0,
    iterations: int = 200,
) -> Tensor:
    """Return the :func:`transport_cost` of random pairs of continuations and targets of different examples.

    Args:
        generated: Tokens ``[N, S]`` int64 of the continuations, or of other training examples.
        target: Tokens ``[N, S]`` int64 of the training continuations of the same examples, in the same order.
        centers: Centers ``[K, D]`` of the tokens.
        pairs: Number of pairs to draw.
        pieces: Names of the pieces. Examples of one piece are related. ``None`` takes each example as its own piece.
        min_entropy: Minimum entropy of both sequences in bits. Others are excluded, as in :class:`Memorization`.
        seed: Seed of the draws.
        iterations: Iterations of Sinkhorn's algorithm.

    Returns:
        Costs ``[pairs]`` float64.

    Raises:
        PartitaError: Fewer than two pieces remain.
    """
    kept = torch.minimum(entropy(generated, len(centers)), entropy(target, len(centers))) >= min_entropy
    generated, target = generated[kept], target[kept]
    number = len(generated)
    named = list(range(len(kept))) if pieces is None else list(pieces)
    numbers = {piece: i for i, piece in enumerate(dict.fromkeys(named))}
    piece = torch.tensor([numbers[name] for name in named])[kept.cpu()]
    if len(piece.unique()) < 2:
        raise PartitaError(f"unrelated pairs need at least two examples of {min_entropy:g} bits, not {number}")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(number, (pairs,), generator=generator)
    second = (first + torch.randint(1, number, (pairs,), generator=generator)) % number
    while (related := (piece[first] == piece[second]).nonzero()[:, 0]).numel():
        second[related] = torch.randint(number, related.shape, generator=generator)
    return transport_cost(
        generated[first.to(generated.device)],
        target[second.to(target.device)],
        centers,
        iterations=iterations,
    )


def threshold_for(costs: Tensor, false_positives: float = 0.01) -> float:
    """Return the highest threshold with less than this fraction of the costs ``[N]`` of unrelated pairs below it.

    For other pairs, the fraction varies around this value, and more so if only few costs are below the threshold. For
    at most 1 %, request 0.2 %.

    Raises:
        PartitaError: There are too few costs to estimate the fraction.
    """
    if not 0 < false_positives < 1:
        raise ValueError(f"false_positives must be between 0 and 1, not {false_positives}")
    if len(costs) * false_positives < 1:
        needed = math.ceil(1 / false_positives)
        raise PartitaError(f"{len(costs)} pairs are too few for a rate of {false_positives:g}: use at least {needed}")
    below = math.ceil(len(costs) * false_positives) - 1
    return costs.sort().values[below].item()


class Memorization(ClipMeans):
    """Rates of continuations that match the training data, exactly or approximately.

    In an approximate match, the :func:`transport_cost` is below ``threshold``. Sequences with little content, such as
    silence, match by chance and are excluded.

    Args:
        centers: Centers ``[K, D]`` of the tokens, from the k-means that produced them.
        threshold: Threshold in the unit of the centers: :func:`threshold_for` of the :func:`unrelated_costs`. MusicLM's
            0.85 holds only for its own centers.
        min_entropy: Minimum entropy of both sequences in bits. Other pairs are excluded.
        regularization: Regularization of :func:`transport_cost`, the same as for the threshold.
        iterations: Iterations of :func:`transport_cost`, the same as for the threshold.
        confidence: Confidence level of the intervals.

    Example:
        >>> metric = Memorization(torch.eye(4), threshold=0.1)
        >>> metric.update(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[0, 1, 2], [2, 1, 0]]))
        >>> found = metric.compute()
        >>> found["exact"].item(), found["approximate"].item()
        (0.5, 1.0)
    """

    higher_is_better = False
    names = ("exact", "approximate", "cost", "generated_entropy", "target_entropy")
    rates = ("exact", "approximate")
    centers: Tensor

    def __init__(
        self,
        centers: Tensor,
        threshold: float,
        *,
        min_entropy: float = 0.0,
        regularization: float = 0.01,
        iterations: int = 200,
        confidence: float = 0.95,
    ) -> None:
        super().__init__(confidence=confidence)
        if centers.ndim != 2 or len(centers) < 2:
            raise ValueError(f"centers must be [K, D] with at least two of them, not {list(centers.shape)}")
        if threshold <= 0:
            raise ValueError(f"threshold must be positive, not {threshold}")
        if regularization <= 0 or iterations < 1:
            raise ValueError(f"regularization and iterations must be positive, not {regularization} and {iterations}")
        self.threshold, self.min_entropy = threshold, min_entropy
        self.regularization, self.iterations = regularization, iterations
        self.register_buffer("centers", centers.detach().double(), persistent=False)

    def update(self, generated: Tensor, target: Tensor, pieces: Pieces = None) -> None:
        """Compare generated continuations with those of the same prefixes in the training data.

        Args:
            generated: Tokens ``[N, S]`` int64 of the generated continuations.
            target: Tokens ``[N, S]`` int64 of the continuations in the training data.
            pieces: Names of the clips' pieces, for the intervals. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: The shapes differ, or a token has no center.
        """
        if generated.shape != target.shape or generated.ndim != 2 or not generated.shape[1]:
            shapes = f"{list(generated.shape)} and {list(target.shape)}"
            raise PartitaError(f"generated and target must be tokens [N, S] of the same shape, not {shapes}")
        cardinality = len(self.centers)
        tokens = torch.stack([generated, target])
        if ((tokens < 0) | (tokens >= cardinality)).any():
            raise PartitaError(f"tokens must be in [0, {cardinality}), the numbers of the centers")
        cost = transport_cost(
            generated, target, self.centers, regularization=self.regularization, iterations=self.iterations
        )
        entropies = entropy(generated, cardinality), entropy(target, cardinality)
        exact = (generated == target).all(1)
        matches = (cost < self.threshold) | exact
        self.record(torch.stack([exact.double(), matches.double(), cost, *entropies], 1), pieces=pieces)

    def compute(self) -> dict[str, Tensor]:
        """Return the rates of memorization among the pairs that are not excluded.

        Returns:
            The rates ``exact`` and ``approximate`` (which includes exact matches), the mean ``cost``, and the mean
            entropies ``generated_entropy`` and ``target_entropy`` in bits, each with bounds ``…_low`` and ``…_high``;
            ``match_entropy``, the mean entropy of the generated sequences that match (NaN without matches); ``clips``
            and ``pieces``, the numbers of both; and ``left_out``, the fraction of excluded pairs.

        Raises:
            PartitaError: All pairs are excluded.
        """
        rows = self.rows("sums").cpu()
        kept = rows[:, 3:].amin(1) >= self.min_entropy
        if len(rows) and not kept.any():
            raise PartitaError(f"all {len(rows)} pairs have fewer than {self.min_entropy:g} bits: lower min_entropy")
        left = rows[kept]
        return self.means(kept) | {
            "match_entropy": left[left[:, 1] > 0, 3].mean(),
            "left_out": 1 - kept.double().mean(),
        }
