"""Text–audio consistency: the similarity of clips and their captions in a joint embedding."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.registry import register
from ...metrics.similarity import PairedCosine, clip_means
from ..comparison import Clips, Comparison
from ..embedders import Embedder, Embedders
from ..rows import Rows, make_row
from ..score import Score

COLUMNS: dict[str, Clips] = {"real": "real", "codec": "reconstructed"}
"""Columns for comparison, and the clips that each is measured on."""

log = logging.getLogger(__name__)


@register("score", "consistency")
class Consistency(Score):
    """Cosine similarity of clips and captions in a joint embedding: the CLAP score, or MuLan cycle consistency.

    The chance level is the mean over all pairs of a clip and another caption.

    Args:
        conditioners: Joint conditioners (by name, or as recipe slots with ``weights``), such as ``clap-music``.
    """

    about: ClassVar = {
        "text–audio consistency": "Mean cosine similarity of clips and their captions in a joint embedding."
    }
    runs_by_default = False
    needs_stages = True
    needs_inputs = frozenset({"text"})

    def __init__(self, *, conditioners: tuple[Any, ...]) -> None:
        self.conditioners = conditioners

    def load(self, embedders: Embedders) -> None:
        """Load the conditioners."""
        for slot in self.conditioners:
            embedders.slot(slot).joint()

    def measure(self, comparison: Comparison) -> Rows:
        """Return a row for each conditioner, measured on the clips whose pieces have a text."""
        texts = {i: str(fields["text"]) for i, fields in enumerate(comparison.fields) if fields.get("text")}
        if not texts:
            log.info("no test piece has a text: text–audio consistency is not measured")
            return {}
        rows: Rows = {}
        for slot in self.conditioners:
            embedder = comparison.embedders.slot(slot)
            name = f"text–audio consistency ({embedder.name})"
            log.info("%s", name)
            rows[name] = _cosines(comparison, embedder, texts)
        return rows


def _cosines(comparison: Comparison, embedder: Embedder, texts: dict[int, str]) -> dict[str, Any]:
    """Return the row of one conditioner; ``texts`` maps the index of each clip with a text to that text."""
    words, kept = embedder.embed_texts(list(texts.values())), torch.tensor(list(texts))
    pieces = [comparison.piece_ids[i] for i in texts]

    def cosine(clips: Clips) -> dict[str, Tensor]:
        windows = comparison.embedded(embedder, clips)[kept]
        metric = PairedCosine()
        sizes = torch.full((len(windows),), windows.shape[1])
        metric.update(words, windows.flatten(0, 1), second_sizes=sizes, pieces=pieces)
        return metric.compute()

    windows = comparison.embedded(embedder, "generated")[kept]
    means = clip_means(windows.flatten(0, 1), torch.full((len(windows),), windows.shape[1]))
    more: dict[str, Any] = {"fingerprint": embedder.fingerprint}
    more |= {column: cosine(clips)["cosine"] for column, clips in COLUMNS.items()}
    others = torch.tensor([[one != other for other in texts.values()] for one in texts.values()])
    if others.any():
        more["chance"] = (F.normalize(words.double()) @ F.normalize(means).T)[others].mean()
    return make_row(cosine("generated"), "cosine", "higher", embedder.label, len(kept), **more)
