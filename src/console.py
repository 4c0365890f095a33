"""What the commands share: where they write, and the devices they take."""

from __future__ import annotations

import sys

from rich.console import Console

from .errors import PartitaError

# Tables that go to a file or a pipe are not squeezed into 80 columns.
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, soft_wrap=True)


def device_name(name: str) -> str:
    """A device that is there; ``auto`` is a GPU where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise PartitaError(f"no device {name!r} here: {str(error).splitlines()[0]}") from None
    return name
