"""Two processes train like one that sees their batches, under each strategy, and resume from shares."""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import resource
import signal
import socket
import time

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from torch import nn

from partita import load
from partita.conditioners.base import Conditioner
from partita.core.contracts import Condition, ConditionSpec, Example
from partita.core.processes import of_all
from partita.core.registry import register
from partita.errors import PartitaError
from partita.recipe.plan import load_recipe
from partita.training.checkpoints import KeepCheckpoint
from partita.training.report import read_curves
from partita.training.sharded import OTHERS
from partita.training.training import train
from saved_systems import same, weights
from toys import ToySines

RECIPE = """
tokenizers:
  acoustic:
    name: codec
    sample_rate: 4000
    dim: 4
    autoencoder: {name: seanet, network: {width: 2, strides: [5, 8], dilations: [1]}}
    bottleneck: {name: rvq, num_codebooks: 2, cardinality: 8, warmup_steps: 1, dropout: 0.5, kmeans_iterations: 2}
    losses: {adversarial: 1.0, feature_matching: 1.0, relative_features: true}
    spectral: {windows: [64, 256], bands: 20}
    discriminator: {name: multi-scale, wave_scales: [2], wave_width: 1, stft_windows: [256], stft_width: 2}
    adversarial_start: 1
    fit: {steps: 4, batch_size: 4, crop: 0.5, lr: 1.0e-3, eps: 1.0e-2, accumulate: 2, ema: 0.5, validation_examples: 4}
  semantic:
    name: kmeans
    features: {name: log-mel, sample_rate: 4000, frame_rate: 40, bands: 8}
    cardinality: 4
    updates: 2
    reservoir: 64
    iterations: 3
    fit: {steps: 4, batch_size: 4, crop: 0.5, validation_examples: 4}
conditioners:
  text: {name: lookup, dim: 8, num_embeddings: 64, word_dropout: 0.2}
  tone: {name: toy-gathered, fit: {steps: 4, batch_size: 4, lr: 1.0e-2, eps: 1.0e-2, validation_examples: 4}}
stages:
  meaning:
    generator:
      name: autoregressive
      backbone: {name: transformer, width: 8, depth: 1, num_heads: 2}
      fit: {steps: 4, batch_size: 4, validation_examples: 4}
    target: semantic
    given: []
    window: 0.5
  codes:
    generator:
      name: autoregressive
      backbone: {name: transformer, width: 16, depth: 2, num_heads: 2}
      ends: true
      condition_dropout: {together: 0.3}
      checkpointing: true
      fit: {steps: 4, batch_size: 4, lr: 1.0e-2, eps: 1.0e-2, ema: 0.5, validation_examples: 4, checkpoint_every: 2}
    target: acoustic
    given: [text]
    window: 1.0
  latents:
    generator:
      name: diffusion
      denoiser: {name: dit, width: 16, depth: 2, num_heads: 2}
      noise_levels: logit_normal
      fit: {steps: 4, batch_size: 4, lr: 1.0e-2, eps: 1.0e-2, optimizer: muon, validation_examples: 4, accumulate: 2}
    target: acoustic/latents
    given: [text, tone, acoustic, semantic]
    window: 1.0
data: toy-unequal
trainer: {accelerator: cpu, logger: csv, log_every_n_steps: 1}
"""
PARTS = (
    "tokenizers/acoustic",
    "tokenizers/semantic",
    "conditioners/tone",
    "stages/meaning",
    "stages/codes",
    "stages/latents",
)


@register("data", "toy-unequal")
class Unequal(ToySines):
    """Sines, most of which end before the clip does."""

    def read(self, split, index, *, seed, seconds, sample_rate, channels):
        whole = super().read(split, index, seed=seed, seconds=seconds, sample_rate=sample_rate, channels=channels)
        length = int(whole.num_samples * np.random.default_rng(seed).choice([0.2, 0.5, 0.8, 1.0]))
        whole.audio[:, length:] = 0
        return Example(whole.audio, length, whole.fields)


@register("conditioner", "toy-gathered")
class Gathered(Conditioner):
    """Learns two embeddings of each tone by telling them from those of the other examples."""

    inputs = ("text",)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Embedding(8, 6), nn.Embedding(8, 6)

    @property
    def spec(self):
        return ConditionSpec(dim=6)

    def prepare(self, clips):
        return {"tone": torch.tensor([int((clip.fields["text"] or "0").split()[-1]) for clip in clips])}

    def forward(self, prepared):
        values = self.first(prepared["tone"])[:, None]
        return Condition(values, torch.ones(values.shape[:2], dtype=torch.bool))

    def training_step(self, prepared, batch_idx):
        first, second = of_all(self.first(prepared["tone"])), of_all(self.second(prepared["tone"]))
        loss = nn.functional.cross_entropy(first @ second.T, torch.arange(len(first)))
        self.log("train/loss", loss)
        return loss


def process(rank, port, recipe, changes, run, prepare):
    """Train as one of two processes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    rank_zero_only.rank = rank  # a fork has that of its parent
    if prepare is not None:
        prepare()
    train(load_recipe(recipe, ["trainer.devices=2", *changes]), run)
    assert not torch.distributed.is_initialized()  # else metrics in the report would wait for the other process


def together(recipe, changes, run, prepare=None):
    """Train in two processes, and return their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A fork need not import everything again; but autograd has threads for a GPU, which forks lack.
    context = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "fork")
    both = [context.Process(target=process, args=(rank, port, recipe, changes, run, prepare)) for rank in range(2)]
    for one in both:
        one.start()
    end = time.monotonic() + 100
    while time.monotonic() < end and all(one.exitcode in (None, 0) for one in both) and any(map(alive, both)):
        multiprocessing.connection.wait([one.sentinel for one in both if one.is_alive()], 1)
    for one in both:  # the other one waits for it
        one.kill()
        one.join()
    return [one.exitcode for one in both]


def alive(one):
    """Whether a process runs."""
    return one.is_alive()


KEYS = [
    "tokenizers.acoustic",
    "tokenizers.semantic",
    "conditioners.tone",
    "stages.meaning.generator",
    "stages.codes.generator",
    "stages.latents.generator",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The recipe, and its training in one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "recipe.yaml").write_text(RECIPE)
    train(load_recipe(folder / "recipe.yaml"), folder / "one")
    return folder / "recipe.yaml", folder / "one"


def compare(two, one):
    """Check that two runs have the same losses at every step, and the same weights."""
    for part in PARTS:
        mine, others = read_curves(two, part), read_curves(one, part)
        names = [name for name in others if name.startswith("train/")]
        assert len(names) >= 1
        for name in names:
            assert len(mine[name][1]) >= 3, name
            assert mine[name][1] == pytest.approx(others[name][1], rel=1e-4), f"{part} {name}"
    # the batches are smaller, and have clips of unequal length
    assert read_curves(two, "stages/meaning")["val/loss"][1] == pytest.approx(
        read_curves(one, "stages/meaning")["val/loss"][1], rel=1e-5
    )
    found, expected = weights(two), weights(one)
    assert found.keys() == expected.keys()
    for key in expected:
        rounded = key[0].startswith("stages/latents") and expected[key].dim() == 2  # Muon computes in bfloat16
        torch.testing.assert_close(
            found[key], expected[key], atol=2e-3 if rounded else 1e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(alone, tmp_path, strategy):
    """Codecs with an adversary, stages of both kinds, and a conditioner that is trained along; clips end early."""
    recipe, one = alone
    assert together(
        recipe, [f"trainer.strategy={strategy}", *[f"{key}.fit.batch_size=2" for key in KEYS]], tmp_path / "two"
    ) == [0, 0]
    compare(tmp_path / "two", one)


def die_in_the_second_checkpoint():
    """Make the first process die while it writes its second sharded checkpoint."""
    save, count = torch.save, 0

    def dying(value, file, *args):
        nonlocal count
        count += OTHERS in str(file)
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, file, *args)

    torch.save = dying


ONLY_CODES = ["stages.latents=null", "stages.meaning=null", "tokenizers.semantic=null", "conditioners.tone=null"]


@pytest.mark.parametrize("damage", ["missing", "changed", "garbage", "none", "progress"])
def test_a_damaged_checkpoint_in_shares_is_refused(alone, tmp_path, damage):
    """Of a share that is missing, PyTorch leaves what happens to be in the memory; one with other bits, it accepts."""
    recipe, one = alone
    changes = ["trainer.strategy=fsdp2", "stages.codes.generator.fit.checkpoint_every=1", *ONLY_CODES]
    changes.append(f"tokenizers.acoustic.weights={one}/tokenizers/acoustic")
    assert together(recipe, changes, tmp_path, die_in_the_third_step)[0] != 0
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.ckpt")
    first, _ = sorted(checkpoint.glob("*.safetensors"))
    content = bytearray(first.read_bytes())
    content[-100] ^= 1
    match damage:
        case "missing":
            first.unlink()
        case "changed":
            first.write_bytes(content)
        case "garbage":
            first.write_bytes(b"garbage" * 1000)
        case "none":
            [file.unlink() for file in checkpoint.iterdir()]
        case "progress":
            (checkpoint / OTHERS).write_bytes(pickle.dumps({"state_dict": print}))
    said = errors_of_both(recipe, changes, tmp_path)
    assert all(f"{checkpoint} is damaged" in words and "run the same command again" in words for words in said)


def errors_of_both(recipe, changes, run, prepare=(None, None)):
    """Train in two processes, and return the exit status of each, or the error with which it ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "fork")
    said = [run.with_name(f"{run.name}-{rank}.txt") for rank in range(2)]
    for file in said:
        file.unlink(missing_ok=True)
    both = [
        context.Process(target=saying, args=(rank, said[rank], port, recipe, changes, run, prepare[rank]))
        for rank in range(2)
    ]
    for started in both:
        started.start()
    for started in both:
        started.join(100)
        started.kill()
    return [file.read_text() if file.exists() else one.exitcode for file, one in zip(said, both, strict=True)]


def saying(rank, said, *args):
    """Train as one of two processes, and write the error that ends the training into a file."""
    try:
        process(rank, *args)
    except PartitaError as error:
        said.write_text(str(error))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_process_says_that_another_one_ended(alone, tmp_path, strategy):
    recipe, one = alone
    changes = [f"trainer.strategy={strategy}", *ONLY_CODES, f"tokenizers.acoustic.weights={one}/tokenizers/acoustic"]
    said, status = errors_of_both(recipe, changes, tmp_path / "run", (None, die_in_the_third_step))
    assert status == -signal.SIGKILL
    assert said.startswith("stages/codes: the processes of the training did not connect, or lost their connection")
    assert "run the same command again" in said


def test_a_full_disk_keeps_the_last_checkpoint_in_shares(alone, tmp_path):
    """The second checkpoint does not fit; with room, the training goes on from the first one."""
    recipe, one = alone
    changes = ["trainer.strategy=fsdp2", "stages.codes.generator.fit.checkpoint_every=1", *ONLY_CODES]
    changes.append(f"tokenizers.acoustic.weights={one}/tokenizers/acoustic")
    said = errors_of_both(recipe, changes, tmp_path / "run", (allow_small_files_later,) * 2)
    assert all("cannot be written: the file would be larger than is allowed" in words for words in said), said
    assert not list((tmp_path / "run").rglob(".*.part"))
    assert errors_of_both(recipe, changes, tmp_path / "run") == [0, 0]


def allow_small_files_later():
    """Make files that are as large as a share fail from the second checkpoint on."""
    before = KeepCheckpoint.on_step_start

    def limited(self, trainer, part, step):
        if step == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        before(self, trainer, part, step)

    KeepCheckpoint.on_step_start = limited


def die_in_the_third_step():
    """Make this process die when it starts the third step."""
    before = KeepCheckpoint.on_step_start

    def dying(self, trainer, part, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        before(self, trainer, part, step)

    KeepCheckpoint.on_step_start = dying


def test_a_training_in_shares_resumes_exactly(alone, tmp_path):
    """SIGKILL while a sharded checkpoint is being written; an optimizer of two kinds and averaged weights."""
    recipe, one = alone
    stage = "stages.codes.generator.fit."
    changes = [
        "trainer.strategy=fsdp2",
        "stages.latents=null",
        "stages.meaning=null",
        "tokenizers.semantic=null",
        "conditioners.tone=null",
        stage + "optimizer=muon",
    ]
    changes += [
        stage + "checkpoint_every=1",
        stage + "steps=3",
        f"tokenizers.acoustic.weights={one}/tokenizers/acoustic",
    ]
    statuses = together(recipe, changes, tmp_path / "run", die_in_the_second_checkpoint)
    assert statuses[0] == -signal.SIGKILL
    assert statuses[1] != 0  # it cannot go on alone
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    shares = [load_file(file) for file in sorted(checkpoint.glob("*.safetensors"))]
    name = "state_dict.backbone.layers.blocks.0.feed_forward.expand.weight"
    assert [share[name].shape for share in shares] == [(32, 16), (32, 16)]  # half of 64 rows in each process
    assert any("exp_avg" in key for key in shares[1])
    assert any("momentum_buffer" in key for key in shares[1])
    assert together(recipe, changes, tmp_path / "run") == [0, 0]
    assert together(recipe, changes, tmp_path / "whole") == [0, 0]
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert not list((tmp_path / "run").rglob(".*.part"))
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    system = load(tmp_path / "run")  # an ordinary system, whatever the strategy
    assert system.generate(["tone 1"], duration=0.5, progress=False).isfinite().all()
