import numpy as np
import pytest
import torch
from torch.nn import functional as F

from partita.core.part import Part
from partita.errors import PartitaError
from partita.tokenizers.panns import PANNs

librosa = pytest.importorskip("librosa")

SMALL = {"width": 2, "labels": 7}
FFT = {16000: 512, 32000: 1024}
HIGHEST = {16000: 8000, 32000: 14000}


def norm(name, width):
    return {
        f"{name}.weight": torch.rand(width) + 0.5,
        f"{name}.bias": torch.randn(width) * 0.2,
        f"{name}.running_mean": torch.randn(width) * 0.2,
        f"{name}.running_var": torch.rand(width) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(1000),
    }


def weights(rate):
    """Under the names and shapes of the original release."""
    fft = FFT[rate]
    state = norm("bn0", 64)
    state |= {"bn0.running_mean": torch.full((64,), -20.0), "bn0.running_var": torch.full((64,), 200.0)}
    transform = torch.fft.fft(torch.eye(fft))[: fft // 2 + 1] * torch.hann_window(fft)
    state["spectrogram_extractor.stft.conv_real.weight"] = transform.real[:, None].clone()
    state["spectrogram_extractor.stft.conv_imag.weight"] = transform.imag[:, None].clone()
    bands = librosa.filters.mel(sr=rate, n_fft=fft, n_mels=64, fmin=50, fmax=HIGHEST[rate])
    state["logmel_extractor.melW"] = torch.as_tensor(bands.T.copy())
    before = 1
    for block in range(1, 7):
        after = 2**block
        for n, channels in ((1, before), (2, after)):
            name = f"conv_block{block}.conv{n}.weight"
            state[name] = torch.randn(after, channels, 3, 3) * (8 / channels / 9) ** 0.5  # pooling takes half
            state |= norm(f"conv_block{block}.bn{n}", after)
        before = after
    for name, (into, out) in {"fc1": (64, 64), "fc_audioset": (64, 7)}.items():
        state |= {f"{name}.weight": torch.randn(out, into) * 0.2, f"{name}.bias": torch.randn(out) * 0.1}
    return state


@pytest.fixture(params=[16000, 32000])
def released(request, tmp_path):
    """A file as it is released, with what a training left in it, and what its model is."""
    state = weights(request.param)
    sampler = {"indexes": np.random.default_rng(0).permutation(10), "pointer": np.int64(3)}
    torch.save({"iteration": 600000, "model": state, "sampler": sampler}, tmp_path / "Cnn14_mAP=0.431.pth")
    return request.param, tmp_path / "Cnn14_mAP=0.431.pth", state


def network(state, spectra):
    """Power in dB ``[N, frames, 64]`` to the embedding and the logits, in double precision."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def normed(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = normed(torch.as_tensor(spectra).mT[..., None], "bn0").permute(0, 3, 2, 1)
    for block in range(1, 7):
        for n in (1, 2):
            name = f"conv_block{block}"
            x = normed(F.conv2d(x, state[f"{name}.conv{n}.weight"], padding=1), f"{name}.bn{n}").relu()
        x = F.avg_pool2d(x, 2) if block < 6 else x
    x = x.mean(3)
    embedding = ((x.amax(2) + x.mean(2)) @ state["fc1.weight"].T + state["fc1.bias"]).relu()
    return embedding, embedding @ state["fc_audioset.weight"].T + state["fc_audioset.bias"]


def decibels(clip, rate):
    power = librosa.feature.melspectrogram(
        y=clip,
        sr=rate,
        n_fft=FFT[rate],
        hop_length=rate // 100,
        n_mels=64,
        fmin=50,
        fmax=HIGHEST[rate],
        pad_mode="reflect",
    )
    return librosa.power_to_db(power, amin=1e-10, top_db=None).T


def clips(samples, rate, batch=2):
    """Unlike each other: more and more of a tone, and less and less noise."""
    time, place = torch.arange(samples) / rate, torch.arange(batch)[:, None, None]
    return 0.1**place * torch.randn(batch, 1, samples) + 0.3 * place * torch.sin(2 * torch.pi * 440 * time)


@pytest.mark.parametrize("seconds", [0.31, 2.345])
def test_is_the_network_on_the_spectrum_of_librosa(released, seconds):
    rate, path, state = released
    logits, embedding = (PANNs(sample_rate=rate, output=output, **SMALL) for output in ("logits", "embedding"))
    logits.load_weights(path)
    embedding.load_weights(path.parent)
    assert (logits.logits, embedding.logits) == (True, False)
    audio = clips(int(seconds * rate), rate)
    spectra = np.stack([decibels(clip[0].double().numpy(), rate) for clip in audio])
    expected = network(state, spectra)
    for part, values in zip((embedding, logits), expected, strict=True):
        found = part.encode(audio)[..., 0].double()
        assert torch.allclose(found, values, rtol=0, atol=1e-5 * values.abs().max())  # sums in float32
    assert expected[1].std(0).max() > 0.05


def test_a_frame_is_of_a_window():
    part, rate = PANNs(window=2.0, **SMALL), 32000
    audio = clips(int(5.1 * rate), rate, 1)
    ends = ((0, 2), (2, 4), (4, 5.1))
    parts = [part.encode(audio[..., round(a * rate) : round(b * rate)]) for a, b in ends]
    assert torch.allclose(part.encode(audio), torch.cat(parts, -1), atol=1e-5)
    slightly_longer = audio[..., : int(4.3 * rate)]
    assert torch.allclose(
        part.encode(slightly_longer)[..., 2:], part.encode(slightly_longer[..., -2 * rate :]), atol=1e-5
    )


def test_saves_and_loads(released, tmp_path):
    rate, path, _ = released
    part = PANNs(sample_rate=rate, **SMALL)
    part.load_weights(path)
    part.save(tmp_path / "own")
    audio = clips(rate, rate)
    assert torch.equal(Part.load(tmp_path / "own").encode(audio), part.encode(audio))


def test_weights_of_the_other_sample_rate_are_refused(released):
    rate, path, _ = released
    with pytest.raises(PartitaError, match=r"logmel_extractor\.melW"):
        PANNs(sample_rate=48000 - rate, **SMALL).load_weights(path)


@pytest.mark.parametrize("option", [{"sample_rate": 44100}, {"output": "labels"}, {"window": 0.3}, {"width": 0}])
def test_refuses_nonsense(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        PANNs(**SMALL | option)


def test_sizes_are_the_original_ones():
    with torch.device("meta"):
        part = PANNs(output="embedding")
    assert str(part.spec) == "2048-d latents at 0.1 Hz, 32 kHz × 1 ch"
    assert part.get_submodule("conv_block6.conv2").weight.shape == (2048, 2048, 3, 3)
    assert part.fc_audioset.weight.shape == (527, 2048)
