"""How a recipe names what a stage is given: ``acoustic``, ``acoustic[:4]``, ``acoustic/latents``, ``plan:hidden``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from .contracts import RepresentationSpec

_FORM = re.compile(r"(?P<tokenizer>[A-Za-z][\w-]*)(?P<latents>/latents)?(\[(?P<start>\d{0,9}):(?P<stop>\d{0,9})\])?")


@dataclass(frozen=True)
class Reference:
    """A representation that a stage generates or is given.

    Args:
        tokenizer: Whose representation it is.
        latents: Whether it is the latents before quantization rather than what the tokenizer yields.
        start: First codebook.
        stop: The codebook after the last; none for all from ``start`` on.
    """

    tokenizer: str
    latents: bool = False
    start: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The reference that ``text`` spells, or none where it spells none.

        >>> Reference.parse("acoustic[1:4]")
        Reference(tokenizer='acoustic', latents=False, start=1, stop=4)
        """
        match = _FORM.fullmatch(text)
        if match is None:
            return None
        start, stop = match["start"], match["stop"]
        return cls(match["tokenizer"], bool(match["latents"]), int(start or 0), int(stop) if stop else None)

    @property
    def source(self) -> str:
        """What is encoded as a whole: the tokenizer's name, or that of its latents."""
        return self.tokenizer + ("/latents" if self.latents else "")

    def codebooks(self, whole: RepresentationSpec) -> range:
        """The codebooks it names, of those there are."""
        return range(whole.num_codebooks or 0)[self.start : self.stop]

    def spec(self, whole: RepresentationSpec) -> RepresentationSpec:
        """The facts of this part of the source's representation.

        Raises:
            ValueError: There is no such part.
        """
        if self.start == 0 and self.stop is None:
            return whole
        if not whole.discrete:
            raise ValueError(f"{self.source} is {whole}, which have no codebooks to choose from")
        if not self.codebooks(whole) or (self.stop or 0) > (whole.num_codebooks or 0):
            raise ValueError(f"{self} names codebooks that {self.source}, {whole}, does not have")
        kept = self.codebooks(whole)
        cardinality = whole.cardinality
        if isinstance(cardinality, tuple):
            cardinality = tuple(cardinality[k] for k in kept)
        return replace(
            whole, num_codebooks=len(kept), cardinality=cardinality, end=whole.end if self.start == 0 else None
        )

    def take(self, whole: Tensor) -> Tensor:
        """This part of the source's representation ``[B, K or D, S]``."""
        return whole[:, self.start : self.stop]

    def before(self, other: Reference) -> bool:
        """Whether ``other``, as a target, can only come after this one: the same source, later codebooks."""
        return self.source == other.source and self.start < other.start

    def within(self, other: Reference) -> bool:
        """Whether any of it is part of ``other``."""
        first, last = max(self.start, other.start), min(_end(self), _end(other))
        return self.source == other.source and first < last

    def __str__(self) -> str:
        if self.start == 0 and self.stop is None:
            return self.source
        return f"{self.source}[{self.start or ''}:{'' if self.stop is None else self.stop}]"


@dataclass(frozen=True)
class OutputReference:
    """A side output of a stage that a later stage is given: ``plan:hidden``.

    Args:
        stage: Name of the stage.
        output: Name of the output.
    """

    stage: str
    output: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The reference that ``text`` spells, or none where it spells none.

        >>> OutputReference.parse("plan:hidden")
        OutputReference(stage='plan', output='hidden')
        """
        match = re.fullmatch(r"([A-Za-z][\w-]*):([A-Za-z][\w-]*)", text)
        return None if match is None else cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.stage}:{self.output}"


def stacked(specs: Sequence[RepresentationSpec]) -> RepresentationSpec:
    """The facts of several representations that one stage generates together, codebooks or channels one after another.

    Raises:
        ValueError: They cannot be stacked.
    """
    first = specs[0]
    if len(specs) == 1:
        return first
    if None in (rates := [spec.frame_rate for spec in specs]) or len(set(rates)) > 1:
        raise ValueError(f"what is generated together has one frame rate, unlike {'; '.join(map(str, specs))}")
    if any(spec.discrete != first.discrete for spec in specs):
        raise ValueError(f"codes and latents are not generated together: {'; '.join(map(str, specs))}")
    if any(spec.end is not None for spec in specs):
        raise ValueError("what ends by itself is generated alone")
    if not first.discrete:
        return replace(first, dim=sum(spec.dim or 0 for spec in specs))
    sizes = tuple(size for spec in specs for size in spec.cardinalities)
    return replace(first, num_codebooks=len(sizes), cardinality=sizes[0] if len(set(sizes)) == 1 else sizes)


def unstacked(whole: Tensor, specs: Sequence[RepresentationSpec]) -> Sequence[Tensor]:
    """Each of the representations of which ``whole`` ``[B, K or D, S]`` was stacked."""
    return whole.split([spec.num_codebooks or spec.dim or 0 for spec in specs], 1)


def _end(reference: Reference) -> float:
    return float("inf") if reference.stop is None else reference.stop
