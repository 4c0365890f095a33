"""A mixture of several sources, each with a share of the clips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ..core.contracts import Example
from ..core.seeds import derive_seed
from .base import Member, Origin, Source, Split, StoredNeed, Summary, UnreadableClip


class Mixture(Source):
    """A mixture of sources, from which clips are drawn in proportion to weights.

    Every source is split on its own. A source without pieces in a split does not contribute to it. The source of an
    example depends only on the number of the example: with weights 2 and 1, two of any three consecutive examples come
    from the first source. Fields that a source does not supply are missing from its examples.

    Args:
        sources: The sources.
        weights: Relative frequency of clips of each source, independent of its size.

    Raises:
        ValueError: A weight is not positive and finite, or the numbers of weights and sources differ.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        if not sources or len(sources) != len(weights):
            raise ValueError(f"a mixture needs one weight per source, not {len(weights)} for {len(sources)}")
        for weight in weights:
            if not 0 < weight < math.inf:
                raise ValueError(f"a weight must be a number above 0, not {weight}")
        self.sources = list(sources)
        self.weights = list(weights)
        self._labels = _numbered([source.label for source in sources])

    @property
    def registered_name(self) -> str:  # type: ignore[override]
        """The registered names of the sources."""
        return " + ".join(source.registered_name for source in self.sources)

    @property
    def label(self) -> str:
        """The labels of the sources."""
        return " + ".join(self._labels)

    @property
    def members(self) -> Sequence[Member]:
        """The sources, with their labels and shares."""
        whole = sum(self.weights)
        shares = [weight / whole for weight in self.weights]
        return [Member(*member) for member in zip(self._labels, shares, self.sources, strict=True)]

    @property
    def fields(self) -> frozenset[str]:  # type: ignore[override]
        """The fields that any of the sources may supply."""
        return frozenset().union(*(source.fields for source in self.sources))

    @property
    def fields_known(self) -> bool:  # type: ignore[override]
        """Whether the fields of all sources are exact before :meth:`setup`."""
        return all(source.fields_known for source in self.sources)

    @property
    def revision(self) -> int:  # type: ignore[override]
        """The sum of the revisions of the sources."""
        return sum(source.revision for source in self.sources)

    @property
    def carries_audio(self) -> bool:  # type: ignore[override]
        """Whether the examples of all sources carry audio."""
        return all(source.carries_audio for source in self.sources)

    @property
    def varied(self) -> bool:  # type: ignore[override]
        """Whether readings of a whole piece differ in any of the sources."""
        return any(source.varied for source in self.sources)

    @property
    def stored_keys(self) -> frozenset[str]:  # type: ignore[override]
        """The keys of the stored conditions of all sources."""
        return frozenset().union(*(source.stored_keys for source in self.sources))

    def unsuitable(self, needs: Sequence[StoredNeed]) -> str | None:
        """Return what does not fit in the first source in which something does not."""
        return next((wrong for source in self.sources if (wrong := source.unsuitable(needs))), None)

    def setup(self) -> None:
        """Set up all sources."""
        for source in self.sources:
            source.setup()

    def size(self, split: Split) -> int:
        """Return the number of pieces of all sources in a split."""
        return sum(source.size(split) for source in self.sources)

    def draw(self, split: Split, number: int, seed: int, attempt: int = 0) -> tuple[int, int]:
        """Draw a piece of the source that is scheduled for this number; each source has its own epochs."""
        present = [k for k, source in enumerate(self.sources) if source.size(split)]
        turn, earlier = _scheduled_source(number, [self.weights[k] for k in present])
        chosen = present[turn]
        piece, clip_seed = self.sources[chosen].draw(split, earlier, derive_seed(seed, "source", chosen), attempt)
        return sum(source.size(split) for source in self.sources[:chosen]) + piece, clip_seed

    def read(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Example:
        """Read a clip of one of the sources; its ``id`` begins with the label of the source."""
        source, label, index = self._found(split, index)
        with _labeled(label):
            example = source.read(split, index, seed=seed, seconds=seconds, sample_rate=sample_rate, channels=channels)
        if "id" in example.fields:
            example.fields["id"] = f"{label}/{example.fields['id']}"
        return example

    def read_beside(
        self, split: Split, index: int, *, seed: int, seconds: float | None, sample_rate: int, channels: int
    ) -> Tensor | None:
        """Read another excerpt of the recording from one of the sources."""
        source, label, index = self._found(split, index)
        with _labeled(label):
            return source.read_beside(
                split, index, seed=seed, seconds=seconds, sample_rate=sample_rate, channels=channels
            )

    def _found(self, split: Split, index: int) -> tuple[Source, str, int]:
        """The source of a piece, its label, and the number of the piece within it."""
        chosen = 0
        while index >= self.sources[chosen].size(split):
            index -= self.sources[chosen].size(split)
            chosen += 1
        return self.sources[chosen], self._labels[chosen], index

    @property
    def summary(self) -> Summary:
        """The numbers of pieces in all sources together."""
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
        """The distinct origins of all sources."""
        return list(dict.fromkeys(origin for source in self.sources for origin in source.origins))

    def advice(self, field: str) -> str:
        """Return the advice of each source that has some."""
        advice = ((label, source.advice(field)) for label, _, source in self.members)
        return "; ".join(f"{label}: {line}" for label, line in advice if line)

    def missing(self) -> list[tuple[str, str]]:
        """Return the errors of all sources. Arguments begin with the number of the source, as in ``0.path``."""
        return [(f"{k}.{name}", wrong) for k, source in enumerate(self.sources) for name, wrong in source.missing()]

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Read everything in all sources once, and yield each piece with its error, if any."""
        for label, source in zip(self._labels, self.sources, strict=True):
            for piece, wrong in source.verify():
                yield f"{label}/{piece}", wrong

    @property
    def report(self) -> list[str]:
        """A line for each skipped piece of all sources."""
        own = [
            f"{label}/{line}"
            for label, source in zip(self._labels, self.sources, strict=True)
            for line in source.report
        ]
        return list(dict.fromkeys([*own, *super().report]))


@contextmanager
def _labeled(label: str) -> Iterator[None]:
    """Name the source in the error about a piece."""
    try:
        yield
    except UnreadableClip as error:
        raise UnreadableClip(f"{label}/{error.piece}", error.reason) from None


def _scheduled_source(number: int, weights: Sequence[float]) -> tuple[int, int]:
    """Return the source that supplies example ``number``, and the number of earlier examples of this source.

    The first source gets its share of the examples, rounded down. The others divide the rest in the same way.

    >>> [_scheduled_source(number, [2.0, 1.0]) for number in range(6)]
    [(1, 0), (0, 0), (0, 1), (1, 1), (0, 2), (0, 3)]
    """
    for turn in range(len(weights) - 1):
        share = weights[turn] / math.fsum(weights[turn:])
        before, after = math.floor(number * share), math.floor((number + 1) * share)
        if after > before:
            return turn, before
        number -= before
    return len(weights) - 1, number


def _numbered(labels: Sequence[str]) -> list[str]:
    """Return labels in which repeated ones are numbered.

    >>> _numbered(["corpus", "music", "music"])
    ['corpus', 'music 1', 'music 2']
    """
    counts: Counter[str] = Counter()
    numbered = []
    for label in labels:
        counts[label] += 1
        numbered.append(f"{label} {counts[label]}" if list(labels).count(label) > 1 else label)
    return numbered
