"""The contract of bottlenecks has room for more than residual quantization; what all quantizers keep."""

import math

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from partita.core.part import Part
from partita.core.registry import register
from partita.layers.codec_losses import SpectralDistance
from partita.tokenizers.adversarial import Losses
from partita.tokenizers.autoencoders.seanet import SEANet, SEANetShape
from partita.tokenizers.bottlenecks.base import Bottleneck, Passed
from partita.tokenizers.bottlenecks.fsq import FSQ
from partita.tokenizers.bottlenecks.grouped_rvq import GroupedRVQ
from partita.tokenizers.bottlenecks.lfq import LFQ
from partita.tokenizers.bottlenecks.residual_fsq import ResidualFSQ
from partita.tokenizers.bottlenecks.rvq import RVQ
from partita.tokenizers.discriminators.multi_scale import MultiScale
from partita.tokenizers.neural_codec import NeuralCodec


@register("bottleneck", "toy-gaussian")
class ToyGaussian(Bottleneck):
    """Latents drawn around means, which a divergence holds near a standard normal distribution."""

    @property
    def encoded_dim(self):
        return 2 * self.dim

    def forward(self, encoded, step):
        mean, log_deviation = encoded.chunk(2, 1)
        divergence = 0.5 * (mean**2 + (2 * log_deviation).exp() - 1) - log_deviation
        drawn = mean + log_deviation.exp() * torch.randn_like(mean)
        return Passed(drawn, {"divergence": divergence.mean()})

    def encode(self, encoded, num_codebooks):
        return self.latents(encoded)

    def decode(self, representation):
        return representation

    def latents(self, encoded):
        return encoded.chunk(2, 1)[0]


@register("bottleneck", "toy-uneven")
class ToyUneven(RVQ):
    """Says that its codebooks are of several sizes."""

    @property
    def cardinalities(self):
        return tuple(4 + k for k in range(self.num_codebooks))


def codec_with(bottleneck, **options):
    autoencoder = SEANet(network=SEANetShape(width=4, strides=(4, 8), dilations=(1,)))
    spectral = SpectralDistance(windows=(64, 256), bands=20)
    return NeuralCodec(
        autoencoder=autoencoder,
        bottleneck=bottleneck,
        **{"sample_rate": 8000, "dim": 6, "spectral": spectral, "losses": Losses(adversarial=0.0)} | options,
    )


def fit(codec, steps=2):
    codec.fit_options = codec.fit_options.__class__(steps=steps, batch_size=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=steps, accelerator="cpu", enable_model_summary=False, **quiet)
    clips = [{"audio": 0.1 * torch.randn(1, 800)} for _ in range(2 * steps)]
    loader = DataLoader(clips, batch_size=2)
    trainer.fit(codec, loader, loader)
    return trainer


BOOKS = {"num_codebooks": 2, "cardinality": 16, "warmup_steps": 0, "kmeans_iterations": 2, "decay": 0.9}
QUANTIZERS = {
    "rvq": lambda: RVQ(**BOOKS),
    "grouped-rvq": lambda: GroupedRVQ(groups=2, **BOOKS),
    "fsq": lambda: FSQ(levels=(5, 4, 3)),
    "residual-fsq": lambda: ResidualFSQ(levels=(3, 3, 3), num_codebooks=3),
    "lfq": lambda: LFQ(bits=4, num_codebooks=3),
}


@pytest.fixture(params=QUANTIZERS)
def quantizing(request):
    """A codec with each of the quantizers."""
    return codec_with(QUANTIZERS[request.param]())


def test_a_codec_trains_on_every_quantizer(quantizing, tmp_path):
    before = {name: value.clone() for name, value in quantizing.autoencoder.encoder.named_parameters()}
    logged = fit(quantizing).callback_metrics
    assert all(value.isfinite() for value in logged.values())
    total = len(quantizing.bottleneck.cardinalities)
    assert all(0 < logged[f"val/usage_{k}"] <= 1 for k in range(total))
    assert all(not torch.equal(value, before[n]) for n, value in quantizing.autoencoder.encoder.named_parameters())
    audio, codec = torch.randn(2, 1, 500), quantizing.eval()
    codes = codec.encode(audio)
    codec.save(tmp_path)
    again = Part.load(tmp_path)
    assert torch.equal(again.encode(audio), codes)
    assert torch.equal(again.decode(codes), codec.decode(codes))
    for fewer in range(1, total):
        codec.set_num_codebooks(fewer)
        assert torch.equal(codec.encode(audio), codes[:, :fewer])
        assert codec.decode(codes[:, :fewer]).isfinite().all()


def test_codes_are_those_of_what_the_decoder_gets(quantizing):
    bottleneck, frames = quantizing.bottleneck, torch.randn(2, 6, 30)
    if hasattr(bottleneck, "warmup_steps") or hasattr(bottleneck, "quantizers"):
        bottleneck.train()(frames, torch.tensor(0))  # fits the codebooks
    bottleneck.eval()
    codes, passed = bottleneck.encode(frames, None), bottleneck(frames, torch.tensor(0)).latents
    assert torch.equal(bottleneck.encode(frames, None), codes)
    torch.testing.assert_close(bottleneck.decode(codes), passed)
    assert bottleneck.latents(frames).shape == passed.shape
    for k, cardinality in enumerate(bottleneck.cardinalities):
        assert 0 <= codes[:, k].min() <= codes[:, k].max() < cardinality
    single = torch.cat([bottleneck.encode(frame, None) for frame in frames.split(1, -1)], -1)
    assert (single != codes).float().mean() < 0.01  # each frame by itself, but for rounding


def test_quantizers_compute_in_single_precision_under_autocast(quantizing):
    bottleneck, frames = quantizing.bottleneck.eval(), torch.randn(2, 6, 30)
    codes, latents = bottleneck.encode(frames, None), bottleneck.latents(frames)
    passed = bottleneck(frames, torch.tensor(0)).latents
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bottleneck.encode(frames, None), codes)
        assert torch.equal(bottleneck.decode(codes), bottleneck.decode(codes).float())
        assert torch.equal(bottleneck(frames, torch.tensor(0)).latents, passed)
        assert torch.equal(bottleneck.latents(frames), latents)


def test_a_gradient_reaches_the_encoder_through_every_quantizer(quantizing):
    frames = torch.randn(2, 6, 30, requires_grad=True)
    quantizing.bottleneck.train()(frames, torch.tensor(0)).latents.square().sum().backward()
    assert (frames.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_training_continues_from_the_state_dict_alone(name):
    """Two quantizers of equal state and random seed learn the same, so that a run can be taken up anywhere."""
    first, second = (codec_with(QUANTIZERS[name]()).bottleneck.train() for _ in range(2))
    drawn = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first(drawn, torch.tensor(0))
    second.load_state_dict(first.state_dict())
    passed = []
    for bottleneck in (first, second):
        torch.manual_seed(5)
        passed += [[bottleneck(drawn, torch.tensor(k)) for k in (1, 2)]]
    for one, other in zip(*passed, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert one.losses.keys() == other.losses.keys()
        assert all(torch.equal(one.losses[loss], other.losses[loss]) for loss in one.losses)


@pytest.mark.parametrize("name", ["grouped-rvq", "fsq", "residual-fsq", "lfq"])
def test_codebooks_are_used_after_a_short_training(name):
    """An autoencoder of 8 numbers that follow from two phases and two loudnesses."""
    torch.manual_seed(0)
    bottleneck = QUANTIZERS[name]()
    bottleneck.build(6)
    encoder, decoder = torch.nn.Conv1d(8, 6, 1), torch.nn.Conv1d(6, 8, 1)
    modules = torch.nn.ModuleList([encoder, bottleneck, decoder])
    optimizer = torch.optim.Adam(modules.parameters(), 1e-2)

    def sines():
        phases, loudness = 2 * torch.pi * torch.rand(4, 2, 1, 64), torch.rand(4, 2, 1, 64)
        return (loudness * torch.sin(phases + torch.arange(4)[:, None])).flatten(1, 2)

    for step in range(100):
        target = sines()
        passed = bottleneck(encoder(target), torch.tensor(step))
        loss = (decoder(passed.latents) - target).square().mean() + sum(passed.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    modules.eval()
    codes = torch.cat([bottleneck.encode(encoder(sines()), None) for _ in range(20)])
    usage = [len(codes[:, k].unique()) / total for k, total in enumerate(bottleneck.cardinalities)]
    assert min(usage) >= 0.8


def test_a_continuous_bottleneck_makes_latents_of_another_width_than_the_encoders(tmp_path):
    codec = codec_with(ToyGaussian())
    assert codec.spec.dim == 6
    assert not codec.spec.discrete
    assert codec.latent_dim is None  # its representation is latents already
    logged = fit(codec).callback_metrics
    assert logged["train/divergence"] > 0
    assert "val/mel_distance" in logged
    audio = torch.randn(2, 1, 100)
    latents = codec.eval().encode(audio)
    assert latents.shape == (2, 6, 4)
    assert torch.equal(codec.encode(audio), latents)  # the mean, not a draw
    assert codec.decode(latents).shape == (2, 1, 128)
    codec.save(tmp_path)
    again = Part.load(tmp_path)
    assert torch.equal(again.decode(again.encode(audio)), codec.decode(latents))
    with pytest.raises(ValueError, match="no codebooks in a toy-gaussian"):
        codec.set_num_codebooks(1)


def test_what_a_bottleneck_asks_for_is_weighed():
    """Means at 2 and deviations at 1 are 2 nats from a standard normal distribution; at weight 3 they count 6."""

    class Still(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, audio):
            shape = len(audio), 6, audio.shape[-1] // 32
            return torch.cat([self.mean.expand(shape), torch.zeros(shape)], 1)

    totals = []
    for weight in (0.0, 3.0):
        codec = codec_with(ToyGaussian(), losses=Losses(adversarial=0.0, bottleneck=weight))
        codec.autoencoder.encoder = Still()
        logged = fit(codec, steps=1).callback_metrics
        assert math.isclose(logged["train/divergence"], 2.0, rel_tol=1e-6)
        totals.append(float(logged["train/loss"] - logged["train/spectral"]))
    assert totals == pytest.approx([0.0, 6.0], abs=1e-3)


def test_codebooks_of_several_sizes_are_refused():
    with pytest.raises(ValueError, match=r"of one size, not of \[4, 5, 6\]"):
        codec_with(ToyUneven(num_codebooks=3, cardinality=8))


def test_an_adversary_that_counts_must_be_there():
    with pytest.raises(ValueError, match=r"losses.adversarial is 1, but there is no discriminator"):
        codec_with(RVQ(num_codebooks=1, cardinality=4), losses=Losses())
    codec = codec_with(RVQ(num_codebooks=1, cardinality=4), losses=Losses(), discriminator=MultiScale(wave_width=4))
    assert codec.discriminator is not None


def test_a_component_serves_one_codec():
    bottleneck = RVQ(num_codebooks=1, cardinality=4)
    codec_with(bottleneck)
    with pytest.raises(ValueError, match="this rvq is in a part already"):
        codec_with(bottleneck)
