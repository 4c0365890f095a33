"""Initial weights for the training of a part, from ``init`` in a recipe."""

from __future__ import annotations

from pathlib import Path

from ..core.part import Part
from ..core.part_key import PartKey
from ..errors import PartitaError
from ..storage.download import fetch
from ..storage.files import kind
from .assembly import FILES, INDEX, PART_ON_HUB
from .saved import check_saved_part


def load_init(part: Part, key: PartKey, source: str) -> None:
    """Load the weights from which the training of a part starts.

    Args:
        part: The part to train. Its discriminators, which exports do not contain, keep their random weights.
        key: Key of the part in the system, such as ``stages/acoustic``.
        source: A run or an export, from which the part with the same key is loaded; the folder of a saved part; a part
            of a system on the Hub (``user/name/stages/acoustic``); or any value that ``weights:`` of the part accepts.

    Raises:
        PartitaError: The weights do not exist, or they belong to a part with other arguments.
    """
    path = Path(source)
    if kind(path / INDEX) == "file":
        if kind(path / key) != "folder":
            saved = sorted(str(f.parent.relative_to(path)) for f in path.glob("*/*/config.json"))
            raise PartitaError(
                f"{source} has no part {key} to start from: name one of its parts, such as "
                f"{' or '.join(str(path / name) for name in saved) or 'those of a finished run'}"
            )
        path = path / key
    elif not kind(path) and (found := PART_ON_HUB.fullmatch(source)):
        root = fetch(found[1], [f"{found[2]}/{pattern}" for pattern in FILES])
        check_saved_part(root, found[2])
        path = root / found[2]
    part.load_weights(path if kind(path) else source)
