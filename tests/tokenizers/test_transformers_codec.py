import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from partita.core.part import Part
from partita.core.schema import check
from partita.errors import PartitaError
from partita.tokenizers.base import LatentView
from partita.tokenizers.encoding_windows import Windows
from partita.tokenizers.transformers_codec import TransformersCodec

transformers = pytest.importorskip("transformers")

HUBERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
STRIDES = [8, 5, 4, 2]
ACOUSTIC = {"encoder_hidden_size": 2, "hidden_size": 32, "decoder_hidden_size": 32}
SMALL = {
    "mimi": {
        "hidden_size": 16,
        "num_filters": 4,
        "upsampling_ratios": [4, 3],
        "codebook_size": 32,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 4,
        "upsample_groups": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "sliding_window": 10,
    },
    "dac": {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [2, 4, 5],
        "n_codebooks": 3,
        "codebook_size": 16,
        "codebook_dim": 4,
    },
    "encodec": {
        "num_filters": 4,
        "hidden_size": 8,
        "upsampling_ratios": [4, 2],
        "codebook_size": 16,
        "sampling_rate": 800,
        "target_bandwidths": [0.4, 1.2],
        "num_lstm_layers": 1,
    },
    "xcodec": {
        "target_bandwidths": [0.5, 1.5],
        "semantic_model_config": HUBERT,
        "acoustic_model_config": ACOUSTIC | {"downsampling_ratios": STRIDES, "upsampling_ratios": STRIDES},
    },
    "higgs_audio_v2_tokenizer": {
        "target_bandwidths": [0.5, 1.0],
        "codebook_dim": 8,
        "semantic_model_config": HUBERT,
        "acoustic_model_config": ACOUSTIC | {"downsampling_ratios": [*STRIDES, 3], "upsampling_ratios": [*STRIDES, 3]},
    },
    "xcodec2": {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "encoder_hidden_size": 2,
        "quantization_dim": 80,
        "quantization_levels": [4, 4, 3],
        "semantic_model_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "conv_depthwise_kernel_size": 5,
        },
    },
}
FACTS = {  # sample rate, samples per frame, codebooks, entries
    "mimi": (24000, 24, 4, 32),
    "dac": (16000, 40, 3, 16),
    "encodec": (800, 8, 3, 16),
    "xcodec": (16000, 320, 3, 1024),
    "higgs_audio_v2_tokenizer": (24000, 960, 4, 1024),
    "xcodec2": (16000, 320, 1, 48),
}


def drawn(model_type):
    """A codec whose weights and codebooks are all drawn at random, so that its codes differ from frame to frame."""
    torch.manual_seed(0)
    codec = TransformersCodec(model_type=model_type, config=SMALL[model_type])
    for name, tensor in codec.network.state_dict().items():
        if name.endswith((".embed", ".embed_sum", ".embed_avg")):
            tensor.normal_(0, 0.2)
        elif tensor.is_floating_point() and tensor.dim() > 1 and "original0" not in name:
            tensor.add_(torch.randn_like(tensor) * 0.1)
        if "project_in" in name:
            tensor.normal_(0, 3)
    codec._forget_entries()
    return codec


@pytest.fixture(scope="module")
def codecs():
    return {name: drawn(name) for name in SMALL}


@pytest.fixture(scope="module")
def checkpoint(codecs, tmp_path_factory):
    """A folder as transformers writes it."""

    def write(name, **options):
        folder = tmp_path_factory.mktemp(name)
        codecs[name].network.save_pretrained(folder, **options)
        return folder

    return write


def codes_of(model, audio):
    """Codes ``[B, K, S]`` by the published calls."""
    kind = model.config.model_type
    with torch.no_grad():
        if kind == "encodec":
            return model.encode(audio, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0]
        if kind == "xcodec2":
            extractor = transformers.Xcodec2FeatureExtractor()
            return model.encode(**extractor([*audio[:, 0, :-1]], sampling_rate=16000, return_tensors="pt")).audio_codes
        found = model.encode(audio)
        return found.audio_codes if hasattr(found, "audio_codes") else found


def audio_of(model, codes):
    kind = model.config.model_type
    with torch.no_grad():
        if kind == "encodec":
            return model.decode(codes[None], [None]).audio_values
        found = model.decode(audio_codes=codes)
        return found.audio_values if hasattr(found, "audio_values") else found


@pytest.mark.parametrize("name", SMALL)
def test_codes_and_audio_are_those_of_transformers(codecs, name):
    codec = codecs[name]
    rate, hop, books, cardinality = FACTS[name]
    spec = codec.spec
    assert (spec.sample_rate, spec.frame_rate, spec.num_codebooks) == (rate, rate / hop, books)
    assert spec.cardinalities == (cardinality,) * books
    audio = torch.randn(2, 1, 12 * hop, generator=torch.Generator().manual_seed(1)) * 0.3
    audio[..., -1] = 0
    codes = codec.encode(audio)
    assert codes.shape == (2, books, 12)
    assert codes.dtype == torch.int64
    assert codes.unique().numel() > 2
    assert torch.equal(codes, codes_of(codec.network, audio).long())
    decoded, expected = codec.decode(codes), audio_of(codec.network, codes).reshape(2, 1, -1)
    assert decoded.shape == (2, 1, 12 * hop)
    assert decoded.std() > 1e-5
    torch.testing.assert_close(decoded[..., : expected.shape[-1]], expected, rtol=0, atol=1e-4)
    assert not decoded[..., expected.shape[-1] :].any()


@pytest.mark.parametrize("name", SMALL)
def test_any_length_has_whole_frames_that_do_not_depend_on_the_batch(codecs, name):
    codec = codecs[name]
    for samples in (1, codec.hop - 1, codec.hop, codec.hop + 1, 7 * codec.hop + 3):
        audio = torch.randn(3, 1, samples, generator=torch.Generator().manual_seed(samples)) * 0.3
        codes = codec.encode(audio)
        frames = math.ceil(samples / codec.hop)
        assert codes.shape == (3, codec.num_codebooks, frames)
        padded = F.pad(audio, (0, frames * codec.hop - samples))
        assert torch.equal(codes, codec.encode(padded))
        assert torch.equal(codec.encode(audio[1:2])[0], codes[1])
        decoded = codec.decode(codes)
        assert decoded.shape == (3, 1, frames * codec.hop)
        torch.testing.assert_close(codec.decode(codes[1:2])[0], decoded[1], rtol=1e-3, atol=3e-4)
    assert codec.encode(torch.zeros(2, 1, 0)).shape == (2, codec.num_codebooks, 0)
    assert codec.decode(codec.encode(torch.zeros(1, 1, 4000))).isfinite().all()


@pytest.mark.parametrize("name", [name for name in SMALL if FACTS[name][2] > 1])
def test_fewer_codebooks_are_the_first_ones(codecs, name):
    codec = codecs[name]
    audio = torch.randn(1, 1, 6 * codec.hop) * 0.3
    codes = codec.encode(audio)
    try:
        codec.set_num_codebooks(2)
        assert codec.spec.num_codebooks == 2
        assert torch.equal(codec.encode(audio), codes[:, :2])
        assert codec.decode(codes[:, :2]).shape == (1, 1, 6 * codec.hop)
        with pytest.raises(ValueError, match="num_codebooks must be 1 to"):
            codec.set_num_codebooks(codec.most + 1)
    finally:
        codec.set_num_codebooks(codec.most)


@pytest.mark.parametrize("name", ["mimi", "dac", "encodec"])
def test_latents_are_what_the_codes_represent(codecs, name):
    codec = codecs[name]
    audio = torch.randn(2, 1, 5 * codec.hop + 1) * 0.3
    latents = LatentView(codec).encode(audio)
    assert latents.shape == (2, LatentView(codec).spec.dim, 6)
    quantizer = codec.network.quantizer
    with torch.no_grad():
        quantized = {
            "mimi": lambda codes: quantizer.decode(codes),
            "dac": lambda codes: quantizer.from_codes(codes)[0],
            "encodec": lambda codes: quantizer.decode(codes.transpose(0, 1)),
        }[name](codec.encode(audio))
    torch.testing.assert_close(codec.decode_latents(quantized), codec.decode(codec.encode(audio)))
    assert codec.decode_latents(latents).shape == (2, 1, 6 * codec.hop)


@pytest.mark.parametrize("name", ["xcodec", "xcodec2"])
def test_a_codec_with_a_semantic_model_encodes_long_clips_in_windows(codecs, name):
    codec = codecs[name]
    audio = torch.randn(1, 1, 16000 * 6) * 0.3
    windowed = TransformersCodec(model_type=name, config=SMALL[name], windows=Windows(seconds=2.0, context=0.5))
    windowed.load_exported_state(codec.exported_state(), "here")
    codes = windowed.encode(audio)
    assert codes.shape[-1] == 300
    assert torch.equal(codes[..., 50:100], codec.encode(audio[..., 25 * 320 : 125 * 320])[..., 25:75])
    assert codec.latent_dim is None
    with pytest.raises(NotImplementedError, match="no latents"):
        codec.encode_latents(audio)


@pytest.mark.parametrize("name", SMALL)
def test_checkpoints_of_transformers_are_loaded(codecs, checkpoint, name, tmp_path):
    whole, sharded = checkpoint(name), checkpoint(name, max_shard_size="100KB")
    assert (sharded / "model.safetensors.index.json").exists() or name in ("mimi", "encodec", "dac")
    audio = torch.randn(1, 1, 8 * codecs[name].hop) * 0.3
    expected = codecs[name].encode(audio)
    for source in (whole, sharded, whole / "model.safetensors"):
        codec = TransformersCodec(model_type=name, config=SMALL[name])
        codec.encode(audio)  # what it computed before must not stay
        codec.load_weights(source)
        assert torch.equal(codec.encode(audio), expected)
    codec.train().save(tmp_path / "part")
    assert torch.equal(Part.load(tmp_path / "part").encode(audio), codec.encode(audio))
    assert not codec.training
    assert not any(p.requires_grad for p in codec.parameters())


def test_older_names_of_weights_are_understood(codecs, checkpoint, tmp_path):
    folder = checkpoint("encodec")
    state = load_file(folder / "model.safetensors")
    for number, length in enumerate("gv"):
        state = {
            k.replace(f"parametrizations.weight.original{number}", f"weight_{length}"): t for k, t in state.items()
        }
    assert any(name.endswith("weight_g") for name in state)
    save_file(state, tmp_path / "model.safetensors")
    codec = TransformersCodec(model_type="encodec", config=SMALL["encodec"])
    codec.load_weights(tmp_path)
    audio = torch.randn(1, 1, 80)
    assert torch.equal(codec.encode(audio), codecs["encodec"].encode(audio))


def copied(checkpoint, name, folder, **config):
    """A checkpoint whose configuration has other values."""
    source = checkpoint(name)
    written = json.loads((source / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(written))
    save_file(load_file(source / "model.safetensors"), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mimi", {"model_type": "dac"}, "its model_type is 'dac', not 'mimi'"),
        ("mimi", {"sliding_window": 99}, "sliding_window must be 99, not 10"),
        ("mimi", {"rope_theta": 500.0}, "rope_theta must be 500.0, not 10000.0"),
        ("encodec", {"use_causal_conv": False}, "use_causal_conv must be False, not True"),
        (
            "xcodec",
            {"semantic_model_config": {"model_type": "hubert", "hidden_act": "relu"}},
            "hidden_act must be relu",
        ),
        ("mimi", {"auto_map": {"AutoModel": "modeling_evil.Evil"}}, "runs code of its own"),
    ],
)
def test_other_checkpoints_are_refused(checkpoint, tmp_path, name, config, message):
    folder = copied(checkpoint, name, tmp_path, **config)
    with pytest.raises(PartitaError, match=message):
        TransformersCodec(model_type=name, config=SMALL[name]).load_weights(folder)


def test_what_a_strangers_configuration_names_is_never_used(checkpoint, tmp_path, codecs):
    evil = {"_attn_implementation_internal": "someone/kernel", "name_or_path": "someone/model", "unknown": {"a": 1}}
    folder = copied(checkpoint, "mimi", tmp_path, **evil)
    codec = TransformersCodec(model_type="mimi", config=SMALL["mimi"])
    codec.load_weights(folder)
    assert codec.network.config.name_or_path == ""
    assert torch.equal(codec.encode(torch.ones(1, 1, 99)), codecs["mimi"].encode(torch.ones(1, 1, 99)))
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    with pytest.raises(PartitaError, match="code of its own, which is never executed"):
        codec.load_weights(folder)


def test_damaged_and_foreign_weights_are_refused(checkpoint, tmp_path):
    codec = TransformersCodec(model_type="xcodec", config=SMALL["xcodec"])
    folder = checkpoint("xcodec", max_shard_size="100KB")
    shards = sorted(folder.glob("*.safetensors"))
    kept = shards[1].read_bytes()
    shards[1].write_bytes(kept[:-40])
    with pytest.raises(PartitaError, match=f"{shards[1].name} is damaged"):
        codec.load_weights(folder)
    shards[1].unlink()
    with pytest.raises(PartitaError, match=f"incomplete: it lacks {shards[1].name}"):
        codec.load_weights(folder)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(PartitaError, match="not of this transformers-codec"):
        codec.load_weights(tmp_path)
    with pytest.raises(PartitaError, match="no such file or folder"):
        codec.load_weights(tmp_path / "nothing")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(PartitaError, match="no safetensors file"):
        codec.load_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mimi", {"trust_remote_code": True}, "no field 'trust_remote_code'"),
        ("mimi", {"_attn_implementation_internal": "someone/kernel"}, "no field '_attn_implementation_internal'"),
        ("mimi", {"name_or_path": "someone/model"}, "no field 'name_or_path'"),
        ("xcodec", {"semantic_model_config": {"auto_map": "x"}}, "semantic_model_config has no field 'auto_map'"),
        ("xcodec", {"semantic_model_config": {"model_type": "llama"}}, "model_type is hubert or wavlm"),
        ("xcodec", {"acoustic_model_config": 3}, "must be a mapping"),
        ("mimi", {"hidden_act": "someone/kernel"}, "must be a number, a word"),
        ("mimi", {"rope_parameters": {"rope_type": "x"}}, "must be a number, a word"),
        ("mimi", {"hidden_act": "nonsense"}, "does not describe a mimi"),
        ("mimi", {"hidden_size": "many"}, "does not describe a mimi"),
        ("dac", {"codebook_size": 1000}, "does not describe a dac"),
        ("xcodec", {"strides": [1, 2]}, "another frame rate than the semantic model"),
        ("xcodec2", {"downsampling_ratios": [2, 2, 4, 4]}, "another frame rate than the semantic model"),
        ("encodec", {"normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}, "the preset encodec-48khz"),
    ],
)
def test_mistakes_in_the_configuration_are_named(name, config, message):
    with pytest.raises(ValueError, match=message):
        TransformersCodec(model_type=name, config=SMALL[name] | config)


def test_the_codec_is_one_of_those_it_has():
    with pytest.raises(ValueError, match="model_type must be one of mimi, dac"):
        TransformersCodec(model_type="neucodec")
    mistakes = check(TransformersCodec, {"model_type": "neucodec"})
    assert any("mimi" in str(mistake) for mistake in mistakes)
    with pytest.raises(PartitaError, match="takes 1 channels, not 2"):
        TransformersCodec(model_type="mimi", config=SMALL["mimi"]).encode(torch.zeros(1, 2, 100))
