"""Launchers of an ablation's tasks: processes on this machine, or jobs on a cluster."""

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
"""Seconds that a process has to exit after a request, and that a cluster has to requeue a job."""


class Job(Protocol):
    """A task that was started."""

    def done(self) -> bool:
        """Whether the job has ended, successfully or not."""

    def failure(self) -> str | None:
        """Reason of the failure as the launcher knows it; ``None`` if the job is running or has not failed."""

    def stop(self) -> None:
        """Ask the job to save its state and end. A second call ends it at once."""


class Launcher(Protocol):
    """A way to start tasks.

    Attributes:
        jobs: Largest number of tasks that run at once.
        measuring_jobs: Largest number of tasks that measure speed at once.
        poll_seconds: Seconds between two checks of the running jobs.
        file_delay: Seconds until files written by a job are visible on this machine.
    """

    jobs: int
    measuring_jobs: int
    poll_seconds: float
    file_delay: float

    def start(self, task: Task) -> Job:
        """Start a task whose file has been written."""


def run_tasks(tasks: Sequence[Task], root: Path, launcher: Launcher) -> dict[str, str]:
    """Run tasks, each after the tasks that it needs. A failed task prevents only the tasks that need it.

    Args:
        tasks: The tasks, in the preferred order.
        root: Folder of the ablation.
        launcher: Launcher that starts the tasks.

    Returns:
        The reason for each task that was not completed, by its key.
    """
    ended = {task.key for task in tasks if task.done(root)}
    if ended:
        log.info("%d of %d tasks are done already", len(ended), len(tasks))
    failed: dict[str, str] = {}
    waiting = [task for task in tasks if task.key not in ended]
    running: dict[str, tuple[Task, Job, float]] = {}
    max_running = launcher.measuring_jobs if any(task.kind == "measure" for task in tasks) else launcher.jobs

    def begin(task: Task) -> None:
        nonlocal max_running
        task.write(root)
        task.error(root).unlink(missing_ok=True)
        try:
            job = launcher.start(task)
        except Exception as error:  # clusters raise different errors when a user has too many jobs
            if running:
                max_running = len(running)
                log.info("at most %d jobs at once from now on: %s", max_running, error)
                return
            failed[task.key] = f"the task cannot be started: {error}"
            log.info("failed: %s: %s", task.label, failed[task.key])
        else:
            running[task.key] = (task, job, time.monotonic())
            log.info("started: %s", task.label)
        waiting.remove(task)

    try:
        while waiting or running:
            for task in list(waiting):
                broken = [need for need in task.needs if need in failed]
                if broken:
                    failed[task.key] = f"a task that it needs failed: {failed[broken[0]]}"
                    waiting.remove(task)
                elif len(running) < max_running and ended.issuperset(task.needs):
                    begin(task)
            for key, (task, job, start) in list(running.items()):
                if not job.done():
                    continue
                del running[key]
                reason = _outcome(task, job, root, launcher.file_delay)
                if reason is None:
                    ended.add(key)
                    log.info("done: %s, %s", task.label, _duration(time.monotonic() - start))
                else:
                    failed[key] = reason
                    log.info("failed: %s: %s", task.label, reason)
            progress("tasks", len(ended) + len(failed), len(tasks))
            if running:
                time.sleep(launcher.poll_seconds)
    finally:
        _end([job for _, job, _ in running.values()], launcher.poll_seconds)
    return failed


def _outcome(task: Task, job: Job, root: Path, file_delay: float) -> str | None:
    """Return why an ended job did not complete its task; ``None`` if it did."""
    until = time.monotonic() + file_delay
    while not task.done(root):
        failure = job.failure()
        if failure is None and time.monotonic() < until:
            time.sleep(1)  # a shared file system shows the files with a delay
            continue
        error_file = task.error(root)
        reason = (
            error_file.read_text(encoding="utf-8")
            if error_file.is_file()
            else failure or "the job ended without a result"
        )
        return f"{reason.strip()} (more in {task.log(root)})"
    return None


def _end(jobs: Sequence[Job], poll_seconds: float) -> None:
    """Stop the running jobs and wait until they have ended."""
    until = time.monotonic() + GRACE
    for _ in range(2):
        for job in jobs:
            with suppress(Exception):
                job.stop()
        while not all(job.done() for job in jobs) and time.monotonic() < until:
            time.sleep(poll_seconds)
        if all(job.done() for job in jobs):
            return


class Processes:
    """A launcher of processes on this machine, which end together with the current process.

    Several processes share the CPU cores. On a machine with several GPUs, each process has its own.

    Args:
        root: Folder of the ablation.
        jobs: Largest number of tasks at once. ``None`` runs as many as the GPUs allow, or one without GPUs.
        devices: Number of GPUs for each task.
    """

    poll_seconds, file_delay, measuring_jobs = 0.2, 0.0, 1

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
            # the open input tells the child that this process has died
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._asked_to_stop = False

    def done(self) -> bool:
        return self._process.poll() is not None

    def failure(self) -> str | None:
        status = self._process.returncode
        if status < 0:
            hint = " (perhaps it ran out of memory)" if status == -signal.SIGKILL else ""
            return f"the process was ended by signal {-status}{hint}"
        return f"the process exited with status {status}" if status else None

    def stop(self) -> None:
        if self.done():
            return
        if self._asked_to_stop:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.terminate()
        self._asked_to_stop = True


class Cluster:
    """A launcher of jobs on a cluster with submitit. Jobs that are preempted or run out of time are requeued.

    Args:
        root: Folder of the ablation, on a file system that all machines share.
        name: ``slurm``, or ``local`` to test on this machine.
        options: Arguments of ``submitit.AutoExecutor.update_parameters``, such as ``timeout_min``.
        jobs: Largest number of tasks at once. ``None`` sets no limit.
    """

    poll_seconds, file_delay, measuring_jobs = 5.0, 60.0, sys.maxsize

    def __init__(self, root: Path, name: str, options: Mapping[str, Any], jobs: int | None = None) -> None:
        try:
            import submitit
        except ImportError:
            raise PartitaError("a cluster needs submitit: pip install 'partita[cluster]'") from None
        if name not in CLUSTERS:
            raise PartitaError(f"there is no cluster {name!r}{did_you_mean(name, CLUSTERS)}")
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
    """The function that a cluster job calls: it runs a task, and is submitted again after an interruption."""

    def __init__(self) -> None:
        self.imports = imported()

    def __call__(self, root: str, key: str) -> None:
        """Run the task with this key."""
        import_files(self.imports)
        try:
            with logged(out):
                perform_task(root, key)
        except Stopped as stop:
            time.sleep(GRACE)  # submitit's own signal handler ends this process and requeues the job
            raise RuntimeError(str(stop)) from None

    def checkpoint(self, root: str, key: str) -> Any:
        """Return the submission that replaces an interrupted job; training resumes from its own checkpoints."""
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
