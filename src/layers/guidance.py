"""Guidance as a list of terms, for codes and latents: which conditions each keeps, and its weight.

Classifier-free guidance (arXiv 2207.12598), the double guidance of MusicGen-Style (arXiv 2407.12563 §4.2) and negative
prompts (another condition instead of the null) are all sums of predictions under some of the conditions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.contracts import Condition


@dataclass(frozen=True)
class Term:
    """One term of guidance: the prediction under the conditions ``keep`` names (the rest null), times ``weight``.

    ``keep`` is ``None`` for all conditions. The weights of a list of terms sum to one. Plain classifier-free guidance
    with scale g is ``[Term(None, g), Term((), 1 - g)]``.
    """

    keep: tuple[str, ...] | None
    weight: float

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            raise ValueError(f"keep holds the names of conditions: write ({self.keep!r},)")
        if not isinstance(self.keep, Sequence | None) or not all(isinstance(name, str) for name in self.keep or ()):
            raise ValueError(f"keep holds the names of conditions, or is None for all, not {self.keep!r}")


def classifier_free(scale: float) -> list[Term]:
    """Guidance ``null + scale · (conditional − null)``; at scale 1 the conditional prediction alone.

    >>> classifier_free(3.0)
    [Term(keep=None, weight=3.0), Term(keep=(), weight=-2.0)]
    """
    return [Term(None, 1.0)] if scale == 1 else [Term(None, scale), Term((), 1 - scale)]


def nested_guidance(inner: tuple[str, ...], outer_scale: float, inner_scale: float) -> list[Term]:
    """Double guidance: ``null + outer · (inner + inner_scale · (all − inner) − null)``.

    This is the formula of MusicGen-Style (arXiv 2407.12563): ``inner`` is ``("style",)``, "all" is style and text,
    ``outer_scale`` is α (3 there) and ``inner_scale`` is β: above 1 it pushes the text, at 1 it is plain guidance.

    Args:
        inner: Names of the conditions that the middle prediction keeps.
        outer_scale: Guidance scale away from the null.
        inner_scale: Guidance scale away from the inner conditions alone.
    """
    return [
        Term(None, outer_scale * inner_scale),
        Term(inner, outer_scale * (1 - inner_scale)),
        Term((), 1 - outer_scale),
    ]


def double_weights(
    scales: tuple[float, float], inner: tuple[str, ...], conditions: Mapping[str, Condition]
) -> tuple[list[Term], Tensor]:
    """Double guidance, with plain guidance for the samples that have none of the inner conditions.

    Args:
        scales: The outer and the inner scale.
        inner: Names of the conditions that the middle prediction keeps.
        conditions: The conditions of the samples by name.

    Returns:
        The terms that contribute, and their weights ``[terms, B]`` for each sample.
    """
    terms = checked_terms(nested_guidance(inner, *scales), list(conditions))
    plain = {None: scales[0], inner: 0.0, (): 1 - scales[0]}
    has = torch.stack([conditions[name].mask.any(1) for name in inner]).any(0)
    double = torch.tensor([[term.weight] for term in terms], device=has.device)
    return terms, torch.where(has, double, torch.tensor([[plain[term.keep]] for term in terms], device=has.device))


def checked_terms(terms: Sequence[Term], names: Sequence[str]) -> list[Term]:
    """The terms that contribute. Without conditions, all terms predict the same, so a single one remains.

    Raises:
        ValueError: The weights do not sum to one, or a term keeps a condition that is not among ``names``.
    """
    unknown = sorted({name for term in terms for name in term.keep or () if name not in names})
    if unknown:
        raise ValueError(f"guidance keeps {', '.join(unknown)}, but the stage is given {', '.join(names) or 'nothing'}")
    total = sum(term.weight for term in terms)
    if abs(total - 1) > 1e-4:
        raise ValueError(f"the weights of the guidance terms must sum to 1, not {total:g}")
    if not names:
        return [Term(None, 1.0)]
    return [term for term in terms if term.weight != 0]


def conditions_of(terms: Sequence[Term], pairs: dict[str, tuple[Condition, Condition]]) -> dict[str, Condition]:
    """Conditions of all terms as one batch, term by term, from pairs (condition, null)."""
    return {
        name: Condition.cat([condition if term.keep is None or name in term.keep else null for term in terms])
        for name, (condition, null) in pairs.items()
    }


def combine(predictions: Tensor, terms: Sequence[Term], weights: Tensor | None = None) -> Tensor:
    """The weighted sum ``[B, ...]`` of predictions ``[terms · B, ...]``, in the order of :func:`conditions_of`.

    Args:
        predictions: The predictions.
        terms: The terms, whose weights count for all samples.
        weights: Weights ``[terms, B]`` in the place of those of the terms.
    """
    if weights is not None:
        return torch.einsum("nb,nb...->b...", weights.to(predictions.dtype), predictions.unflatten(0, (len(terms), -1)))
    if len(terms) == 1:
        return predictions * terms[0].weight
    weights = torch.tensor([term.weight for term in terms], dtype=predictions.dtype, device=predictions.device)
    return torch.einsum("n,n...->...", weights, predictions.unflatten(0, (len(terms), -1)))
