"""The folder of what can be made again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return ``$PARTITA_CACHE``, or ``partita`` in the user's cache folder."""
    if os.environ.get("PARTITA_CACHE"):
        return Path(os.environ["PARTITA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "partita"
