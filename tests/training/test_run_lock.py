import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from filelock import FileLock

from partita.errors import PartitaError
from partita.recipe.plan import load_recipe
from partita.training.run_lock import LOCK, OWNER, exclusive_training
from partita.training.training import train


def hold(folder, held):
    """Train in a folder for ever."""
    with exclusive_training(folder):
        held.set()
        signal.pause()


@pytest.fixture
def other(tmp_path):
    """Another process that trains in ``tmp_path/run``."""
    processes = multiprocessing.get_context("fork")
    held = processes.Event()
    process = processes.Process(target=hold, args=(tmp_path / "run", held), daemon=True)
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_training_in_a_folder_is_refused_and_the_first_named(toy_recipe, tmp_path, other):
    plan, run = load_recipe(toy_recipe), tmp_path / "run"
    (run / "recipe.yaml").touch()
    (run / "checkpoints").mkdir()
    half = run / "checkpoints" / f".main.ckpt.{other.pid}.part"
    half.write_text("half")
    with pytest.raises(PartitaError, match=rf"process {other.pid} on .* has been training here since"):
        train(plan, run)
    assert half.read_text() == "half"
    other.kill()
    other.join()
    train(plan, run)
    assert not half.exists()
    assert not (run / OWNER).exists()


def test_a_pipe_in_the_place_of_the_owner_is_not_waited_for(tmp_path, other, monkeypatch):
    run = tmp_path / "run"
    (run / OWNER).unlink()
    os.mkfifo(run / OWNER)
    monkeypatch.setattr("partita.training.run_lock.LOCK_TIMEOUT", 0)
    with pytest.raises(PartitaError, match="another process is training here"), exclusive_training(run):
        pass
    other.kill()
    other.join()
    monkeypatch.undo()
    with exclusive_training(run):
        assert (run / OWNER).is_file()
    assert not (run / OWNER).exists()


def test_processes_that_train_together_do_not_lock_each_other_out(tmp_path, other, monkeypatch):
    monkeypatch.setenv("NODE_RANK", "1")
    with exclusive_training(tmp_path / "run"):
        pass


def test_what_a_killed_training_left_running_is_waited_for(tmp_path, monkeypatch):
    """Its data workers hold the lock until they notice; who wrote its name is no more."""
    run, naps = tmp_path / "run", []
    run.mkdir()
    gone = int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)
    machine = os.uname().nodename
    (run / OWNER).write_text(json.dumps({"process": gone, "machine": machine, "since": "yesterday"}))
    worker = FileLock(run / LOCK)
    worker.acquire()

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            worker.release()

    monkeypatch.setattr("partita.training.run_lock.time.sleep", nap)
    with exclusive_training(run):
        assert json.loads((run / OWNER).read_text())["process"] == os.getpid()
    assert len(naps) == 3


def test_on_another_machine_a_process_is_believed_to_run(tmp_path, other):
    (tmp_path / "run" / OWNER).write_text(json.dumps({"process": 1 << 21, "machine": "elsewhere", "since": "noon"}))
    with pytest.raises(PartitaError, match="process 2097152 on elsewhere"), exclusive_training(tmp_path / "run"):
        pass


def test_a_folder_that_holds_something_else_is_left_as_it_is(toy_recipe, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    with pytest.raises(PartitaError, match="not empty"):
        train(load_recipe(toy_recipe), tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.txt"]


def test_a_damaged_finished_part_is_named(toy_recipe, tmp_path):
    train(load_recipe(toy_recipe), tmp_path / "run")
    weights = tmp_path / "run" / "tokenizers" / "acoustic" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PartitaError, match=r"damaged.*Delete .*tokenizers/acoustic and run the same command again"):
        train(load_recipe(toy_recipe), tmp_path / "run")


@pytest.mark.parametrize("content", [None, "{}", "{"])
def test_a_finished_part_without_its_configuration_is_named(toy_recipe, tmp_path, content):
    """No command can use it, so it is not kept."""
    train(load_recipe(toy_recipe), tmp_path / "run")
    config = tmp_path / "run" / "conditioners" / "text" / "config.json"
    config.unlink()
    if content is not None:
        config.write_text(content)
    with pytest.raises(PartitaError, match=r"Delete .*conditioners/text and run the same command again"):
        train(load_recipe(toy_recipe), tmp_path / "run")
