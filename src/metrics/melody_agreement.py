"""Agreement of recordings with a melody, whatever the key and the tempo of either."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PartitaError
from ..layers.chroma import CLASSES, Chroma
from .piece_means import ClipMeans, Pieces

SPEEDS = tuple(2 ** (step / 24) for step in range(-24, 25))
"""Tempos at which a melody is compared, relative to its own: from half to double, 2.9 % apart."""


class MelodyAgreement(ClipMeans):
    """Mean correlation of the chroma of recordings and melodies, in the best of twelve keys and 49 tempos.

    Recording and melody are compared from the start of both for as long as both last. Both may be polyphonic, like
    covers; chroma are transposed as a whole, as in cover song identification (Serrà et al., 2008).

    Unrelated music agrees, too, in one of so many ways: passages of 10 s of Bach's chorales by 0.35 with covers of
    others, white noise by 0.21, and the passages by 0.77 with their own. So compare the result with that of other
    melodies. All of 30 such passages agree better with their cover in another key, tempo and instrument than with those
    of the 29 others, and 29 with the first 60 % of it.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        confidence: Confidence level of the intervals.
    """

    higher_is_better = True
    names = rates = ("melody_agreement",)

    def __init__(self, sample_rate: int, *, confidence: float = 0.95) -> None:
        super().__init__(confidence=confidence)
        self.chroma = Chroma(sample_rate)

    def update(self, audio: Tensor, melodies: Sequence[Tensor], pieces: Pieces = None) -> None:
        """Compare audio ``[B, C, T]`` with a melody ``[C', T']`` for each clip.

        Args:
            audio: Audio in [-1, 1].
            melodies: Recordings of the melodies in [-1, 1], of any length and number of channels.
            pieces: Names of the clips' pieces, for the intervals. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: There is not a melody for each clip, or one is empty.
        """
        self.record(self.agreement(audio, melodies)[:, None], None, pieces)

    def agreement(self, audio: Tensor, melodies: Sequence[Tensor]) -> Tensor:
        """Return the agreement of each clip, ``[B]``, as :meth:`update` records it."""
        if len(audio) != len(melodies):
            raise PartitaError(f"{len(audio)} clips need a melody each, not {len(melodies)} melodies")
        if not all(melody.shape[-1] for melody in melodies):
            raise PartitaError("a melody is empty: it has no samples")
        clips = self._directions(audio)
        return torch.stack(
            [_best(clip, self._directions(melody[None])[0]) for clip, melody in zip(clips, melodies, strict=True)]
        )

    def _directions(self, audio: Tensor) -> Tensor:
        """Chroma ``[B, S, 12]`` less their mean, of unit length; zero for silence."""
        return _direction(self.chroma(audio))

    def compute(self) -> dict[str, Tensor]:
        """Return ``melody_agreement`` in [0, 1], with bounds ``…_low`` and ``…_high``, and ``clips`` and ``pieces``.

        Raises:
            PartitaError: No clips were compared.
        """
        return super().compute()


def _direction(chroma: Tensor) -> Tensor:
    """Chroma of unit length less what all twelve classes share."""
    return F.normalize(chroma - chroma.mean(-1, keepdim=True), dim=-1)


def _best(clip: Tensor, melody: Tensor) -> Tensor:
    """The similarity of chroma ``[S, 12]`` and ``[S', 12]`` in the best key and tempo."""
    keys = torch.stack([clip.roll(key, 1) for key in range(CLASSES)])
    speeds = torch.tensor(SPEEDS, device=clip.device)
    places = speeds[:, None] * torch.arange(len(clip), device=clip.device)
    last = len(melody) - 1
    both = places <= last
    before = places.long().clamp(max=last)
    share = (places - before).clamp(0, 1)[..., None]
    played = _direction(melody[before].lerp(melody[(before + 1).clamp(max=last)], share))
    similarity = torch.einsum("ksc,vsc->kvs", keys, played) * both
    return (similarity.sum(-1) / both.sum(-1)).max()
