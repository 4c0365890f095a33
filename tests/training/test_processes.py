"""Trainings in processes of their own: one that is killed, and two that train together."""

import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes import in_a_process, train_until_killed

from partita.core.part import Part
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.training.report import read_curves
from partita.training.training import train
from saved_systems import same, weights


def run_script(path):
    """Run a script in this process as if Python had been started with it."""
    sys.argv, sys.modules["__main__"].__spec__ = [str(path)], None  # the command that Lightning repeats
    runpy.run_path(str(path), run_name="__main__")


def test_a_killed_process_leaves_no_half_file_and_resumes(toy_recipe, tmp_path):
    """SIGKILL while a checkpoint is being written."""
    assert in_a_process(train_until_killed, load_recipe(toy_recipe), tmp_path / "run") == -signal.SIGKILL
    checkpoint = tmp_path / "run" / "checkpoints" / "tokenizers-acoustic.ckpt"
    assert torch.load(checkpoint, weights_only=True)["state_dict"]
    plan = load_recipe(toy_recipe)
    train(plan, tmp_path / "run")
    train(plan, tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert not list((tmp_path / "run").rglob(".*.part"))


TOGETHER = """
tokenizers:
  acoustic:
    name: codec
    sample_rate: 4000
    dim: 4
    autoencoder: {name: seanet, network: {width: 2, strides: [5, 8], dilations: [1]}}
    bottleneck: {name: rvq, num_codebooks: 1, cardinality: 16, warmup_steps: 100}
    losses: {balanced: true, adversarial: 1.0, feature_matching: 1.0}
    spectral: {windows: [64, 256], bands: 20}
    discriminator: {name: multi-scale, wave_scales: [2], wave_width: 1, stft_windows: [256], stft_width: 2}
    adversarial_start: 1
    fit: {steps: 4, batch_size: 2, crop: 0.5, lr: 1.0e-3, eps: 1.0e-2, accumulate: 2, ema: 0.5, validation_examples: 5}
conditioners:
  text: toy-letters
stages:
  main:
    generator: {name: toy-bigram, fit: {steps: 3, batch_size: 2, eps: 1.0e-2, validation_examples: 5}}
    target: acoustic
    given: [text]
    window: 1.0
data: toy-sines
trainer: {accelerator: cpu, logger: csv}
"""


def states_of_two(recipe, folder, before=""):
    """Train in two processes, and return the state of each."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import toys, torch
from partita.recipe.plan import load_recipe
from partita.training.run_lock import is_first_process
from partita.training.training import train
{before}
system = train(load_recipe({str(recipe)!r}, ["trainer.devices=2"]), {str(folder / "two")!r})
state = {{f"{{name}} {{key}}": v for name, part in system.parts.items() for key, v in part.state_dict().items()}}
torch.save(state, {str(folder)!r} + f"/{{0 if is_first_process() else 1}}.pt")
"""
    (folder / "ddp.py").write_text(script)
    assert in_a_process(run_script, folder / "ddp.py") == 0
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_train_as_one_with_all_their_examples(tmp_path):
    """A codec with adversary, balancer, accumulation and averaged weights, and a stage on it."""
    recipe = tmp_path / "together.yaml"
    recipe.write_text(TOGETHER)
    first, second = states_of_two(recipe, tmp_path)
    assert any("balancer.norms" in key for key in first)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    larger = ["tokenizers.acoustic.fit.batch_size=4", "stages.main.generator.fit.batch_size=4"]
    train(load_recipe(recipe, larger), tmp_path / "one")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")
    for folder, names in (("tokenizers/acoustic", ["mel_distance", "spectral"]), ("stages/main", ["loss"])):
        curves = [read_curves(tmp_path / run, folder) for run in ("one", "two")]
        for name in names:
            assert curves[1][f"val/{name}"][1] == pytest.approx(curves[0][f"val/{name}"][1], rel=1e-3)


JOINT = """
tokenizers:
  acoustic: {name: toy-codec, fit: {steps: 1, batch_size: 2}}
conditioners:
  text:
    name: mulan
    audio_tower: {name: spectrogram-transformer, width: 16, depth: 1, num_heads: 2, patch: [8, 8]}
    text_tower: {name: words-transformer, width: 16, depth: 1, num_heads: 2, num_embeddings: 64}
    dim: 4
    window: 0.4
    spectrum: {sample_rate: 4000, bands: 16, window: 256, hop: 100}
    fit: {steps: 3, batch_size: 2, crop: 0.5, lr: 1.0e-3, eps: 1.0e-2, validation_examples: 5}
stages:
  main:
    generator:
      name: autoregressive
      backbone: {name: transformer, width: 16, depth: 1, num_heads: 2}
      fit: {steps: 1, batch_size: 2, validation_examples: 2}
    target: acoustic
    given: [text]
    window: 1.0
data: toy-sines
trainer: {accelerator: cpu, logger: csv}
"""


def test_two_processes_compare_the_clips_and_captions_of_both(toy_recipe, tmp_path):
    """Joint and melody embeddings, whose negatives are the examples of all processes, and codes of all clips."""
    toy_recipe.write_text(JOINT)
    System(load_recipe(toy_recipe)).conditioners["text"].save(tmp_path / "embedding")
    codes = {"name": "quantized", "num_codebooks": 2, "cardinality": 4, "samples": 8}
    plan = yaml.safe_load(JOINT)
    inner = {key: value for key, value in plan["conditioners"]["text"].items() if key != "fit"}
    codes |= {"embedding": inner | {"weights": str(tmp_path / "embedding")}, "fit": plan["conditioners"]["text"]["fit"]}
    plan["conditioners"]["codes"] = codes
    melody = {"name": "melody-embedding", "inputs": ["audio", "excerpt"], "dim": 4, "window": 0.4}
    melody |= {key: plan["conditioners"]["text"][key] for key in ("audio_tower", "spectrum", "fit")}
    plan["conditioners"]["melody"] = melody
    plan["stages"]["main"]["given"] = ["text", "codes", "melody"]
    toy_recipe.write_text(yaml.safe_dump(plan, sort_keys=False))
    first, second = states_of_two(toy_recipe, tmp_path)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    names = {"text": "text_to_audio_recall_at_1", "codes": "text_to_audio_recall_at_1", "melody": "recall_at_1"}
    train(load_recipe(toy_recipe, [f"conditioners.{name}.fit.batch_size=4" for name in names]), tmp_path / "one")
    for name, found in names.items():
        one, two = (Part.load(tmp_path / run / "conditioners" / name).exported_state() for run in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], atol=1e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")
        curves = [read_curves(tmp_path / run, f"conditioners/{name}") for run in ("one", "two")]
        for value in ("loss", found):
            assert curves[1][f"val/{value}"][1] == pytest.approx(curves[0][f"val/{value}"][1], rel=1e-3)


def test_two_processes_share_the_tokens_that_the_first_one_stores(tmp_path):
    """The second process waits for them, also while the first one still stores."""
    recipe = tmp_path / "together.yaml"
    recipe.write_text(TOGETHER + "tokens: {versions: 2}\n")
    slow = """
import time
from partita.training import token_store
finish = token_store._finish
token_store._finish = lambda *given: (time.sleep(1.0), finish(*given))
"""
    first, second = states_of_two(recipe, tmp_path, slow)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert (tmp_path / "two" / "tokens" / "tokens.json").is_file()
