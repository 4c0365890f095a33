"""The triplet loss agrees with a loop over triplets, and its gradient brings partners together."""

import math

import pytest
import torch
from torch.nn import functional as F

from partita.layers.triplet import semi_hard_triplet_loss


def by_loops(first, second, negatives, margin):
    """The definition, one anchor and one negative at a time."""
    sides, total, anchors = (first.tolist(), second.tolist()), 0.0, 0
    for side in (0, 1):
        for i in range(len(first)):
            anchor = sides[side][i]
            positive = math.dist(anchor, sides[1 - side][i]) ** 2
            found = [
                math.dist(anchor, sides[other][j]) ** 2
                for other in (0, 1)
                for j in range(len(first))
                if negatives[i][j]
            ]
            if not found:
                continue
            farther = [distance for distance in found if distance > positive]
            total += max(0.0, positive - (min(farther) if farther else max(found)) + margin)
            anchors += 1
    return total / max(1, anchors)


def triplet_loss(first, second, negatives, margin):
    both = torch.cat([first, second])
    return semi_hard_triplet_loss(both @ both.T, negatives, margin)


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_as_a_loop_over_triplets(seed, margin):
    first, second = unit(12, 3, seed=seed), unit(12, 3, seed=seed + 100)
    pieces = torch.arange(12) // (1 + seed % 3)
    negatives = pieces[:, None] != pieces
    expected = by_loops(first, second, negatives.tolist(), margin)
    assert triplet_loss(first, second, negatives, margin).item() == pytest.approx(expected, abs=1e-9)


def on_circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def squared(degrees):
    """Squared distance of two points on the unit circle."""
    return 2 - 2 * math.cos(math.radians(degrees))


def test_the_nearest_negative_that_is_farther_than_the_positive():
    """Only the first pair, at 0° and 20°, has negatives, which are at 10°, 190°, 25° and 270°."""
    first, second = on_circle(0, 10, 25).requires_grad_(), on_circle(20, 190, 270).requires_grad_()
    negatives = torch.zeros(3, 3, dtype=torch.bool)
    negatives[0, 1:] = True
    loss = triplet_loss(first, second, negatives, 0.2)
    hinge = squared(20) - squared(25) + 0.2  # of the anchor at 0°; at 20°, 270° is far beyond the margin
    assert hinge > 0 > squared(20) - squared(110) + 0.2
    assert loss.item() == pytest.approx(hinge / 2)
    pushed = [gradient.abs().sum(1) > 1e-9 for gradient in torch.autograd.grad(loss, (first, second))]
    assert pushed[0].tolist() == [True, False, True]  # not the negative at 10°, which is nearer than the positive
    assert pushed[1].tolist() == [True, False, False]


def test_without_a_farther_negative_the_farthest_is_taken():
    first, second = on_circle(0, 40), on_circle(180, 60)  # the first partner is the farthest point there is
    negatives = ~torch.eye(2, dtype=torch.bool)
    # Anchors 0° and 180° (partner at distance 4), 40° and 60° (partner at 20°).
    losses = [
        squared(180) - squared(60) + 0.2,  # negatives of 0° are at 40° and 60°
        max(0.0, squared(20) - squared(40) + 0.2),  # those of 40° are at 0° and 180°
        squared(180) - squared(140) + 0.2,  # those of 180° are at 40° and 60°
        max(0.0, squared(20) - squared(60) + 0.2),
    ]
    assert triplet_loss(first, second, negatives, 0.2).item() == pytest.approx(sum(losses) / 4)


def test_the_gradient_brings_partners_together_and_moves_negatives_away():
    first, second = on_circle(0, 35).requires_grad_(), on_circle(30, 65).requires_grad_()
    negatives = ~torch.eye(2, dtype=torch.bool)

    def gap():
        positive = (first - second).square().sum(1).mean()
        negative = torch.cat([(first[0] - second[1]).square().sum()[None], (first[0] - first[1]).square().sum()[None]])
        return (positive - negative.mean()).item()

    before = gap()
    loss = triplet_loss(first, second, negatives, 0.5)
    for points, gradient in zip((first, second), torch.autograd.grad(loss, (first, second)), strict=True):
        points.data -= 0.01 * gradient
        points.data = F.normalize(points.data, dim=1)
    assert gap() < before
    assert triplet_loss(first, second, negatives, 0.5) < loss


def test_pairs_without_negatives_do_not_count():
    first, second = unit(4, 5, seed=1).requires_grad_(), unit(4, 5, seed=2)
    loss = triplet_loss(first, second, torch.zeros(4, 4, dtype=torch.bool), 0.2)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(first.grad, torch.zeros_like(first))
