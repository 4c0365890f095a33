import pytest
import torch

from partita.core.part import Part
from partita.errors import PartitaError
from partita.tokenizers.ast import AudioSpectrogramTransformer

transformers = pytest.importorskip("transformers")

SHAPE = {"labels": 5, "width": 16, "feed_forward_width": 24, "depth": 2, "num_heads": 2}
WINDOW = 163840


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as transformers writes one, of a tiny AST; and that model."""
    folder = tmp_path_factory.mktemp("ast")
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_labels=5
    )
    model = transformers.ASTForAudioClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder, model


def load(folder, **options):
    tokenizer = AudioSpectrogramTransformer(**{**SHAPE, **options})
    tokenizer.load_weights(folder)
    return tokenizer


def heard(clips):
    extractor = transformers.ASTFeatureExtractor()
    return extractor([clip.numpy() for clip in clips], sampling_rate=16000, return_tensors="pt")["input_values"]


@pytest.mark.parametrize("samples", [160000, WINDOW, 40_001, 400])
def test_spectra_and_logits_are_those_of_transformers(checkpoint, samples):
    folder, model = checkpoint
    audio = torch.randn(2, 1, samples) * torch.tensor([0.1, 0.3])[:, None, None]
    values = heard(audio[:, 0])
    logits, embedding = load(folder), load(folder, output="embedding")
    torch.testing.assert_close(logits.spectrogram(audio[:, 0]), values, rtol=0, atol=1e-4)
    with torch.no_grad():
        expected = model(values).logits
        pooled = model.audio_spectrogram_transformer(values).pooler_output
    found = logits.encode(audio)
    assert found.shape == (2, 5, 1)
    assert (found[0] - found[1]).abs().max() > 1e-4
    torch.testing.assert_close(found[..., 0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(embedding.encode(audio)[..., 0], pooled, rtol=0, atol=1e-4)


def test_the_last_window_of_a_long_clip_ends_with_it(checkpoint):
    tokenizer = load(checkpoint[0])
    audio = torch.randn(1, 1, 2 * WINDOW + 1000)
    found = tokenizer.encode(audio)
    assert found.shape == (1, 5, 3)
    torch.testing.assert_close(found[..., 1:2], tokenizer.encode(audio[..., WINDOW : 2 * WINDOW]))
    torch.testing.assert_close(found[..., 2:], tokenizer.encode(audio[..., -WINDOW:]))
    assert tokenizer.encode(audio[..., : 2 * WINDOW]).shape[-1] == 2
    assert tokenizer.encode(audio[..., :10]).isfinite().all()


def test_it_says_what_it_yields(checkpoint):
    logits, embedding = (AudioSpectrogramTransformer(output=output, **SHAPE) for output in ("logits", "embedding"))
    assert logits.logits
    assert not embedding.logits
    assert (logits.spec.dim, embedding.spec.dim) == (5, 16)
    assert 16000 / logits.spec.frame_rate == WINDOW


def test_newer_names_and_pickles(checkpoint, tmp_path):
    """transformers writes the names of the Hub's checkpoint, but its own modules have others by now."""
    folder, model = checkpoint
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    expected = load(folder).exported_state()
    assert all(torch.equal(expected[name], tensor) for name, tensor in load(tmp_path).exported_state().items())


def test_it_is_saved_alone_and_stays_frozen(checkpoint, tmp_path):
    tokenizer = load(checkpoint[0]).train()
    tokenizer.save(tmp_path / "part")
    audio = torch.randn(1, 1, 4000)
    assert torch.equal(Part.load(tmp_path / "part").encode(audio), tokenizer.encode(audio))
    assert not tokenizer.training
    assert not any(p.requires_grad for p in tokenizer.parameters())
    with pytest.raises(NotImplementedError):
        tokenizer.decode(tokenizer.encode(audio))


def test_other_weights_are_refused(checkpoint):
    with pytest.raises(PartitaError, match=r"missing: blocks\.2\."):
        load(checkpoint[0], depth=3)
    with pytest.raises(PartitaError, match=r"head\.weight \[5, 16\] instead of \[7, 16\]"):
        load(checkpoint[0], labels=7)
    with pytest.raises(PartitaError, match="no weights at"):
        load(checkpoint[0] / "nothing")


def test_sizes_are_those_of_the_published_model():
    """Those of transformers' default configuration, with AudioSet's 527 labels."""
    with torch.device("meta"):
        tokenizer = AudioSpectrogramTransformer()
        model = transformers.ASTForAudioClassification(transformers.ASTConfig(num_labels=527))
    assert sum(p.numel() for p in tokenizer.parameters()) == sum(p.numel() for p in model.parameters())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="output"):
        AudioSpectrogramTransformer(output="labels")
    with pytest.raises(ValueError, match="multiple"):
        AudioSpectrogramTransformer(num_heads=7)
