from contextlib import nullcontext

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from partita.core.fit import Fit
from partita.data.examples import StepSampler
from partita.layers.chunks import in_chunks
from partita.layers.codec_losses import SpectralDistance
from partita.tokenizers.adversarial import Losses
from partita.tokenizers.autoencoders.seanet import SEANet, SEANetShape
from partita.tokenizers.autoencoders.stft_convnext import STFTConvNeXt
from partita.tokenizers.bottlenecks.rvq import RVQ
from partita.tokenizers.discriminators.multi_scale import MultiScale
from partita.tokenizers.neural_codec import NeuralCodec

COMMON = {
    "sample_rate": 8000,
    "dim": 8,
    "spectral": SpectralDistance(windows=(64, 256), bands=20),
    "adversarial_start": 3,
}
FIT = Fit(steps=8, batch_size=2, lr=1e-3, warmup_steps=2)


def rvq(**options):
    return RVQ(**{"num_codebooks": 3, "cardinality": 16, "warmup_steps": 2, "kmeans_iterations": 5} | options)


def codec_of(autoencoder, options):
    parts = {
        "bottleneck": rvq(),
        "discriminator": MultiScale(wave_scales=(2,), wave_width=1, stft_windows=(256,), stft_width=4),
    }
    return NeuralCodec(autoencoder=autoencoder, **COMMON | parts | options)


def soundstream(**options):
    return codec_of(SEANet(network=SEANetShape(width=4, strides=(4, 5, 8), dilations=(1, 3))), options)


def spectral(frame_rate=50, **options):
    sizes = {"encoder_width": 16, "encoder_depth": 1, "decoder_width": 16, "decoder_depth": 1}
    return codec_of(STFTConvNeXt(frame_rate=frame_rate, **sizes), options)


BUILDERS = pytest.mark.parametrize("build", [soundstream, spectral])


def clips(number, channels=1, samples=2000):
    generator = torch.Generator().manual_seed(3)
    time = torch.arange(samples) / 8000
    pitch = 100 + 900 * torch.rand(number, channels, 1, generator=generator)
    return [{"audio": audio} for audio in 0.3 * torch.sin(2 * torch.pi * pitch * time)]


class Reseed(Callback):
    """As the package's training does: randomness is a function of the step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(batch_idx)


class Save(Callback):
    """A checkpoint before the step of the given number."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.step:
            trainer.save_checkpoint(self.path)


def train(codec, data, *callbacks, fit=FIT, start=0, checkpoint=None, **options):
    """Train on ``data`` in order, from step ``start`` on."""
    codec.fit_options = fit
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Reseed(), *callbacks],
        **{"limit_val_batches": 0} | options,
    )
    size = fit.batch_size
    loader = DataLoader(data, batch_size=size, sampler=StepSampler(len(data) // size, size, start=start))
    trainer.fit(codec, loader, DataLoader(data, batch_size=size), ckpt_path=checkpoint)
    return trainer


@BUILDERS
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("samples", [1, 159, 160, 1601])
def test_shapes(build, channels, samples):
    codec = build(channels=channels).eval()
    spec = codec.spec
    assert (spec.sample_rate, spec.channels, spec.frame_rate) == (8000, channels, 50)
    assert (spec.num_codebooks, spec.cardinality) == (3, 16)
    audio = torch.randn(2, channels, samples)
    codes = codec.encode(audio)
    frames = -(-samples // 160)
    assert codes.shape == (2, 3, frames)
    assert codes.dtype == torch.int64
    assert codec.decode(codes).shape == (2, channels, frames * 160)
    assert torch.equal(codec.encode(audio), codes)


@BUILDERS
def test_fewer_codebooks(build):
    codec = build().eval()
    audio = torch.randn(1, 1, 800)
    codes = codec.encode(audio)
    codec.set_num_codebooks(2)
    assert codec.spec.num_codebooks == 2
    assert torch.equal(codec.encode(audio), codes[:, :2])
    assert codec.decode(codes[:, :2]).shape == (1, 1, 800)
    assert build(num_codebooks=1).spec.num_codebooks == 1
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="1 to 3"):
            codec.set_num_codebooks(wrong)


@BUILDERS
def test_training_touches_everything_and_counts_batches(build):
    codec = build()
    before = {name: parameter.clone() for name, parameter in codec.named_parameters()}
    trainer = train(codec, clips(16), limit_val_batches=2)
    assert codec.step == 8
    assert trainer.global_step == 8
    unchanged = [name for name, p in codec.named_parameters() if torch.equal(before[name], p)]
    # while no score is beyond the hinges, what recordings and reconstructions pull at the last biases cancels out
    assert not [name for name in unchanged if not name.startswith("discriminator") or not name.endswith("bias")]
    logged = trainer.callback_metrics
    names = {"loss", "spectral", "waveform", "commitment", "adversarial", "feature_matching", "discriminator"}
    assert {f"train/{name}" for name in names} <= logged.keys()
    assert {"val/mel_distance", "val/spectral", "val/usage_2", "val/perplexity_0"} <= logged.keys()
    assert all(value.isfinite() for value in logged.values())


@BUILDERS
def test_phases_of_training(build):
    seen = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen[batch_idx] = (bool(pl_module.bottleneck.started), "train/discriminator" in trainer.callback_metrics)

    train(build(), clips(12), Watch())
    assert [quantized for quantized, _ in seen.values()] == [False, False, True, True, True, True]
    assert [adversarial for _, adversarial in seen.values()] == [False, False, False, True, True, True]


@BUILDERS
def test_a_killed_run_goes_on_bit_for_bit(build, tmp_path):
    """In the quantizer's warm-up and after the discriminators entered."""
    whole, steps = build(), (1, 5)
    train(whole, clips(14), *(Save(step, tmp_path / f"{step}.ckpt") for step in steps))
    for step in steps:
        killed = build()
        train(killed, clips(14), start=step, checkpoint=tmp_path / f"{step}.ckpt")
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, killed.state_dict()[name]), (step, name)


@BUILDERS
@pytest.mark.parametrize("balanced", [False, True])
def test_accumulated_batches_make_the_step_of_one_large_batch(build, balanced):
    """With an adversary; latents pass as they are, because codebooks follow every batch."""
    losses = Losses(balanced=balanced)
    large, small = (build(bottleneck=rvq(warmup_steps=100), losses=losses, adversarial_start=1) for _ in range(2))
    small.load_state_dict(large.state_dict())
    options = {"lr": 1e-3, "eps": 1e-2, "gradient_clip": 0.5}  # such an eps keeps tiny gradients from counting in full
    steps = 1 if balanced else 3  # norms are averaged over batches, which is the same for the first alone
    data = [clip for clip in clips(8 * steps) if balanced is False] or clips(2) * 4
    one = train(large, data, fit=Fit(steps=steps, batch_size=8, **options))
    four = train(small, data, fit=Fit(steps=steps, batch_size=2, accumulate=4, **options))
    assert one.global_step == four.global_step == small.step == steps
    for name, tensor in large.state_dict().items():
        if not name.startswith("balancer"):
            torch.testing.assert_close(
                small.state_dict()[name], tensor, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


class Scaled(MixedPrecision):
    """Half precision's scaling of gradients without half precision."""

    def __init__(self, interval):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=interval))

    def forward_context(self):
        return nullcontext()


@pytest.mark.parametrize(
    ("build", "accumulate", "interval"),
    [(soundstream, 1, 1000), (soundstream, 2, 1), (spectral, 1, 1), (spectral, 2, 1000)],
)
def test_scaled_gradients_train_like_others(build, accumulate, interval):
    """Powers of two change nothing in floating point: neither what is clipped, nor what the adversary does."""
    plain, scaled = build(adversarial_start=1), build(adversarial_start=1)
    scaled.load_state_dict(plain.state_dict())
    fit = Fit(steps=4, batch_size=2, accumulate=accumulate, lr=1e-3, gradient_clip=0.01)
    train(plain, clips(8 * accumulate), fit=fit)
    train(scaled, clips(8 * accumulate), fit=fit, plugins=[Scaled(interval)])
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, scaled.state_dict()[name]), name


@BUILDERS
def test_learns_a_reconstruction(build):
    data = clips(40, samples=1600)
    options = {"losses": Losses(adversarial=0.0), "bottleneck": rvq(warmup_steps=20, kmeans_iterations=50)}
    fit = Fit(steps=200, batch_size=2, lr=3e-3, schedule="constant")
    codec = build(**options)
    before = float(train(codec, data[:2], fit=fit, limit_val_batches=1.0).callback_metrics["val/mel_distance"])
    after = float(train(codec, 3 * data, fit=fit, limit_val_batches=5).callback_metrics["val/mel_distance"])
    assert after < 0.7 * before


@BUILDERS
@pytest.mark.parametrize("losses", [Losses(balanced=True), Losses(waveform=1.0, relative_features=True)])
def test_ways_of_weighing(build, losses):
    trainer = train(build(losses=losses), clips(10))
    assert all(value.isfinite() for value in trainer.callback_metrics.values())


@BUILDERS
def test_half_precision(build):
    trainer = train(build(channels=2), clips(10, channels=2), precision="bf16-mixed")
    assert all(value.isfinite() for value in trainer.callback_metrics.values())
    with torch.autocast("cpu", torch.bfloat16):
        codec = build().eval()
        codes = codec.encode(torch.randn(1, 1, 800))
        assert codec.decode(codes).isfinite().all()


@BUILDERS
def test_without_an_adversary_there_is_no_discriminator(build):
    codec = build(losses=Losses(adversarial=0.0))
    assert codec.discriminator is None
    train(codec, clips(10))
    assert codec.step == 5


@BUILDERS
def test_what_is_saved_is_what_encoding_and_decoding_need(build, tmp_path):
    codec = build()
    train(codec, clips(8))
    codec.save(tmp_path / "codec")
    assert not [name for name in codec.exported_state() if name.startswith(("discriminator", "step"))]
    loaded = type(codec).load(tmp_path / "codec")
    audio = torch.randn(1, 1, 900)
    codes = codec.eval().encode(audio)
    assert torch.equal(loaded.encode(audio), codes)
    assert torch.equal(loaded.decode(codes), codec.decode(codes))


@BUILDERS
def test_training_on_from_saved_weights_keeps_the_codebooks(build, tmp_path):
    codec = build()
    train(codec, clips(8))
    codec.save(tmp_path / "codec")
    loaded = type(codec).load(tmp_path / "codec").train()
    before = loaded.bottleneck.codebooks
    train(loaded, clips(2))
    assert (loaded.bottleneck.codebooks - before).abs().max() < 0.5 * before.abs().max()


def test_built_without_memory():
    with torch.device("meta"):
        assert next(soundstream().parameters()).is_meta
        assert next(spectral().parameters()).is_meta


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="does not divide"):
        spectral(frame_rate=33)
    with pytest.raises(ValueError, match="nothing is reconstructed"):
        Losses(spectral=0.0)
    with pytest.raises(ValueError, match="negative: bottleneck"):
        Losses(bottleneck=-1.0)


@BUILDERS
def test_a_training_that_ends_before_codebooks_learn_is_doubted(build):
    codec = build(bottleneck=rvq(warmup_steps=8))
    codec.fit_options = Fit(steps=8)
    assert "bottleneck.warmup_steps (8)" in codec.doubt()
    codec.fit_options = Fit(steps=9)
    assert codec.doubt() is None


@BUILDERS
def test_a_training_that_ends_before_the_discriminator_starts_is_doubted(build):
    codec = build(adversarial_start=20)
    codec.fit_options = Fit(steps=20)
    assert "adversarial_start (20)" in codec.doubt()
    codec.fit_options = Fit(steps=21)
    assert codec.doubt() is None
    codec = build(adversarial_start=20, discriminator=None, losses=Losses(adversarial=0.0, feature_matching=0.0))
    codec.fit_options = Fit(steps=20)
    assert codec.doubt() is None


@BUILDERS
def test_channels_coded_by_themselves_are_those_of_the_codec_with_one_channel(build):
    """As MusicGen's stereo models have them: left and right alternate in the codebooks."""
    torch.manual_seed(0)
    one, two = build().eval(), build(channels=2, channelwise=True).eval()
    two.load_exported_state(one.exported_state(), "the codec with one channel")
    audio = torch.randn(2, 2, 1640)
    left, right = one.encode(audio[:, :1]), one.encode(audio[:, 1:])
    codes = two.encode(audio)
    assert torch.equal(codes, torch.stack([left, right], 2).flatten(1, 2))  # L0 R0 L1 R1 L2 R2
    assert (two.spec.num_codebooks, two.spec.channels) == (6, 2)
    torch.testing.assert_close(two.decode(codes), torch.cat([one.decode(left), one.decode(right)], 1))
    torch.testing.assert_close(two.decode_latents(two.encode_latents(audio)), two.decode_latents(apart(one, audio)))
    two.set_num_codebooks(4)
    assert torch.equal(two.encode(audio), codes[:, :4])
    torch.testing.assert_close(two.decode(codes[:, :4])[:, :1], one.decode(left[:, :2]))
    with pytest.raises(ValueError, match="multiple of 2"):
        two.set_num_codebooks(3)


def apart(codec, audio):
    """Latents of a codec with one channel, ``[B, 2 D, S]`` for two."""
    return torch.stack([codec.encode_latents(audio[:, [k]]) for k in range(2)], 2).flatten(1, 2)


def test_channels_by_themselves_are_coded_in_chunks():
    codec = soundstream(channels=2, channelwise=True).eval()
    audio = torch.randn(2, 2, 1600)
    codes = codec.encode(audio)
    assert torch.equal(in_chunks(codec.encoding_steps(), audio, 3 * 160), codes)
    torch.testing.assert_close(in_chunks(codec.decoding_steps(), codes, 3), codec.decode(codes), atol=1e-5, rtol=0)


def test_a_codec_with_channels_by_themselves_trains():
    codec = soundstream(channels=2, channelwise=True, adversarial_start=1)
    codec.fit_options = Fit(steps=3, batch_size=2)
    before = {name: value.clone() for name, value in codec.named_parameters()}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    L.Trainer(max_steps=3, **quiet).fit(codec, DataLoader(clips(6, channels=2), batch_size=2))
    assert not any(torch.equal(value, before[name]) for name, value in codec.named_parameters() if "weight" in name)
