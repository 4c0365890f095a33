"""Presets for 44.1 and 48 kHz stereo: whole, they check; shrunk, they train two steps, and both channels come back."""

import pytest
import torch

import partita
from partita.layers.codec_losses import MultiScaleSpectralLoss, SpectralDistance
from partita.metrics.codec import MelDistance
from partita.recipe.compose import compose
from partita.recipe.plan import check_recipe, load_recipe
from partita.system.system import System
from partita.training.training import train

PRESETS = {"spectral-44khz-stereo": 44100, "spectral-48khz-stereo": 48000, "soundstream-48khz-stereo": 48000}
TINY = {
    "spectral": "autoencoder: {encoder_width: 16, encoder_depth: 1, decoder_width: 16, decoder_depth: 1}, dim: 8",
    "soundstream": "autoencoder: {network: {width: 2, dilations: [1]}}, dim: 8",
}
SMALL = (
    "bottleneck: {num_codebooks: 3, cardinality: 16, warmup_steps: 0, kmeans_iterations: 2}, "
    "discriminator: {wave_scales: [2], wave_width: 1, stft_windows: [512], stft_width: 4}, "
    "adversarial_start: 1, fit: {steps: 2, batch_size: 2, crop: 0.4, validation_examples: 2, num_workers: 0}"
)


@pytest.mark.parametrize(("preset", "rate"), PRESETS.items())
def test_a_stage_can_be_built_on_it(preset, rate):
    with torch.device("meta"):
        system = System(load_recipe("chorales-tiny", [f"tokenizers.acoustic={preset}"]))
    spec = system.output.spec
    assert (spec.sample_rate, spec.channels, spec.frame_rate) == (rate, 2, 50)


@pytest.mark.parametrize(("preset", "rate"), PRESETS.items())
def test_shrunk_it_trains_and_decodes_stereo(preset, rate, tmp_path):
    slot = f"tokenizers.acoustic={{preset: {preset}, {TINY[preset.split('-')[0]]}, {SMALL}}}"
    tree = compose("chorales-tiny", [slot, "data.limit=12", "trainer.logger=csv"])
    stage = tree.values["stages"]["acoustic"]
    stage["window"] = 0.4
    stage["generator"]["backbone"] |= {"width": 32, "depth": 1}
    stage["generator"]["fit"] = {**stage["generator"]["fit"], "steps": 2, "batch_size": 2, "validation_examples": 2}
    train(check_recipe(tree), tmp_path / "run")
    system = partita.load(tmp_path / "run")
    audio = system.generate(["flute"], duration=0.4, seed=1)
    assert audio.shape == (1, 2, round(0.4 * rate))
    assert not torch.allclose(audio[:, 0], audio[:, 1])
    codec = system.output
    codes = codec.encode(audio)
    assert codes.shape == (1, 3, 20)
    assert not torch.equal(codes, codec.encode(audio.flip(1)))  # which side is which is told
    assert codec.decode(codes).shape == audio.shape


def test_both_channels_count_in_losses_and_metrics():
    audio = torch.randn(1, 2, 8000)
    left, right = audio.clone(), audio.clone()
    left[:, 0] *= 0.5
    right[:, 1] *= 0.5
    loss = MultiScaleSpectralLoss(SpectralDistance(windows=(512,), bands=20), 44100)
    mono = [loss(changed[:, [k]], audio[:, [k]]) for k, changed in enumerate((left, right))]
    torch.testing.assert_close(loss(left, audio), mono[0] / 2)
    torch.testing.assert_close(loss(right, audio), mono[1] / 2)
    for changed in (left, right):
        distance = MelDistance(44100)
        distance.update(changed, audio)
        assert distance.compute() == pytest.approx(0.6931 / 2, abs=0.01)
