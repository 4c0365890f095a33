import zlib

import pytest
import torch

from partita.conditioners.lookup import Lookup
from partita.core.part import Part
from toys import told


def test_a_word_is_the_same_in_any_case_and_punctuation():
    prepared = Lookup().prepare(told(["Slow, CHORALE!", "chorale slow"]))
    assert prepared["words"][0].tolist() == prepared["words"][1].flip(0).tolist()
    assert prepared["words"][0, 0] == zlib.crc32(b"slow") % 4096


def test_short_texts_are_padded_and_missing_ones_masked():
    conditioner = Lookup(dim=5)
    prepared = conditioner.prepare(told(["church organ in d minor", None, "flute", "", "  "]))
    assert prepared["mask"].sum(1).tolist() == [5, 0, 1, 0, 0]
    condition = conditioner(prepared)
    assert condition.values.shape == (5, 5, conditioner.spec.dim)
    assert (condition.values[~condition.mask] == 0).all()
    assert (condition.values[condition.mask] != 0).all()


def test_nothing_but_missing_texts():
    conditioner = Lookup()
    condition = conditioner(conditioner.prepare(told([None, None])))
    null = conditioner.null(condition)
    assert condition.mask.shape == (2, 1)
    assert not condition.mask.any()
    assert torch.equal(condition.values, null.values)


def test_padding_does_not_change_a_text():
    conditioner = Lookup()
    alone = conditioner(conditioner.prepare(told(["solo flute"])))
    among = conditioner(conditioner.prepare(told(["a much longer text", "solo flute"])))
    assert torch.equal(among.values[1, :2], alone.values[0])


def test_words_past_the_limit_are_left_out():
    assert Lookup(max_words=3).prepare(told(["one two three four five"]))["words"].shape == (1, 3)


def test_word_dropout_acts_in_training_only_and_belongs_to_the_seed():
    conditioner = Lookup(max_words=1000, word_dropout=0.3)
    text = " ".join(f"word{i}" for i in range(1000))
    assert conditioner.prepare(told([text]))["mask"].sum() == 1000
    kept = conditioner.prepare(told([text], seeds=[1]))
    assert kept["mask"].sum() == pytest.approx(700, abs=50)
    assert torch.equal(conditioner.prepare(told(["other", text], seeds=[0, 1]))["words"][1], kept["words"][0])
    assert not torch.equal(conditioner.prepare(told([text], seeds=[2]))["words"], kept["words"])


def test_it_learns():
    conditioner = Lookup(dim=3, num_embeddings=10)
    conditioner(conditioner.prepare(told(["flute"]))).values.sum().backward()
    assert (conditioner.embeddings.weight.grad.abs().sum(1) > 0).sum() == 1


def test_saved_and_loaded(tmp_path):
    conditioner = Lookup(dim=3, num_embeddings=10)
    conditioner.save(tmp_path / "text")
    loaded = Part.load(tmp_path / "text")
    prepared = conditioner.prepare(told(["a flute"]))
    assert torch.equal(loaded(prepared).values, conditioner(prepared).values)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="must be at least 1"):
        Lookup(max_words=0)
    with pytest.raises(ValueError, match=r"word_dropout must be in \[0, 1\)"):
        Lookup(word_dropout=1.0)
    with pytest.raises(TypeError, match="a prompt must be text, not int"):
        Lookup().prepare(told([3]))
