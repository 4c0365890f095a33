"""Agreement of clips with the key, chords, tempo and beats that the system was conditioned on."""

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


class AgreementMetric(NamedTuple):
    """A metric of agreement, and the inputs that it needs.

    Args:
        metric: Class of the metric.
        features: Name of the audio features from which labels are estimated.
        inputs: Inputs of which the system must read at least one, by prefix of the names of the metric's results.
            ``text`` counts for key and tempo, which captions name, but not for beats and chords.
    """

    metric: Any
    features: str
    inputs: dict[str, set[str]]


METRICS = (
    AgreementMetric(KeyAgreement, "chroma", {"key": {"key", "text"}}),
    AgreementMetric(ChordAgreement, "chroma", {"chord": {"chords"}}),
    AgreementMetric(RhythmAgreement, "onset strength", {"tempo": {"tempo", "beats", "text"}, "beat": {"beats"}}),
)

LABELS = {"key", "chords", "tempo", "beats"}
"""Fields of real clips that generated clips are compared with."""

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
"""Name of the row for each result of the metrics."""

NUM_CHANCE_PIECES = 4
"""Number of other pieces with whose labels each clip is compared for the chance level."""

log = logging.getLogger(__name__)


@register("score", "agreement")
class Agreement(Score):
    """Agreement of clips with the key, chords, tempo and beats that the system was conditioned on.

    The chance level is the agreement with the labels of other pieces.
    """

    about: ClassVar = {
        "right key": "Fraction of clips whose key, estimated from the audio, is the requested key.",
        "right or related key": "Mean MIREX score: 1 for the requested key, 0.5 for the key a fifth above, 0.3 for the "
        "relative key and 0.2 for the parallel key.",
        "right chord roots": "Fraction of time in which the estimated chord has the same root as the piece's chord.",
        "right chords": "Fraction of time in which the estimated chord has the same root and third as the piece's "
        "chord.",
        "chord changes in time": "Agreement of the times of chord changes with those of the piece; 1 if all changes "
        "coincide.",
        "right tempo": "Fraction of clips whose estimated tempo is within 4 % of the piece's tempo.",
        "right tempo, half or double": "Fraction of clips whose estimated tempo is within 4 % of the piece's tempo, or "
        "of half or double that tempo.",
        "beats in place": "F-measure of estimated beats, which count as right within 70 ms of the piece's beats.",
    }
    needs_stages = True
    needs_inputs = frozenset({"text", *LABELS})
    needs_packages = ("librosa", "mir_eval")

    def measure(self, comparison: Comparison) -> Rows:
        """Return rows for the labels that the system was conditioned on and the pieces have."""
        known = {name for fields in comparison.fields for name, value in fields.items() if value is not None}
        rows: Rows = {}
        for kind in METRICS if known & LABELS else ():
            measured = tuple(figure for figure, inputs in kind.inputs.items() if comparison.inputs & inputs)
            if measured:
                log.info("agreement with the pieces: %s", ", ".join(measured))
                rows |= _agreement(comparison, kind, measured)
        return rows


def _agreement(comparison: Comparison, kind: AgreementMetric, measured: tuple[str, ...]) -> Rows:
    """Return the rows of one metric for those results whose names begin with one of ``measured``."""

    def with_labels_of(clips: Tensor, labels: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        metric = kind.metric(comparison.spec.sample_rate)
        for pieces in labels:
            metric.update(clips, [comparison.fields[i] for i in pieces], pieces=comparison.piece_ids)
        return metric.compute()

    everything = list(range(len(comparison.pieces)))
    own, real = (with_labels_of(clips, [everything]) for clips in (comparison.generated, comparison.real))
    others = [comparison.from_other_pieces(everything, shift) for shift in range(1, 1 + NUM_CHANCE_PIECES)]
    chance = with_labels_of(comparison.generated, [pieces for pieces in others if pieces]) if any(others) else {}
    rows: Rows = {}
    for name in kind.metric.names:
        if name.startswith(measured) and not math.isnan(own[name]):
            more = {"real": real[name]}
            if name in chance and not math.isnan(chance[name]):
                more["chance"] = chance[name]
            rows[FIGURES[name]] = make_row(own, name, "higher", kind.features, int(own[f"{name}_clips"]), **more)
    return rows
