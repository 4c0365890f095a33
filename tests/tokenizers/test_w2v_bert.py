import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from partita.core.part import Part
from partita.errors import PartitaError
from partita.tokenizers.encoding_windows import Windows
from partita.tokenizers.kmeans import KMeans
from partita.tokenizers.w2v_bert import W2vBert, W2vBertShape

transformers = pytest.importorskip("transformers")

SHAPE = W2vBertShape(width=16, feed_forward_width=24, num_heads=2, kernel=5, farthest_before=6, farthest_after=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as transformers writes one, of a tiny model of three layers; and that model."""
    folder = tmp_path_factory.mktemp("w2v-bert")
    torch.manual_seed(0)
    model = transformers.Wav2Vec2BertModel(
        transformers.Wav2Vec2BertConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            conv_depthwise_kernel_size=5,
            left_max_position_embeddings=6,
            right_max_position_embeddings=3,
        )
    ).eval()
    model.save_pretrained(folder)
    return folder, model


def load(folder, layer=2, **options):
    tokenizer = W2vBert(layer=layer, **{"network": SHAPE} | options)
    tokenizer.load_weights(folder)
    return tokenizer


def extracted(audio, frames):
    """The published extractor's frames of clips ``[B, T]``; the last whole mel frame is repeated up to a number."""
    extractor = transformers.SeamlessM4TFeatureExtractor()
    values = extractor([*audio.numpy()], sampling_rate=16000, return_tensors="pt").input_features
    return torch.cat([values, values[:, -1:, 80:].repeat(1, frames - values.shape[1], 2)], 1)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_features_are_those_of_transformers(checkpoint, layer):
    folder, model = checkpoint
    tokenizer = load(folder, layer)
    samples = 16000 + 40  # 98 whole mel frames, which make 49 pairs
    audio = torch.randn(2, samples) * torch.tensor([0.1, 0.3])[:, None] + 0.05
    frames = math.ceil(samples / 320)
    with torch.no_grad():
        expected = model(extracted(audio, frames), output_hidden_states=True).hidden_states[layer]
    features = tokenizer.encode(audio[:, None])
    assert features.shape == (2, 16, frames)
    assert tokenizer.spec.frame_rate == 50
    assert features.std(-1).mean() > 0.01
    torch.testing.assert_close(features, expected.mT, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 399, 400, 719, 720, 1600, 160000 + 1])
def test_any_length_has_a_frame_for_every_320_samples(checkpoint, samples):
    features = load(checkpoint[0], 1).encode(torch.randn(1, 1, samples) * 0.1)
    assert features.shape == (1, 16, math.ceil(samples / 320))
    assert features.isfinite().all()


def test_silence_has_features(checkpoint):
    assert load(checkpoint[0]).encode(torch.zeros(1, 1, 16000)).isfinite().all()


def test_a_long_clip_is_encoded_window_by_window(checkpoint):
    tokenizer = load(checkpoint[0], windows=Windows(seconds=2.0, context=0.5))
    audio = torch.randn(1, 1, 16000 * 10 + 77) * 0.1
    features = tokenizer.encode(audio)
    assert features.shape[-1] == math.ceil(audio.shape[-1] / 320)
    alone = tokenizer.encode(audio[..., 25 * 320 : 125 * 320])  # the second window
    torch.testing.assert_close(features[..., 50:100], alone[..., 25:75])
    lengths = []
    tokenizer.network.encoder.layers[0].register_forward_hook(lambda layer, given, out: lengths.append(out.shape[1]))
    tokenizer.encode(torch.zeros(1, 1, 16000 * 60))
    assert max(lengths) == 100


def test_a_clip_alone_is_encoded_as_in_a_batch(checkpoint):
    tokenizer, audio = load(checkpoint[0]), torch.randn(3, 1, 9000) * 0.1
    for clip, features in zip(audio, tokenizer.encode(audio), strict=True):
        torch.testing.assert_close(tokenizer.encode(clip[None])[0], features, rtol=0, atol=1e-5)


def test_other_weights_are_refused(checkpoint, tmp_path):
    folder, _ = checkpoint
    with pytest.raises(PartitaError, match=r"missing: network\.encoder\.layers\.3\."):
        load(folder, layer=4)
    save_file(load_file(folder / "model.safetensors") | {"lm_head.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(PartitaError, match=r"not of this part: network\.lm_head\.weight"):
        load(tmp_path / "x.safetensors")
    with pytest.raises(PartitaError, match="no weights at"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "other",
    [
        {"position_embeddings_type": "rotary"},
        {"add_adapter": True},
        {"num_attention_heads": 4},
        {"left_max_position_embeddings": 3, "right_max_position_embeddings": 6},
        {"model_type": "hubert"},
    ],
)
def test_other_models_are_refused(checkpoint, tmp_path, other):
    config = json.loads((checkpoint[0] / "config.json").read_text()) | other
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(checkpoint[0] / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(PartitaError, match=f"not this w2v-BERT 2.0.*{next(iter(other))}.*w2v-bert does not compute"):
        load(tmp_path)


def test_weights_in_pickles_are_not_read(checkpoint, tmp_path):
    torch.save(load_file(checkpoint[0] / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(PartitaError, match=r"none of model\.safetensors"):
        load(tmp_path)


def test_it_is_saved_alone_and_stays_frozen(checkpoint, tmp_path):
    tokenizer = load(checkpoint[0]).train()
    audio = torch.randn(1, 1, 4000)
    tokenizer.save(tmp_path / "part")
    assert torch.equal(Part.load(tmp_path / "part").encode(audio), tokenizer.encode(audio))
    assert not tokenizer.training
    assert not any(p.requires_grad for p in tokenizer.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tokenizer.encode(audio).dtype == torch.float32
    with pytest.raises(PartitaError, match="one channel"):
        tokenizer.encode(audio.expand(1, 2, -1))


def test_clusters_of_its_features_are_codes(checkpoint):
    tokenizer = KMeans(features=load(checkpoint[0]), cardinality=4, reservoir=16)
    assert tokenizer.encode(torch.randn(2, 1, 3300)).shape == (2, 1, 11)
    assert tokenizer.spec.frame_rate == 50


def test_sizes_are_those_of_the_published_model():
    with torch.device("meta"):
        tokenizer = W2vBert(layer=24)
        model = transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig())
    assert sum(p.numel() for p in tokenizer.parameters()) == sum(p.numel() for p in model.parameters()) - 1024


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="layer"):
        W2vBert(layer=0)
    for wrong, word in (
        ({"num_heads": 7}, "multiple"),
        ({"kernel": 4}, "odd"),
        ({"width": 0}, "positive"),
        ({"farthest_after": -1}, "negative"),
    ):
        with pytest.raises(ValueError, match=word):
            W2vBertShape(**wrong)
