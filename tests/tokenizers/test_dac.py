"""DAC as a codec that trains, against transformers' DAC."""

import json
import math

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from partita.core.fit import Fit
from partita.core.registry import lookup
from partita.core.schema import build
from partita.errors import PartitaError
from partita.layers.codec_losses import SpectralDistance
from partita.recipe.compose import compose
from partita.recipe.plan import check_recipe
from partita.system.assembly import Assembly
from partita.tokenizers.adversarial import Losses
from partita.tokenizers.autoencoders.dac import DAC
from partita.tokenizers.autoencoders.seanet import SEANet
from partita.tokenizers.bottlenecks.factorized_rvq import FactorizedRVQ
from partita.tokenizers.discriminators.multi_period_multi_band import MultiPeriodMultiBand
from partita.tokenizers.neural_codec import NeuralCodec

transformers = pytest.importorskip("transformers")

PUBLISHED = {
    "dac-16khz": {"sampling_rate": 16000, "downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12},
    "dac-24khz": {"sampling_rate": 24000, "downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32},
    "dac-44khz": {"sampling_rate": 44100, "downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9},
}
"""The published configurations; all have 64 and 1536 channels and codebooks of 1024 entries in 8 dimensions."""


def codec_of(strides=(2, 4), **options):
    parts = {
        "autoencoder": DAC(encoder_width=4, decoder_width=16 * 2 ** (len(strides) - 1), strides=tuple(strides)),
        "bottleneck": FactorizedRVQ(num_codebooks=3, cardinality=32),
        "sample_rate": 16000,
        "dim": 4 * 2 ** len(strides),
        "losses": Losses(adversarial=0.0),
    }
    return NeuralCodec(**parts | options)


def reference_of(strides):
    """transformers' model with random weights that preserve the signal, as large as :func:`codec_of`."""
    torch.manual_seed(0)
    model = transformers.DacModel(
        transformers.DacConfig(
            encoder_hidden_size=4,
            decoder_hidden_size=16 * 2 ** (len(strides) - 1),
            downsampling_ratios=list(strides),
            n_codebooks=3,
            codebook_size=32,
            sampling_rate=16000,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.5, 2.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            else:
                fan_in = 1 if "codebook" in name else parameter[0].numel()
                parameter.normal_(std=0.7 / math.sqrt(fan_in))
        residual = model.encoder(torch.randn(1, 1, 16 * model.config.hop_length) * 0.2)
        for book in model.quantizer.quantizers:  # latents in all directions, so that many entries are used
            book.in_proj.bias -= book.in_proj(residual).mean((0, 2))
            residual = residual - book(residual)[0]
    return model


@pytest.fixture(params=[(2, 4, 8, 8), (2, 4, 5, 8), (3, 2)], ids=str)
def pair(request, tmp_path):
    """transformers' model, the codec that loaded it, and the folder."""
    theirs = reference_of(request.param)
    theirs.save_pretrained(tmp_path)
    ours = codec_of(request.param).eval()
    ours.load_weights(tmp_path)
    return theirs, ours, tmp_path


def test_agrees_with_transformers(pair):
    theirs, ours, _ = pair
    hop = ours.autoencoder.hop
    audio = torch.randn(2, 1, 7 * hop) * 0.2
    with torch.no_grad():
        expected = theirs.encode(audio)
        codes = ours.encode(audio)
        assert torch.equal(codes, expected.audio_codes)
        assert codes[:, 0].unique().numel() > 3
        latents = ours.bottleneck.decode(codes)
        torch.testing.assert_close(latents, expected.quantized_representation, atol=1e-4, rtol=0)
        for block in theirs.decoder.block:  # the published length; transformers loses a sample at odd strides
            block.conv_t1.output_padding = (block.conv_t1.stride[0] % 2,)
        decoded = ours.decode(codes)
        assert decoded.shape == audio.shape
        assert decoded.std() > 0.05
        torch.testing.assert_close(decoded[:, 0], theirs.decode(latents).audio_values, atol=1e-4, rtol=0)


def test_audio_of_odd_strides_agrees_with_transformers_up_to_its_end(tmp_path):
    theirs, ours = reference_of((2, 5)), codec_of((2, 5)).eval()
    theirs.save_pretrained(tmp_path)
    ours.load_weights(tmp_path)
    codes = torch.randint(32, (1, 3, 40))
    with torch.no_grad():
        expected = theirs.decode(audio_codes=codes).audio_values
        decoded = ours.decode(codes)[:, 0]
    assert expected.shape[1] == 398
    assert decoded.shape[1] == 400
    torch.testing.assert_close(decoded[:, :250], expected[:, :250], atol=1e-4, rtol=0)


def test_losses_of_the_quantizer_are_those_of_transformers(pair):
    theirs, ours, _ = pair
    audio = torch.randn(1, 1, 7 * ours.autoencoder.hop) * 0.2
    with torch.no_grad():
        losses = ours.bottleneck(ours.autoencoder.encode(audio), ours.step).losses
        torch.testing.assert_close(losses["codebook"] + losses["commitment"], theirs.encode(audio).loss[0])


@pytest.mark.parametrize("kind", ["new", "old"])
def test_normalized_weights_are_read_too(pair, kind, tmp_path):
    theirs, ours, folder = pair
    theirs.apply_weight_norm()
    state, (new, old) = theirs.state_dict(), (("parametrizations.weight.original", "01"), ("weight_", "gv"))
    if kind == "old":
        for which in range(2):
            state = {name.replace(f"{new[0]}{which}", f"{old[0]}{old[1][which]}"): v for name, v in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    again = codec_of(ours.autoencoder.strides).eval()
    again.load_weights(folder)
    codes = torch.randint(32, (1, 3, 5))
    torch.testing.assert_close(again.decode(codes), ours.decode(codes), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_size(name):
    """They take every weight of transformers' model with the published configuration, and no other."""
    plan = check_recipe(compose({"tokenizers": {"part": name}, "data": "corpus"}))
    ours = Assembly.outline(plan).tokenizers["part"]
    with torch.device("meta"):
        theirs = transformers.DacModel(transformers.DacConfig(**PUBLISHED[name]))
    lengths = [n for n in ours.exported_state() if n.endswith("original0")]
    expected = sorted(t.numel() for t in theirs.state_dict().values())
    assert sorted(t.numel() for n, t in ours.exported_state().items() if n not in lengths) == expected
    normalized = ("conv1.weight", "conv2.weight", "conv_t1.weight", "proj.weight")
    assert len(lengths) == sum(n.endswith(normalized) for n in theirs.state_dict())
    assert ours.spec.sample_rate == theirs.config.sampling_rate
    assert ours.spec.frame_rate == theirs.config.sampling_rate / theirs.config.hop_length
    assert (ours.spec.num_codebooks, ours.spec.cardinality) == (theirs.config.n_codebooks, 1024)


def test_a_codec_of_another_shape_is_told_every_difference(tmp_path):
    reference_of((2, 4)).save_pretrained(tmp_path)
    autoencoder = DAC(encoder_width=4, decoder_width=32, strides=(4, 2), dilations=(1, 3))
    other = codec_of(autoencoder=autoencoder, sample_rate=24000, channels=2)
    with pytest.raises(PartitaError) as error:
        other.load_weights(tmp_path)
    for line in (
        "sample_rate must be 16000, not 24000",
        "autoencoder.strides must be [2, 4], not [4, 2]",
        "autoencoder.dilations must be [1, 3, 9], not [1, 3]",
        "channels must be 1, not 2",
    ):
        assert line in str(error.value)
    assert "num_codebooks" not in str(error.value)


def test_another_codec_is_told_what_it_lacks(tmp_path):
    reference_of((2, 4)).save_pretrained(tmp_path)
    with pytest.raises(PartitaError, match=r"set autoencoder to dac .* not seanet and factorized-rvq"):
        codec_of(autoencoder=SEANet()).load_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(PartitaError, match=r"a model of type bert, which codec cannot .* DAC in the format"):
        codec_of().load_weights(tmp_path)


def test_wrong_missing_and_surplus_weights_are_one_message(tmp_path):
    reference_of((2, 4)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["decoder.snake1.alpha"]
    state["quantizer.extra.weight"] = torch.zeros(3)
    state["encoder.conv1.weight"] = torch.zeros(4, 1, 5)
    state["encoder.conv2.weight"] = torch.zeros(4, dtype=torch.int64)
    state["decoder.block.0.snake1.alpha"] = torch.zeros(2)
    state["quantizer.quantizers.0.codebook.weight"] = torch.zeros(32, 7)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(PartitaError) as error:
        codec_of().load_weights(tmp_path)
    said = str(error.value)
    assert "autoencoder.decoder.11.alpha" in said
    assert "1 not of this part: quantizer.extra.weight" in said
    assert "autoencoder.encoder.0.convolution.parametrizations.weight.original1 [4, 1, 5] instead of [4, 1, 7]" in said
    assert "bottleneck.codebooks.0.entries [32, 7] instead of [32, 8]" in said
    assert "autoencoder.decoder.1.alpha [2] instead of [32, 1]" in said


def test_a_length_that_does_not_fit_its_direction_is_one_message(tmp_path):
    theirs = reference_of((2, 4))
    theirs.save_pretrained(tmp_path)
    theirs.apply_weight_norm()
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    state["encoder.conv1.parametrizations.weight.original0"] = torch.ones(3, 1, 1)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(PartitaError, match=r"original1 \[4, 1, 7\], but .*original0 \[3, 1, 1\], which does not fit"):
        codec_of().load_weights(tmp_path)


def test_the_published_initialization():
    torch.manual_seed(0)
    autoencoder = DAC(encoder_width=32, decoder_width=64, strides=(2,))
    autoencoder.build(16000, 1, 64, 64)
    convolutions = [m for m in autoencoder.modules() if isinstance(m, torch.nn.Conv1d)]
    weights = torch.cat([m.weight.detach().flatten() for m in convolutions])
    assert weights.std() == pytest.approx(0.02, rel=0.02)
    assert not any(m.bias.any() for m in convolutions)


def test_narrow_networks_are_alive_if_the_variance_is_preserved():
    time = torch.arange(640 * 8) / 16000
    tone, varying = 0.1 * torch.sin(2 * torch.pi * (220 + 200 * time) * time)[None, None], {}
    for initialization in ("published", "preserving"):
        torch.manual_seed(0)
        options = {"encoder_width": 16, "decoder_width": 256, "strides": (4, 4, 5, 8)}
        autoencoder = DAC(**options, initialization=initialization)
        autoencoder.build(16000, 1, 64, 64)
        with torch.no_grad():
            varying[initialization] = autoencoder.encode(tone).std(-1).mean()
    assert varying["published"] < 1e-3
    assert varying["preserving"] > 0.02


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"strides": ()}, "strides"),
        ({"strides": (2, 0)}, "strides"),
        ({"encoder_width": 0}, "widths"),
        ({"decoder_width": 24}, "multiple of 16"),
        ({"dilations": (0,)}, "dilations"),
        ({"initialization": "zero"}, "published or preserving"),
    ],
)
def test_nonsense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        DAC(**wrong)
    with pytest.raises(ValueError, match="must be hinge, hinge-linear or least-squares, not 'wasserstein'"):
        Losses(adversarial_kind="wasserstein")


def test_it_learns_a_clip_against_its_adversary():
    """With DAC's losses, whose sum falls, and the discriminator's, too."""
    torch.manual_seed(0)
    codec = codec_of(
        autoencoder=DAC(encoder_width=4, decoder_width=16, strides=(4, 4), initialization="preserving"),
        discriminator=MultiPeriodMultiBand(periods=(3,), period_width=2, windows=(128,), window_width=2),
        losses=Losses(spectral=15.0, adversarial_kind="least-squares", feature_matching=2.0, summed_features=True),
        spectral=SpectralDistance(
            windows=(64, 256),
            bands=40,
            magnitude=0.0,
            log_power=1,
            scaled=False,
            reduction="sum-of-means",
            decimal=True,
            spectrum="librosa",
        ),
    )
    codec.fit_options = Fit(steps=25, batch_size=2, lr=5e-3, betas=(0.8, 0.99), schedule="exponential", final_lr=0.2)
    logged = []

    class Log(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    time = torch.arange(1024) / 16000
    clip = {"audio": 0.3 * torch.sin(2 * torch.pi * torch.tensor([[440.0]]) * time)}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=25, accelerator="cpu", enable_model_summary=False, callbacks=[Log()], **quiet)
    trainer.fit(codec, DataLoader([clip] * 50, batch_size=2))
    first, last = logged[0], logged[-1]
    for name in ("loss", "discriminator"):
        assert last[f"train/{name}"] < first[f"train/{name}"], name
    assert last["train/spectral"] < 0.7 * first["train/spectral"]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2 * 5e-3)


def test_published_weights_are_fine_tuned(tmp_path):
    """In the class that trains: `init:` and `weights:` both read them, and the discriminator starts at random."""
    reference_of((2, 4)).save_pretrained(tmp_path)
    codec = build(lookup("tokenizer", "codec"), codec_of().config["arguments"])
    codec.load_weights(tmp_path)
    before = {name: tensor.clone() for name, tensor in codec.exported_state().items()}
    _, estimate, losses = codec.train().reconstruct({"audio": torch.randn(4, 1, 64)})
    (estimate.square().sum() + sum(losses.values())).backward()
    assert all(p.grad is not None and p.grad.any() for p in codec.parameters())
    codec.save(tmp_path / "saved")
    again = codec_of()
    again.load_weights(tmp_path / "saved")
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.exported_state().items())
    assert codec.missing_weights("descript/dac_44khz") is None
