import json
import shutil

import pytest
import torch
from joint_toys import minute

from partita.conditioners.text_towers.pretrained_text import EncoderShape, PretrainedText
from partita.core.part import Part
from partita.errors import PartitaError
from partita.storage.tensor_file import read_tensors, write_tensors

transformers = pytest.importorskip("transformers")

TEXTS = ["slow chorale for church organ", "flute", "a fast waltz"]
WORDS = ["slow", "chorale", "for", "church", "organ", "flute", "a", "fast", "waltz"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE = EncoderShape(16, 24, depth=2, num_heads=2, vocabulary=32, num_positions=24)


def text_tokenizer(folder):
    """The text tokenizer of a BERT: whole words, with [CLS] before and [SEP] after them."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as transformers writes one: a whole tiny BERT with its head and its text tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=32, max_position_embeddings=24, **SIZES)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    text_tokenizer(folder)
    return folder


def tower(source, **options):
    return PretrainedText(**{"source": str(source), "shape": SHAPE, "max_length": 24} | options)


def begun(source, **options):
    part = minute(text_tower=tower(source, **options))
    part.setup("fit")
    return part.eval()


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_training_starts_from_what_transformers_computes(checkpoint, pooling):
    part = begun(checkpoint, pooling=pooling)
    batch = transformers.AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    tokens, mask = part.tokenize(TEXTS)
    assert torch.equal(tokens, batch["input_ids"])
    with torch.no_grad():
        hidden = transformers.BertModel.from_pretrained(checkpoint).eval()(**batch).last_hidden_state
        mean = torch.stack([row[known].mean(0) for row, known in zip(hidden, mask, strict=True)])
        expected = part.text_tower.output(hidden[:, 0] if pooling == "first" else mean)
        torch.testing.assert_close(part.text_tower(tokens, mask), expected, rtol=0, atol=1e-5)
    loss = part.train().text_tower(tokens, mask).sum()
    loss.backward()
    assert part.text_tower.encoder.embeddings.word_embeddings.weight.grad.any()


def test_weights_under_older_names(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    state = read_tensors(checkpoint / "model.safetensors")
    older = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in state.items()
    }
    assert older.keys() != state.keys()
    write_tensors(older, tmp_path / "model.safetensors")
    assert torch.equal(
        begun(tmp_path).text_tower(*begun(checkpoint).tokenize(TEXTS)),
        begun(checkpoint).text_tower(*begun(checkpoint).tokenize(TEXTS)),
    )


def test_a_saved_part_loads_without_its_source(checkpoint, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    part = begun(source)
    with torch.no_grad():  # as if it were trained
        part.text_tower.encoder.embeddings.word_embeddings.weight.add_(0.1)
    part.save(tmp_path / "saved")
    shutil.rmtree(source)
    again = Part.load(tmp_path / "saved")
    assert torch.equal(again.embed_text(TEXTS), part.embed_text(TEXTS))
    assert again.fingerprint() == part.fingerprint()
    again.setup("fit")  # further training starts from the saved weights
    assert torch.equal(again.eval().embed_text(TEXTS), part.embed_text(TEXTS))


def test_the_text_tokenizer_is_part_of_the_digest(checkpoint):
    part = begun(checkpoint)
    before = part.fingerprint()
    part.text_tower.tokenizer.add_tokens(["harp"])
    assert part.fingerprint() != before


def test_long_texts_are_cut_and_empty_ones_are_embedded(checkpoint):
    part = begun(checkpoint)
    tokens, mask = part.tokenize(["slow " * 2000, ""])
    assert tokens.shape == (2, 24)
    embedded = part.embed_text(["slow " * 2000, "", "笛"])
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    nothing = part.text_tower(tokens, torch.zeros_like(mask))
    assert nothing.isfinite().all()


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta", "mpnet"])
def test_other_architectures(architecture, checkpoint, tmp_path):
    """Their weights, with the text tokenizer of a BERT: only the weights are compared here."""
    shape = EncoderShape(16, 24, depth=2, num_heads=2, vocabulary=32, num_positions=26, num_types=1)
    own = tower(tmp_path, architecture=architecture, shape=shape)
    config = own._class("Config")(
        vocab_size=32, max_position_embeddings=26, layer_norm_eps=1e-12, type_vocab_size=1, **SIZES
    )
    torch.manual_seed(1)
    model = own._class("Model")(config).eval()
    model.save_pretrained(tmp_path)
    own.build(4)
    own._check(json.loads((tmp_path / "config.json").read_text()))
    own._load(read_tensors(tmp_path / "model.safetensors"))
    tokens = torch.tensor([[4, 5, 6, 7], [8, 9, 1, 1]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.no_grad():
        hidden = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(own.eval()(tokens, mask), own.output(hidden[:, 0]), rtol=0, atol=1e-5)


def test_other_models_are_refused(checkpoint, tmp_path):
    for options, message in (
        (
            {"shape": EncoderShape(16, 24, depth=3, num_heads=2, vocabulary=32, num_positions=24)},
            r"shape\.depth here 3",
        ),
        ({"architecture": "roberta", "max_length": 22}, "architecture here 'roberta'"),
    ):
        with pytest.raises(PartitaError, match=message):
            begun(checkpoint, **options)
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(PartitaError, match="hidden_act is 'relu'"):
        begun(tmp_path)
    code = {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation_internal": "someone/kernel"}
    (tmp_path / "config.json").write_text(json.dumps(config | code))
    begun(tmp_path)  # nothing but the sizes is read
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(PartitaError, match=r"no tokenizer\.json"):
        begun(tmp_path)
    state = read_tensors(tmp_path / "model.safetensors")
    write_tensors({name: t for name, t in state.items() if "query" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(PartitaError, match="4 weights of the text encoder are missing"):
        begun(tmp_path)
    with pytest.raises(PartitaError, match="no such file or folder"):
        begun(tmp_path / "nothing")


def test_texts_need_a_tokenizer(checkpoint):
    part = minute(text_tower=tower(checkpoint))
    with pytest.raises(PartitaError, match="no text tokenizer yet"):
        part.embed_text(TEXTS)


def test_sizes_are_those_of_bert_base():
    """BERT-base, uncased, has 108,891,648 parameters without its pooler."""
    with torch.device("meta"):
        made = PretrainedText()
        made.build(128)
    assert sum(p.numel() for p in made.encoder.parameters()) == 108_891_648
    with pytest.raises(ValueError, match="max_length"):
        PretrainedText(max_length=513)
    with pytest.raises(ValueError, match="architecture"):
        PretrainedText(architecture="gpt2")
