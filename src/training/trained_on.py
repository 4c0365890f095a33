"""The parts on whose output a stage was trained, which must not be replaced by others afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..core.part import Part
from ..core.part_key import PartKey
from ..errors import PartitaError
from ..storage.files import replacing_file
from ..storage.untrusted import read_json
from ..system.system import System


def record_trained_on(system: System, key: PartKey, run: Path) -> None:
    """Write the fingerprints of the tokenizers and conditioners that a trained stage has seen to the logs of a run."""
    with replacing_file(_record(run, key)) as new:
        new.write_text(json.dumps({name: part.fingerprint() for name, part in _seen(system, key).items()}) + "\n")


def check_trained_on(system: System, key: PartKey, run: Path) -> None:
    """Check that a trained stage of a run has seen the tokenizers and conditioners that the system has now.

    Raises:
        PartitaError: One of them was replaced.
    """
    if not _record(run, key).is_file():
        return
    recorded = read_json(_record(run, key))
    for name, part in _seen(system, key).items():
        if recorded.get(name, "") not in ("", part.fingerprint()):
            raise PartitaError(
                f"{run / key} was trained on another {name} than the one in {run}: delete {run / key} and run the "
                f"same command again to train it again, or put the earlier {name} back"
            )


def _record(run: Path, key: PartKey) -> Path:
    return run / "logs" / key / "trained_on.json"


def _seen(system: System, key: PartKey) -> Mapping[str, Part]:
    """Return the tokenizers and the frozen conditioners whose output a stage takes, by their key."""
    plan, stage = system.plan.stages[key.name], system.stages[key.name]
    tokenizers = dict.fromkeys(r.tokenizer for r in (*plan.targets, *plan.references.values()))
    frozen = [name for name in plan.conditioners if name not in stage.joint]
    return {
        **{PartKey.of("tokenizers", name): system.tokenizers[name] for name in tokenizers},
        **{PartKey.of("conditioners", name): system.conditioners[name] for name in frozen},
    }
