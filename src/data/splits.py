"""Division into training, validation and test splits, which depends only on names and is the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .base import Split


def split_names(names: Sequence[str], validation: float, test: float) -> dict[Split, list[str]]:
    """Divide names by their hash, so that a name keeps its split when other names are added or removed.

    With three or more names, every split with a nonzero fraction gets at least one, if necessary from the training
    split. With fewer names, all are for training.

    Args:
        names: The names. Splits keep their order.
        validation: Fraction for validation.
        test: Fraction for testing.
    """
    place = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64 for name in names}
    split: dict[str, Split] = {}
    for name in names:
        split[name] = "test" if place[name] < test else "validation" if place[name] < test + validation else "train"
    if len(names) < 3:
        split = dict.fromkeys(names, "train")
    else:
        # Taken from opposite ends of the training names, so that removing one does not affect the other.
        spare = sorted((name for name in names if split[name] == "train"), key=lambda name: place[name])
        for wanted, fraction, end in (("validation", validation, 0), ("test", test, -1)):
            if fraction and wanted not in split.values() and len(spare) > 1:
                split[spare.pop(end)] = wanted  # type: ignore[assignment]
        if "train" not in split.values():
            split[max(names, key=lambda name: place[name])] = "train"
    found: dict[Split, list[str]] = {"train": [], "validation": [], "test": []}
    for name in names:
        found[split[name]].append(name)
    return found


def check_fractions(validation: float, test: float) -> None:
    """Check that fractions leave pieces for training.

    Raises:
        ValueError: A fraction is negative, or their sum is at least 1.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(
            f"validation and test must be fractions that leave pieces for training, not {validation} and {test}"
        )
