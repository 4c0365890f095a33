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
from ..comparison import Clips, Comparison, piece_ids
from ..embedders import Embedder, Embedders, read_reference
from ..rows import Rows, make_row
from ..score import Score

COLUMNS: dict[str, Clips] = {"real": "real", "codec": "reconstructed"}
"""What the distance of generated clips is read against."""

LIMIT_TAKES = "a limit takes 8 clips of 2 pieces, and so many that halves of them show the same limit: generate more"
"""Why there is no FAD∞."""

log = logging.getLogger(__name__)


@register("score", "fad")
class FAD(Score):
    """Fréchet and kernel audio distances (FAD, FAD∞, KAD) to other real clips, in any embedding.

    Args:
        embeddings: Tokenizers or joint conditioners (by name, or as recipe slots with ``weights``) in whose latents or
            embeddings the distributions are compared.
    """

    about: ClassVar = {
        "FAD": "Fréchet audio distance: how far the clips as a whole are from other real clips, in this embedding.",
        "FAD∞": "The limit of the Fréchet audio distance for ever more clips of these pieces; the reference stays as "
        "it is.",
        "KAD": "Kernel audio distance: how far the clips as a whole are from other real clips, whatever their number.",
    }
    reading = (
        "Intervals are over pieces, as clips of one piece resemble each other. Few clips make a Fréchet distance (FAD) "
        "larger: compare it, and its interval, only with that of as many clips. FAD∞ corrects for this, as far as "
        "leaving out clips shows, and is given only where half as many clips show the same within its interval; the "
        "bias of a finite reference is in all these figures, those of real clips too. A kernel distance (KAD) has no "
        "such bias. Where both sides are alike, FAD∞ and KAD are zero on average, and as often below as above."
    )

    def __init__(self, *, embeddings: tuple[Any, ...] = ("log-mel-16khz",)) -> None:
        self.embeddings = embeddings

    def load(self, embedders: Embedders) -> None:
        """Load the embeddings."""
        for slot in self.embeddings:
            embedders.slot(slot)

    def measure(self, comparison: Comparison) -> Rows:
        """Three rows for each embedding; FAD∞ and KAD only where there are enough clips for them."""
        rows: Rows = {}
        for slot in self.embeddings:
            rows |= _distances(comparison, comparison.embedders.slot(slot))
        return rows


def _distances(comparison: Comparison, embedder: Embedder) -> Rows:
    """The rows of one embedding."""
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
            no_kernel_distance = f"no KAD ({embedder.name}): {error}"
    generated = found["generated"]
    more = {"reference_clips": len(comparison.reference), "fingerprint": embedder.fingerprint}
    rows: Rows = {}
    for name, figure in (("FAD", "frechet"), ("FAD∞", "limit"), ("KAD", "kad")):
        if figure in generated:
            beside = {column: found[clips][figure] for column, clips in COLUMNS.items() if figure in found[clips]}
            row = make_row(generated, figure, "lower", embedder.label, len(comparison.generated), **beside, **more)
            rows[f"{name} ({embedder.name})"] = row
    if "limit" not in generated:
        log.info("no FAD∞ (%s): %s", embedder.name, LIMIT_TAKES)
    if "kad" not in generated:
        log.info("%s", no_kernel_distance)
    return rows


def _reliable(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The figures of a distance, without a limit that the clips are too few to show."""
    if abs(float(found["drift"])) <= 1:
        return found
    return {name: value for name, value in found.items() if not name.startswith("limit")}
