import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from partita.core.part import Part
from partita.errors import PartitaError
from partita.tokenizers.hubert import HuBERT, HuBERTShape
from partita.tokenizers.kmeans import KMeans

transformers = pytest.importorskip("transformers")

SHAPE = HuBERTShape(
    width=16, feed_forward_width=24, num_heads=2, convolution_width=8, position_kernel=16, position_groups=2
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as transformers writes one, of a tiny HuBERT of three blocks; and that model."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    model = transformers.HubertModel(
        transformers.HubertConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            conv_dim=[8] * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
        )
    ).eval()
    model.save_pretrained(folder)
    return folder, model


def load(folder, layer=2, **options):
    tokenizer = HuBERT(layer=layer, **{"network": SHAPE} | options)
    tokenizer.load_weights(folder)
    return tokenizer


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_features_are_those_of_transformers(checkpoint, layer):
    folder, model = checkpoint
    tokenizer = load(folder, layer, sample_rate=24000)
    audio = torch.randn(2, 1, 24000 + 77) * torch.tensor([0.1, 0.3])[:, None, None] + 0.05
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=24000, do_normalize=True)
    values = [extractor(clip[0].numpy(), sampling_rate=24000, return_tensors="pt").input_values for clip in audio]
    frames = math.ceil(24077 / 320)
    with torch.no_grad():
        padded = torch.nn.functional.pad(torch.cat(values), (0, frames * 320 + 80 - 24077))
        expected = model(padded, output_hidden_states=True).hidden_states[layer]
    features = tokenizer.encode(audio)
    assert features.shape == (2, 16, frames)
    assert tokenizer.spec.frame_rate == 75
    assert features.std(-1).mean() > 0.01
    torch.testing.assert_close(features, expected.mT, rtol=0, atol=1e-4)


def test_frames_that_fit_are_those_of_the_clip_alone(checkpoint):
    """The silence at the end makes one frame more, and changes no other one's convolutions."""
    tokenizer = load(checkpoint[0], normalize=False)
    audio = torch.randn(1, 3200)
    alone = checkpoint[1].feature_extractor.conv_layers[0].conv(audio[:, None])
    assert tokenizer.encode(audio[:, None]).shape[-1] == 10
    padded = checkpoint[1].feature_extractor.conv_layers[0].conv(torch.nn.functional.pad(audio, (0, 80))[:, None])
    torch.testing.assert_close(padded[..., : alone.shape[-1]], alone)


def test_weights_of_mert_load_whatever_the_training_left_in_them(checkpoint, tmp_path):
    folder, _ = checkpoint
    state = load_file(folder / "model.safetensors")
    prefix = "encoder.pos_conv_embed.conv."
    state[f"{prefix}weight_g"] = state.pop(f"{prefix}parametrizations.weight.original0")
    state[f"{prefix}weight_v"] = state.pop(f"{prefix}parametrizations.weight.original1")
    state |= {"final_proj.weight": torch.ones(2, 2), "encoder_cqt_model.fc.weight": torch.ones(2)}
    config = {"model_type": "mert_model", "sample_rate": 24000, "feature_extractor_cqt": False, "deepnorm": False}
    (tmp_path / "config.json").write_text(json.dumps({**config, "attention_relax": -1.0}))
    torch.save(state, tmp_path / "pytorch_model.bin")
    mert, hubert = load(tmp_path, sample_rate=24000), load(folder, sample_rate=24000)
    expected = hubert.exported_state()
    assert all(torch.equal(expected[name], tensor) for name, tensor in mert.exported_state().items())
    with pytest.raises(PartitaError, match="24000 Hz: set sample_rate"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "feature_extractor_cqt": True}))
    with pytest.raises(PartitaError, match=r"neither HuBERT base nor MERT-v1-95M.*feature_extractor_cqt"):
        load(tmp_path, sample_rate=24000)


def test_other_weights_are_refused(checkpoint, tmp_path):
    folder, _ = checkpoint
    with pytest.raises(PartitaError, match=r"missing: network\.encoder\.layers\.3\."):
        load(folder, layer=4)
    save_file(load_file(folder / "model.safetensors") | {"lm_head.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(PartitaError, match=r"not of this part: network\.lm_head\.weight"):
        load(tmp_path / "x.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"do_stable_layer_norm": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PartitaError, match="do_stable_layer_norm"):
        load(tmp_path)
    with pytest.raises(PartitaError, match="no weights at"):
        load(tmp_path / "nothing")


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
    with pytest.raises(NotImplementedError):
        tokenizer.decode(tokenizer.encode(audio))


def test_clusters_of_its_features_are_codes(checkpoint):
    tokenizer = KMeans(features=load(checkpoint[0]), cardinality=4, reservoir=16)
    codes = tokenizer.encode(torch.randn(2, 1, 3300))
    assert codes.shape == (2, 1, 11)
    assert tokenizer.spec.frame_rate == 50


def test_sizes_are_those_of_the_published_model():
    """HuBERT base, without the embedding of masked frames and with the weight of positions as a plain one."""
    with torch.device("meta"):
        tokenizer, model = HuBERT(layer=12), transformers.HubertModel(transformers.HubertConfig())
    expected = sum(p.numel() for p in model.parameters()) - 768 - 128
    assert sum(p.numel() for p in tokenizer.parameters()) == expected


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="layer"):
        HuBERT(layer=0)
    with pytest.raises(ValueError, match="multiple"):
        HuBERTShape(num_heads=7)
    for nothing in ({"num_heads": 0}, {"position_groups": 0}, {"num_heads": -12}):
        with pytest.raises(ValueError, match="must be positive"):
            HuBERTShape(**nothing)
