"""The contract of bottlenecks has room for more than residual quantization."""

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
