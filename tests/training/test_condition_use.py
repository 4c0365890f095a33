"""A stage whose loss is known in closed form says what it listens to, and what it does not."""

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import toys
from partita.core.contracts import Condition, Generated
from partita.core.registry import register
from partita.data.captions import tempo_class
from partita.data.corpus import Corpus
from partita.data.fields.values import TextField
from partita.generators.base import Generator
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.training.condition_use import condition_use

PARTS = """
tokenizers:
  acoustic: {name: toy-codec, hop: 1, cardinality: 256}
conditioners:
  text: toy-letters
  color: toy-color
stages:
  main: {generator: {name: toy-oracle}, target: acoustic, given: [text, color], window: 0.5}
data: {name: toy-tones}
"""


@register("data", "toy-tones")
class ToyTones(toys.ToySines):
    """Sines whose pitch and color the captions tell in one of two orders; some pieces have no caption.

    Args:
        pieces: How many.
        generation_gaps: So many of them have no caption.
        held: Pieces for validation.
    """

    fields = frozenset({"text", "id", "color", "pitch"})
    attributes = ("pitch", "color")

    def __init__(self, *, pieces: int = 6, generation_gaps: int = 0, held: int = 6):
        super().__init__(pieces=pieces)
        self.generation_gaps, self.held = generation_gaps, held

    def size(self, split):
        return self.pieces if split == "train" else self.held

    def read(self, split, index, **how):
        example = super().read(split, index, **how)
        known = {"pitch": f"p{index}", "color": "ab"[index % 2], "id": f"{split}{index}"}
        text = None if index < self.generation_gaps else f"{known['pitch']} {known['color']}"
        example.fields = {"text": text, **known}
        return example

    def reworded(self, fields, other, attribute):
        if fields["text"] is None or fields[attribute] == other[attribute]:
            return None
        return fields["text"].replace(fields[attribute], other[attribute])


@register("field", "color")
class Color(TextField):
    """The color of a tone."""


@register("conditioner", "toy-color")
class ToyColor(toys.ToyLetters):
    """Its letter.

    Args:
        dim: Width.
    """

    inputs = ("color",)


@register("generator", "toy-oracle")
class ToyOracle(Generator):
    """Loses 2 nats where the text names another pitch than the target has, beside noise; the rest is ignored.

    Args:
        noise: Of the loss, the same for the same seed.
    """

    discrete = True
    fusions = ("cross",)
    sampling = toys.Greed()

    def __init__(self, target, given, *, noise: float = 1.0):
        super().__init__(target, given)
        self.noise = noise
        self.unused = nn.Parameter(torch.zeros(()))

    def loss(self, target, mask, conditions):
        wave = target[:, 0].float() - 127.5
        crossings = (wave[:, 1:].sign() != wave[:, :-1].sign()).float().sum(-1) / (2 * wave.shape[-1] / 4000)
        pitch = (crossings / 100).round() - 1
        told = conditions["text"].values[:, 0, 1]  # of "p3", as the toy conditioner below leaves it
        return {"loss": (2 * (pitch != told).float()).mean() + self.noise * torch.randn(())}

    def generate(self, conditions, frames, *, seeds, **how):
        return Generated(torch.zeros(len(seeds), 1, frames, dtype=torch.long))


@register("conditioner", "toy-pitch")
class ToyPitch(toys.ToyLetters):
    """The second letter of a caption "p3 a", as a number; zero without a caption.

    Args:
        dim: Width.
    """

    def forward(self, prepared):
        letters = prepared["letters"][:, None, 1:2].float()
        values = F.pad(torch.where(letters > 0, letters - ord("0"), 0), (1, 6))
        return Condition(values, letters[:, 0] > 0)


def system(tmp_path, text="toy-pitch", **data):
    recipe = yaml.safe_load(PARTS)
    recipe["conditioners"]["text"] = text
    recipe["data"] |= data
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    made = System(load_recipe(path))
    with torch.no_grad():
        made.tokenizers["acoustic"].gain.fill_(1.0)
    return made


def rises(uses):
    return {use.what: use for use in uses}


def test_what_is_used_is_told_from_what_is_ignored(tmp_path):
    """Noise of the loss is far larger than nothing, and yet nothing is found where nothing is: it is shared."""
    found = rises(condition_use(system(tmp_path), clips=12))
    assert set(found) == {"text", "text: pitch", "text: color", "color"}
    for name in ("text", "text: pitch"):
        use = found[name]
        assert (use.rise, use.low, use.high) == (pytest.approx(2, abs=1e-6),) * 3
        assert use.verdict == "uses it"
    for name in ("text: color", "color"):
        use = found[name]
        assert (use.rise, use.low, use.high) == (0, 0, 0)
        assert use.verdict == "no effect found"
    assert all((use.clips, use.pieces, use.unit) == (12, 6, "nats") for use in found.values())


def test_only_clips_that_have_a_condition_count(lines, tmp_path):
    found = rises(condition_use(system(tmp_path, generation_gaps=2), clips=12))
    assert [(found[name].clips, found[name].pieces) for name in ("text", "text: pitch", "color")] == [
        (8, 4),
        (8, 4),
        (12, 6),
    ]
    assert rises(condition_use(system(tmp_path, generation_gaps=6), clips=12)).keys() == {"color"}
    assert lines == ["main: its use of text is not measured, because fewer than two pieces have it"]


def test_a_single_piece_is_told_what_belongs_to_training_clips(tmp_path):
    found = rises(condition_use(system(tmp_path, held=1), clips=4))
    use = found["text: pitch"]
    assert (use.rise, use.low, use.high, use.pieces) == (pytest.approx(2, abs=1e-6), None, None, 1)
    assert use.verdict == "too few pieces to tell"


def test_an_earlier_stage_is_a_condition_like_any_other(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        """
tokenizers:
  coarse: {name: toy-codec, hop: 100}
  fine: {name: toy-codec, hop: 50}
stages:
  coarse: {generator: {name: toy-dice}, target: coarse, given: [], window: 0.5}
  fine: {generator: {name: toy-copied}, target: fine, given: [coarse], window: 0.5}
data: toy-sines
"""
    )
    (use,) = condition_use(System(load_recipe(tmp_path / "recipe.yaml")), clips=8)
    assert (use.stage, use.condition, use.attribute) == ("fine", "coarse", None)
    assert use.low > 0


@register("generator", "toy-copied")
class ToyCopied(toys.ToyEcho):
    """Loses as far as the target is from what it is given."""

    def loss(self, target, mask, conditions):
        given = conditions["coarse"].values.repeat_interleave(2, -1)[..., : target.shape[-1]]
        return {"loss": (target - given).float().square().mean()}


def test_captions_of_the_corpus_change_in_one_attribute_alone():
    source = Corpus()
    fields = {"id": "bach/bwv1.6", "key": "G minor", "tempo": 60.0, "instruments": ["harp", "flute"]}
    other = {"id": "bach/bwv2.6", "key": "D minor", "tempo": 132.0, "instruments": ["choir"]}
    assert tempo_class(60) != tempo_class(132)
    cases = [
        ("a calm chorale in G minor for harp and flute", "key", "a calm chorale in D minor for harp and flute"),
        ("a calm chorale in G minor for harp and flute", "instruments", "a calm chorale in G minor for choir"),
        ("a calm chorale in G minor for harp and flute", "tempo", "a lively chorale in G minor for harp and flute"),
        ("a chorale at 60 bpm in G minor, harp and flute", "tempo", "a chorale at 132 bpm in G minor, harp and flute"),
        ("a calm chorale for harp and flute", "key", None),  # which it does not tell
        ("a calm minor-key chorale for harp and flute", "key", None),  # which is the same
        ("a calm chorale in G minor for harp and flute", "genre", None),
    ]
    for text, attribute, wanted in cases:
        assert source.reworded(fields | {"text": text}, other, attribute) == wanted
