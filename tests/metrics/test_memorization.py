import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import entropy as scipys_entropy

from partita.errors import PartitaError
from partita.metrics.memorization import Memorization, entropy, threshold_for, transport_cost, unrelated_costs

GROUPS, MEMBERS, LENGTH = 32, 8, 125


def clustered_centers():
    """Centers in groups of near ones, 256 in all."""
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(GROUPS, 8, generator=generator)
    return (groups[:, None] + 0.2 * torch.randn(GROUPS, MEMBERS, 8, generator=generator)).flatten(0, 1)


def songs(number):
    """Markov chains, each over five groups of its own, that stay in a group for a few tokens."""
    own = torch.rand(number, GROUPS).argsort(1)[:, :5]
    moves = torch.rand(number, LENGTH) < 0.3
    group = torch.randint(5, (number, LENGTH))
    last = torch.where(moves, torch.arange(LENGTH), 0).cummax(1).values
    return own.gather(1, group.gather(1, last)) * MEMBERS + torch.randint(MEMBERS, (number, LENGTH))


def with_near_tokens(tokens, fraction):
    """The same with this fraction of the tokens replaced by others of their group."""
    near = tokens // MEMBERS * MEMBERS + (tokens + torch.randint(1, MEMBERS, tokens.shape)) % MEMBERS
    return torch.where(torch.rand(tokens.shape) < fraction, near, tokens)


def with_other_tokens(tokens, fraction):
    """The same with this fraction of the tokens replaced by any."""
    return torch.where(torch.rand(tokens.shape) < fraction, torch.randint(GROUPS * MEMBERS, tokens.shape), tokens)


def exact_transport(first, second, centers):
    """The linear program over the tokens that occur."""
    a, mass = np.unique(first, return_counts=True)
    b, other = np.unique(second, return_counts=True)
    cost = np.linalg.norm(centers[a][:, None] - centers[b][None], axis=2)
    rows = np.kron(np.eye(len(a)), np.ones(len(b)))
    columns = np.kron(np.ones(len(a)), np.eye(len(b)))
    marginals = np.concatenate([mass / len(first), other / len(second)])
    return linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=marginals).fun


def test_transport_is_nearly_the_exact_one_and_never_less():
    centers, first, second = clustered_centers(), songs(12), songs(12)
    second[:4] = with_near_tokens(first[:4], 0.2)
    exact = [
        exact_transport(a, b, centers.double().numpy()) for a, b in zip(first.numpy(), second.numpy(), strict=True)
    ]
    found = transport_cost(first, second, centers).numpy()
    assert (found > np.array(exact) - 1e-9).all()
    assert found == pytest.approx(exact, rel=0.02, abs=0.01)
    closer = transport_cost(first, second, centers, regularization=0.002, iterations=2000).numpy()
    assert closer == pytest.approx(exact, rel=2e-3, abs=1e-3)


def test_transport_in_closed_form():
    """All tokens move from one center to another; half of them; none, in another order."""
    centers = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 9.0]])
    first = torch.tensor([[0, 0, 0, 0], [0, 0, 2, 2], [0, 1, 2, 2]])
    second = torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 0, 1]])
    assert transport_cost(first, second, centers).tolist() == pytest.approx([5, 4.5, 0], abs=1e-6)


def test_what_rounding_leaves_over_costs_nothing():
    """Where all centers are equally far apart, the cost is the share of the tokens that differ."""
    first = [[38] * 60 + [52] * 3, [38] * 60 + [52] * 3]
    second = [[4] + [13] * 26 + [61] * 4 + [74] + [163] + [219] * 30, [4] + [13] * 26 + [38] * 36]
    second += [[token for token in range(20) for _ in range(3)] + [52] * 3]
    found = transport_cost(torch.tensor([*first, first[0]]), torch.tensor(second), torch.eye(256) / 2**0.5)
    assert found.tolist() == pytest.approx([1, 27 / 63, 60 / 63], abs=1e-6)


def test_transport_of_a_pair_does_not_depend_on_the_others():
    centers, first, second = clustered_centers(), songs(5), songs(5)
    first[0] = 0
    alone = torch.cat([transport_cost(a[None], b[None], centers) for a, b in zip(first, second, strict=True)])
    assert transport_cost(first, second, centers).tolist() == pytest.approx(alone.tolist(), rel=1e-9)


def test_entropy_is_scipys():
    tokens = songs(4)
    counts = [np.bincount(row, minlength=256) for row in tokens.numpy()]
    assert entropy(tokens, 256).tolist() == pytest.approx([scipys_entropy(c, base=2) for c in counts])


def test_planted_copies_are_found_and_others_are_not():
    """Exact copies, and such as have some of their tokens replaced by near or by any others; the threshold knows none.

    Of each kind 95 % or more are found, and of 400 continuations that copy nothing at most 1 % are taken for copies.
    """
    centers, training = clustered_centers(), songs(400)
    threshold = threshold_for(unrelated_costs(training, training, centers, pairs=500), 0.002)
    target = songs(600)
    copies = {
        "exact": target[:50].clone(),
        "a tenth near": with_near_tokens(target[50:100], 0.1),
        "half near": with_near_tokens(target[100:150], 0.5),
        "a tenth other": with_other_tokens(target[150:200], 0.1),
    }
    for (kind, generated), followed in zip(copies.items(), target[:200].split(50), strict=True):
        metric = Memorization(centers, threshold)
        metric.update(generated, followed)
        found = metric.compute()
        assert found["approximate"] >= 0.95, kind
        assert found["exact"] == (kind == "exact"), kind
    metric = Memorization(centers, threshold)
    metric.update(songs(200), target[400:])
    metric.update(target[200:400].roll(1, 0), target[200:400])  # what followed other prompts is no copy either
    found = metric.compute()
    assert found["exact"] == 0
    assert found["approximate"] <= 0.01
    assert found["match_entropy"].isnan() or found["approximate"] > 0


def test_threshold_leaves_fewer_false_positives_than_asked_for():
    costs = torch.rand(500, dtype=torch.float64)
    threshold = threshold_for(costs, 0.01)
    assert (costs < threshold).double().mean() < 0.01
    assert (costs <= threshold).double().mean() >= 0.01  # and no higher one does
    with pytest.raises(PartitaError, match="at least 10000"):
        threshold_for(costs, 1e-4)


def test_sequences_with_little_in_them_are_left_out():
    centers, target = clustered_centers(), songs(10)
    target[:4] = 7  # silence
    metric = Memorization(centers, 0.1, min_entropy=1.0)
    metric.update(target[:8].clone(), target[:8])
    metric.update(target[8:].flip(0), target[8:])
    found = metric.compute()
    assert found["left_out"].item() == pytest.approx(0.4)
    assert found["clips"] == 6
    assert found["exact"].item() == pytest.approx(4 / 6)
    assert found["match_entropy"] > 3
    assert found["target_entropy"].item() == pytest.approx(entropy(target[4:], 256).mean().item())
    with pytest.raises(PartitaError, match="at least two examples"):
        unrelated_costs(target[:4], target[:4], centers, min_entropy=1.0)
    metric.reset()
    metric.update(target[:4], target[:4])
    with pytest.raises(PartitaError, match="all 4 pairs"):
        metric.compute()


def test_merged_metrics_equal_one():
    centers, generated, target = clustered_centers(), songs(9), songs(9)
    one, other, whole = (Memorization(centers, 0.8) for _ in range(3))
    one.update(generated[:2], target[:2])
    other.update(generated[2:], target[2:])
    whole.update(generated, target)
    one.merge_state(other)
    merged = one.compute()
    for name, value in whole.compute().items():
        assert merged[name].item() == pytest.approx(value.item(), rel=1e-9, nan_ok=True), name


def test_mistakes_are_named():
    metric = Memorization(torch.eye(4), 0.1)
    with pytest.raises(PartitaError, match="of the same shape"):
        metric.update(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(PartitaError, match=r"\[0, 4\)"):
        metric.update(torch.tensor([[4]]), torch.tensor([[0]]))
    with pytest.raises(ValueError, match="threshold"):
        Memorization(torch.eye(4), 0.0)
