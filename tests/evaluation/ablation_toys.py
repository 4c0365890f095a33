"""Small ablations, done in the process of the test."""

from contextlib import suppress
from pathlib import Path

from partita.errors import PartitaError
from partita.evaluation.ablation import read_ablation
from partita.evaluation.tasks import perform_task

FEW = {"clips": 2, "reference_clips": 3, "duration": 1.0}
CODECS = "tokenizers.acoustic.cardinality=16,8"
LETTERS = "conditioners.text=toy-letters,{name: toy-letters, dim: 4}"


class Here:
    """Does tasks in this process, as the command `task` would."""

    jobs = measuring_jobs = 1
    poll_seconds = file_delay = 0.0

    def __init__(self, root, stop_after=None):
        self.root, self.begun, self.stop_after = Path(root), [], stop_after

    def start(self, task):
        if len(self.begun) == self.stop_after:
            raise KeyboardInterrupt
        self.begun.append(task)
        with suppress(PartitaError):
            perform_task(self.root, task.key)
        return self

    def done(self):
        return True

    def failure(self):
        return None

    def stop(self):
        raise AssertionError("nothing is running")


def study(recipe, *changes, budget=()):
    return read_ablation(str(recipe), changes, budget, FEW)
