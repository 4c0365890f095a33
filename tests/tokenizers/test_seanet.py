import pytest
import torch

from partita.tokenizers.autoencoders.seanet import SEANetDecoder, SEANetEncoder, SEANetShape

ENCODEC = {
    "dilations": (1,),
    "residual_kernel": 3,
    "last_kernel": 7,
    "compress": 2,
    "lstm_layers": 2,
    "shortcut": "conv",
    "normalization": "weight_norm",
}


def tone(samples, sample_rate=16000):
    time = torch.arange(samples) / sample_rate
    return 0.1 * torch.sin(2 * torch.pi * (220 + 200 * time) * time)[None, None]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{}, ENCODEC])
def test_lengths(options, causal):
    config = SEANetShape(width=4, strides=(2, 3, 5), causal=causal, **options)
    assert config.hop == 30
    audio = torch.randn(2, 2, 30 * 7)
    latents = SEANetEncoder(config, 2, 6)(audio)
    assert latents.shape == (2, 6, 7)
    assert SEANetDecoder(config, 2, 6)(latents).shape == audio.shape


@pytest.mark.parametrize("options", [{}, ENCODEC])
def test_causal_output_does_not_look_ahead(options):
    config = SEANetShape(width=4, strides=(2, 3, 4), causal=True, **options)
    encoder, decoder = SEANetEncoder(config, 1, 6), SEANetDecoder(config, 1, 6)
    audio = torch.randn(1, 1, 24 * 10)
    changed = audio.clone()
    changed[..., 24 * 6 :] += 1
    before, after = encoder(audio), encoder(changed)
    assert torch.allclose(before[..., :6], after[..., :6], atol=1e-6)
    assert not torch.allclose(before[..., 6:], after[..., 6:])
    before, after = decoder(before), decoder(after)
    assert torch.allclose(before[..., : 24 * 6], after[..., : 24 * 6], atol=1e-6)


def test_not_causal_output_does():
    encoder = SEANetEncoder(SEANetShape(width=4, strides=(2, 3, 4), causal=False), 1, 6)
    audio = torch.randn(1, 1, 24 * 10)
    changed = audio.clone()
    changed[..., 24 * 6 :] += 1
    assert not torch.allclose(encoder(audio)[..., :6], encoder(changed)[..., :6])


@pytest.mark.parametrize("options", [{}, ENCODEC])
def test_latents_are_alive_before_training(options):
    """PyTorch's own initialization makes latents that hardly vary in time: 6e-4."""
    with torch.no_grad():
        latents = SEANetEncoder(SEANetShape(**options), 1, 128)(tone(16000))
        varying = latents.std(-1).mean()
        audio = SEANetDecoder(SEANetShape(**options), 1, 128)(torch.randn(1, 128, 50))
    assert 0.03 < varying < 3
    assert 0.01 < audio.std() < 1


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="strides"):
        SEANetShape(strides=())
    with pytest.raises(ValueError, match="compress"):
        SEANetShape(width=5, compress=2)
    with pytest.raises(ValueError, match="compress must be positive"):
        SEANetShape(compress=0)
