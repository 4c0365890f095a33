import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from partita.errors import PartitaError
from partita.storage.pretrained import read_weights
from partita.tokenizers.frozen import cut
from partita.tokenizers.kmeans import KMeans
from partita.tokenizers.panns import PANNs
from partita.tokenizers.passt import PaSST
from partita.tokenizers.vggish import VGGish

SMALL = {
    VGGish: {"width": 1, "hidden": 4},
    PaSST: {"width": 8, "depth": 1, "num_heads": 2, "labels": 5},
    PANNs: {"width": 1, "labels": 5},
}


@pytest.mark.parametrize(("total", "spans"), [(10, [(0, 10)]), (21, [(0, 10), (10, 20), (11, 21)]), (7, [(0, 7)])])
def test_windows_of_a_clip(total, spans):
    clip = torch.arange(1.0, total + 1).expand(2, -1)
    windows = list(cut(clip, 10, 3))
    assert [(int(w[0, 0]) - 1, int(w[1, -1])) for w in windows] == spans


def test_what_is_left_of_a_clip_is_not_padded():
    assert [w.shape[1] for w in cut(torch.ones(1, 23), 10, 3)] == [10, 10, 3]
    only = next(cut(torch.ones(1, 2), 10, 3))
    assert only.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("cls", SMALL)
def test_is_frozen_and_depends_on_nothing_else(cls):
    part = cls(**SMALL[cls]).train()
    assert not part.trainable
    assert not part.training
    assert not any(p.requires_grad for p in part.parameters())
    spec = part.spec
    audio = 0.1 * torch.randn(3, 1, spec.sample_rate // 2)
    with torch.inference_mode():
        found = part.encode(audio)
        alone = torch.cat([part.encode(clip[None]) for clip in audio])
    assert found.isfinite().all()
    assert torch.allclose(found, alone, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(part.encode(audio), found)
    assert part.encode(audio[..., :0]).shape == (3, spec.dim, 0)
    assert part.encode(audio[..., :1]).isfinite().all()
    with pytest.raises(PartitaError, match="one channel, not 2"):
        part.encode(torch.zeros(1, 2, 1000))
    with pytest.raises(NotImplementedError, match="cannot turn"):
        part.decode(found)


@pytest.mark.parametrize("cls", SMALL)
def test_clusters_of_them_are_tokens(cls):
    tokens = KMeans(features=cls(**SMALL[cls]), cardinality=4)
    codes = tokens.encode(0.1 * torch.randn(2, 1, tokens.spec.sample_rate))
    assert codes.shape[:2] == (2, 1)
    assert codes.max() < 4


@pytest.mark.parametrize("cls", SMALL)
def test_weights_of_another_size_are_refused(cls, tmp_path):
    cls(**SMALL[cls]).save(tmp_path)
    larger = cls(**SMALL[cls] | {"width": 2 * SMALL[cls]["width"]})
    with pytest.raises(PartitaError, match=f"not of this {cls.registered_name}"):
        larger.load_weights(tmp_path)


@pytest.mark.parametrize("cls", SMALL)
def test_weights_that_are_not_there(cls, tmp_path):
    part = cls(**SMALL[cls])
    with pytest.raises(PartitaError, match=r"none of model\.safetensors, "):
        part.load_weights(tmp_path)
    with pytest.raises(PartitaError, match="no such file or folder"):
        part.load_weights(tmp_path / "nothing")


def test_a_folder_of_several_models_does_not_say_which(tmp_path):
    for name in ("passt-s-a.pt", "passt-s-b.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(PartitaError, match=r"passt-s-a\.pt, passt-s-b\.pt: name one file"):
        PaSST(**SMALL[PaSST]).load_weights(tmp_path)


def test_arrays_of_numpy_are_read(tmp_path):
    made = {"model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "sampler": {"at": np.int64(3), "b": 2.0}}
    torch.save(made, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth")["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    torch.save({"a": np.array([object]), "b": 1}, tmp_path / "b.pth")
    with pytest.raises(PartitaError, match=r"b\.pth"):
        read_weights(tmp_path / "b.pth")
    torch.save({"epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(PartitaError, match="does not hold the weights"):
        read_weights(tmp_path / "c.pth")
    save_file({"a": torch.ones(2)}, tmp_path / "d.safetensors")
    assert read_weights(tmp_path / "d.safetensors")["a"].tolist() == [1, 1]


def test_pickles_that_run_code_are_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Attack()}, tmp_path / "attack.pth")
    with pytest.raises(PartitaError, match="cannot be read"):
        read_weights(tmp_path / "attack.pth")
    assert not (tmp_path / "ran").exists()
