"""The worked examples of CONTRIBUTING.md on what is trained, and on what, do what it says."""

import numpy as np
import pytest
import soundfile
import torch
import yaml

import partita
from partita.core.part import Part
from partita.data.corpus import Corpus
from partita.generators.base import Generator
from partita.tokenizers.neural_codec import NeuralCodec
from partita.training.runs import train
from toys import ToyCodec
from worked_examples import FEW, NARROW, SHORT, block_of, define


def never(*arguments):
    raise AssertionError("nothing is to be encoded")


def test_stored_codes(saved_toy, toy_recipe, tmp_path, monkeypatch):
    """A stage is trained on them, with a report, and no audio is there or encoded."""
    define(block_of("src/data/encoded.py"))
    (tmp_path / "songs").mkdir()
    (tmp_path / "codes").mkdir()
    for i in range(6):
        ramp = np.linspace(-1, 1, 4000 * (1 if i == 0 else 3))
        soundfile.write(tmp_path / "songs" / f"tone {i}.wav", ramp, 4000, subtype="FLOAT")
    codec = saved_toy / "tokenizers" / "acoustic"
    script = block_of("encode.py").replace('"CODEC"', "CODEC")
    define(script, CODEC=codec, SONGS=sorted((tmp_path / "songs").iterdir()), FOLDER=tmp_path / "codes")
    codes = Part.load(codec).encode(torch.linspace(-1, 1, 12000)[None, None])[0]
    monkeypatch.setattr(ToyCodec, "encode", never)
    seen, resolve = [], Generator.resolve
    monkeypatch.setattr(Generator, "resolve", lambda self, batch: seen.append(batch) or resolve(self, batch))
    data = f"data={{name: encoded, path: {tmp_path / 'codes'}, frame_rate: 40}}"
    ready = [f"tokenizers.acoustic.weights={codec}", "stages.main.window=2.0"]
    system = train(toy_recipe, tmp_path / "run", [data, *ready])
    assert "tone " in (tmp_path / "run" / "report.html").read_text()
    rows = [row for batch in seen for row in zip(batch.target, batch.mask, strict=True)]
    starts = set()
    for target, mask in rows:
        assert target.shape == (1, 80)
        if mask.all():  # a stretch of two of the three seconds
            starts |= {s for s in range(41) if torch.equal(target, codes[:, s : s + 80])}
        else:  # the piece of one second, padded
            assert mask.sum() == 40
            assert mask[:40].all()
    assert len(starts) > 3
    assert any(not mask.all() for _, mask in rows)
    assert system.generate(["tone 1"], duration=0.5).shape == (1, 1, 2000)
    other = Part.load(codec)
    with torch.no_grad():
        other.gain.add_(1)
    other.save(tmp_path / "other")
    with pytest.raises(
        partita.PartitaError,
        match=r"tone .* no audio.*representations of [0-9a-f]{32}.*acoustic has the fingerprint [0-9a-f]{32}",
    ):
        train(toy_recipe, tmp_path / "no", [data, f"tokenizers.acoustic.weights={tmp_path / 'other'}"])


def narrow(tokenizer):
    """Overrides that make the network of a codec narrower."""
    return [f"tokenizers.{tokenizer}.autoencoder.{name}={size}" for name, size in NARROW.items()]


def tensors(run):
    """Every tensor of every part of a run."""
    parts = ("tokenizers/acoustic", "conditioners/text", "stages/acoustic")
    return {(part, name): value for part in parts for name, value in Part.load(run / part).exported_state().items()}


def test_fine_tuning_moves_the_named_parameters_alone(tmp_path):
    stage = {"acoustic": {"window": 0.6, "generator": {"fit": FEW}}}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump({"base": "chorales-tiny", **SHORT, "stages": stage}))
    train(tmp_path / "first.yaml", tmp_path / "first", report=False)
    (tmp_path / "tuned.yaml").write_text(block_of("recipes/tuned.yaml").replace("RUN", str(tmp_path / "first")))
    short = [*narrow("acoustic"), "stages.acoustic.window=0.6", "data.limit=12", "trainer.logger=false"]
    short += [f"stages.acoustic.generator.fit.{name}={value}" for name, value in FEW.items()]
    train(tmp_path / "tuned.yaml", tmp_path / "tuned", short, report=False)
    before, after = tensors(tmp_path / "first"), tensors(tmp_path / "tuned")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {("stages/acoustic", f"output_heads.{name}") for name in ("weight", "bias")} & before.keys()
    assert moved


def test_two_stems(tmp_path, monkeypatch):
    """One stage is trained on both and generates both; each tokenizer sees its stem alone."""
    (tmp_path / "duet.yaml").write_text(block_of("recipes/duet.yaml"))
    short = ["data.limit=12", "trainer.logger=false", "stages.acoustic.window=0.6"]
    short += [*narrow("strings"), *narrow("flute")]
    slots = ["tokenizers.strings", "tokenizers.flute", "stages.acoustic.generator"]
    short += [f"{slot}.fit.{name}={value}" for slot in slots for name, value in FEW.items()]
    short += [f"{slot}.fit.crop=0.6" for slot in slots[:2]]
    read, encoded, batches = [], [], []
    reading, encode, resolve = Corpus.read, NeuralCodec.encode, Generator.resolve

    def remembered(self, *arguments, **options):
        read.append(reading(self, *arguments, **options))
        return read[-1]

    monkeypatch.setattr(Corpus, "read", remembered)
    monkeypatch.setattr(NeuralCodec, "encode", lambda self, audio: encoded.append((self, audio)) or encode(self, audio))
    monkeypatch.setattr(Generator, "resolve", lambda self, batch: batches.append(batch) or resolve(self, batch))
    system = train(tmp_path / "duet.yaml", tmp_path / "run", short, report=False)
    stage, codecs = system.stages["acoustic"], system.tokenizers
    assert stage.target.num_codebooks == sum(codec.spec.num_codebooks for codec in codecs.values())
    own = codecs["strings"].spec.num_codebooks

    def is_stem(audio, name):
        silent = torch.zeros_like(audio)
        return any(torch.equal(audio, example.fields["stems"].get(name, silent)) for example in read)

    for name, codec in codecs.items():
        heard = [clip for one, audio in encoded if one is codec for clip in audio]
        assert heard
        assert all(is_stem(clip, name) for clip in heard)
        assert any(clip.any() for clip in heard)
        mixes = [example.audio for example in read if len(example.fields["stems"]) > 1]
        assert mixes
        assert not any(torch.equal(clip, mix) for clip in heard for mix in mixes)
    last, heard = batches[-1].target, [audio for _, audio in encoded[-2:]]
    assert torch.equal(last[:, :own], codecs["strings"].encode(heard[0]))
    assert torch.equal(last[:, own:], codecs["flute"].encode(heard[1]))
    loaded = partita.load(tmp_path / "run")
    made = loaded.generate_representations(["slow"], duration=1.0, seed=3)
    assert list(made) == ["strings", "flute"]
    ends = loaded.generate_ends(["slow"], duration=1.0, seed=3)
    assert {name: clip.shape for name, clip in ends.items()} == dict.fromkeys(made, (1, 1, 16000))
    for name, clip in ends.items():
        torch.testing.assert_close(clip, codecs[name].to("cpu").eval().decode(made[name].values).detach())
    mix = loaded.generate(["slow"], duration=1.0, seed=3)
    torch.testing.assert_close(mix, sum(ends.values()).clamp(-1, 1))
    with pytest.raises(partita.PartitaError, match=r"a continuation is a mix, but strings reads only stems\.strings"):
        loaded.generate(["slow"], duration=1.0, continuation=0.1 * torch.randn(1, 1, 8000))
