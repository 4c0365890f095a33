"""Which examples are for training: a property of their names alone, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .base import Split


def split_names(names: Sequence[str], validation: float, test: float) -> dict[Split, list[str]]:
    """Divide names by their hash, so that a name stays where it is when others come and go.

    Of three names or more every split gets at least one, if its fraction is not zero; that one is borrowed from the
    training split. Of fewer, all are for training, and the other splits are empty.

    Args:
        names: To divide; the order is kept.
        validation: Fraction for validation.
        test: Fraction for the test.
    """
    place = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64 for name in names}
    split: dict[str, Split] = {}
    for name in names:
        split[name] = "test" if place[name] < test else "validation" if place[name] < test + validation else "train"
    if len(names) < 3:
        split = dict.fromkeys(names, "train")
    else:
        # From both ends of the line of training names: where one of the borrowed goes, the other stays what it is.
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
    """Refuse fractions that leave nothing for training.

    Raises:
        ValueError: They do.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(
            f"validation and test are fractions that leave some pieces for training, not {validation} and {test}"
        )
