import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import save_file
from torch.nn import functional as F

from partita.core.part import Part
from partita.errors import PartitaError
from partita.tokenizers.vggish import VGGish

SMALL = {"width": 2, "hidden": 12}
CONVOLUTIONS = {0: (1, 2), 3: (2, 4), 6: (4, 8), 8: (8, 8), 11: (8, 16), 13: (16, 16)}


def weights():
    """Under the names and layouts of torchvggish."""
    state = {}
    for place, (before, after) in CONVOLUTIONS.items():
        state[f"features.{place}.weight"] = torch.randn(after, before, 3, 3) * (2 / before / 9) ** 0.5
        state[f"features.{place}.bias"] = torch.randn(after) * 0.1
    for place, (before, after) in {0: (16 * 4 * 6, 12), 2: (12, 12), 4: (12, 128)}.items():
        state[f"embeddings.{place}.weight"] = torch.randn(after, before) * (2 / before) ** 0.5
        state[f"embeddings.{place}.bias"] = torch.randn(after) * 0.1
    return state


def components():
    vectors, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(128, 128)))
    means = np.random.default_rng(1).normal(size=128)
    return {"pca_eigen_vectors": vectors.astype(np.float32), "pca_means": means.astype(np.float32)}


@pytest.fixture
def released(tmp_path):
    """A folder with both files as they are released, and what is in the first."""
    state = weights()
    torch.save(state, tmp_path / "vggish-10086976.pth")
    torch.save(components(), tmp_path / "vggish_pca_params-970ea276.pth")
    return tmp_path, state


def log_mel(clip):
    """Frame by frame in double precision, with Kaldi's bands."""
    bands, _ = torchaudio.compliance.kaldi.get_mel_banks(64, 512, 16000, 125, 7500, 100.0, -500.0, 1.0)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [clip[at : at + 400] * window for at in range(0, len(clip) - 399, 160)]
    return np.log(np.abs(np.fft.rfft(frames, 512))[:, :-1] @ bands.double().numpy().T + 0.01)


def network(state, patches):
    """Patches ``[N, 96, 64]`` to what comes out of the last layer."""
    state = {name: tensor.double() for name, tensor in state.items()}
    x = torch.as_tensor(patches)[:, None]
    for place in CONVOLUTIONS:
        x = F.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1).relu()
        if place not in (6, 11):
            x = F.max_pool2d(x, 2)
    x = x.moveaxis(1, -1).reshape(len(x), -1)  # channels last, as in TensorFlow
    for place in (0, 2, 4):
        x = x @ state[f"embeddings.{place}.weight"].T + state[f"embeddings.{place}.bias"]
        x = x.relu() if place < 4 else x
    return x


def clips(samples, batch=2):
    time = torch.arange(samples) / 16000
    return 0.1 * torch.randn(batch, 1, samples) + 0.3 * torch.sin(2 * torch.pi * 440 * time)


@pytest.mark.parametrize(("hop", "samples"), [(0.96, 50000), (0.48, 40000), (0.1, 16001)])
def test_is_the_network_on_patches_of_the_spectrum(released, hop, samples):
    folder, state = released
    part = VGGish(hop=hop, **SMALL)
    part.load_weights(folder / "vggish-10086976.pth")
    audio, step = clips(samples), round(100 * hop)
    found = part.encode(audio)
    assert part.spec.frame_rate == pytest.approx(1 / hop)
    for clip, embeddings in zip(audio, found, strict=True):
        spectrum = log_mel(clip[0].double().numpy())
        count = -(-samples // (step * 160))
        starts = [min(s * step, len(spectrum) - 96) for s in range(count)]
        expected = network(state, np.stack([spectrum[at : at + 96] for at in starts]))
        assert embeddings.shape == (128, count)
        assert torch.allclose(embeddings.mT.double(), expected, atol=2e-4)
        assert expected.std(0).max() > 0.05  # patches differ


def test_a_short_clip_is_one_patch_with_silence(released):
    folder, state = released
    part = VGGish(**SMALL)
    part.load_weights(folder)
    audio = clips(5000, 1)
    found = part.encode(audio)
    padded = np.pad(audio[0, 0].double().numpy(), (0, 15600 - 5000))
    assert found.shape == (1, 128, 1)
    assert torch.allclose(found[0].mT.double(), network(state, log_mel(padded)[None]), atol=2e-4)


def test_no_patch_of_a_longer_clip_is_of_silence():
    """The last patch ends with the clip: it is that of the clip's last 0.975 s."""
    part = VGGish(**SMALL)
    audio = clips(16000 + 15600)
    assert part.encode(audio).shape[-1] == 3
    assert torch.allclose(part.encode(audio)[..., -1:], part.encode(audio[..., -15600:])[..., :1], atol=1e-4)


def test_activation_and_postprocessing(released):
    folder, _ = released
    parts = [VGGish(**SMALL), VGGish(activation=True, **SMALL), VGGish(postprocess=True, **SMALL)]
    for part in parts:
        part.load_weights(folder)
    audio = clips(32000, 1)
    plain, rectified, processed = (part.encode(audio).double()[0].mT.numpy() for part in parts)
    assert (plain < 0).any()
    assert np.array_equal(rectified, plain.clip(0))
    pca = components()
    turned = (plain - pca["pca_means"]) @ pca["pca_eigen_vectors"].T.astype(np.float64)
    exact = (turned.clip(-2, 2) + 2) * 255 / 4
    assert np.abs(processed - exact).max() < 0.51
    assert np.array_equal(processed, processed.round())
    assert len(np.unique(processed)) > 20


def test_postprocessing_needs_its_components(released):
    folder, _ = released
    with pytest.raises(PartitaError, match="vggish_pca_params-970ea276"):
        VGGish(postprocess=True, **SMALL).load_weights(folder / "vggish-10086976.pth")


def test_one_safetensors_file_with_everything(released, tmp_path):
    folder, state = released
    pca = {f"pproc.{name}": torch.as_tensor(value) for name, value in components().items()}
    pca["pproc.pca_means"] = pca["pproc.pca_means"][:, None]
    save_file(state | pca, tmp_path / "all.safetensors")
    audio = clips(20000)
    for postprocess in (False, True):
        one, two = VGGish(postprocess=postprocess, **SMALL), VGGish(postprocess=postprocess, **SMALL)
        one.load_weights(tmp_path / "all.safetensors")
        two.load_weights(folder)
        assert torch.equal(one.encode(audio), two.encode(audio))
        one.save(tmp_path / f"saved-{postprocess}")
        assert torch.equal(Part.load(tmp_path / f"saved-{postprocess}").encode(audio), one.encode(audio))


@pytest.mark.parametrize("option", [{"hop": 0.0}, {"hop": 0.965}, {"width": 0}, {"hidden": 0}])
def test_refuses_nonsense(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        VGGish(**SMALL | option)


def test_sizes_are_the_original_ones():
    with torch.device("meta"):
        part = VGGish()
    assert part.embeddings[0].weight.shape == (4096, 512 * 4 * 6)
    assert part.num_parameters == 72_141_184
    assert str(part.spec) == "128-d latents at 1.04167 Hz, 16 kHz × 1 ch"
