import pytest
import torch

from partita.core.contracts import Condition
from partita.layers.guidance import Term, checked_terms, classifier_free, combine, conditions_of, nested_guidance


def test_classifier_free_guidance_is_the_published_formula():
    conditional, null = torch.randn(2, 3, 4, 10)
    guided = combine(torch.cat([conditional, null]), classifier_free(3.0))
    torch.testing.assert_close(guided, null + 3.0 * (conditional - null))


def test_double_guidance_is_the_published_formula():
    """MusicGen-Style, arXiv 2407.12563: l = l_null + α [l_style + β (l_both − l_style) − l_null]."""
    both, style, null = torch.randn(3, 2, 4, 10, dtype=torch.float64)
    alpha, beta = 3.0, 5.0
    guided = combine(torch.cat([both, style, null]), nested_guidance(("style",), alpha, beta))
    torch.testing.assert_close(guided, null + alpha * (style + beta * (both - style) - null))


def test_double_guidance_with_inner_scale_one_is_plain():
    terms = checked_terms(nested_guidance(("style",), 3.0, 1.0), ["style", "text"])
    assert terms == classifier_free(3.0)


def test_each_term_sees_what_it_keeps():
    def condition(value):
        return Condition(torch.full((2, 1, 1), value), torch.ones(2, 1, dtype=torch.bool))

    pairs = {"text": (condition(1.0), condition(-1.0)), "style": (condition(2.0), condition(-2.0))}
    terms = [Term(None, 2.0), Term(("style",), 0.5), Term((), -1.5)]
    batch = conditions_of(terms, pairs)
    assert batch["text"].values.flatten().tolist() == [1, 1, -1, -1, -1, -1]
    assert batch["style"].values.flatten().tolist() == [2, 2, 2, 2, -2, -2]


def test_a_stage_given_nothing_is_run_once():
    assert checked_terms(classifier_free(3.0), []) == [Term(None, 1.0)]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="guidance keeps melody, but the stage is given text"):
        checked_terms([Term(("melody",), 1.0)], ["text"])
    with pytest.raises(ValueError, match=r"must sum to 1, not 1\.5"):
        checked_terms([Term(None, 1.5)], ["text"])
    for keep in ("text", 5, (5,)):
        with pytest.raises(ValueError, match="keep holds the names of conditions"):
            Term(keep, 1.0)
