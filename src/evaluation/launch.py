"""Launchers of an ablation's tasks: processes of this machine, or jobs of a cluster."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from ..core.console import logged, out
from ..core.imports import import_files, imported
from ..core.progress import progress
from ..core.registry import did_you_mean
from ..errors import PartitaError, Stopped
from .tasks import Task, perform_task

log = logging.getLogger(__name__)

CLUSTERS = ("slurm", "local")
GRACE = 120.0
"""Seconds that a process has to end when it is asked to, and that a cluster has to take up a job again."""


class Job(Protocol):
    """A task that was started."""

    def done(self) -> bool:
        """Whether it has ended, well or not."""

    def failure(self) -> str | None:
        """Why it failed, as far as the task's own file does not say; ``None`` if it did not, or has not ended."""

    def stop(self) -> None:
        """Ask it to end soon, and keep what it has done. Asked a second time, it ends at once."""


class Launcher(Protocol):
    """Starts tasks.

    Attributes:
        jobs: Number of tasks at once.
        measuring: Number of tasks at once that measure speed.
        pause: Seconds between two looks at what is running.
        patience: Seconds until the files of a job can be seen here.
    """

    jobs: int
    measuring: int
    pause: float
    patience: float

    def start(self, task: Task) -> Job:
        """Start a task, whose file is there."""


def run_tasks(tasks: Sequence[Task], root: Path, launcher: Launcher) -> dict[str, str]:
    """Do tasks, each after those it needs. A task that fails stops only those that need it.

    Args:
        tasks: The tasks, in the order in which they are wanted.
        root: Folder of the ablation.
        launcher: Starts them.

    Returns:
        By key, why a task was not done.
    """
    ended = {task.key for task in tasks if task.done(root)}
    if ended:
        log.info("%d of %d tasks are done already", len(ended), len(tasks))
    failed: dict[str, str] = {}
    waiting = [task for task in tasks if task.key not in ended]
    running: dict[str, tuple[Task, Job, float]] = {}
    most = launcher.measuring if any(task.kind == "measure" for task in tasks) else launcher.jobs

    def begin(task: Task) -> None:
        nonlocal most
        task.write(root)
        task.error(root).unlink(missing_ok=True)
        try:
            job = launcher.start(task)
        except Exception as error:  # whatever a cluster says to a job too many
            if running:
                most = len(running)
                log.info("not more than %d at once: %s", most, error)
                return
            failed[task.key] = f"it cannot be started: {error}"
            log.info("failed: %s: %s", task.label, failed[task.key])
        else:
            running[task.key] = (task, job, time.monotonic())
            log.info("begins: %s", task.label)
        waiting.remove(task)

    try:
        while waiting or running:
            for task in list(waiting):
                broken = [need for need in task.needs if need in failed]
                if broken:
                    failed[task.key] = f"what it needs was not done: {failed[broken[0]]}"
                    waiting.remove(task)
                elif len(running) < most and ended.issuperset(task.needs):
                    begin(task)
            for key, (task, job, start) in list(running.items()):
                if not job.done():
                    continue
                del running[key]
                reason = _outcome(task, job, root, launcher.patience)
                if reason is None:
                    ended.add(key)
                    log.info("done: %s, %s", task.label, _duration(time.monotonic() - start))
                else:
                    failed[key] = reason
                    log.info("failed: %s: %s", task.label, reason)
            progress("tasks", len(ended) + len(failed), len(tasks))
            if running:
                time.sleep(launcher.pause)
    finally:
        _end([job for _, job, _ in running.values()], launcher.pause)
    return failed


def _outcome(task: Task, job: Job, root: Path, patience: float) -> str | None:
    """Why a task that has ended was not done, or nothing where it was."""
    until = time.monotonic() + patience
    while not task.done(root):
        failure = job.failure()
        if failure is None and time.monotonic() < until:
            time.sleep(1)  # a shared file system shows it later
            continue
        said = task.error(root)
        reason = said.read_text(encoding="utf-8") if said.is_file() else failure or "it ended without a result"
        return f"{reason.strip()} (more in {task.log(root)})"
    return None


def _end(jobs: Sequence[Job], pause: float) -> None:
    """Stop what is running, and see that it has ended."""
    until = time.monotonic() + GRACE
    for _ in range(2):
        for job in jobs:
            with suppress(Exception):
                job.stop()
        while not all(job.done() for job in jobs) and time.monotonic() < until:
            time.sleep(pause)
        if all(job.done() for job in jobs):
            return


class Processes:
    """Tasks as processes of this machine, which end when this one does.

    Several share the processor's cores; on a machine with several GPUs each has its own.

    Args:
        root: Folder of the ablation.
        jobs: Number of tasks at once; ``None`` for as many as the GPUs allow, or one without GPUs.
        devices: Number of GPUs for each task.
    """

    pause, patience, measuring = 0.2, 0.0, 1

    def __init__(self, root: Path, jobs: int | None = None, devices: int = 1) -> None:
        if jobs is not None and jobs < 1:
            raise PartitaError(f"jobs must be at least 1, not {jobs}")
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [str(i) for i in range(torch.cuda.device_count())] if named is None else named.split(",")
        gpus = [gpu for gpu in gpus if gpu.strip()]
        self._groups = [",".join(gpus[i : i + devices]) for i in range(0, len(gpus) - devices + 1, devices)]
        self.root, self.jobs = root, jobs or max(1, len(self._groups))
        self._slots: list[_Process | None] = [None] * self.jobs

    def start(self, task: Task) -> Job:
        """Start a process."""
        slot = next(i for i, job in enumerate(self._slots) if job is None or job.done())
        environment = {**os.environ, "PYTHONUTF8": "1"}
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
            if self._groups:
                environment["CUDA_VISIBLE_DEVICES"] = self._groups[slot % len(self._groups)]
        self._slots[slot] = job = _Process(self.root, task, environment)
        return job


class _Process:
    def __init__(self, root: Path, task: Task, environment: Mapping[str, str]) -> None:
        parts = [word for file in imported() for word in ("--import", file)]
        command = [sys.executable, "-m", "partita.cli", *parts, "task", str(root), task.key]
        with task.log(root).open("ab") as log:
            # it reads nothing, but sees the end of its input when this process dies
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._asked = False

    def done(self) -> bool:
        return self._process.poll() is not None

    def failure(self) -> str | None:
        status = self._process.returncode
        if status < 0:
            return f"signal {-status} ended it" + (": was the memory full?" if status == -signal.SIGKILL else "")
        return f"it ended with status {status}" if status else None

    def stop(self) -> None:
        if self.done():
            return
        if self._asked:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.terminate()
        self._asked = True


class Cluster:
    """Tasks as jobs of a cluster, by submitit. A job that is preempted or out of time is put into the queue again.

    Args:
        root: Folder of the ablation, on a file system that all machines share.
        name: ``slurm``, or, to try it out, ``local``.
        options: Arguments of ``submitit.AutoExecutor.update_parameters``, such as ``timeout_min``.
        jobs: Number of tasks at once; ``None`` for no limit.
    """

    pause, patience, measuring = 5.0, 60.0, sys.maxsize

    def __init__(self, root: Path, name: str, options: Mapping[str, Any], jobs: int | None = None) -> None:
        try:
            import submitit
        except ImportError:
            raise PartitaError("a cluster needs submitit: pip install 'partita[cluster]'") from None
        if name not in CLUSTERS:
            raise PartitaError(f"no cluster is called {name!r}{did_you_mean(name, CLUSTERS)}")
        if jobs is not None and jobs < 1:
            raise PartitaError(f"jobs must be at least 1, not {jobs}")
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
    """What a job of a cluster calls: the task, and itself again after an interruption."""

    def __init__(self) -> None:
        self.imports = imported()

    def __call__(self, root: str, key: str) -> None:
        """Do the task."""
        import_files(self.imports)
        try:
            with logged(out):
                perform_task(root, key)
        except Stopped as stop:
            time.sleep(GRACE)  # submitit hears of it by a signal of its own, and ends this process in its handler
            raise RuntimeError(str(stop)) from None

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
        return None if error is None else next(iter(_last_lines(str(error))), type(error).__name__)

    def stop(self) -> None:
        self.job.cancel(check=False)


def _last_lines(text: str) -> Iterator[str]:
    return reversed([line for line in text.splitlines() if line.strip(" -")])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
