"""Several sources as one, each with its share of the clips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from ..core.contracts import Example
from ..core.seeds import derive_seed
from .base import Damaged, Member, Origin, Source, Split, Summary


class Mixture(Source):
    """Several sources, from which clips are drawn in turn, as often as their weights say.

    Every source is split by itself, and one that has no pieces in a split takes no part in it. Which source an example
    comes from is a function of its number alone: of weights 2 and 1, two of any three that follow each other come from
    the first, whoever reads them, and in whichever order. What only some of the sources know is unknown of the others.

    Args:
        sources: What is mixed.
        weights: How often clips are drawn of each, relative to the others, whatever their sizes.

    Raises:
        ValueError: A weight is not above zero, or there is not one for each source.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        if not sources or len(sources) != len(weights):
            raise ValueError(f"a mixture takes a weight for each source, not {len(weights)} for {len(sources)}")
        for weight in weights:
            if not 0 < weight < math.inf:
                raise ValueError(f"a weight is a number above 0, not {weight}")
        self.sources = list(sources)
        self.weights = list(weights)
        self._labels = _distinct([source.label for source in sources])

    @property
    def registered_name(self) -> str:  # type: ignore[override]
        """The names of what is mixed."""
        return " + ".join(source.registered_name for source in self.sources)

    @property
    def label(self) -> str:
        """A word for each."""
        return " + ".join(self._labels)

    @property
    def members(self) -> Sequence[Member]:
        """What is mixed."""
        whole = sum(self.weights)
        shares = [weight / whole for weight in self.weights]
        return [Member(*member) for member in zip(self._labels, shares, self.sources, strict=True)]

    @property
    def fields(self) -> frozenset[str]:  # type: ignore[override]
        """What any of them may supply."""
        return frozenset().union(*(source.fields for source in self.sources))

    @property
    def fields_known(self) -> bool:  # type: ignore[override]
        """Whether all of them know what they supply."""
        return all(source.fields_known for source in self.sources)

    @property
    def revision(self) -> int:  # type: ignore[override]
        """Goes up with that of any of them."""
        return sum(source.revision for source in self.sources)

    def setup(self) -> None:
        """Set each of them up."""
        for source in self.sources:
            source.setup()

    def size(self, split: Split) -> int:
        """Number of pieces of all of them."""
        return sum(source.size(split) for source in self.sources)

    def draw(self, split: Split, number: int, seed: int, attempt: int = 0) -> tuple[int, int]:
        """A piece of the source whose turn it is; each comes in rounds of its own."""
        present = [k for k, source in enumerate(self.sources) if source.size(split)]
        turn, earlier = _turn(number, [self.weights[k] for k in present])
        chosen = present[turn]
        piece, clip_seed = self.sources[chosen].draw(split, earlier, derive_seed(seed, "source", chosen), attempt)
        return sum(source.size(split) for source in self.sources[:chosen]) + piece, clip_seed

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """A clip of one of them; its ``id`` begins with the word for the source."""
        chosen = 0
        while index >= self.sources[chosen].size(split):
            index -= self.sources[chosen].size(split)
            chosen += 1
        source, label = self.sources[chosen], self._labels[chosen]
        try:
            example = source.read(split, index, seed=seed, seconds=seconds, sample_rate=sample_rate, channels=channels)
        except Damaged as error:
            raise Damaged(f"{label}/{error.piece}", error.reason) from None
        if "id" in example.fields:
            example.fields["id"] = f"{label}/{example.fields['id']}"
        return example

    @property
    def summary(self) -> Summary:
        """What there is in all of them together."""
        summaries = [source.summary for source in self.sources]
        units = {summary.unit for summary in summaries}
        seconds = [summary.seconds for summary in summaries]
        splits: dict[Split, int] = {
            split: sum(summary.splits[split] for summary in summaries) for split in ("train", "validation", "test")
        }
        return Summary(
            units.pop() if len(units) == 1 else "piece",
            splits,
            sum((Counter(summary.known) for summary in summaries), Counter()),
            None if None in seconds else math.fsum(filter(None, seconds)),
            "; ".join(filter(None, (summary.left_out for summary in summaries))),
        )

    @property
    def origins(self) -> Sequence[Origin]:
        """What any of them is made of, each once."""
        return list(dict.fromkeys(origin for source in self.sources for origin in source.origins))

    def advice(self, field: str) -> str:
        """That of each of them that has some."""
        advice = ((label, source.advice(field)) for label, _, source in self.members)
        return "; ".join(f"{label}: {line}" for label, line in advice if line)

    def missing(self) -> list[tuple[str, str]]:
        """What is not there, by number of the source and argument, such as ``0.path``."""
        return [(f"{k}.{name}", wrong) for k, source in enumerate(self.sources) for name, wrong in source.missing()]

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Read everything of each of them once."""
        for label, source in zip(self._labels, self.sources, strict=True):
            for piece, wrong in source.verify():
                yield f"{label}/{piece}", wrong

    @property
    def report(self) -> list[str]:
        """What was skipped of each of them."""
        own = [
            f"{label}/{line}"
            for label, source in zip(self._labels, self.sources, strict=True)
            for line in source.report
        ]
        return list(dict.fromkeys([*own, *super().report]))


def _turn(number: int, weights: Sequence[float]) -> tuple[int, int]:
    """Whose turn example ``number`` is, and how many examples of the same source come before it.

    The first source takes its share of any number of examples, rounded down; the rest are for the others, in the same
    way.

    >>> [_turn(number, [2.0, 1.0]) for number in range(6)]
    [(1, 0), (0, 0), (0, 1), (1, 1), (0, 2), (0, 3)]
    """
    for turn in range(len(weights) - 1):
        share = weights[turn] / math.fsum(weights[turn:])
        before, after = math.floor(number * share), math.floor((number + 1) * share)
        if after > before:
            return turn, before
        number -= before
    return len(weights) - 1, number


def _distinct(labels: Sequence[str]) -> list[str]:
    """Labels, numbered where several are the same.

    >>> _distinct(["corpus", "music", "music"])
    ['corpus', 'music 1', 'music 2']
    """
    counts: Counter[str] = Counter()
    made = []
    for label in labels:
        counts[label] += 1
        made.append(f"{label} {counts[label]}" if list(labels).count(label) > 1 else label)
    return made
