import pytest
import torch
from safetensors.torch import load_file, save_file

from partita.errors import PartitaError
from partita.tokenizers import encodec
from partita.tokenizers.encodec import EnCodec

transformers = pytest.importorskip("transformers")

MODELS = dict(encodec._MODELS)

CONFIGS = {
    "24khz": {},
    "32khz": {
        "upsampling_ratios": [8, 5, 4, 4],
        "num_filters": 64,
        "codebook_size": 2048,
        "sampling_rate": 32000,
        "use_causal_conv": False,
        "use_conv_shortcut": False,
        "target_bandwidths": [2.2],
    },
    "48khz": {
        "audio_channels": 2,
        "sampling_rate": 48000,
        "use_causal_conv": False,
        "norm_type": "time_group_norm",
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
    },
}


@pytest.fixture(scope="module", autouse=True)
def _narrow():
    """All models a quarter as wide, which is all that differs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, model in MODELS.items():
            width = model.network.get("n_filters", 32) // 4
            patch.setitem(encodec._MODELS, name, model._replace(network={**model.network, "n_filters": width}))
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_is_as_wide_as_the_one_of_transformers(name, monkeypatch):
    monkeypatch.setitem(encodec._MODELS, name, MODELS[name])
    with torch.device("meta"):
        ours = EnCodec(model=name)
        theirs = transformers.EncodecModel(transformers.EncodecConfig(**CONFIGS[name]))
    folded = [key for key in theirs.state_dict() if not key.endswith(("original0", *encodec._TRAINING_STATE))]
    expected = sorted(theirs.state_dict()[key].shape for key in folded)
    assert sorted(tensor.shape for tensor in ours.exported_state().values()) == expected


@pytest.fixture(scope="module", params=list(CONFIGS))
def reference(request, tmp_path_factory):
    """transformers' model with random weights, and the folder it saved itself to."""
    torch.manual_seed(0)
    config = transformers.EncodecConfig(**CONFIGS[request.param])
    config.num_filters //= 4
    model = transformers.EncodecModel(config).eval()
    noise = torch.randn(1, model.config.audio_channels, 9600) * 0.2
    with torch.no_grad():
        residual = model.encoder(noise)[0]  # entries near the latents, so that all of them are used
        for layer in model.quantizer.layers:
            embed = layer.codebook.embed
            embed.normal_().mul_(residual.std(1)).add_(residual.mean(1))
            residual = residual - embed[torch.cdist(residual.T, embed).argmin(1)].T
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


def test_agrees_with_transformers(reference):
    name, theirs, folder = reference
    ours = EnCodec(model=name, level=0.37)
    ours.load_weights(folder)
    spec = ours.spec
    assert spec.sample_rate == theirs.config.sampling_rate
    audio = torch.randn(2, spec.channels, spec.sample_rate // 4 + 77) * 0.2
    padded = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % ours.hop))
    with torch.no_grad():
        expected = theirs.encode(padded, bandwidth=theirs.config.target_bandwidths[-1]).audio_codes[0]
        codes = ours.encode(audio)
        assert codes.shape == (2, spec.num_codebooks, -(-audio.shape[-1] // ours.hop))
        assert codes[:, 0].unique().numel() > 5
        if name == "48khz":  # its loudness is taken over what is there, without the padding
            codes = ours.encode(padded)
        assert torch.equal(codes, expected)
        scale = torch.full((2, 1), 0.37) if name == "48khz" else None
        assert torch.allclose(ours.decode(codes), theirs._decode_frame(codes, scale), atol=1e-4)


def test_both_namings_of_normalized_weights(reference, tmp_path):
    """Checkpoints on the Hub are older than PyTorch's present names."""
    name, _, folder = reference
    state = load_file(folder / "model.safetensors")
    renamed = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for key, tensor in state.items()
    }
    save_file(renamed, tmp_path / "old.safetensors")
    new, old = EnCodec(model=name), EnCodec(model=name)
    new.load_weights(folder)
    old.load_weights(str(tmp_path / "old.safetensors"))
    expected = new.exported_state()
    assert all(torch.equal(expected[key], tensor) for key, tensor in old.exported_state().items())


def test_original_release(tmp_path, monkeypatch):
    from encodec import EncodecModel

    monkeypatch.setitem(encodec._MODELS, "24khz", MODELS["24khz"])
    with pytest.warns(FutureWarning):
        theirs = EncodecModel.encodec_model_24khz(pretrained=False)
    theirs.set_target_bandwidth(3.0)
    for layer in theirs.quantizer.vq.layers:
        layer._codebook.embed.normal_(std=0.01)
    torch.save(theirs.state_dict(), tmp_path / "encodec_24khz.th")
    ours = EnCodec(num_codebooks=4)
    ours.load_weights(tmp_path / "encodec_24khz.th")
    audio = torch.randn(1, 1, 3200) * 0.2
    with torch.no_grad():
        frames = theirs.encode(audio)
        assert torch.equal(ours.encode(audio), frames[0][0])
        assert torch.allclose(ours.decode(frames[0][0]), theirs.decode(frames), atol=1e-4)


def test_saves_and_loads(tmp_path):
    codec = EnCodec(num_codebooks=2)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.mul_(1.1)
    codec.save(tmp_path / "codec")
    loaded = EnCodec.load(tmp_path / "codec")
    audio = torch.randn(1, 1, 1000)
    assert loaded.spec.num_codebooks == 2
    assert torch.equal(loaded.encode(audio), codec.encode(audio))


def test_loudness_of_48khz_is_the_level():
    codec = EnCodec(model="48khz", level=0.2)
    audio = torch.randn(1, 2, 3200)
    codes = codec.encode(audio)
    assert torch.equal(codec.encode(audio * 0.01), codes)
    quieter = EnCodec(model="48khz", level=0.1)
    quieter.load_state_dict(codec.state_dict())
    assert torch.allclose(codec.decode(codes), 2 * quieter.decode(codes))
    assert codec.encode(torch.zeros(1, 2, 640)).shape == (1, 16, 2)


def test_is_frozen():
    codec = EnCodec().train()
    assert not codec.trainable
    assert not codec.training
    assert not any(p.requires_grad for p in codec.parameters())


def test_codebooks_in_use():
    codec = EnCodec(num_codebooks=8)
    assert str(codec.spec) == "8×1024 codes at 75 Hz, 24 kHz × 1 ch"
    codec.set_num_codebooks(3)
    assert codec.encode(torch.randn(1, 1, 640)).shape == (1, 3, 2)
    with pytest.raises(ValueError, match="1 to 32"):
        EnCodec(num_codebooks=33)


def test_built_without_memory():
    with torch.device("meta"):
        assert next(EnCodec(model="48khz").parameters()).is_meta


def test_weights_of_another_model_are_refused(tmp_path):
    EnCodec(model="48khz").save(tmp_path / "other")
    with pytest.raises(PartitaError, match="not of this encodec"):
        EnCodec(model="24khz").load_weights(tmp_path / "other")


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    codec = EnCodec()
    with pytest.raises(PartitaError, match="no weights at"):
        codec.load_weights(tmp_path / "nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(PartitaError, match="is no safetensors file"):
        codec.load_weights(tmp_path / "broken.safetensors")

    def unreachable(repo, **options):
        raise OSError(f"no route to {repo}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(PartitaError, match=r"facebook/encodec_24khz.*check the name, the network"):
        codec.load_weights("facebook/encodec_24khz")


def test_pickles_that_run_code_are_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"encoder": Attack()}, tmp_path / "attack.th")
    with pytest.raises(PartitaError, match="cannot be read"):
        EnCodec().load_weights(tmp_path / "attack.th")
    assert not (tmp_path / "ran").exists()
