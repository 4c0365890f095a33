"""Similarity of clips to the melodies that the system was conditioned on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...conditioners.embedding import EmbeddingConditioner
from ...core.registry import register
from ...data.fields.base import field
from ...metrics.melody_agreement import MelodyAgreement
from ...metrics.melody_similarity import MelodySimilarity
from ...metrics.piece_means import sign_flip_over_pieces
from ..comparison import Comparison
from ..embedders import Embedder, Embedders, batches
from ..rows import Rows, make_row, mean_row
from ..score import Score

log = logging.getLogger(__name__)

Measure = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""A function from clips ``[N, C, T]`` and a melody ``[C', T']`` for each to their agreement ``[N]``."""


@register("score", "melody")
class Melody(Score):
    """Agreement of clips with the melodies that the system was conditioned on.

    The chance level is the agreement with the melodies of other pieces. A system that reads the notes of a melody is
    to play them in place; one that reads recordings, in any key and tempo.

    Args:
        embeddings: Melody embeddings, as recipe slots with ``weights``, in which clips and recordings are compared,
            too.
    """

    about: ClassVar = {
        "melody kept": "Mean cosine similarity of the chroma of clip and piece over time; 1 if they match.",
        "melody agreement": "Mean agreement of the clip and the recording of a melody that it was conditioned on, "
        "whatever their keys and tempos: correlation of their chroma in the best key and tempo, or cosine similarity "
        "of their melody embeddings.",
    }
    needs_stages = True
    needs_inputs = frozenset({"melody", "cover"})

    def __init__(self, *, embeddings: tuple[Any, ...] = ()) -> None:
        self.embeddings = embeddings

    def load(self, embedders: Embedders) -> None:
        """Load the embeddings."""
        for slot in self.embeddings:
            embedders.slot(slot)

    def measure(self, comparison: Comparison) -> Rows:
        """Return a row for notes and, for recordings, one for the chroma and one for each embedding.

        They are measured on the clips whose pieces have a melody.
        """
        rows = _kept(comparison) if "melody" in comparison.inputs else {}
        return rows | (self._agreement(comparison) if "cover" in comparison.inputs else {})

    def _agreement(self, comparison: Comparison) -> Rows:
        having = [i for i, fields in enumerate(comparison.fields) if fields.get("cover") is not None]
        if not having:
            log.info("no test piece has a cover: melody agreement is not measured")
            return {}
        rate, channels = comparison.spec.sample_rate, comparison.spec.channels
        melodies = {i: field("cover").to_audio(comparison.fields[i]["cover"], rate, channels, rate) for i in having}
        log.info("melody agreement")
        rows = {"melody agreement": _row(comparison, melodies, MelodyAgreement(rate).agreement, "chroma")}
        for slot in self.embeddings:
            embedder = comparison.embedders.slot(slot)
            name = f"melody agreement ({embedder.name})"
            log.info("%s", name)
            more = {"fingerprint": embedder.fingerprint}
            rows[name] = _row(comparison, melodies, _by_embeddings(embedder, rate), embedder.label) | more
        return rows


def _kept(comparison: Comparison) -> Rows:
    """Return the row of the chroma of clip and piece at the same times."""
    having = [i for i, fields in enumerate(comparison.fields) if fields.get("melody")]
    if not having:
        return {}
    log.info("melody")
    ids = [comparison.piece_ids[i] for i in having]

    def similarity(pieces: Tensor) -> MelodySimilarity:
        metric = MelodySimilarity(comparison.spec.sample_rate)
        names = iter(ids)
        for clip, piece in zip(batches(comparison.generated[having]), batches(pieces), strict=True):
            metric.update(clip, piece, pieces=[next(names) for _ in clip])
        return metric

    others = comparison.from_other_pieces(having)
    found, more = similarity(comparison.real[having]), dict[str, Any]()
    if others:
        shuffled = similarity(comparison.real[others])
        more["chance"] = shuffled.compute()["chroma_cosine"]
        more["p"] = sign_flip_over_pieces((found.values - shuffled.values)[:, 0], ids)
    return {"melody kept": make_row(found.compute(), "chroma_cosine", "higher", "chroma", len(having), **more)}


def _row(comparison: Comparison, melodies: dict[int, Tensor], measure: Measure, label: str) -> dict[str, Any]:
    """Return the row of a measure of agreement; ``melodies`` maps the index of each clip that has one to its melody."""
    having = list(melodies)
    pieces = [comparison.piece_ids[i] for i in having]

    def agreement(clips: Tensor, of: Sequence[int]) -> Tensor:
        return torch.cat([measure(clips[i, None], [melodies[other]]) for i, other in zip(having, of, strict=True)])

    own = agreement(comparison.generated, having)
    more: dict[str, Any] = {"real": agreement(comparison.real, having).mean()}
    if others := comparison.from_other_pieces(having):
        chance = agreement(comparison.generated, others)
        more |= {"chance": chance.mean(), "p": sign_flip_over_pieces(own - chance, pieces)}
    return mean_row(own, pieces, "higher", label, **more)


def _by_embeddings(embedder: Embedder, rate: int) -> Measure:
    """Return the similarity of the mean embeddings of clips and melodies, compared as the part compares them."""
    part = embedder.part
    compare = part.similarity if isinstance(part, EmbeddingConditioner) else torch.inner

    def measure(clips: Tensor, melodies: Sequence[Tensor]) -> Tensor:
        first = embedder(clips, rate).mean(1)
        second = torch.cat([embedder(melody[None], rate).mean(1) for melody in melodies])
        return compare(F.normalize(first, dim=-1), F.normalize(second, dim=-1)).diagonal()

    return measure
