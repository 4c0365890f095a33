"""Representations that are generated together, and chains with several ends."""

import pytest
import torch
import yaml

import partita
from partita.core.contracts import Example, Generated, RepresentationSpec
from partita.core.reference import stacked, unstacked
from partita.data.clips import tokenizer_audio
from partita.recipe.plan import load_recipe
from partita.system.system import System

DUET = {
    "tokenizers": {
        "low": {"name": "toy-codec", "reads": "stems.low"},
        "high": {"name": "toy-codec", "reads": "stems.high"},
    },
    "stages": {
        "one": {"generator": "toy-dice", "target": "low", "window": 1.0},
        "two": {"generator": "toy-dice", "target": "high", "window": 1.0},
    },
    "data": {"name": "corpus", "stems": True},
}


def system(tmp_path, *changes):
    (tmp_path / "duet.yaml").write_text(yaml.safe_dump(DUET))
    return System(load_recipe(tmp_path / "duet.yaml", changes))


def test_two_stages_end_a_chain_and_are_mixed(tmp_path):
    made = system(tmp_path)
    codes = {name: torch.randint(16, (2, 1, 20)) for name in ("low", "high")}
    mix = made.decode({name: Generated(values) for name, values in codes.items()})
    levels = [(values / 15 * 2 - 1).repeat_interleave(100, -1) for values in codes.values()]
    torch.testing.assert_close(mix, sum(levels).clamp(-1, 1))
    ends = made.decode_ends({name: Generated(values) for name, values in codes.items()})
    assert list(ends) == ["low", "high"]
    torch.testing.assert_close(list(ends.values()), levels)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["tokenizers.high.reads=null"], "one and two all end the chain, but only one can be decoded to audio"),
        (["tokenizers.high.reads=stems.low"], "one and two all end the chain, but only one can be decoded to audio"),
        (["tokenizers.high.reads=stem.high"], "'stem.high' is not an audio field: did you mean 'stems'"),
        (["tokenizers.high.reads=stems"], "a stem as stems.NAME"),
        (["data.stems=false"], "does not supply 'stems', which tokenizers.low reads"),
        (["stages.two=null", "stages.one.target=[low, high]", "tokenizers.high.hop=50"], "has one frame rate"),
        (["stages.two=null", "stages.one.target=[low, low]"], "low is named twice"),
        (["stages.one.target=[]"], "expected a representation or a list of them"),
        (["stages.one.target=[low, high]"], "an earlier stage already generates high"),
        (
            ["stages.two=null", "stages.one.target=[low, hihg]"],
            "'hihg' is not a tokenizer of this recipe: did you mean 'high'",
        ),
    ],
)
def test_what_cannot_be_generated_together(tmp_path, changes, words):
    with pytest.raises(partita.PartitaError, match=words):
        system(tmp_path, *changes)


def test_codes_and_latents_are_stacked_and_taken_apart():
    codes = [RepresentationSpec(16000, 1, 50.0, 2, 8), RepresentationSpec(16000, 1, 50.0, 1, 5)]
    assert stacked(codes).cardinalities == (8, 8, 5)
    assert stacked(codes[:1] * 2).cardinality == 8
    latents = [RepresentationSpec(16000, 1, 50.0, dim=3), RepresentationSpec(16000, 1, 50.0, dim=4)]
    assert stacked(latents).dim == 7
    parts = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    assert all(map(torch.equal, unstacked(torch.cat(parts, 1), latents), parts))
    with pytest.raises(ValueError, match="codes and latents"):
        stacked([codes[0], latents[0]])


def test_what_is_read_of_an_example():
    """A stem as it is, cut or padded to the clip, silent where others are known, and nothing where none is."""
    mix, stem = torch.randn(1, 100), torch.randn(1, 80)
    example = Example(mix, 100, {"stems": {"low": stem}})
    assert tokenizer_audio(example, None, 4000) is mix
    low = tokenizer_audio(example, "stems.low", 4000)
    assert torch.equal(low[:, :80], stem)
    assert low.shape == (1, 100)
    assert not low[:, 80:].any()
    assert torch.equal(tokenizer_audio(example, "stems.high", 4000), torch.zeros(1, 100))
    assert tokenizer_audio(Example(mix, 100, {}), "stems.low", 4000) is None
