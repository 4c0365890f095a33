"""Text–audio consistency: the similarity of clips and their captions in a joint embedding."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...conditioners.joint import JointConditioner
from ...core.part_key import PartKey
from ...core.registry import register
from ...metrics.piece_means import sign_flip_over_pieces
from ...metrics.similarity import PairedCosine, clip_means
from ...system.system import System
from ..comparison import Clips, Comparison
from ..embedders import Embedder, Embedders, missing_part, of_system
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
        conditioners: Joint conditioners, such as ``clap-music``: by name, as recipe slots with ``weights``, as folders
            of saved ones, or as keys of those of the system itself, such as ``conditioners/music``. If empty, all the
            system's own that read texts.
    """

    about: ClassVar = {
        "text–audio consistency": "Mean cosine similarity of clips and their captions in a joint embedding."
    }
    needs_stages = True
    needs_inputs = frozenset({"text"})

    def __init__(self, *, conditioners: tuple[Any, ...] = ()) -> None:
        self.conditioners = conditioners

    def load(self, embedders: Embedders) -> None:
        """Load the conditioners."""
        for slot in self.conditioners:
            if not of_system(slot):
                embedders.slot(slot).joint()

    def obstacle(self, system: System) -> str | None:
        """Return a reason if the system lacks a conditioner that is named, or has no joint conditioner of its own."""
        if (reason := super().obstacle(system) or missing_part(self.conditioners, system)) is not None:
            return reason
        if not self.conditioners and not _own(system):
            return (
                "none of this system's conditioners embeds texts and audio in one space: name one, such as clap-music"
            )
        return None

    def measure(self, comparison: Comparison) -> Rows:
        """Return a row for each conditioner, measured on the clips whose pieces have a text."""
        texts = {i: str(fields["text"]) for i, fields in enumerate(comparison.fields) if fields.get("text")}
        if not texts:
            log.info("no test piece has a text: text–audio consistency is not measured")
            return {}
        rows: Rows = {}
        for slot in self.conditioners or _own(comparison.system):
            embedder = comparison.embedder(slot)
            name = f"text–audio consistency ({embedder.name})"
            log.info("%s", name)
            rows[name] = _cosines(comparison, embedder, texts)
        return rows


def _own(system: System) -> list[str]:
    """Return the keys of a system's conditioners that embed texts and audio in one space, or quantize such ones."""
    return [
        PartKey.of("conditioners", name)
        for name, conditioner in system.conditioners.items()
        if "text" in conditioner.inputs and any(isinstance(part, JointConditioner) for part in conditioner.modules())
    ]


def _cosines(comparison: Comparison, embedder: Embedder, texts: dict[int, str]) -> dict[str, Any]:
    """Return the row of one conditioner; ``texts`` maps the index of each clip with a text to that text."""
    words, kept = embedder.embed_texts(list(texts.values())), torch.tensor(list(texts))
    pieces = [comparison.piece_ids[i] for i in texts]

    def cosine(clips: Clips, captions: Tensor = words) -> PairedCosine:
        windows = comparison.embedded(embedder, clips)[kept]
        metric = PairedCosine()
        sizes = torch.full((len(windows),), windows.shape[1])
        metric.update(captions, windows.flatten(0, 1), second_sizes=sizes, pieces=pieces)
        return metric

    windows = comparison.embedded(embedder, "generated")[kept]
    means = clip_means(windows.flatten(0, 1), torch.full((len(windows),), windows.shape[1]))
    more: dict[str, Any] = {"fingerprint": embedder.fingerprint}
    more |= {column: cosine(clips).compute()["cosine"] for column, clips in COLUMNS.items()}
    others = torch.tensor([[one != other for other in texts.values()] for one in texts.values()])
    if others.any():
        more["chance"] = (F.normalize(words.double()) @ F.normalize(means).T)[others].mean()
    generated = cosine("generated")
    if shuffled := comparison.from_other_pieces(list(texts)):
        order = {clip: row for row, clip in enumerate(texts)}
        differences = generated.values - cosine("generated", words[[order[clip] for clip in shuffled]]).values
        more["p"] = sign_flip_over_pieces(differences[:, 0], pieces)
    return make_row(generated.compute(), "cosine", "higher", embedder.label, len(kept), **more)
