"""Where the training of a part starts from: ``init`` in a recipe."""

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
    """Give a part that is going to be trained the weights it starts from.

    Args:
        part: The part. Its discriminators, which no export holds, start as they are.
        key: Its key in the system, such as ``stages/acoustic``.
        source: A run or an export (the part with the same key in it), the folder of a saved part, a part of a system on
            the Hub (``user/name/stages/acoustic``), or whatever the part's ``weights:`` can name.

    Raises:
        PartitaError: There are no such weights, or they are not of a part with these arguments.
    """
    path = Path(source)
    if kind(path / INDEX) == "file":
        if kind(path / key) != "folder":
            there = sorted(str(f.parent.relative_to(path)) for f in path.glob("*/*/config.json"))
            raise PartitaError(
                f"{source} has no part {key} to start from: name one of its parts, such as "
                f"{' or '.join(str(path / name) for name in there) or 'those of a run that is finished'}"
            )
        path = path / key
    elif not kind(path) and (found := PART_ON_HUB.fullmatch(source)):
        root = fetch(found[1], [f"{found[2]}/{pattern}" for pattern in FILES])
        check_saved_part(root, found[2])
        path = root / found[2]
    part.load_weights(path if kind(path) else source)
