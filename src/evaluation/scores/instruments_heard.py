"""Whether the instruments that captions name are heard in the generated clips."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.registry import register
from ...data.examples import Examples
from ...errors import PartitaError
from ...metrics.instrument_agreement import InstrumentAgreement, InstrumentClassifier
from ...metrics.piece_means import sign_flip_over_pieces
from ..comparison import Comparison, reconstruct
from ..embedders import BATCH_SIZE, batches
from ..rows import Rows, make_row
from ..score import Score

SEED = 5
"""Seed of the choice of training clips."""

REQUIRED = 0.9
"""Accuracy on real clips below which the classifier does not tell instruments apart reliably."""

NUM_CHANCE_PIECES = 4
"""Number of other pieces with whose instruments each clip is compared for the chance level."""

log = logging.getLogger(__name__)


@register("score", "instruments")
class Instruments(Score):
    """Whether the instruments that captions name are heard, by a classifier that is fitted to real training clips.

    The classifier, one logistic regression for each instrument on statistics of log-mel frames, is fitted to training
    clips and to their reconstructions by the system's codec. The real test clips show how reliable it is. The chance
    level is the agreement with the instruments of other pieces.

    Args:
        training_clips: Number of training clips to which the classifier is fitted.

    Raises:
        ValueError: The number is not at least 2.
    """

    about: ClassVar = {
        "right instruments": "Fraction of the named instruments that a classifier hears; with one instrument for each "
        "clip, the fraction of clips whose instrument is right."
    }
    needs_stages = True
    needs_inputs = frozenset({"text", "instruments"})

    def __init__(self, *, training_clips: int = 256) -> None:
        if training_clips < 2:
            raise ValueError(f"training_clips must be at least 2, not {training_clips}")
        self.training_clips = training_clips

    def measure(self, comparison: Comparison) -> Rows:
        """Return one row, measured on the clips whose instruments are all among those of the training clips."""
        named = [_instruments(fields) for fields in comparison.fields]
        if not any(named):
            return {}
        log.info("instruments")
        try:
            classifier = self._fitted(comparison)
        except PartitaError as error:
            log.info("right instruments is not measured: %s", error)
            return {}
        kept = [i for i, names in enumerate(named) if names and set(names) <= set(classifier.names)]
        if not kept:
            log.info("right instruments is not measured: no training clip has the instruments of the test pieces")
            return {}
        own = [named[i] for i in kept]
        pieces = [comparison.piece_ids[i] for i in kept]

        def agreement(clips: Tensor, *labels: list[list[str]]) -> InstrumentAgreement:
            log_odds = torch.cat([classifier(batch) for batch in batches(clips[kept])])
            metric = InstrumentAgreement(classifier.names)
            for names in labels:
                metric.update(log_odds, names, pieces)
            return metric

        shifts = [comparison.from_other_pieces(kept, shift) for shift in range(1, 1 + NUM_CHANCE_PIECES)]
        others = [[named[i] for i in shuffled] for shuffled in shifts if shuffled]
        generated = agreement(comparison.generated, own)
        more: dict[str, Any] = {"required": REQUIRED, "reference_clips": self.training_clips}
        more |= {
            column: agreement(clips, own).compute()["instruments"]
            for column, clips in (("real", comparison.real), ("codec", comparison.reconstructed))
        }
        if others:
            more["chance"] = agreement(comparison.generated, *others).compute()["instruments"]
            shuffled_values = agreement(comparison.generated, others[0]).values
            more["p"] = sign_flip_over_pieces((generated.values - shuffled_values)[:, 0], pieces)
        found = generated.compute()
        embedding = f"log-mel spectrum, {len(classifier.names)} instruments"
        return {"right instruments": make_row(found, "instruments", "higher", embedding, len(kept), **more)}

    def explanation(self, rows: Rows) -> str:
        """Return sentences on the classifier and, if it is not reliable, a warning."""
        row = rows["right instruments"]
        text = (
            f"A classifier that was fitted to {row['reference_clips']} real training clips and to their "
            f"reconstructions by the codec is right on {100 * row['real']:.0f} % of the real test clips."
        )
        if row["real"] >= row["required"]:
            return text
        return f"{text} That is less than {100 * row['required']:.0f} %: “right instruments” is not reliable."

    def _fitted(self, comparison: Comparison) -> InstrumentClassifier:
        """Return a classifier that is fitted to training clips as long as the test clips, and to the same clips coded.

        Raises:
            PartitaError: There are no training clips, or fewer than two instruments.
        """
        source, spec = comparison.source, comparison.spec
        source.setup()
        if not source.size("train"):
            raise PartitaError("the data has no training pieces")
        seconds = comparison.real.shape[-1] / spec.sample_rate
        examples = Examples.for_spec(spec, source, "train", self.training_clips, seconds, SEED)
        classifier = InstrumentClassifier(spec.sample_rate)
        for start in range(0, len(examples), BATCH_SIZE):
            clips = [examples[i] for i in range(start, min(start + BATCH_SIZE, len(examples)))]
            known = [clip for clip in clips if _instruments(clip.fields)]
            if not known:
                continue
            audio, names = torch.stack([clip.audio for clip in known]), [_instruments(clip.fields) for clip in known]
            classifier.add(audio, names)
            classifier.add(reconstruct(comparison.system.output, audio, comparison.system.device), names)
        return classifier.fit()


def _instruments(fields: Any) -> list[str]:
    """Return the names of a clip's instruments, each once."""
    return list(dict.fromkeys(fields.get("instruments") or ()))
