"""Agreement of clips with the key, chords, tempo and beats that the system was given."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ...core.registry import register
from ...metrics.key_and_chords import ChordAgreement, KeyAgreement
from ...metrics.rhythm import RhythmAgreement
from ..comparison import Comparison
from ..rows import Rows, make_row
from ..score import Score


class Kind(NamedTuple):
    """A metric of agreement.

    Args:
        metric: Its class.
        features: The features of the audio that it estimates labels from.
        inputs: By beginning of a figure's name, the inputs of which the system must read one for it to be measured.
            Captions name key and tempo; no system is expected to guess beats or chords.
    """

    metric: Any
    features: str
    inputs: dict[str, set[str]]


KINDS = (
    Kind(KeyAgreement, "chroma", {"key": {"key", "text"}}),
    Kind(ChordAgreement, "chroma", {"chord": {"chords"}}),
    Kind(RhythmAgreement, "onset strength", {"tempo": {"tempo", "beats", "text"}, "beat": {"beats"}}),
)

LABELS = {"key", "chords", "tempo", "beats"}
"""Fields of pieces that clips are compared with."""

FIGURES = {
    "key_exact": "right key",
    "key": "right or related key",
    "chord_root": "right chord roots",
    "chord_majmin": "right chords",
    "chord_segmentation": "chord changes in time",
    "tempo_accuracy_1": "right tempo",
    "tempo_accuracy_2": "right tempo, half or double",
    "beat_f_measure": "beats in place",
}
"""The row of each figure of the metrics."""

CHANCES = 4
"""Number of other pieces with whose labels each clip is compared for the chance level."""

log = logging.getLogger(__name__)


@register("score", "agreement")
class Agreement(Score):
    """Agreement of the key, chords, tempo and beats of clips with those that the system was given.

    Its chance level is the agreement with the labels of other pieces.
    """

    about: ClassVar = {
        "right key": "Fraction of the clips whose key, estimated from the audio, is the one that was asked for.",
        "right or related key": "Mean over the clips: 1 for the key that was asked for, 0.5 for the one a fifth above, "
        "0.3 for the relative and 0.2 for the parallel one (the score of MIREX).",
        "right chord roots": "Fraction of the time in which the estimated chord has the root that the piece has there.",
        "right chords": "Fraction of the time in which the estimated chord is the piece's, by its root and its third.",
        "chord changes in time": "How far estimated chords change when the piece's do; 1 where all changes fall "
        "together.",
        "right tempo": "Fraction of the clips whose estimated tempo is within 4 % of the piece's.",
        "right tempo, half or double": "Fraction of the clips whose estimated tempo is within 4 % of the piece's, its "
        "half or its double.",
        "beats in place": "How many estimated beats are within 70 ms of the piece's, and how many of those are found "
        "(F-measure).",
    }
    needs_stages = True
    needs_inputs = frozenset({"text", *LABELS})
    needs_packages = ("librosa", "mir_eval")

    def measure(self, comparison: Comparison) -> Rows:
        """Rows for the labels that the system was given and the pieces have."""
        known = {name for fields in comparison.fields for name, value in fields.items() if value is not None}
        rows: Rows = {}
        for kind in KINDS if known & LABELS else ():
            measured = tuple(figure for figure, inputs in kind.inputs.items() if comparison.inputs & inputs)
            if measured:
                log.info("agreement with the pieces: %s", ", ".join(measured))
                rows |= _agreement(comparison, kind, measured)
        return rows


def _agreement(comparison: Comparison, kind: Kind, measured: tuple[str, ...]) -> Rows:
    """The rows of one metric: of the figures whose names begin with one of ``measured``."""

    def with_labels_of(clips: Tensor, labels: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        metric = kind.metric(comparison.spec.sample_rate)
        for pieces in labels:
            metric.update(clips, [comparison.fields[i] for i in pieces], pieces=comparison.piece_ids)
        return metric.compute()

    everything = list(range(len(comparison.pieces)))
    own, real = (with_labels_of(clips, [everything]) for clips in (comparison.generated, comparison.real))
    others = [comparison.from_other_pieces(everything, shift) for shift in range(1, 1 + CHANCES)]
    chance = with_labels_of(comparison.generated, [pieces for pieces in others if pieces]) if any(others) else {}
    rows: Rows = {}
    for name in kind.metric.names:
        if name.startswith(measured) and not math.isnan(own[name]):
            more = {"real": real[name]}
            if name in chance and not math.isnan(chance[name]):
                more["chance"] = chance[name]
            rows[FIGURES[name]] = make_row(own, name, "higher", kind.features, int(own[f"{name}_clips"]), **more)
    return rows
