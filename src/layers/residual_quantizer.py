"""Residual vector quantization with codebooks that follow the data (SoundStream, 2107.03312 §III-C)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Quantizer:
    """A residual vector quantizer.

    Args:
        num_codebooks: Codes per frame.
        cardinality: Entries per codebook.
        decay: Of the moving averages that codebook entries are.
        dropout: Probability that an example is quantized with a random number of codebooks in training, so that fewer
            can be used later. SoundStream's is 1, DAC's 0.5, MusicGen's EnCodec's 0.
        revive_below: An entry used less than this fraction of its fair share (frames per step over cardinality), on
            average, is replaced by a random frame. The literature gives a count, 2, which fits one batch size alone;
            EnCodec's comes to about 0.4.
        kmeans_iterations: Of the clustering that the codebooks start from.
        warmup_steps: Training steps in which latents pass as they are. Codebooks that are fitted to the latents of an
            untrained encoder collapse.
    """

    num_codebooks: int = 8
    cardinality: int = 1024
    decay: float = 0.99
    dropout: float = 1.0
    revive_below: float = 0.1
    kmeans_iterations: int = 50
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        if self.num_codebooks < 1 or self.cardinality < 2:
            raise ValueError(
                f"a quantizer needs a codebook of two entries, not {self.num_codebooks} codebooks of {self.cardinality}"
            )
        for name in ("decay", "dropout", "revive_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")


class Quantized(NamedTuple):
    """What quantization gives.

    Args:
        latents: ``[B, D, S]``; the gradient passes to the input unchanged.
        codes: ``[B, K, S]`` int64.
        commitment: Mean squared distance of the residuals to their codebook entries, averaged over codebooks.
    """

    latents: Tensor
    codes: Tensor
    commitment: Tensor


class ResidualQuantizer(nn.Module):
    """Quantizes latents ``[B, D, S]``, each codebook what the ones before it left over.

    Until the first training step the codebooks are random; on that step they are fitted to the batch by k-means.
    Everything is computed in full precision whatever autocast says.

    Args:
        config: Its shape and how it learns.
        dim: Width of the latents.
    """

    started: Tensor

    def __init__(self, config: Quantizer, dim: int) -> None:
        super().__init__()
        from loguru import logger
        from vector_quantize_pytorch import ResidualVQ

        # It warns of k-means on a batch with fewer frames than entries, which revival makes good within a few steps.
        logger.disable("vector_quantize_pytorch")
        self.config = config
        self.layers = ResidualVQ(
            dim=dim,
            num_quantizers=config.num_codebooks,
            codebook_size=config.cardinality,
            decay=config.decay,
            kmeans_iters=config.kmeans_iterations,
            threshold_ema_dead_code=1,  # set on each step
            rotation_trick=False,
        )
        self.register_buffer("started", torch.tensor(False))

    @property
    def codebooks(self) -> Tensor:
        """A copy of the codebooks, ``[K, cardinality, D]``."""
        return self.layers.codebooks

    def forward(self, latents: Tensor) -> Quantized:
        """Latents ``[B, D, S]`` to codes and what they stand for; in training the codebooks follow."""
        with torch.autocast(latents.device.type, enabled=False):
            frames = latents.float().mT
            if self.training:
                self._prepare(frames.detach())
            # The library's own output passes the gradient once per codebook; the sum below passes it once.
            codebooks = self.codebooks
            _, codes, losses = self.layers(frames)
            codes = codes.mT
            quantized = _look_up(codebooks, codes, self._in_use(codes))
            return Quantized(latents + (quantized - latents).detach(), codes, losses.mean())

    def encode(self, latents: Tensor, num_codebooks: int) -> Tensor:
        """Latents ``[B, D, S]`` to codes ``[B, num_codebooks, S]``; nothing is learnt."""
        with torch.autocast(latents.device.type, enabled=False):
            residual, codes = latents.float().mT, []
            for codebook in self.codebooks[:num_codebooks]:
                codes.append(torch.cdist(residual, codebook).argmin(-1))
                residual = residual - F.embedding(codes[-1], codebook)
            return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of all codebooks or the first few, to latents ``[B, D, S]``."""
        return _look_up(self.codebooks, codes, torch.ones_like(codes[:, :, :1], dtype=torch.bool))

    def _in_use(self, codes: Tensor) -> Tensor:
        """``[B, K, 1]`` bool: the codebooks each example keeps."""
        batch, num_codebooks, _ = codes.shape
        keep = torch.full((batch,), num_codebooks, device=codes.device)
        if self.training and self.config.dropout:
            fewer = torch.randint(1, num_codebooks + 1, (batch,), device=codes.device)
            keep = torch.where(torch.rand(batch, device=codes.device) < self.config.dropout, fewer, keep)
        return (torch.arange(num_codebooks, device=codes.device) < keep[:, None])[:, :, None]

    def _prepare(self, frames: Tensor) -> None:
        """Share statistics between processes, scale the threshold to the batch, and start on the first one."""
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        share = processes * frames.shape[0] * frames.shape[1] / self.config.cardinality
        for layer in self.layers.layers:
            codebook = layer._codebook
            if processes > 1:
                _synchronize(codebook)
            codebook.threshold_ema_dead_code = self.config.revive_below * share
            codebook.has_dead_code_replacement = self.config.revive_below > 0
            codebook.reset_cluster_size = share
        if not self.started:
            for layer in self.layers.layers:
                layer._codebook.initted.fill_(False)
            with torch.no_grad():
                self.layers(frames, freeze_codebook=True)
            self.started.fill_(True)


def _look_up(codebooks: Tensor, codes: Tensor, keep: Tensor) -> Tensor:
    """The sum ``[B, D, S]`` of the entries that ``codes`` ``[B, K, S]`` name, where ``keep`` says so."""
    entries = [F.embedding(codes[:, k], codebooks[k]) * keep[:, k, :, None] for k in range(codes.shape[1])]
    return torch.stack(entries).sum(0).mT


def _synchronize(codebook: Any) -> None:
    """Let a codebook learn from the batches of all processes.

    The library decides this when it is built, which here is before there are processes.
    """
    from vector_quantize_pytorch.vector_quantize_pytorch import sample_vectors_distributed

    codebook.use_ddp = True
    codebook.all_reduce_fn = codebook.kmeans_all_reduce_fn = torch.distributed.all_reduce
    codebook.sample_fn = codebook.replace_sample_fn = sample_vectors_distributed
