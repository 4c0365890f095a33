"""What a stage listens to: how much its loss on held-out clips rises when it is told what belongs to another clip.

The loss is that of validation, under all conditions, with the same noise both times. One condition at a time is
replaced by that of a clip of another piece; of captions whose attributes the data knows, also one attribute alone, the
rest of the caption staying as it is. A condition that makes no difference here has nothing to say in what is generated.
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
from ..data.clips import ALWAYS, clip_for
from ..data.fields.base import kinds
from ..generators.base import Generator
from ..metrics.piece_means import mean_over_pieces
from ..system.system import System
from .fit_data import VALIDATION_SEED, FitData

log = logging.getLogger(__name__)

OTHERS = 2
"""Clips whose conditions each clip is told in the place of its own, one after the other."""

Told = tuple[Condition, Condition] | dict[str, torch.Tensor]
"""What a :class:`~partita.core.contracts.StageBatch` holds of one condition."""


@dataclass(frozen=True)
class ConditionUse:
    """What one condition, or one attribute of it, is worth to a stage.

    Args:
        stage: Its name.
        condition: The name under which the stage is given it.
        attribute: Of a caption, what alone was taken from another clip; none where all of the condition was.
        rise: How much higher the loss is then, in the mean over clips.
        low: Of its 95 % interval over pieces; none for fewer than two.
        high: Likewise.
        loss: What it rises from.
        unit: Of both: ``nats`` for codes (cross-entropy), ``loss`` for latents.
        clips: That were told something else.
        pieces: That these are from.
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
        """What was taken from another clip."""
        return self.condition if self.attribute is None else f"{self.condition}: {self.attribute}"

    @property
    def verdict(self) -> str:
        """What follows, and no more than that."""
        if self.low is None or self.high is None:
            return "too few pieces to tell"
        if self.low > 0:
            return "listens to it"
        return "does better without it" if self.high < 0 else "no use of it found"

    def __str__(self) -> str:
        interval = "" if self.low is None else f", 95 %: {self.low:.4f} to {self.high:.4f}"
        return (
            f"{self.stage}, another clip's {self.what}: {self.rise:+.4f} from {self.loss:.4f} {self.unit}{interval}, "
            f"{self.clips} clips of {self.pieces} pieces: {self.verdict}"
        )

    def as_row(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"what": self.what, "verdict": self.verdict}


@dataclass(frozen=True)
class _Clip:
    """A held-out clip as a stage sees it: of which piece, what is known, its length, and a batch of it alone."""

    piece: str
    fields: dict[str, Any]
    seconds: float
    batch: StageBatch

    def told(self, name: str, told: Told) -> StageBatch:
        """Its batch with one condition replaced."""
        return StageBatch(self.batch.target, self.batch.mask, self.batch.given | {name: told})


@torch.no_grad()
def condition_use(
    system: System,
    *,
    split: Split = "validation",
    clips: int = 64,
    source: Source | None = None,
    seed: int = VALIDATION_SEED,
) -> list[ConditionUse]:
    """For every condition of every stage, how much the loss rises when it is another clip's.

    Where all clips are from one piece, they are told what belongs to training clips. A condition that cannot be
    measured is logged.

    Args:
        system: Trained.
        split: Whose clips the loss is of.
        clips: How many of them.
        source: Where they come from, set up; the system's own where none is given.
        seed: Of the clips.
    """
    source, found = source or system.source, []
    for name, stage in system.stages.items():
        if not stage.given:
            continue
        stage.eval()
        held = list(_clips(system, name, source, split, clips, seed))
        others = held if len({clip.piece for clip in held}) > 1 else list(_clips(system, name, source, "train", 16, 0))
        measured = _Measured(stage, held)
        for condition, replaced in _replacements(system, stage, source).items():
            offered = [list(islice(_offers(clip, others, replaced, i), OTHERS)) for i, clip in enumerate(held)]
            if not any(offered):
                if condition[1] is None:
                    log.info(
                        "what %s makes of %s is not measured: there are no two pieces that have it", name, condition[0]
                    )
                continue
            found.append(measured.use(name, *condition, offered))
    return found


Offer = Callable[[_Clip, _Clip], Told | None]
"""What a clip can be told of another one; none where that would be nothing else, or is not known."""


def _replacements(system: System, stage: Generator, source: Source) -> dict[tuple[str, str | None], Offer]:
    """By condition and attribute, what takes its place."""

    def whole(name: str, inputs: Sequence[str] | None) -> Offer:
        def known(clip: _Clip) -> bool:
            return inputs is None or any(f in ALWAYS or clip.fields.get(f) is not None for f in inputs)

        def offer(clip: _Clip, other: _Clip) -> Told | None:
            return other.batch.given[name] if known(clip) and known(other) else None

        return offer

    def reworded(name: str, attribute: str) -> Offer:
        def offer(clip: _Clip, other: _Clip) -> Told | None:
            text = source.reworded(clip.fields, other.fields, attribute)
            if text is None:
                return None
            conditioner = system.conditioners[name]
            said = clip_for(conditioner, Clip(clip.fields | {"text": text}, clip.seconds))
            ready = {key: tensor.to(stage.device) for key, tensor in conditioner.prepare([said]).items()}
            if name in stage.joint:
                return ready
            condition = conditioner(ready)
            return condition, conditioner.null(condition)

        return offer

    offers: dict[tuple[str, str | None], Offer] = {}
    for name in stage.given:
        inputs = system.conditioners[name].inputs if name in system.conditioners else None
        offers[name, None] = whole(name, inputs)
        # what hears the clip makes another condition of it than of the caption, whatever that says
        by_text = inputs is not None and "text" in inputs and not system.conditioners[name].reads_audio
        for attribute in source.attributes if by_text else ():
            offers[name, attribute] = reworded(name, attribute)
    return offers


def _offers(clip: _Clip, others: Sequence[_Clip], offer: Offer, number: int) -> Iterator[Told]:
    """What other pieces' clips have to offer, in random order."""
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(derive_seed(number, "others")))
    for i in order.tolist():
        if others[i].piece != clip.piece and (instead := offer(clip, others[i])) is not None:
            yield instead


class _Measured:
    """Losses of clips under their own conditions, and how much others change them."""

    def __init__(self, stage: Generator, clips: Sequence[_Clip]) -> None:
        self.stage, self.clips = stage, clips
        self.own = [[self.loss(clip.batch, i, draw) for draw in range(OTHERS)] for i, clip in enumerate(clips)]

    def loss(self, batch: StageBatch, clip: int, draw: int) -> float:
        """The loss of one clip, whose noise depends on its number and the draw alone."""
        device = self.stage.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(draw, "noise", clip))
            conditions = {name: condition for name, (condition, _) in self.stage.resolve(batch).items()}
            return float(self.stage.loss(batch.target, batch.mask, conditions)["loss"])

    def use(self, stage: str, name: str, attribute: str | None, told: Sequence[Sequence[Told]]) -> ConditionUse:
        """From what each clip is told in the place of condition ``name``."""
        rises: dict[str, list[float]] = {}
        losses = []
        for i, (clip, offers) in enumerate(zip(self.clips, told, strict=True)):
            if offers:
                own = self.own[i][: len(offers)]
                changed = [self.loss(clip.told(name, offer), i, draw) for draw, offer in enumerate(offers)]
                rises.setdefault(clip.piece, []).append((sum(changed) - sum(own)) / len(offers))
                losses.append(sum(own) / len(offers))
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
    """Clips as a stage sees them in validation; of what is known of them, what captions are made of."""
    data, stage = FitData(system, PartKey.of("stages", name)), system.stages[name]
    examples = data.examples(split, count, seed, source)
    inputs = {name for conditioner in data.conditioners.values() for name in conditioner.inputs}
    kept = {"id", "text", *inputs, *source.attributes}
    for i in range(count):
        example = examples[i]
        example.seed = None
        batch = data.transfer_batch_to_device(data.collate([example]), stage.device, 0)
        known: dict[str, Any] = {key: value for key, value in example.fields.items() if key in kept}
        # of audio, that there is some: all clips are kept at once
        known |= {key: True for key in known if key in inputs and kinds([key]) == {"audio"} and known[key] is not None}
        yield _Clip(str(known.get("id", i)), known, data.seconds, data.on_after_batch_transfer(batch, 0))
