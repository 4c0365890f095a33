"""Finding devices by name."""

from __future__ import annotations

import torch

from ..errors import PartitaError


def find_device(name: str | torch.device) -> torch.device:
    """A device of this machine.

    Args:
        name: A device as torch names it (``cpu``, ``cuda:1``, ``mps``), or ``auto`` for a GPU if there is one.

    Raises:
        PartitaError: The machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).cpu()  # fails for the device "meta", which holds no values
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise PartitaError(f"no device {str(name)!r} here: {str(error).splitlines()[0]}") from None
    return torch.device(name)
