import math

import pytest
import torch

from partita.layers.contrastive import decoupled_loss, sigmoid_loss, softmax_loss

SCALE, BIAS = torch.tensor(3.0), torch.tensor(-0.7)


def matrices(number, seed=0):
    draw = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, number, 4, generator=draw, dtype=torch.float64)
    return first / first.norm(dim=1, keepdim=True), second / second.norm(dim=1, keepdim=True)


def all_negatives(number):
    return ~torch.eye(number, dtype=torch.bool)


def loop(first, second, negatives, term):
    """The mean over both directions and all rows of what a term makes of a positive and its negatives."""
    total = 0.0
    for queries, keys, allowed in ((first, second, negatives), (second, first, negatives.T)):
        terms = []
        for i, query in enumerate(queries):
            scores = [
                float(SCALE) * sum(a * b for a, b in zip(query.tolist(), key.tolist(), strict=True)) for key in keys
            ]
            others = [score for j, score in enumerate(scores) if allowed[i, j]]
            terms.append(term(scores[i], others))
        terms = [one for one in terms if one is not None]
        total += sum(terms) / len(terms) / 2
    return total


def softmax_term(positive, negatives):
    return -math.log(math.exp(positive) / sum(map(math.exp, [positive, *negatives])))


def decoupled_term(positive, negatives):
    return -positive + math.log(sum(map(math.exp, negatives))) if negatives else None


@pytest.mark.parametrize(("loss", "term"), [(softmax_loss, softmax_term), (decoupled_loss, decoupled_term)])
def test_losses_are_those_of_a_loop(loss, term):
    first, second = matrices(5)
    negatives = all_negatives(5)
    negatives[1, 3] = negatives[3, 1] = negatives[0, 2] = False
    expected = loop(first, second, negatives, term)
    assert loss(first, second, SCALE, negatives).item() == pytest.approx(expected, abs=1e-9)


def test_rows_without_negatives_do_not_count_in_the_decoupled_loss():
    first, second = matrices(3)
    negatives = all_negatives(3)
    negatives[0] = negatives[:, 0] = False
    first.requires_grad_()
    loss = decoupled_loss(first, second, SCALE, negatives)
    assert loss.item() == pytest.approx(loop(first.detach(), second, negatives, decoupled_term), abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, first)
    assert gradient.isfinite().all()
    assert not gradient[0].any()
    assert decoupled_loss(first, second, SCALE, torch.zeros(3, 3, dtype=torch.bool)).item() == 0


def test_the_sigmoid_loss_is_that_of_a_loop():
    first, second = matrices(4)
    negatives = all_negatives(4)
    negatives[2, 0] = negatives[0, 2] = False
    total = 0.0
    for i in range(4):
        for j in range(4):
            if i == j or negatives[i, j]:
                logit = float(SCALE * first[i] @ second[j] + BIAS) * (1 if i == j else -1)
                total += math.log(1 + math.exp(-logit))
    assert sigmoid_loss(first, second, SCALE, BIAS, negatives).item() == pytest.approx(total / 4, abs=1e-9)


def test_closed_forms():
    """Of orthogonal pairs that agree exactly, and of embeddings that are all the same."""
    number, scale = 6, torch.tensor(2.0)
    one_hot, same = torch.eye(number), torch.ones(number, 1)
    negatives = all_negatives(number)
    expected = math.log(1 + (number - 1) * math.exp(-2))
    assert softmax_loss(one_hot, one_hot, scale, negatives).item() == pytest.approx(expected)
    assert softmax_loss(same, same, scale, negatives).item() == pytest.approx(math.log(number))
    assert decoupled_loss(one_hot, one_hot, scale, negatives).item() == pytest.approx(math.log(number - 1) - 2)
    assert decoupled_loss(same, same, scale, negatives).item() == pytest.approx(math.log(number - 1))
    bias = torch.tensor(-1.0)
    expected = math.log(1 + math.exp(-1)) + (number - 1) * math.log(1 + math.exp(-1))
    assert sigmoid_loss(one_hot, one_hot, scale, bias, negatives).item() == pytest.approx(expected)


def test_both_directions_count_the_same():
    first, second = matrices(5)
    negatives = all_negatives(5)
    for loss in (softmax_loss, decoupled_loss):
        swapped = loss(second, first, SCALE, negatives.T)
        torch.testing.assert_close(loss(first, second, SCALE, negatives), swapped)
