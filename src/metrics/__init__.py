"""Metrics as torchmetrics: ``update`` takes batches, ``compute`` returns tensors with 95 % intervals over pieces.

Metrics of embeddings accept those of any model. :func:`partita.evaluation.embedders.read_embedder` returns an embedder
for the name of a tokenizer or joint conditioner, which embeds clips ``[B, C, T]`` at any sample rate as frames
``[B, S, D]``:

    >>> import torch
    >>> from partita.evaluation.embedders import read_embedder
    >>> from partita.metrics import FrechetInfinity
    >>> embed = read_embedder("log-mel-16khz")
    >>> fad = FrechetInfinity(embed.dim)
    >>> for reference in (True, False):
    ...     frames = embed(torch.rand(4, 1, 16000), 16000)
    ...     sizes = torch.full((len(frames),), frames.shape[1])  # number of frames of each clip
    ...     fad.update(frames.flatten(0, 1), reference, sizes)
    >>> found = fad.compute()
    >>> bool(found["frechet_low"] <= found["frechet"] <= found["frechet_high"])
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ChordAgreement": "key_and_chords",
    "CodebookUsage": "codec",
    "ConstantSpectrum": "codec",
    "FrechetDistance": "frechet",
    "FrechetInfinity": "frechet",
    "Gaussian": "gaussian",
    "InstrumentAgreement": "instrument_agreement",
    "InstrumentClassifier": "instrument_agreement",
    "KLDivergence": "divergence",
    "KernelDistance": "kernel",
    "KeyAgreement": "key_and_chords",
    "MelDistance": "codec",
    "MelodyAgreement": "melody_agreement",
    "MelodySimilarity": "melody_similarity",
    "Memorization": "memorization",
    "PairedCosine": "similarity",
    "RhythmAgreement": "rhythm",
    "StyleNeighbors": "neighbors",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a metric on first access."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    """Every metric, without importing them."""
    return sorted(_HOMES)
