"""How much a stage uses its conditions: the rise of its loss on held-out clips under conditions of other clips.

The loss is the validation loss with all conditions, and the noise is the same in both cases. One condition at a time is
replaced by that of a clip of another piece. If the data knows the attributes of captions, each attribute is also
replaced alone. A condition without an effect on the loss has none on generated music.

Conditions are those of clips of a window. A stage that was trained on stored tokens may have seen conditions of longer
clips, so its losses can differ a little from those of its validation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from ..core.contracts import Clip, Condition, StageBatch
from ..core.part_key import PartKey
from ..core.seeds import derive_seed
from ..data.base import Source, Split
from ..data.clips import ALWAYS_SUPPLIED, clip_for
from ..data.fields.base import field_kinds
from ..generators.base import Generator
from ..metrics.piece_means import mean_over_pieces
from ..system.system import System
from .fit_data import VALIDATION_SEED, FitData

log = logging.getLogger(__name__)

REPLACEMENTS = 2
"""Number of other clips whose conditions replace those of a clip, one at a time."""

ConditionInput = tuple[Condition, Condition] | dict[str, torch.Tensor]
"""The value of a condition in a :class:`~partita.core.contracts.StageBatch`."""


@dataclass(frozen=True)
class ConditionUse:
    """The effect of a condition, or of one attribute of it, on the loss of a stage.

    Args:
        stage: Name of the stage.
        condition: Name of the condition in ``given``.
        attribute: The attribute of the caption that was replaced. ``None`` if the whole condition was.
        rise: Mean increase of the loss over clips.
        low: Lower bound of its 95 % interval over pieces. ``None`` for fewer than two pieces.
        high: Upper bound of its 95 % interval over pieces. ``None`` for fewer than two pieces.
        loss: Mean loss under the original conditions.
        unit: Unit of ``rise`` and ``loss``: ``nats`` for codes (cross-entropy), ``loss`` for latents.
        clips: Number of clips whose condition was replaced.
        pieces: Number of pieces of these clips.
    """

    stage: str
    condition: str
    attribute: str | None
    rise: float
    low: float | None
    high: float | None
    loss: float
    unit: str
    clips: int
    pieces: int

    @property
    def what(self) -> str:
        """The replaced condition, with the attribute if only that was replaced."""
        return self.condition if self.attribute is None else f"{self.condition}: {self.attribute}"

    @property
    def verdict(self) -> str:
        """The conclusion from the interval, in words."""
        if self.low is None or self.high is None:
            return "too few pieces to tell"
        if self.low > 0:
            return "uses it"
        return "does better without it" if self.high < 0 else "no effect found"

    def __str__(self) -> str:
        interval = "" if self.low is None else f", 95 %: {self.low:.4f} to {self.high:.4f}"
        return (
            f"{self.stage}, another clip's {self.what}: {self.rise:+.4f} from {self.loss:.4f} {self.unit}{interval}, "
            f"{self.clips} clips of {self.pieces} piece{'' if self.pieces == 1 else 's'}: {self.verdict}"
        )

    def as_row(self) -> dict[str, Any]:
        """Return all fields as plain values, with ``what`` and ``verdict``."""
        return asdict(self) | {"what": self.what, "verdict": self.verdict}


@dataclass(frozen=True)
class _Clip:
    """A held-out clip: its piece, fields and length, and a batch of this clip alone."""

    piece: str
    fields: dict[str, Any]
    seconds: float
    batch: StageBatch

    def with_condition(self, name: str, condition: ConditionInput) -> StageBatch:
        """Return the batch with one condition replaced."""
        return StageBatch(self.batch.target, self.batch.mask, self.batch.given | {name: condition})


@torch.no_grad()
def condition_use(
    system: System,
    *,
    split: Split = "validation",
    clips: int = 64,
    source: Source | None = None,
    seed: int = VALIDATION_SEED,
) -> list[ConditionUse]:
    """Measure, for every condition of every stage, how much the loss rises with the condition of another clip.

    If all clips are from one piece, conditions come from training clips. A condition that cannot be measured is
    logged.

    Args:
        system: A trained system.
        split: Split of the clips.
        clips: Number of clips.
        source: Source of the clips, after its setup. ``None`` uses that of the system.
        seed: Seed of the clips.
    """
    source, found = source or system.source, []
    for name, stage in system.stages.items():
        if not stage.given:
            continue
        stage.eval()
        held = list(_clips(system, name, source, split, clips, seed))
        others = held if len({clip.piece for clip in held}) > 1 else list(_clips(system, name, source, "train", 16, 0))
        measured = _ConditionLosses(stage, held)
        for condition, replacement in _replacements(system, stage, source).items():
            inputs = [
                list(islice(_replacement_inputs(clip, others, replacement, i), REPLACEMENTS))
                for i, clip in enumerate(held)
            ]
            if not any(inputs):
                if condition[1] is None:
                    log.info(
                        "%s: its use of %s is not measured, because fewer than two pieces have it", name, condition[0]
                    )
                continue
            found.append(measured.use(name, *condition, inputs))
    return found


Replacement = Callable[[_Clip, _Clip], ConditionInput | None]
"""Returns the condition of a clip with another clip's value; ``None`` if it is unknown or does not differ."""


def _replacements(system: System, stage: Generator, source: Source) -> dict[tuple[str, str | None], Replacement]:
    """Return the replacement for each pair of condition and attribute; ``None`` stands for the whole condition."""

    def whole(name: str, inputs: Sequence[str] | None) -> Replacement:
        def known(clip: _Clip) -> bool:
            return inputs is None or any(f in ALWAYS_SUPPLIED or clip.fields.get(f) is not None for f in inputs)

        def offer(clip: _Clip, other: _Clip) -> ConditionInput | None:
            return other.batch.given[name] if known(clip) and known(other) else None

        return offer

    def reworded(name: str, attribute: str) -> Replacement:
        def offer(clip: _Clip, other: _Clip) -> ConditionInput | None:
            text = source.reworded(clip.fields, other.fields, attribute)
            if text is None:
                return None
            conditioner = system.conditioners[name]
            changed = clip_for(conditioner, Clip(clip.fields | {"text": text}, clip.seconds))
            prepared = {key: tensor.to(stage.device) for key, tensor in conditioner.prepare([changed]).items()}
            if name in stage.joint:
                return prepared
            condition = conditioner(prepared)
            return condition, conditioner.null(condition)

        return offer

    offers: dict[tuple[str, str | None], Replacement] = {}
    for name in stage.given:
        inputs = system.conditioners[name].inputs if name in system.conditioners else None
        offers[name, None] = whole(name, inputs)
        # a conditioner that reads audio embeds the clip instead of its caption
        by_text = inputs is not None and "text" in inputs and not system.conditioners[name].reads_audio
        for attribute in source.attributes if by_text else ():
            offers[name, attribute] = reworded(name, attribute)
    return offers


def _replacement_inputs(
    clip: _Clip, others: Sequence[_Clip], replacement: Replacement, number: int
) -> Iterator[ConditionInput]:
    """Yield the conditions from clips of other pieces, in random order."""
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(derive_seed(number, "others")))
    for i in order.tolist():
        if others[i].piece != clip.piece and (condition := replacement(clip, others[i])) is not None:
            yield condition


class _ConditionLosses:
    """The losses of clips under their own and under replaced conditions."""

    def __init__(self, stage: Generator, clips: Sequence[_Clip]) -> None:
        self.stage, self.clips = stage, clips
        self.own = [[self.loss(clip.batch, i, draw) for draw in range(REPLACEMENTS)] for i, clip in enumerate(clips)]

    def loss(self, batch: StageBatch, clip: int, draw: int) -> float:
        """Return the loss of one clip. The noise depends only on the numbers of the clip and of the draw."""
        device = self.stage.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(draw, "noise", clip))
            conditions = {name: condition for name, (condition, _) in self.stage.resolve(batch).items()}
            return float(self.stage.loss(batch.target, batch.mask, conditions)["loss"])

    def use(
        self, stage: str, name: str, attribute: str | None, replacements: Sequence[Sequence[ConditionInput]]
    ) -> ConditionUse:
        """Return the effect of replacing condition ``name`` of each clip."""
        rises: dict[str, list[float]] = {}
        losses = []
        for i, (clip, inputs) in enumerate(zip(self.clips, replacements, strict=True)):
            if inputs:
                own = self.own[i][: len(inputs)]
                changed = [
                    self.loss(clip.with_condition(name, condition), i, draw) for draw, condition in enumerate(inputs)
                ]
                rises.setdefault(clip.piece, []).append((sum(changed) - sum(own)) / len(inputs))
                losses.append(sum(own) / len(inputs))
        found = mean_over_pieces(
            torch.tensor([sum(of) for of in rises.values()], dtype=torch.float64),
            torch.tensor([len(of) for of in rises.values()]),
            torch.arange(len(rises)),
        )
        several = len(rises) > 1
        return ConditionUse(
            stage=stage,
            condition=name,
            attribute=attribute,
            rise=float(found["value"]),
            low=float(found["low"]) if several else None,
            high=float(found["high"]) if several else None,
            loss=sum(losses) / len(losses),
            unit="nats" if self.stage.discrete else "loss",
            clips=len(losses),
            pieces=len(rises),
        )


def _clips(system: System, name: str, source: Source, split: Split, count: int, seed: int) -> Iterator[_Clip]:
    """Yield clips as in the validation of a stage, with the fields of conditioners and captions."""
    data, stage = FitData(system, PartKey.of("stages", name)), system.stages[name]
    examples = data.examples(split, count, seed, source)
    inputs = {name for conditioner in data.conditioners.values() for name in conditioner.inputs}
    kept = {"id", "text", *inputs, *source.attributes}
    for i in range(count):
        example = examples[i]
        example.seed = None
        batch = data.transfer_batch_to_device(data.collate([example]), stage.device, 0)
        known: dict[str, Any] = {key: value for key, value in example.fields.items() if key in kept}
        # only whether audio exists, because all clips are in memory at once
        known |= {
            key: True for key in known if key in inputs and field_kinds([key]) == {"audio"} and known[key] is not None
        }
        yield _Clip(str(known.get("id", i)), known, data.seconds, data.on_after_batch_transfer(batch, 0))
