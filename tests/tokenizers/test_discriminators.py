"""Discriminators of audio, and what they and the losses make of each other."""

import pytest
import torch
import torchaudio
from encodec.msstftd import MultiScaleSTFTDiscriminator

from partita.layers.codec_losses import (
    MultiScaleSpectralLoss,
    SpectralDistance,
    discriminator_hinge,
    feature_matching,
    generator_hinge,
)
from partita.tokenizers.discriminators.multi_scale import MultiScale


def built(discriminator, channels=1):
    discriminator.build(16000, channels)
    return discriminator


@pytest.mark.parametrize(
    "config",
    [
        {"wave_width": 4, "stft_width": 4},
        {"wave_scales": (), "stft_windows": (512, 256), "stft_width": 4, "stft_kind": "dilated"},
        {"wave_scales": (2,), "wave_width": 4, "stft_windows": ()},
    ],
)
@pytest.mark.parametrize("samples", [4000, 3999])
def test_discriminators_judge_each_channel(config, samples):
    judge = built(MultiScale(**config), 2)
    audio = torch.randn(2, 2, samples, requires_grad=True)
    verdicts = judge(audio)
    assert len(verdicts) == len(judge.wave_scales) + len(judge.stft_windows)
    for scores, features in verdicts:
        assert scores.shape[:2] == (4, 1)
        assert len(features) >= 5
    (generator_hinge(verdicts) + feature_matching(judge(audio.detach() * 0.9), verdicts)).backward()
    assert audio.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in judge.parameters())


@pytest.mark.parametrize("kind", ["residual", "dilated"])
def test_discriminators_learn_to_tell_noise_from_tones(kind):
    judge = built(MultiScale(wave_scales=(), stft_windows=(256,), stft_width=4, stft_kind=kind))
    optimizer = torch.optim.Adam(judge.parameters(), 3e-3)
    time = torch.arange(2000) / 16000
    losses = []
    for _ in range(30):
        tones = torch.sin(2 * torch.pi * (200 + 2000 * torch.rand(4, 1, 1)) * time)
        loss = discriminator_hinge(judge(tones), judge(0.5 * torch.randn(4, 1, 2000)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert min(losses) < 0.8


def test_soundstreams_stft_discriminator_has_the_papers_widths():
    """Figure 4 of 2107.03312 with C = 32: blocks (C, 2), (2C, 2), (4C, 1), (4C, 2), (8C, 1), (8C, 2)."""
    judge = built(MultiScale(wave_scales=()))
    with torch.no_grad():
        ((scores, features),) = judge(torch.randn(1, 1, 256 * 64))
    assert [f.shape[1] for f in features] == [32, 64, 128, 128, 256, 256, 512]
    # a frame per hop, halved three times; 1024 / 2 frequencies, halved six times, and then one
    assert features[-1].shape[2:] == (8, 8)
    assert scores.shape == (1, 1, 8, 1)


def test_encodecs_stft_discriminator_sees_no_padding():
    """1 + (T − window) / hop frames, of spectra under a window of unit energy (`center=False`, `normalized=True`)."""
    judge = built(MultiScale(wave_scales=(), stft_windows=(512,), stft_width=4, stft_kind="dilated"))
    (discriminator,) = judge.members
    seen = []
    discriminator.layers[0].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    audio = torch.randn(1, 1, 512 + 128 * 9)
    judge(audio)
    transform = torchaudio.transforms.Spectrogram(512, 512, 128, center=False, power=None, normalized=True)
    expected = transform(audio[:, 0]).mT
    torch.testing.assert_close(seen[0], torch.stack([expected.real, expected.imag], 1), atol=1e-5, rtol=1e-4)
    judge(torch.randn(1, 1, 100))  # less than a window
    assert seen[1].shape == (1, 2, 1, 257)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_encodecs_discriminator_judges_as_the_package():
    """Scores and all features of the encodec package's MS-STFT discriminator, with its weights."""
    windows = (512, 256, 128)
    reference = MultiScaleSTFTDiscriminator(
        filters=8, n_ffts=list(windows), win_lengths=list(windows), hop_lengths=[window // 4 for window in windows]
    )
    judge = built(MultiScale(wave_scales=(), stft_windows=windows, stft_width=8, stft_kind="dilated"))
    theirs = {name: value for name, value in reference.state_dict().items() if "spec_transform" not in name}
    ours = {name: value for name, value in judge.state_dict().items() if not name.endswith("window")}
    judge.load_state_dict(dict(zip(ours, theirs.values(), strict=True)), strict=False)
    audio = 0.1 * torch.randn(2, 1, 4000)
    with torch.no_grad():
        (logits, features), verdicts = reference(audio), judge(audio)
    for i, (score, hidden) in enumerate(verdicts):
        torch.testing.assert_close(score.reshape(-1), logits[i].reshape(-1), atol=1e-5, rtol=1e-5)
        for mine, other in zip(hidden, features[i], strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"wave_scales": (3,)}, {"wave_scales": (), "stft_windows": ()}])
def test_discriminators_refuse_nonsense(wrong):
    with pytest.raises(ValueError, match="wave_scales"):
        MultiScale(**wrong)


def test_discriminators_and_losses_under_autocast():
    audio = torch.randn(1, 1, 2000, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        verdicts = built(MultiScale(wave_width=4, stft_width=4, stft_windows=(256,)))(audio)
        loss = generator_hinge(verdicts) + MultiScaleSpectralLoss(SpectralDistance(), 16000)(audio, audio.detach() * 2)
    loss.backward()
    assert audio.grad.isfinite().all()
