"""EnCodec as a codec that trains, against transformers and the encodec package."""

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.data import DataLoader

from partita.core.fit import Fit
from partita.errors import PartitaError
from partita.layers.convolution import Conv1d, ConvTranspose1d, Edges
from partita.layers.overlap_add import overlap_add
from partita.recipe.compose import compose
from partita.recipe.plan import check_recipe
from partita.system.assembly import Assembly
from partita.system.system import System
from partita.tokenizers.bottlenecks.rvq import RVQ

transformers = pytest.importorskip("transformers")

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
WIDTHS = {"24khz": 8, "32khz": 16, "48khz": 8}


def codec_of(name, **changes):
    """The preset with a quarter of its width, and all codebooks."""
    narrow = {"autoencoder": {"network": {"width": WIDTHS[name]}}, "weights": None, "num_codebooks": None}
    slot = {"preset": f"encodec-{name}", **narrow, **changes}
    return System(check_recipe(compose({"tokenizers": {"codec": slot}, "data": "corpus"}))).tokenizers["codec"].eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_is_as_wide_as_the_one_of_transformers(name):
    slot = {"preset": f"encodec-{name}", "num_codebooks": None, "weights": None}
    ours = Assembly.outline(check_recipe(compose({"tokenizers": {"a": slot}, "data": "corpus"}))).tokenizers["a"]
    with torch.device("meta"):
        theirs = transformers.EncodecModel(transformers.EncodecConfig(**CONFIGS[name]))
    networks = [p for n, p in theirs.named_parameters() if not n.endswith("original0")]
    own = [p for n, p in ours.autoencoder.named_parameters() if not n.endswith("original0")]
    assert sorted(p.shape for p in own) == sorted(p.shape for p in networks)
    books = theirs.quantizer.layers
    assert ours.bottleneck.cardinalities == tuple(len(layer.codebook.embed) for layer in books)


@pytest.fixture(scope="module", params=list(CONFIGS))
def reference(request, tmp_path_factory):
    """transformers' model with random weights, and the folder it saved itself to."""
    torch.manual_seed(0)
    config = transformers.EncodecConfig(**CONFIGS[request.param])
    config.num_filters = WIDTHS[request.param]
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
    ours = codec_of(name, **({"level": 0.37} if name == "48khz" else {}))
    ours.load_weights(folder)
    spec, hop = ours.spec, ours.autoencoder.hop
    assert spec.sample_rate == theirs.config.sampling_rate
    audio = torch.randn(2, spec.channels, spec.sample_rate // 4 + 77) * 0.2
    padded = F.pad(audio, (0, -audio.shape[-1] % hop))
    with torch.no_grad():
        expected = theirs.encode(padded, bandwidth=theirs.config.target_bandwidths[-1]).audio_codes[0]
        codes = ours.encode(audio)
        assert codes.shape == (2, spec.num_codebooks, -(-audio.shape[-1] // hop))
        assert codes[:, 0].unique().numel() > 5
        if name == "48khz":  # its loudness is taken over what is there, without the padding
            codes = ours.encode(padded)
        assert torch.equal(codes, expected)
        scale = torch.full((2, 1), 0.37) if name == "48khz" else None
        assert torch.allclose(ours.decode(codes), theirs._decode_frame(codes, scale), atol=1e-4)


def test_segments_have_the_loudness_of_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.EncodecConfig(**CONFIGS["48khz"])
    config.num_filters = 4
    theirs = transformers.EncodecModel(config).eval()
    for layer in theirs.quantizer.layers:
        layer.codebook.embed.normal_()
    theirs.save_pretrained(tmp_path)
    ours = codec_of("48khz", autoencoder={"network": {"width": 4}})
    ours.load_weights(tmp_path)
    audio = torch.randn(2, 2, 48000 * 2 + 320 * 3) * torch.tensor([0.02, 0.4])[:, None, None]
    with torch.no_grad():
        bandwidth = config.target_bandwidths[-1]
        expected = [
            theirs._encode_frame(audio[..., s : s + 48000], bandwidth) for s in range(0, audio.shape[-1], 47520)
        ]
        segments = ours.encode_segments(audio)
        assert len(segments) == len(expected) == 3
        for segment, (codes, scale) in zip(segments, expected, strict=True):
            assert torch.equal(segment.codes, codes)
            torch.testing.assert_close(segment.scale[:, :, 0], scale)
        made = ours.decode_segments(segments)
        clips = [theirs._decode_frame(s.codes, s.scale)[..., : s.samples] for s in segments]
        torch.testing.assert_close(made, theirs._linear_overlap_add(clips, 47520), atol=1e-4, rtol=0)
    assert made.shape == audio.shape


def test_pieces_that_overlap_are_joined_as_in_the_encodec_package():
    from encodec.utils import _linear_overlap_add

    pieces = [torch.randn(2, 2, 100) for _ in range(4)] + [torch.randn(2, 2, 87)]
    for stride in (100, 90, 70):
        torch.testing.assert_close(overlap_add(pieces, stride), _linear_overlap_add(pieces, stride))


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
    (old := tmp_path / "old").mkdir()
    save_file(renamed, old / "model.safetensors")
    (old / "config.json").write_text((folder / "config.json").read_text())
    codecs = [codec_of(name), codec_of(name)]
    for codec, source in zip(codecs, (folder, old), strict=True):
        codec.load_weights(source)
    expected = codecs[0].exported_state()
    assert all(torch.equal(expected[key], tensor) for key, tensor in codecs[1].exported_state().items())


@pytest.mark.parametrize("form", ["encodec.th", "compression_state_dict.bin"])
def test_files_of_the_encodec_package_and_of_audiocraft(form, tmp_path):
    from encodec import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        networks = [kind(n_filters=8, causal=True) for kind in (SEANetEncoder, SEANetDecoder)]
    quantizer = ResidualVectorQuantizer(dimension=128, n_q=32, bins=1024, kmeans_init=False)
    theirs = EncodecModel(*networks, quantizer, [1.5, 3.0, 6.0, 12.0, 24.0], 24000, 1).eval()
    theirs.set_target_bandwidth(3.0)
    for layer in quantizer.vq.layers:
        layer._codebook.embed.normal_(std=0.01)
    state = theirs.state_dict()
    torch.save(state if form.endswith("th") else {"best_state": state, "xp.cfg": "a: 1"}, tmp_path / form)
    ours = codec_of("24khz", num_codebooks=4)
    ours.load_weights(tmp_path / form)
    audio = torch.randn(1, 1, 3200) * 0.2
    with torch.no_grad():
        frames = theirs.encode(audio)
        assert torch.equal(ours.encode(audio), frames[0][0])
        assert torch.allclose(ours.decode(frames[0][0]), theirs.decode(frames), atol=1e-4)


def test_official_weights_are_trained_further(reference, tmp_path):
    name, _, folder = reference
    codec = codec_of(name, adversarial_start=1, discriminator={"stft_windows": [256], "stft_width": 2})
    codec.load_weights(folder)
    codec.fit_options = Fit(steps=3, batch_size=2, lr=1e-6)
    before = {key: tensor.clone() for key, tensor in codec.exported_state().items()}
    audio = [{"audio": torch.randn(codec.channels, 6400) * 0.2} for _ in range(6)]
    first = codec.encode(audio[0]["audio"][None])[:, 0]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    L.Trainer(max_steps=3, **quiet).fit(codec.train(), DataLoader(audio, batch_size=2))
    after = codec.exported_state()
    moved = [key for key in before if key.startswith("autoencoder.") and not torch.equal(before[key], after[key])]
    assert len(moved) > 0.9 * sum(key.startswith("autoencoder.") for key in before)
    assert (
        codec.eval().encode(audio[0]["audio"][None])[:, 0] == first
    ).float().mean() > 0.7  # codes keep their meaning


def test_loudness_of_48khz_is_the_level():
    codec, quieter = codec_of("48khz", level=0.2), codec_of("48khz", level=0.1)
    audio = torch.randn(1, 2, 3200)
    codes = codec.encode(audio)
    assert torch.equal(codec.encode(audio * 0.01), codes)
    quieter.load_state_dict(codec.state_dict())
    assert torch.allclose(codec.decode(codes), 2 * quieter.decode(codes))
    assert codec.encode(torch.zeros(1, 2, 640)).shape == (1, 16, 2)


def test_a_batch_uses_one_of_the_bandwidths():
    """Codebooks beyond it stay as they are, and contribute neither latents nor commitment."""
    torch.manual_seed(0)
    quantizer = RVQ(num_codebooks=4, cardinality=8, dropout=0.0, codebook_choices=(2, 4), warmup_steps=0)
    quantizer.build(6)
    quantizer.train()
    frames, numbers = torch.randn(3, 6, 40, requires_grad=True), set()
    quantizer(frames, torch.tensor(0))
    for step in range(12):
        before = quantizer.codebooks.clone()
        made = quantizer(frames + 0.1 * torch.randn_like(frames), torch.tensor(step))
        changed = [not torch.equal(a, b) for a, b in zip(before, quantizer.codebooks, strict=True)]
        numbers.add(sum(changed))
        assert changed in ([True] * 4, [True, True, False, False])
        assert made.latents.shape == frames.shape
    assert numbers == {2, 4}
    for wrong in ((), (0, 2), (5,)):
        with pytest.raises(ValueError, match="codebook_choices must be numbers from 1 to 4"):
            RVQ(num_codebooks=4, dropout=0.0, codebook_choices=wrong)
    with pytest.raises(ValueError, match="dropout must be 0, not 1"):
        RVQ(num_codebooks=4, codebook_choices=(2,))


@pytest.mark.parametrize("padding", [(3, 2), (6, 0), (0, 4)])
@pytest.mark.parametrize("length", [1, 3, 7, 20])
def test_edges_are_reflected_as_in_the_encodec_package(padding, length):
    from encodec.modules.conv import pad1d

    from partita.layers.convolution import _padded, _padded_places

    x = torch.randn(2, 3, length)
    expected = pad1d(x, padding, mode="reflect")
    assert torch.equal(_padded(x, padding, "reflect"), expected)
    assert torch.equal(_padded_places(x.mT, padding, "reflect").mT, expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("edges", ["zero", "reflect"])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "dilation"),
    [(1, 7, 1, 1), (4, 8, 4, 1), (4, 7, 1, 3), (4, 1, 1, 1), (2, 10, 5, 1)],
)
def test_inference_and_training_are_the_same_convolution(causal, edges, channels, kernel, stride, dilation):
    layer = Conv1d(
        channels, 6, kernel, stride=stride, dilation=dilation, edges=Edges(causal, edges), normalization="weight_norm"
    )
    torch.nn.init.normal_(layer.convolution.bias)
    for frames in (1, 2, 9):
        x = torch.randn(2, channels, frames * stride)
        trained = layer(x)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), trained, atol=1e-5, rtol=0)
    up = ConvTranspose1d(channels, 5, stride, causal=causal, normalization="weight_norm")
    torch.nn.init.normal_(up.convolution.bias)
    for frames in (1, 2, 9):
        x = torch.randn(2, channels, frames)
        trained = up(x)
        with torch.no_grad():
            torch.testing.assert_close(up(x), trained, atol=1e-5, rtol=0)


def test_checkpoints_that_do_not_fit_are_refused_with_the_differences(reference, tmp_path):
    name, _, folder = reference
    other = {"24khz": "32khz", "32khz": "48khz", "48khz": "24khz"}[name]
    with pytest.raises(PartitaError, match=r"(?s)holds another EnCodec than this codec:.*sample_rate must be"):
        codec_of(other).load_weights(folder)
    with pytest.raises(PartitaError, match="set autoencoder to seanet and bottleneck to rvq, not seanet and fsq"):
        codec_of(name, bottleneck="fsq").load_weights(folder)
    data = (folder / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(data[:-5])
    with pytest.raises(PartitaError, match="is damaged"):
        codec_of(name).load_weights(tmp_path)


def test_a_file_that_runs_code_or_is_damaged_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"encoder": Attack()}, tmp_path / "attack.th")
    (tmp_path / "damaged.bin").write_bytes(b"nonsense")
    for name in ("attack.th", "damaged.bin"):
        with pytest.raises(PartitaError, match="cannot be read as weights"):
            codec_of("24khz").load_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    torch.save({"encoder.model.0.conv.conv.bias": torch.zeros(3)}, tmp_path / "other.th")
    with pytest.raises(PartitaError, match="these weights are not of this codec"):
        codec_of("24khz").load_weights(tmp_path / "other.th")
    with pytest.raises(PartitaError, match="no weights at"):
        codec_of("24khz").load_weights(tmp_path / "nothing")
