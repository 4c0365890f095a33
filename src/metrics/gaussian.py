"""Gaussian statistics of a set of embeddings, and the Fréchet distance between two sets (FAD, 1812.08466)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import PartitaError
from ..storage.files import replacing_file


@dataclass(frozen=True)
class Gaussian:
    """Gaussian statistics of a set of embeddings, for the Fréchet distance.

    Args:
        count: Number of embeddings.
        mean: Mean ``[D]`` float64.
        moment: Sum ``[D, D]`` float64 of the outer products of their deviations from the mean.
    """

    count: int
    mean: Tensor
    moment: Tensor

    @classmethod
    def of(cls, embeddings: Tensor) -> Gaussian:
        """The statistics of embeddings ``[N, D]``."""
        return cls.unpacked(packed(embeddings))

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance ``[D, D]``.

        Raises:
            PartitaError: There are fewer than two embeddings.
        """
        if self.count < 2:
            raise PartitaError(f"a Fréchet distance needs at least two embeddings on each side, not {self.count}")
        return self.moment / (self.count - 1)

    def save(self, path: str | Path, *, embedding: str, source: str) -> None:
        """Write a safetensors file whose metadata identify the embedding and the audio.

        Args:
            path: Path of the file.
            embedding: Name of the embedding model, with everything that affects its values: weights, layer, window.
            source: Hash of the audio, such as :func:`source_hash` of the names or hashes of its files.
        """
        tensors = {"mean": self.mean, "moment": self.moment}
        save_made_from(path, tensors, embedding=embedding, samples=self.count, source=source)

    @classmethod
    def load(cls, path: str | Path, *, embedding: str, source: str, samples: int | None = None) -> Gaussian:
        """Read what :meth:`save` wrote.

        Args:
            path: Path of the file.
            embedding: Required name of the embedding model.
            source: Required hash of the audio.
            samples: Required number of embeddings. ``None`` accepts any.

        Raises:
            PartitaError: The file does not exist, or has other metadata.
        """
        made_from = {"embedding": embedding, "source": source} | ({} if samples is None else {"samples": samples})
        tensors, number = load_made_from(path, ("mean", "moment"), **made_from)
        return cls(number, tensors["mean"], tensors["moment"])

    @classmethod
    def unpacked(cls, packed: Tensor) -> Gaussian:
        """Restore the statistics from the result of :func:`packed`."""
        return cls(int(packed[0, 0]), packed[1], packed[2:])


def save_made_from(path: str | Path, tensors: Mapping[str, Tensor], **made_from: str | int) -> None:
    """Write tensors to a safetensors file, with ``made_from`` as its metadata."""
    with replacing_file(Path(path)) as new:
        cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(cpu, new, metadata={"fingerprint": json.dumps(made_from, ensure_ascii=False)})


def load_made_from(path: str | Path, names: Iterable[str], **made_from: str | int) -> tuple[dict[str, Tensor], int]:
    """Return the named tensors of a saved file, and the number of samples in its metadata.

    Raises:
        PartitaError: The file does not exist, or its metadata differ from ``made_from``.
    """
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {})["fingerprint"])
            tensors, samples = {name: file.get_tensor(name) for name in names}, int(found["samples"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise PartitaError(f"{path} does not contain the statistics of a reference: {error}") from None
    wrong = [
        f"{name} {found.get(name)!r} instead of {value!r}"
        for name, value in made_from.items()
        if found.get(name) != value
    ]
    if wrong:
        raise PartitaError(f"{path} was made from something else: {', '.join(wrong)}; compute it again")
    return tensors, samples


def source_hash(names: Iterable[str]) -> str:
    """A hash of names (of files, clips, or hashes of their content), independent of their order."""
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()


def frechet_distance(first: Gaussian, second: Gaussian) -> Tensor:
    """``d² = ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½)``, float64, also for covariances without full rank."""
    return Side(first).distance(second.mean, second.covariance)


class Side:
    """One side of the distance, factored once for many distances to other statistics.

    With ``Σ₁ = FFᵀ``, the nonzero eigenvalues of ``Σ₁Σ₂`` are those of the symmetric ``FᵀΣ₂F``.

    Args:
        statistics: Statistics of this side.
    """

    def __init__(self, statistics: Gaussian) -> None:
        self.mean, covariance = statistics.mean, statistics.covariance
        values, vectors = torch.linalg.eigh(covariance)
        kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]  # the others are rounding errors
        self.factor = vectors[:, kept] * values[kept].sqrt()
        self.trace = covariance.trace()

    def distance(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """The distance ``[...]`` to means ``[..., D]`` and covariances ``[..., D, D]``."""
        inner = self.factor.mT @ covariance @ self.factor
        root = torch.linalg.eigvalsh((inner + inner.mT) / 2).clamp(min=0).sqrt().sum(-1)
        traces = self.trace + covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        return ((mean - self.mean).square().sum(-1) + traces - 2 * root).clamp(min=0)


def packed(embeddings: Tensor) -> Tensor:
    """Count, mean and moment of embeddings ``[N, D]`` as one ``[D + 2, D]`` float64."""
    embeddings = embeddings.double()
    mean = embeddings.mean(0)
    centered = embeddings - mean
    return torch.cat([torch.full_like(mean, len(embeddings))[None], mean[None], centered.mT @ centered])


def pooled(packed: Tensor) -> Tensor:
    """Statistics ``[R, D + 2, D]`` of several sets pooled into those of their union (Chan, Golub and LeVeque 1979)."""
    count, mean, moment = packed[:, 0], packed[:, 1], packed[:, 2:]
    total = count.sum(0)
    pooled = (count * mean).sum(0) / total.clamp(min=1)
    deviation = mean - pooled
    moment = (moment + count[:, :, None] * deviation[:, :, None] * deviation[:, None]).sum(0)
    return torch.cat([total[None], pooled[None], moment])
