"""The published checkpoints that are known to be importable."""

from __future__ import annotations

_MUSICGEN = {
    "small": "300M parameters, 32 kHz mono",
    "medium": "1.5B parameters, 32 kHz mono",
    "large": "3.3B parameters, 32 kHz mono",
    "melody": "1.5B parameters, 32 kHz mono, from text and a melody",
    "melody-large": "3.3B parameters, 32 kHz mono, from text and a melody",
    "stereo-small": "300M parameters, 32 kHz stereo",
    "stereo-medium": "1.5B parameters, 32 kHz stereo",
    "stereo-large": "3.3B parameters, 32 kHz stereo",
    "stereo-melody": "1.5B parameters, 32 kHz stereo, from text and a melody",
    "stereo-melody-large": "3.3B parameters, 32 kHz stereo, from text and a melody",
}

CHECKPOINTS = {f"facebook/musicgen-{name}": f"MusicGen, {line} (CC-BY-NC-4.0)" for name, line in _MUSICGEN.items()} | {
    "facebook/musicgen-style": "MusicGen-Style, 1.5B parameters, 32 kHz mono, from text and a style (CC-BY-NC-4.0)",
    "facebook/audiogen-medium": "AudioGen, 1.5B parameters, 16 kHz mono, sounds from text (CC-BY-NC-4.0)",
}
"""Known checkpoints by hub id, each with a line that ends with the license of its weights in parentheses."""


def license_of(checkpoint: str) -> str | None:
    """Return the license of a known checkpoint as the Hub identifies it, or ``None`` for an unknown one.

    >>> license_of("facebook/musicgen-small")
    'cc-by-nc-4.0'
    """
    line = CHECKPOINTS.get(checkpoint)
    return None if line is None else line.rpartition("(")[2].rstrip(")").lower()
