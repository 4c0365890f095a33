"""Kernel audio distance of embeddings (KAD, arXiv 2502.15602), unbiased even with few clips, and its interval.

Values are comparable only for the same embedding, kernel and reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PartitaError
from .gaussian import load_made_from, save_made_from
from .piece_means import Gathered, Pieces, check_confidence, membership, piece_numbers, sums_per_clip
from .significance import jackknife, mean_interval

SCALE = 100.0
"""Factor of the squared discrepancy, as in the authors' kadtk."""

FRAMES = 32
"""Maximum number of equally spaced frames per clip; more frames add little information, but cost time and memory."""

BANDWIDTH_FRAMES = 4
"""Number of these frames of each reference clip whose distances determine the bandwidth."""

AT_ONCE = 2**22
"""Maximum number of values in a block of a kernel matrix."""


@dataclass(frozen=True)
class Sample:
    """Embeddings of clips.

    Args:
        frames: Embeddings ``[N, D]`` float32, clip by clip.
        sizes: Number of frames of each clip, in order, ``[C]`` int64.
        pieces: Numbers of the clips' pieces, ``[C]`` int64, −1 for a piece of its own.
    """

    frames: Tensor
    sizes: Tensor
    pieces: Tensor

    @classmethod
    def of(cls, frames: Tensor, sizes: Tensor, pieces: Pieces = None) -> Sample:
        """Return a sample with at most :data:`FRAMES` frames per clip, from frames ``[N, D]``.

        Raises:
            PartitaError: The sizes do not match the frames, or the pieces do not match the clips.
        """
        if (sizes < 1).any() or int(sizes.sum()) != len(frames):
            raise PartitaError(f"sizes must be at least 1 and add up to {len(frames)}, not {sizes.tolist()}")
        kept = [clip[_spaced(len(clip), FRAMES)] for clip in frames.detach().float().split(sizes.tolist())]
        numbers = piece_numbers(pieces, len(sizes)).to(frames.device)
        return cls(torch.cat(kept), torch.tensor([len(clip) for clip in kept], device=frames.device), numbers)

    @classmethod
    def joined(cls, samples: Sequence[Sample]) -> Sample:
        """Return the concatenation of several samples."""
        return cls(*(torch.cat([getattr(one, name) for one in samples]) for name in ("frames", "sizes", "pieces")))

    def from_pieces(self, pieces: Pieces) -> Sample:
        """Return the same clips with the names of their pieces."""
        return Sample(self.frames, self.sizes, piece_numbers(pieces, len(self.sizes)).to(self.frames.device))

    @property
    def bandwidth(self) -> float:
        """The median distance between frames of the clips.

        Raises:
            PartitaError: There are fewer than two frames, or most of them are equal.
        """
        some = [clip[_spaced(len(clip), BANDWIDTH_FRAMES)] for clip in self.frames.split(self.sizes.tolist())]
        distances = torch.pdist(torch.cat(some).double())
        found = float(distances.median()) if len(distances) else 0.0
        if found <= 0:
            raise PartitaError("most clips of the reference are equal, so the bandwidth is zero: use other clips")
        return found

    def save(self, path: str | Path, *, embedding: str, source: str) -> None:
        """Write a safetensors file, without the pieces, like :meth:`~partita.metrics.gaussian.Gaussian.save`."""
        tensors = {"frames": self.frames, "sizes": self.sizes}
        save_made_from(path, tensors, embedding=embedding, samples=len(self.sizes), source=source)

    @classmethod
    def load(cls, path: str | Path, *, embedding: str, source: str) -> Sample:
        """Read what :meth:`save` wrote, like :meth:`~partita.metrics.gaussian.Gaussian.load`.

        Raises:
            PartitaError: The file does not exist, or has other metadata.
        """
        tensors = load_made_from(path, ("frames", "sizes"), embedding=embedding, source=source)[0]
        return cls(tensors["frames"], tensors["sizes"], torch.full_like(tensors["sizes"], -1))


class KernelDistance(Gathered):
    """Squared maximum mean discrepancy between frames of generated and of reference audio, with a Gaussian kernel.

    ``100 · (E k(x, x') + E k(y, y') − 2 E k(x, y))`` with ``k(x, y) = exp(−‖x − y‖² / 2σ²)``, ``σ`` being the median
    distance within the reference. Pairs of frames of the same piece are excluded, within a side and across sides. The
    mean over all other pairs is unbiased even for few clips, and can be negative by chance if both sides are alike.

    Args:
        dim: Width of the embeddings.
        reference: Precomputed clips of the reference. ``None`` collects them in :meth:`update`.
        bandwidth: ``σ``. ``None`` takes the median.
        confidence: Confidence level of the interval.

    Example:
        >>> metric = KernelDistance(1, bandwidth=1.0)
        >>> metric.update(torch.tensor([[0.0], [0.0]]), torch.tensor([1, 1]), reference=True)
        >>> metric.update(torch.tensor([[9.0], [9.0]]), torch.tensor([1, 1]))
        >>> round(metric.compute()["kad"].item(), 3)
        200.0
    """

    higher_is_better = False

    def __init__(
        self, dim: int, *, reference: Sample | None = None, bandwidth: float | None = None, confidence: float = 0.95
    ) -> None:
        super().__init__()
        check_confidence(confidence)
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError(f"bandwidth must be above 0, not {bandwidth}")
        if reference is not None and reference.frames.shape[1] != dim:
            raise ValueError(f"the reference has {reference.frames.shape[1]}-d embeddings, not {dim}-d")
        self.dim, self.known, self.bandwidth, self.confidence = dim, reference, bandwidth, confidence
        for side in ("evaluated", "referred"):
            self.add_rows(f"{side}_frames", dim, dtype=torch.float32)
            self.add_rows(f"{side}_sizes", dtype=torch.int64)
            self.add_rows(f"{side}_pieces", dtype=torch.int64)

    def update(self, embeddings: Tensor, sizes: Tensor, reference: bool = False, pieces: Pieces = None) -> None:
        """Add embeddings ``[N, D]`` of the evaluated audio or of the reference.

        Args:
            embeddings: One embedding per frame, clip by clip.
            sizes: Number of frames of each clip, in order, ``[clips]`` int64.
            reference: Whether they belong to the reference.
            pieces: Names of the clips' pieces. ``None`` takes each clip as its own piece.

        Raises:
            PartitaError: The shapes do not match, an embedding is not finite, or the reference is precomputed.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise PartitaError(f"embeddings must be [N, {self.dim}], not {list(embeddings.shape)}")
        if not embeddings.isfinite().all():
            raise PartitaError("embeddings must be finite: look for silence or overflow in the embedded audio")
        if reference and self.known is not None:
            raise PartitaError("the reference is precomputed: do not add embeddings to it")
        added, side = Sample.of(embeddings, sizes, pieces), "referred" if reference else "evaluated"
        for name in ("frames", "sizes", "pieces"):
            getattr(self, f"{side}_{name}").append(getattr(added, name))

    def compute(self) -> dict[str, Tensor]:
        """Return the distance and its interval.

        Returns:
            ``kad``, with the interval ``kad_low`` to ``kad_high`` for the population of pieces on both sides, float64;
            the numbers of ``clips``, ``pieces`` and ``reference_clips``, int64; and ``bandwidth``. The bounds are NaN
            if a side has fewer than three pieces.

        Raises:
            PartitaError: A side has clips of fewer than two pieces.
        """
        generated, real = self._side("evaluated"), self._side("referred") if self.known is None else self.known
        real = Sample(*(getattr(real, name).to(self.device) for name in ("frames", "sizes", "pieces")))
        bandwidth = real.bandwidth if self.bandwidth is None else self.bandwidth
        member = membership(torch.cat([generated.pieces, real.pieces]))
        sides = member.split([len(generated.sizes), len(real.sizes)], dim=1)
        fewest = min(int((side.sum(1) > 0).sum()) for side in sides)
        value = without = torch.zeros(())
        for one, other, weight in ((0, 0, 1), (1, 1, 1), (0, 1, -2)):
            first, second = (generated, real)[one], (generated, real)[other]
            kernel = sides[one] @ _kernel_sums(first, second, bandwidth) @ sides[other].T
            pairs = torch.outer(sides[one] @ first.sizes.double(), sides[other] @ second.sizes.double())
            if not float(pairs.fill_diagonal_(0).sum()) or fewest < 2:
                raise PartitaError("a kernel distance needs clips of two pieces or more on each side")
            total, left = _mean_of_pairs(kernel.fill_diagonal_(0), pairs)
            value, without = value + SCALE * weight * total, without + SCALE * weight * left
        low = high = value.new_tensor(torch.nan)
        if fewest > 2:
            _, error = jackknife(value.cpu().numpy(), without.cpu().numpy())
            bounds = mean_interval(value.cpu().numpy(), error, fewest, self.confidence)
            low, high = (value.new_tensor(float(bound)) for bound in bounds)
        counts = {
            "clips": len(generated.sizes),
            "pieces": int((sides[0].sum(1) > 0).sum()),
            "reference_clips": len(real.sizes),
        }
        found = {"kad": value, "kad_low": low, "kad_high": high, "bandwidth": value.new_tensor(bandwidth)}
        return found | {name: torch.tensor(count) for name, count in counts.items()}

    def _side(self, side: str) -> Sample:
        return Sample(*(self.rows(f"{side}_{name}") for name in ("frames", "sizes", "pieces")))


def _mean_of_pairs(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over all pairs, from sums and counts ``[P, P]`` by piece, and the means ``[P]`` without each."""
    left = [total.sum() - total.sum(0) - total.sum(1) for total in (sums, counts)]
    return sums.sum() / counts.sum(), left[0] / left[1]


def _kernel_sums(first: Sample, second: Sample, bandwidth: float) -> Tensor:
    """Return the sums ``[C, C']`` float64 of the kernel over the frames of each pair of clips."""
    middle = second.frames.double().mean(0)  # centering avoids cancellation of squares
    one, other, sums = first.frames.double() - middle, second.frames.double() - middle, []
    squares = other.square().sum(1)
    for rows in one.split(max(1, AT_ONCE // len(other))):
        apart = (rows.square().sum(1)[:, None] + squares - 2 * rows @ other.mT).clamp(min=0)
        sums.append(sums_per_clip((apart / (-2 * bandwidth**2)).exp().mT, second.sizes).mT)
    return sums_per_clip(torch.cat(sums), first.sizes)


def _spaced(number: int, most: int) -> Tensor:
    """Return at most ``most`` equally spaced numbers below ``number``.

    >>> _spaced(10, 4).tolist()
    [1, 3, 6, 8]
    """
    return torch.arange(number) if number <= most else ((torch.arange(most) + 0.5) * number / most).long()
