"""Fréchet and kernel audio distances between generated and real clips."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.registry import register
from ...errors import PartitaError
from ...metrics.frechet import FrechetInfinity
from ...metrics.kernel import KernelDistance
from ...system.system import System
from ..comparison import Clips, Comparison, piece_ids
from ..embedders import Embedder, Embedders, missing_part, of_system, read_reference
from ..rows import Rows, make_row
from ..score import Score

COLUMNS: dict[str, Clips] = {"real": "real", "codec": "reconstructed"}
"""Columns for comparison, and the clips that each is measured on."""

NO_LIMIT = "it needs at least 8 clips of 2 pieces, and a limit that half of the clips confirm: use more clips or pieces"
"""Why FAD∞ is missing."""

log = logging.getLogger(__name__)


@register("score", "fad")
class FAD(Score):
    """Fréchet and kernel audio distances (FAD, FAD∞, KAD) to other real clips, in any embedding.

    Args:
        embeddings: Tokenizers or joint conditioners, in whose latents or embeddings distributions are compared: by
            name, as recipe slots with ``weights``, as folders of saved parts, or as keys of parts of the system itself,
            such as ``conditioners/music``.
    """

    about: ClassVar = {
        "FAD": "Fréchet audio distance between the distributions of the clips and of other real clips.",
        "FAD∞": "Extrapolation of the Fréchet audio distance to infinitely many clips of these pieces, with the same "
        "reference.",
        "KAD": "Kernel audio distance between the distributions of the clips and of other real clips, unbiased for any "
        "number of clips.",
    }
    reading = (
        "Intervals are over pieces, because clips of one piece resemble each other. A Fréchet distance (FAD) is "
        "larger with fewer clips: compare FAD and its interval only between equal numbers of clips. FAD∞ corrects "
        "this bias by extrapolation, and is given only if half of the clips lead to the same limit within its "
        "interval. The bias of a finite reference remains in FAD and FAD∞. The real clips and the reference are "
        "excerpts of the same pieces, so that FAD and FAD∞ of real clips, coded or not, are lower than those of other "
        "music of the same kind. A kernel distance (KAD) has neither bias: it compares only clips of different "
        "pieces. For equal distributions and a clip of each piece, FAD∞ and KAD are zero on average and can be "
        "negative; several clips of a piece resemble each other, which raises FAD∞."
    )

    def __init__(self, *, embeddings: tuple[Any, ...] = ("log-mel-16khz",)) -> None:
        self.embeddings = embeddings

    def load(self, embedders: Embedders) -> None:
        """Load the embeddings."""
        for slot in self.embeddings:
            if not of_system(slot):
                embedders.slot(slot)

    def obstacle(self, system: System) -> str | None:
        """Return a reason if the system lacks a part that is named as an embedding."""
        return super().obstacle(system) or missing_part(self.embeddings, system)

    def measure(self, comparison: Comparison) -> Rows:
        """Return up to three rows for each embedding; FAD∞ and KAD are left out if there are too few clips."""
        rows: Rows = {}
        for slot in self.embeddings:
            rows |= _distances(comparison, comparison.embedder(slot))
        return rows


def _distances(comparison: Comparison, embedder: Embedder) -> Rows:
    """Return the rows of one embedding."""
    log.info("FAD and KAD (%s)", embedder.name)
    audio = [clip.audio for clip in comparison.reference]
    gaussian, sample = read_reference(embedder, audio, comparison.spec.sample_rate)
    sample = sample.from_pieces(piece_ids(comparison.reference))
    found: dict[str, dict[str, Tensor]] = {}
    no_kernel_distance = ""
    for clips in ("generated", *COLUMNS.values()):
        frames = comparison.embedded(embedder, clips)
        flat, sizes = frames.flatten(0, 1), torch.full((len(frames),), frames.shape[1])
        fad = FrechetInfinity(embedder.dim, reference=gaussian)
        fad.update(flat, sizes=sizes, pieces=comparison.piece_ids)
        found[clips] = _reliable(fad.compute())
        try:
            kad = KernelDistance(embedder.dim, reference=sample)
            kad.update(flat, sizes, pieces=comparison.piece_ids)
            found[clips] |= kad.compute()
        except PartitaError as error:
            no_kernel_distance = f"KAD ({embedder.name}) is not measured: {error}"
    generated = found["generated"]
    more = {"reference_clips": len(comparison.reference), "fingerprint": embedder.fingerprint}
    rows: Rows = {}
    for name, figure in (("FAD", "frechet"), ("FAD∞", "limit"), ("KAD", "kad")):
        if figure in generated:
            references = {column: found[clips][figure] for column, clips in COLUMNS.items() if figure in found[clips]}
            row = make_row(generated, figure, "lower", embedder.label, len(comparison.generated), **references, **more)
            rows[f"{name} ({embedder.name})"] = row
    if "limit" not in generated:
        log.info("FAD∞ (%s) is not measured: %s", embedder.name, NO_LIMIT)
    if "kad" not in generated:
        log.info("%s", no_kernel_distance)
    return rows


def _reliable(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the results of a distance, without its limit if there are too few clips for a stable limit."""
    if abs(float(found["drift"])) <= 1:
        return found
    return {name: value for name, value in found.items() if not name.startswith("limit")}
