"""Tasks as processes and as jobs of a cluster."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit.local.local
import torch
from filelock import FileLock
from submitit.core.submission import process_job

from ablation_toys import study
from command_line import fork
from partita.errors import PartitaError
from partita.evaluation.ablate import plan_tasks
from partita.evaluation.ablation_runs import make_runs
from partita.evaluation.launch import Cluster, Processes, run_tasks
from partita.evaluation.tasks import Task


@pytest.fixture
def toy_package(tmp_path):
    """Environment of a process in which the toys are an installed package."""
    info = tmp_path / "site" / "toys-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1\n")
    names = {
        "data": {"toy-sines": "ToySines"},
        "tokenizer": {"toy-codec": "ToyCodec"},
        "conditioner": {"toy-letters": "ToyLetters"},
        "generator": {"toy-bigram": "ToyBigram"},
    }
    lines = [
        f"[partita.{family}]\n" + "".join(f"{name} = toys:{cls}\n" for name, cls in of.items())
        for family, of in names.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[1])])}


def long_training(recipe, root, steps):
    run = make_runs(
        study(recipe, f"tokenizers.acoustic.fit.steps={steps}", "tokenizers.acoustic.fit.checkpoint_every=100000")
    )[0][0]
    task = next(t for t in plan_tasks([run], study(recipe)) if t.part == "tokenizers/acoustic")
    task.write(root)
    return task


def launch(root, task, environment):
    """Start a task as a process, and wait for ever."""
    os.environ.update(environment)
    Processes(root).start(task)
    signal.pause()


def test_processes_end_with_the_one_that_started_them_and_keep_what_they_did(toy_recipe, tmp_path, toy_package):
    root = tmp_path / "out"
    task = long_training(toy_recipe, root, 100_000)
    # forked, so that it need not import everything again; the worker is a process of its own
    parent = multiprocessing.get_context("fork").Process(target=launch, args=(root, task, toy_package))
    parent.start()
    for _ in range(1200):
        if list((root / task.folder).glob("logs/**/metrics.csv")):
            break
        time.sleep(0.1)
    parent.kill()
    parent.join()
    with FileLock(root / "tasks" / f"{task.key}.lock", timeout=120):  # the worker holds it as long as it lives
        pass
    assert (root / task.folder / "checkpoints" / "tokenizers-acoustic.ckpt").is_file()


class Forked:
    """Stands for a process that is started, which would import everything again."""

    def __init__(self, command, *, stdout, **options):
        assert command[:3] == [sys.executable, "-m", "partita.cli"]
        self.process = fork(*command[3:], output=Path(stdout.name))

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)


def test_what_processes_say_when_they_fail(toy_recipe, tmp_path, monkeypatch, lines):
    monkeypatch.setattr("partita.evaluation.launch.subprocess", SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE))
    root = tmp_path / "out"
    good = long_training(toy_recipe, root, 3)
    bad = Task(
        "bad",
        "train",
        "bad",
        "parts/bad",
        "tokenizers: {acoustic: {name: toy-codex}}\ndata: {name: toy-sines}",
        "tokenizers/acoustic",
    )
    later = Task("later", "train", "later", "parts/later", good.recipe, "tokenizers/acoustic", needs=("bad",))
    failed = run_tasks([bad, later, good], root, Processes(root, jobs=2))
    assert set(failed) == {"bad", "later"}
    assert "did you mean 'toy-codec'" in failed["bad"]
    assert failed["later"].startswith("a task that it needs failed: ")
    assert good.done(root)


class ForkedJob(Forked):
    """Stands for the process of a job of submitit, and for the other one that starts it."""

    def __init__(self, folder, **options):
        self.process = multiprocessing.get_context("fork").Process(target=self.begin, args=(folder,))
        self.process.start()
        self.pid = self.process.pid

    def begin(self, folder):
        torch.set_num_threads(1)
        place = {"JOB_ID": os.getpid(), "NTASKS": 1, "JOB_NUM_NODES": 1, "NODEID": 0, "GLOBALID": 0, "LOCALID": 0}
        os.environ |= {f"SUBMITIT_LOCAL_{name}": str(number) for name, number in place.items()}
        os.environ["SUBMITIT_EXECUTOR"] = "local"
        process_job(folder)


def test_a_cluster_does_the_same(toy_recipe, tmp_path, toy_package, monkeypatch):
    for name, value in toy_package.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Cluster, "poll_seconds", 0.1)
    start = iter([submitit.local.local.start_controller, ForkedJob])  # the first one imports everything anew
    monkeypatch.setattr("submitit.local.local.start_controller", lambda **options: next(start)(**options))
    root = tmp_path / "out"
    task = long_training(toy_recipe, root, 3)
    bad = Task("bad", "train", "bad", "parts/bad", "data: {name: toy-sines}", "tokenizers/acoustic")
    failed = run_tasks([task, bad], root, Cluster(root, "local", {"timeout_min": 5}))
    assert list(failed) == ["bad"]
    assert "tokenizers: the recipe has no parts" in failed["bad"]
    assert task.done(root)
    with pytest.raises(PartitaError, match="did you mean 'slurm'"):
        Cluster(root, "slum", {})
    with pytest.raises(PartitaError, match="cannot use the cluster"):
        Cluster(root, "local", {"partition_of_slurm": "gpu"})
    with pytest.raises(PartitaError, match="cannot use the cluster 'slurm'"):
        Cluster(root, "slurm", {})
