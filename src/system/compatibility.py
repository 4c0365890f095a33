"""Compatibility of parts: the specifications that a stage is built with, and a message for each mismatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..conditioners.base import Conditioner
from ..core.contracts import ALIGNED_FUSIONS, ConditionSpec, Given, RepresentationSpec, ways
from ..core.rates import at_least, exact
from ..core.reference import Reference, stacked
from ..core.registry import did_you_mean
from ..generators.base import Generator
from ..recipe.chain import StagePlan
from ..tokenizers.base import LatentView, Tokenizer

Note = Callable[..., None]


@dataclass(frozen=True)
class PartCatalog:
    """Tokenizers, conditioners and stages of a system by name, and the specifications of their representations."""

    tokenizers: dict[str, Tokenizer]
    conditioners: dict[str, Conditioner]
    stages: dict[str, Generator]

    def tokenizer_of(self, reference: Reference) -> Tokenizer | LatentView:
        """Return the tokenizer that encodes and decodes the source of a representation."""
        tokenizer = self.tokenizers[reference.tokenizer]
        return LatentView(tokenizer) if reference.latents else tokenizer

    def spec(self, reference: Reference) -> RepresentationSpec:
        """Return the specification of a representation that a stage generates or takes as input."""
        return reference.spec(self.tokenizer_of(reference).spec)

    def target_spec(self, stage: StagePlan) -> RepresentationSpec:
        """Return the specification of the target of a stage, which stacks several representations.

        Raises:
            ValueError: The representations cannot be stacked.
        """
        return stacked([self.spec(reference) for reference in stage.targets])


@dataclass
class CompatibilityChecker:
    """Checks the stages of a chain, in order, against the parts that they depend on.

    Args:
        catalog: All tokenizers and conditioners, and the stages that have been built so far.
    """

    catalog: PartCatalog
    # Number of codebooks that earlier stages generate, by source; 0 for latents.
    _generated: dict[str, int] = field(default_factory=dict)

    def stage_arguments(self, name: str, stage: StagePlan, note: Note) -> dict[str, Any] | None:
        """Return the arguments ``target`` and ``given`` that a stage is built with, or ``None`` after a mismatch.

        Args:
            name: Name of the stage.
            stage: Plan of the stage. Stages must be passed in the order of the chain.
            note: Called for each mismatch with a key, a message and an optional suggestion.
        """
        key, generator = f"stages.{name}", stage.part.cls
        before, conditioners = dict(self._generated), stage.conditioners
        if any(self.catalog.tokenizers.get(target.tokenizer) is None for target in stage.targets):
            return None
        wrong = partial(note, f"{key}.target")
        # first, so that later stages find what this one generates, whatever is wrong with its conditions
        targets = [self._target(stage, one, wrong, partial(note, f"{key}.overlap")) for one in stage.targets]
        if any(self.catalog.tokenizers.get(r.tokenizer) is None for r in stage.references.values()):
            return None
        if any(self.catalog.stages.get(output.stage) is None for output in stage.outputs.values()):
            return None
        if any(self.catalog.conditioners.get(given) is None for given in conditioners):
            return None
        target = None
        if None not in targets:
            try:
                target = self.catalog.target_spec(stage)
            except ValueError as error:
                wrong(str(error))
        specs = {given: self.catalog.conditioners[given].spec for given in conditioners}
        for given, output in stage.outputs.items():
            outputs = self.catalog.stages[output.stage].side_outputs
            if output.output not in outputs:
                note(f"{key}.given", f"the stage {output.stage} has no {output.output!r}", did_you_mean(given, outputs))
                return None
            specs[given] = outputs[output.output]
        for given, reference in stage.references.items():
            try:
                specs[given] = self.catalog.spec(reference).as_condition()
            except ValueError as error:
                note(f"{key}.given", str(error))
                return None
            for target_reference in stage.targets:
                if reference.within(target_reference):
                    first = target_reference.start
                    earlier = f": give it {reference.source}[:{first}]" if first else ""
                    note(
                        f"{key}.given",
                        f"{given} contains {target_reference}, which the stage itself generates",
                        earlier,
                    )
                    return None
            last = max(reference.codebooks(self.catalog.tokenizer_of(reference).spec), default=0)
            if last >= max(1, before.get(reference.source, 0)):
                note(f"{key}.given", f"earlier stages do not generate all of {given}")
                return None
        if target is None:
            return None
        givens = {}
        known = _possible_fusions(stage)
        for given, fusion in stage.given.items():
            aligned = specs[given].frame_rate is not None and target.frame_rate is not None
            fusion = _default_fusion(stage, specs[given], aligned) if fusion is None else fusion
            where = f"{key}.given.{given}"
            if (other := next((one for one in ways(fusion) if one not in known), None)) is not None:
                note(
                    where,
                    f"cannot enter by {other!r}{_rejecting_component(stage, other)}",
                    did_you_mean(other, known),
                )
            elif not aligned and (other := next((one for one in ways(fusion) if one in ALIGNED_FUSIONS), None)):
                others = " or ".join(e for e in known if e not in ALIGNED_FUSIONS)
                hint = f": use {others}" if others else f", and {generator.registered_name} supports no other fusion"
                note(where, f"is not aligned in time, so it cannot enter by {other}", hint)
            else:
                givens[given] = Given(specs[given], fusion)
        return {"target": target, "given": givens} if len(givens) == len(stage.given) else None

    def _target(self, stage: StagePlan, reference: Reference, note: Note, overlaps: Note) -> RepresentationSpec | None:
        """Return the specification of a target, whose codebooks must follow those of earlier stages."""
        generator = stage.part.cls
        try:
            whole, spec = self.catalog.tokenizer_of(reference).spec, self.catalog.spec(reference)
        except ValueError as error:
            note(str(error))
            return None
        if spec.discrete != generator.discrete:
            makes = "codes" if generator.discrete else "latents"
            latents = spec.discrete and self.catalog.tokenizers[reference.tokenizer].latent_dim is not None
            hint = f": use {reference.tokenizer}/latents for the latents before quantization" if latents else ""
            note(f"{generator.registered_name} generates {makes}, but {reference} is {spec}", hint)
            return None
        if spec.frame_rate is not None and exact(stage.window) * exact(spec.frame_rate) < 1:
            note(f"a frame of {reference} is longer than the window of {stage.window:g} s")
            return None
        window = spec.frames(stage.window)
        if spec.frame_rate is not None and window > 1 and at_least(stage.overlap, spec.frame_rate) >= window:
            longest = (window - 1) / spec.frame_rate
            message = f"{stage.overlap:g} s cover all {window} frames of the window, which leaves no frame to generate"
            overlaps(message, f": use at most {longest:g} s")
            return None
        codebooks = reference.codebooks(whole)
        if reference.source in self._generated and (not codebooks or codebooks[0] < self._generated[reference.source]):
            note(f"an earlier stage already generates {reference} or a part of it")
            return None
        if codebooks and codebooks[0] > self._generated.get(reference.source, 0):
            note(f"no earlier stage generates the codebooks before {reference}")
            return None
        self._generated[reference.source] = codebooks[-1] + 1 if codebooks else 0
        return spec


def _possible_fusions(stage: StagePlan) -> list[str]:
    """Return the fusions that a generator and all of its components in the recipe support."""
    components = [part.cls for part in stage.part.parts.values() if hasattr(part.cls, "fusions")]
    return [f for f in stage.part.cls.fusions if all(f in component.fusions for component in components)]


def _default_fusion(stage: StagePlan, spec: ConditionSpec, aligned: bool) -> str:
    """Return the default fusion of an input: the preferred one of the generator if its components support it."""
    preferred: str = stage.part.cls.default_fusion(spec)
    possible = [f for f in _possible_fusions(stage) if aligned or f not in ALIGNED_FUSIONS]
    return preferred if preferred in possible or not possible else possible[0]


def _rejecting_component(stage: StagePlan, fusion: str) -> str:
    """Return text that names the component that lacks a fusion which the generator supports, or an empty string."""
    for name, part in stage.part.parts.items():
        if fusion in stage.part.cls.fusions and fusion not in getattr(part.cls, "fusions", (fusion,)):
            return f" with the {name} {part.cls.registered_name}"
    return ""
