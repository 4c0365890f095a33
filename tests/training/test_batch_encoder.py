"""Representations that examples bring."""

import pytest
import torch

import partita
from partita.core.contracts import Example
from partita.core.part_key import PartKey
from partita.data.examples import Collate
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.training.batch_encoder import with_audio
from partita.training.fit_data import FitData
from toys import ToyCodec


@pytest.fixture
def data(toy_recipe):
    return FitData(System(load_recipe(toy_recipe)), PartKey("stages/main"))


def collated(data, *examples):
    return Collate(data.conditioners, data.sample_rate, data.seconds)(examples)


def test_only_audio_without_its_codes_is_encoded(data, monkeypatch):
    """In one batch: codes alone, shorter than the window or longer, audio alone, and audio with another's codes."""
    codec = data.system.tokenizers["acoustic"]
    own, sound = codec.fingerprint(), torch.linspace(-1, 1, 4000)[None]
    stored = torch.arange(60)[None] % 16
    encoded, encode = [], ToyCodec.encode
    monkeypatch.setattr(ToyCodec, "encode", lambda self, audio: encoded.append(audio) or encode(self, audio))
    examples = [
        Example(None, 4000, representations={own: stored}),
        Example(sound, 2000),
        Example(None, 1500, representations={"f" * 32: stored + 1, own: stored[:, :15].int()}),
        Example(-sound, 4000, representations={"f" * 32: stored}),
        Example(sound, 4000, representations={own: stored[:, 20:]}),
    ]
    batch = data.on_after_batch_transfer(collated(data, *examples), 0)
    assert len(encoded) == 1
    assert torch.equal(encoded[0], torch.stack([sound, -sound]))
    fresh = encode(codec, torch.stack([sound, -sound]))
    assert torch.equal(batch.target[0], stored[:, :40])
    assert torch.equal(batch.target[1], fresh[0])
    assert torch.equal(batch.target[2, :, :15], stored[:, :15])
    assert torch.equal(batch.target[3], fresh[1])
    assert torch.equal(batch.target[4], stored[:, 20:])
    assert batch.mask.sum(1).tolist() == [40, 20, 15, 40, 40]
    assert batch.target.dtype == torch.int64
    both = data.on_after_batch_transfer(collated(data, examples[0], examples[2]), 0)
    assert len(encoded) == 1
    assert torch.equal(both.target, batch.target[[0, 2]])
    assert torch.equal(both.mask, batch.mask[[0, 2]])


def test_a_fingerprint_is_that_of_arguments_and_weights(tmp_path):
    torch.manual_seed(0)
    codec, other = ToyCodec(), ToyCodec(cardinality=8)
    other.load_state_dict(codec.state_dict())
    codec.save(tmp_path / "codec")
    assert codec.fingerprint() == ToyCodec.load(tmp_path / "codec").fingerprint()
    assert codec.fingerprint() != other.fingerprint()
    before = codec.fingerprint()
    with torch.no_grad():
        codec.gain.add_(1e-6)
    assert codec.fingerprint() != before


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (torch.zeros(2, 40, dtype=torch.long), r"shape \[2, 40\].*1×16 codes.*\[1, frames\]"),
        (torch.zeros(1, 40), "float32"),
        (torch.full((1, 40), 16), r"outside \[0, 16\) in codebook 0"),
    ],
)
def test_what_no_tokenizer_made_is_refused(data, stored, words):
    own = data.system.tokenizers["acoustic"].fingerprint()
    with pytest.raises(partita.PartitaError, match=words):
        data.on_after_batch_transfer(collated(data, Example(None, 4000, representations={own: stored})), 0)


def test_another_fingerprint_without_audio_is_refused_with_both(data):
    own = data.system.tokenizers["acoustic"].fingerprint()
    example = Example(None, 4000, {"id": "song 7"}, representations={"abc": torch.zeros(1, 40).long()})
    with pytest.raises(partita.PartitaError, match=f"song 7 has no audio.*abc.*acoustic has the fingerprint {own}"):
        data.on_after_batch_transfer(collated(data, example), 0)


def test_what_hears_needs_audio():
    example = Example(None, 4000, {"id": "song 7"}, representations={"abc": torch.zeros(1, 40).long()})
    with pytest.raises(partita.PartitaError, match="song 7 has no audio"):
        with_audio(Collate()([example]))
    with pytest.raises(partita.PartitaError, match="song 7 brings no audio"):
        _ = example.audio
