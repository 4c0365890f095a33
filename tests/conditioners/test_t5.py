from dataclasses import replace

import pytest
import torch

from partita.conditioners.t5 import T5, T5Shape
from partita.core.contracts import Condition
from partita.core.part import Part
from partita.errors import PartitaError
from toys import told

transformers = pytest.importorskip("transformers")

SHAPE = {"shape": T5Shape(16, 24, depth=2, num_heads=2, head_width=8, vocabulary=64)}
TEXTS = ["slow chorale for church organ", "flute", "a fast waltz"]


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def checkpoint(request, t5_checkpoint):
    return t5_checkpoint(request.param, TEXTS), request.param


def load(checkpoint, **options):
    folder, feed_forward = checkpoint
    conditioner = T5(feed_forward=feed_forward, **{**SHAPE, **options})
    conditioner.load_weights(folder)
    return conditioner


def test_embeddings_are_those_of_transformers(checkpoint):
    folder, _ = checkpoint
    conditioner = load(checkpoint)
    condition = conditioner(conditioner.prepare(told(TEXTS)))
    reference = transformers.T5EncoderModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**tokens).last_hidden_state
    assert condition.values.shape == (3, tokens["input_ids"].shape[1], conditioner.spec.dim)
    assert torch.equal(condition.mask, tokens["attention_mask"].bool())
    torch.testing.assert_close(condition.values[condition.mask], expected[condition.mask], rtol=0, atol=1e-5)
    assert (condition.values[~condition.mask] == 0).all()


def test_a_missing_text_is_null(checkpoint):
    conditioner = load(checkpoint)
    condition = conditioner(conditioner.prepare(told(["flute", None, "  "])))
    assert condition.mask.any(1).tolist() == [True, False, False]
    assert condition.values.isfinite().all()
    assert (condition.values[1:] == 0).all()
    null = conditioner.null(condition)
    assert torch.equal(null.values[1:], condition.values[1:])
    nothing = conditioner(conditioner.prepare(told([None])))
    assert not nothing.mask.any()


def test_the_batch_around_a_text_does_not_matter(checkpoint):
    conditioner = load(checkpoint)
    alone: Condition = conditioner(conditioner.prepare(told(["flute"])))
    among = conditioner(conditioner.prepare(told([TEXTS[0], "flute"])))
    length = alone.mask.shape[1]
    torch.testing.assert_close(among.values[1, :length], alone.values[0], rtol=0, atol=1e-5)
    assert not among.mask[1, length:].any()


def test_it_stays_frozen_and_in_float32(checkpoint):
    conditioner = load(checkpoint).train()
    prepared = conditioner.prepare(told(TEXTS))
    expected = conditioner(prepared)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        condition = conditioner(prepared)
    assert torch.equal(condition.values, expected.values)
    assert condition.values.dtype == torch.float32
    assert not condition.values.requires_grad
    assert not any(p.requires_grad for p in conditioner.parameters())


def test_saved_it_loads_alone_with_its_tokenizer(checkpoint, tmp_path):
    conditioner = load(checkpoint)
    conditioner.save(tmp_path / "text")
    conditioner.save(tmp_path / "text")  # over an older one
    loaded = Part.load(tmp_path / "text")
    assert torch.equal(loaded(loaded.prepare(told(TEXTS))).values, conditioner(conditioner.prepare(told(TEXTS))).values)


def test_long_texts_are_cut_and_words_dropped_in_training_only(checkpoint):
    conditioner = load(checkpoint, max_length=9, word_dropout=0.5)
    text = "flute " * 40
    assert conditioner.prepare(told([text]))["tokens"].shape == (1, 9)
    conditioner = load(checkpoint, word_dropout=0.5)
    whole = conditioner.prepare(told([text]))["mask"].sum()
    dropped = conditioner.prepare(told([text, text], seeds=[0, 1]))
    assert (dropped["mask"].sum(1) < whole).all()
    assert not torch.equal(dropped["mask"][0], dropped["mask"][1])
    assert torch.equal(conditioner.prepare(told([text], seeds=[1]))["mask"].sum(1)[0], dropped["mask"].sum(1)[1])


def test_without_weights_there_is_no_tokenizer():
    conditioner = T5(**SHAPE)
    assert not conditioner(conditioner.prepare(told([None, None]))).mask.any()
    with pytest.raises(PartitaError, match="no text tokenizer yet"):
        conditioner.prepare(told(["flute"]))


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint, tmp_path):
    folder, feed_forward = checkpoint
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(PartitaError, match="no text tokenizer"):
        T5(feed_forward=feed_forward, **SHAPE).load_weights(tmp_path)


def test_weights_of_another_size_are_refused(checkpoint):
    with pytest.raises(PartitaError, match="missing"):
        load(checkpoint, shape=replace(SHAPE["shape"], depth=3))
    with pytest.raises(PartitaError, match="no such file or folder"):
        T5(**SHAPE).load_weights("/nowhere/at/all")


@pytest.mark.parametrize(
    ("size", "feed_forward", "vocabulary"), [("small", "relu", 32128), ("base", "gated-gelu", 250112)]
)
def test_sizes_are_those_of_the_published_configurations(size, feed_forward, vocabulary):
    """Parameters of the encoders of google-t5/t5-small and google/mt5-base, from their published configurations."""
    width, hidden, depth, num_heads, projections = {"small": (512, 2048, 6, 8, 2), "base": (768, 2048, 12, 12, 3)}[size]
    with torch.device("meta"):
        conditioner = T5(size=size, feed_forward=feed_forward, shape=T5Shape(vocabulary=vocabulary))
    block = 4 * width * num_heads * 64 + projections * width * hidden + 2 * width
    expected = vocabulary * width + 32 * num_heads + depth * block + width
    assert sum(p.numel() for p in conditioner.parameters()) == expected
    assert conditioner.spec.dim == width


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="word_dropout"):
        T5(**SHAPE, word_dropout=-0.1)
    with pytest.raises(ValueError, match="max_length"):
        T5(**SHAPE, max_length=0)


def test_another_vocabulary_has_another_fingerprint(checkpoint, t5_checkpoint):
    one, same = load(checkpoint), load(checkpoint)
    other = load((t5_checkpoint(checkpoint[1], ["quite other words than before"]), checkpoint[1]))
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), one.state_dict().values(), strict=True))
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != other.fingerprint()
