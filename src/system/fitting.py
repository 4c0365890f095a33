"""Whether parts fit together: what a stage is told of its target and of what it is given, and every misfit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..conditioners.base import Conditioner
from ..core.contracts import ALIGNED_FUSIONS, Given, RepresentationSpec
from ..core.rates import at_least, exact
from ..core.reference import Reference
from ..core.registry import did_you_mean
from ..recipe.plan import StagePlan
from ..tokenizers.base import LatentView, Tokenizer

Note = Callable[..., None]


@dataclass(frozen=True)
class Ends:
    """The tokenizers and conditioners of a system, by name: what stages get their facts from."""

    tokenizers: dict[str, Tokenizer]
    conditioners: dict[str, Conditioner]

    def tokenizer_of(self, reference: Reference) -> Tokenizer | LatentView:
        """What turns audio into the source of a representation, and back."""
        tokenizer = self.tokenizers[reference.tokenizer]
        return LatentView(tokenizer) if reference.latents else tokenizer

    def spec(self, reference: Reference) -> RepresentationSpec:
        """The facts of a representation that a stage generates or is given."""
        return reference.spec(self.tokenizer_of(reference).spec)


@dataclass
class Fitting:
    """Fits the stages of a chain to what stands before them, one after the other.

    Args:
        parts: The tokenizers and conditioners that there are.
    """

    parts: Ends
    # what earlier stages generate: by source, the number of codebooks, 0 for latents
    _generated: dict[str, int] = field(default_factory=dict)

    def spec(self, name: str, stage: StagePlan, note: Note) -> dict[str, Any] | None:
        """What a stage is built with, its target and what it is given; none where something does not fit.

        Args:
            name: Name of the stage.
            stage: Its plan. Stages come in the order of the chain.
            note: Takes a key, what is wrong with it, and what was probably meant.
        """
        key, generator = f"stages.{name}", stage.part.cls
        references, before = [stage.target, *stage.references.values()], dict(self._generated)
        conditioners = [given for given in stage.given if given not in stage.references]
        if any(self.parts.tokenizers.get(r.tokenizer) is None for r in references):
            return None
        if any(self.parts.conditioners.get(given) is None for given in conditioners):
            return None
        target = self._target(stage, partial(note, f"{key}.target"), partial(note, f"{key}.overlap"))
        specs = {given: self.parts.conditioners[given].spec for given in conditioners}
        for given, reference in stage.references.items():
            try:
                specs[given] = self.parts.spec(reference).as_condition()
            except ValueError as error:
                note(f"{key}.given", str(error))
                return None
            if reference.within(stage.target):
                earlier = f": give it {reference.source}[:{stage.target.start}]" if stage.target.start else ""
                note(f"{key}.given", f"{given} holds what the stage itself generates, {stage.target}", earlier)
                return None
            last = max(reference.codebooks(self.parts.tokenizer_of(reference).spec), default=0)
            if last >= max(1, before.get(reference.source, 0)):
                note(f"{key}.given", f"earlier stages do not generate all of {given}")
                return None
        if target is None:
            return None
        givens = {}
        for given, fusion in stage.given.items():
            fusion = generator.default_fusion(specs[given]) if fusion is None else fusion
            where = f"{key}.given.{given}"
            if fusion not in generator.fusions:
                note(where, f"cannot enter by {fusion!r}", did_you_mean(fusion, generator.fusions))
            elif fusion in ALIGNED_FUSIONS and specs[given].frame_rate is None:
                others = " or ".join(e for e in generator.fusions if e not in ALIGNED_FUSIONS)
                hint = f": use {others}" if others else f", and {generator.registered_name} knows no other way"
                note(where, f"is not aligned in time, so it cannot enter by {fusion}", hint)
            else:
                givens[given] = Given(specs[given], fusion)
        return {"target": target, "given": givens} if len(givens) == len(stage.given) else None

    def _target(self, stage: StagePlan, note: Note, overlaps: Note) -> RepresentationSpec | None:
        """The facts of what a stage generates, which must follow what is generated already."""
        generator, reference = stage.part.cls, stage.target
        try:
            whole, spec = self.parts.tokenizer_of(reference).spec, self.parts.spec(reference)
        except ValueError as error:
            note(str(error))
            return None
        if spec.discrete != generator.discrete:
            makes = "codes" if generator.discrete else "latents"
            latents = spec.discrete and self.parts.tokenizers[reference.tokenizer].latent_dim is not None
            hint = f": the latents before them are {reference.tokenizer}/latents" if latents else ""
            note(f"{generator.registered_name} generates {makes}, but {reference} is {spec}", hint)
            return None
        if exact(stage.window) * exact(spec.frame_rate) < 1:
            note(f"a frame of {reference} is longer than the window of {stage.window:g} s")
            return None
        window = spec.frames(stage.window)
        if window > 1 and at_least(stage.overlap, spec.frame_rate) >= window:
            longest = (window - 1) / spec.frame_rate
            message = (
                f"{stage.overlap:g} s are the {window} frames of the whole window, so that nothing new would follow"
            )
            overlaps(message, f": at most {longest:g} s")
            return None
        codebooks = reference.codebooks(whole)
        if reference.source in self._generated and (not codebooks or codebooks[0] < self._generated[reference.source]):
            note(f"an earlier stage generates {reference} already, or a part of it")
            return None
        if codebooks and codebooks[0] > self._generated.get(reference.source, 0):
            note(f"no stage generates what comes before {reference}")
            return None
        self._generated[reference.source] = codebooks[-1] + 1 if codebooks else 0
        return spec
