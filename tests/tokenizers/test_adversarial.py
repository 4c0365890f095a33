"""The adversarial loop serves whatever makes audio, not codecs alone."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from partita.core.fit import Fit
from partita.core.registry import register
from partita.layers.codec_losses import SpectralDistance
from partita.tokenizers.adversarial import AdversarialPart, Losses, Reconstruction
from partita.tokenizers.discriminators.base import Discriminator
from partita.tokenizers.discriminators.multi_scale import MultiScale


@register("tokenizer", "toy-vocoder")
class ToyVocoder(AdversarialPart):
    """Makes audio of the means of its halves, at twice the rate of what it is given."""

    def __init__(self, *, discriminator: Discriminator, losses: Losses):
        super().__init__(
            sample_rate=8000,
            channels=1,
            losses=losses,
            spectral=SpectralDistance(windows=(64, 256), bands=20),
            discriminator=discriminator,
            adversarial_start=1,
        )
        self.up = nn.ConvTranspose1d(1, 1, 4, 2, padding=1)

    def reconstruct(self, batch):
        low = nn.functional.avg_pool1d(batch["audio"], 2)
        return Reconstruction(batch["audio"], self.up(low), {"size": self.up.weight.square().mean()})


def test_a_vocoder_learns_against_the_discriminators_of_codecs(tmp_path):
    judge = MultiScale(wave_scales=(2,), wave_width=4, stft_windows=(256,), stft_width=4)
    vocoder = ToyVocoder(discriminator=judge, losses=Losses(balanced=True, feature_matching=1.0))
    vocoder.fit_options = Fit(steps=3, batch_size=2, lr=1e-2, accumulate=2, ema=0.5)
    before = {name: p.clone() for name, p in vocoder.named_parameters()}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(vocoder, DataLoader([{"audio": 0.1 * torch.randn(1, 2000)} for _ in range(12)], batch_size=2))
    assert trainer.global_step == vocoder.step == 3
    assert all(not torch.equal(p, before[n]) for n, p in vocoder.named_parameters() if n.startswith("up"))
    assert any(not torch.equal(p, before[n]) for n, p in vocoder.named_parameters() if n.startswith("discriminator"))
    logged = trainer.callback_metrics
    assert {"train/size", "train/spectral", "train/adversarial", "train/discriminator"} <= logged.keys()
    assert set(vocoder.exported_state()) == {"up.weight", "up.bias"}


def test_the_discriminator_learns_from_recordings_too():
    """What it holds of a recording has a gradient in its weights, though the codec's step comes in between."""
    seen = {}

    class Judge(MultiScale):
        def forward(self, audio):
            verdicts = super().forward(audio)
            seen[len(seen)] = verdicts[0][0].requires_grad, next(self.parameters()).requires_grad
            return verdicts

    judge = Judge(wave_scales=(2,), wave_width=4, stft_windows=())
    vocoder = ToyVocoder(discriminator=judge, losses=Losses())
    vocoder.fit_options = Fit(steps=2, batch_size=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(vocoder, DataLoader([{"audio": 0.1 * torch.randn(1, 2000)} for _ in range(4)], batch_size=2))
    # recording: weights learn; estimate: only the part does; estimate again: weights learn
    assert list(seen.values()) == [(True, True), (True, False), (True, True)]


def test_the_discriminator_learns_whatever_else_is_frozen():
    judge = MultiScale(wave_scales=(2,), wave_width=4, stft_windows=())
    vocoder = ToyVocoder(discriminator=judge, losses=Losses())
    vocoder.train_only(["up.weight"])
    moving = {name for name, parameter in vocoder.named_parameters() if parameter.requires_grad}
    assert moving == {"up.weight", *(f"discriminator.{name}" for name, _ in judge.named_parameters())}
    with pytest.raises(ValueError, match="name parameters of the codec"):
        vocoder.train_only(["discriminator.*"])
