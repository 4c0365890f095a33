"""Partita: interchangeable, trainable parts for music generation, and the recipes that compose them into systems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import PartitaError
from .registry import register

if TYPE_CHECKING:
    from .layers.guidance import Term
    from .system import System, load

__version__ = "0.1.0"
__all__ = ["PartitaError", "System", "Term", "load", "register"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in ("System", "load"):
        from . import system

        return getattr(system, name)
    if name == "Term":
        from .layers.guidance import Term

        return Term
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
