"""Who does the tasks of an ablation: processes of this machine, or the jobs of a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from .errors import PartitaError
from .registry import did_you_mean
from .tasks import Task, perform

CLUSTERS = ("slurm", "local")
WAIT = 0.2
"""Seconds between two looks at what is running."""


class Job(Protocol):
    """A task that somebody is doing."""

    def done(self) -> bool:
        """Whether it has ended, well or not."""

    def failure(self) -> str | None:
        """Once it has ended: why it failed and where more is said, or nothing where it did not."""

    def stop(self) -> None:
        """Ask it to end soon; what it has done is kept."""


class Launcher(Protocol):
    """Starts tasks.

    Attributes:
        jobs: How many at once.
    """

    jobs: int

    def start(self, task: Task) -> Job:
        """Begin a task, whose file is written."""


def run_tasks(
    tasks: Sequence[Task],
    root: Path,
    launcher: Launcher,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Do tasks, each after those it needs; one that fails takes along only those that need it.

    Args:
        tasks: In the order in which they are wanted.
        root: Folder of the ablation.
        launcher: Who does them.
        say: Gets a line on each that begins or ends.
        progress: Called with (tasks that have ended, tasks in all).

    Returns:
        By key, why a task was not done.
    """
    ended = {task.key for task in tasks if task.done(root)}
    if ended:
        say(f"{len(ended)} of {len(tasks)} tasks are done already")
    failed: dict[str, str] = {}
    waiting = [task for task in tasks if task.key not in ended]
    running: dict[str, tuple[Task, Job, float]] = {}
    try:
        while waiting or running:
            for task in list(waiting):
                broken = [need for need in task.needs if need in failed]
                if broken:
                    failed[task.key] = f"what it needs was not done: {failed[broken[0]]}"
                    waiting.remove(task)
                elif len(running) < launcher.jobs and ended.issuperset(task.needs):
                    task.write(root)
                    running[task.key] = (task, launcher.start(task), time.monotonic())
                    waiting.remove(task)
                    say(f"begins: {task.label}")
            for key, (task, job, start) in list(running.items()):
                if job.done():
                    del running[key]
                    reason = None if task.done(root) else job.failure() or "it ended without a result"
                    if reason is None:
                        ended.add(key)
                        say(f"done: {task.label}, {_duration(time.monotonic() - start)}")
                    else:
                        failed[key] = reason
                        say(f"failed: {task.label}: {failed[key]}")
            if progress is not None:
                progress(len(ended) + len(failed), len(tasks))
            if running:
                time.sleep(WAIT)
    finally:
        for _, job, _ in running.values():
            job.stop()
        while not all(job.done() for _, job, _ in running.values()):
            time.sleep(WAIT)
    return failed


class Processes:
    """Tasks as processes of this machine, which end when this one does.

    Several share the processor's cores; on a machine with several GPUs each has one of its own.

    Args:
        root: Folder of the ablation.
        jobs: At once; as many as there are GPUs, or one, where none is given.
    """

    def __init__(self, root: Path, jobs: int | None = None) -> None:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        self._gpus = gpus if gpus != [""] else [str(i) for i in range(torch.cuda.device_count())]
        self.root, self.jobs = root, jobs or max(1, len(self._gpus))
        if self.jobs < 1:
            raise PartitaError(f"--jobs must be at least 1, not {jobs}")
        self._running: list[_Process | None] = [None] * self.jobs

    def start(self, task: Task) -> Job:
        """Start a process."""
        slot = next(i for i, job in enumerate(self._running) if job is None or job.done())
        environment = dict(os.environ)
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
            if self._gpus:
                environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        self._running[slot] = job = _Process(self.root, task, environment)
        return job


class _Process:
    def __init__(self, root: Path, task: Task, environment: Mapping[str, str]) -> None:
        self.log = task.log(root)
        with self.log.open("ab") as log:
            self._begin = log.tell()
            command = [sys.executable, "-m", f"{__package__}.cli", "task", str(root), task.key]
            # it reads nothing, but sees the end of its input when this process dies
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def done(self) -> bool:
        return self._process.poll() is not None

    def failure(self) -> str | None:
        status = self._process.returncode
        if status == 0:
            return None
        if status < 0:
            reason = f"signal {-status} ended it" + (": was the memory full?" if status == -9 else "")
        else:
            with self.log.open("rb") as log:
                log.seek(self._begin)
                said = log.read().decode("utf-8", "replace")
            _, error, message = said.rpartition("\nerror: ")
            reason = message if error else _last_line(said.split("\nThis is a fault")[0])
        return f"{reason.strip() or f'it ended with status {status}'} (more in {self.log})"

    def stop(self) -> None:
        if not self.done():
            self._process.terminate()


class Cluster:
    """Tasks as jobs of a cluster, by submitit. A job that is preempted or out of time is put into the queue again.

    Args:
        root: Folder of the ablation, on a file system that all machines share.
        name: ``slurm``, or, to try it out, ``local``.
        options: Of ``submitit.AutoExecutor.update_parameters``, such as ``timeout_min`` or ``slurm_partition``.
        jobs: At once; no limit where none is given.
    """

    def __init__(self, root: Path, name: str, options: Mapping[str, Any], jobs: int | None = None) -> None:
        try:
            import submitit
        except ImportError:
            raise PartitaError("a cluster needs submitit: pip install 'partita[cluster]'") from None
        if name not in CLUSTERS:
            raise PartitaError(f"no cluster is called {name!r}{did_you_mean(name, CLUSTERS)}")
        self.root, self.jobs = root.resolve(), jobs or sys.maxsize
        try:
            self._executor = submitit.AutoExecutor(root / "tasks" / "jobs", cluster=name)
            self._executor.update_parameters(**options)
        except (RuntimeError, NameError, TypeError, ValueError, AssertionError, OSError) as error:
            raise PartitaError(f"submitit cannot use the cluster {name!r}: {error}") from None

    def start(self, task: Task) -> Job:
        """Submit a job."""
        return _Submitted(self._executor.submit(Restartable(), str(self.root), task.key))


class Restartable:
    """What a cluster's job calls: :func:`~partita.tasks.perform`, and itself again after an interruption."""

    def __call__(self, root: str, key: str) -> None:
        """Do the task."""
        perform(root, key)

    def checkpoint(self, root: str, key: str) -> Any:
        """What to submit in place of an interrupted job; the training has its own checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, root, key)


class _Submitted:
    def __init__(self, job: Any) -> None:
        self.job = job

    def done(self) -> bool:
        return self.job.done()

    def failure(self) -> str | None:
        error = self.job.exception()
        if error is None:
            return None
        trace = re.search(r"-{10,}\n(.*?)\n-{10,}", str(error), re.DOTALL)  # submitit puts the job's between lines
        said = trace[1].strip() if trace else str(error)
        own = re.search(r"^[\w.]*(?:PartitaError|RecipeError): (.*)", said, re.DOTALL | re.MULTILINE)
        return f"{own[1] if own else _last_line(said)} (more in {self.job.paths.stderr})"

    def stop(self) -> None:
        self.job.cancel()


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
