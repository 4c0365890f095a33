"""Residual vector quantization with codebooks that follow the data (SoundStream, 2107.03312 §III-C)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional as F

from ...core.processes import drawing_together, world_size
from ...core.registry import register
from .base import Bottleneck, Passed
from .dropout import codebooks_in_use


class Quantized(NamedTuple):
    """The result of quantization.

    Args:
        latents: ``[B, D, S]``; the gradient passes to the input unchanged.
        codes: ``[B, K, S]`` int64.
        commitment: Mean squared distance of the residuals to their codebook entries, averaged over the codebooks that
            each example uses, and over examples.
    """

    latents: Tensor
    codes: Tensor
    commitment: Tensor


@register("bottleneck", "rvq")
class RVQ(Bottleneck):
    """Residual vector quantization: each codebook quantizes the residual of those before it.

    Until the first training step after the warm-up, the codebooks are random; on that step they are fitted to the batch
    by k-means, and from then on they follow the data as moving averages. Everything is computed in full precision even
    under autocast.

    Args:
        num_codebooks: Codes per frame.
        cardinality: Entries per codebook.
        decay: Decay of the moving averages that define the codebook entries.
        dropout: Probability that an example is quantized with a random number of codebooks in training, so that fewer
            can be used later. It is 1 in SoundStream, 0.5 in DAC and 0 in MusicGen's EnCodec. A codebook learns nothing
            from an example that does not use it.
        codebook_choices: Numbers of codebooks, one of which is drawn for each training batch, as EnCodec draws
            bandwidths; then ``dropout`` must be 0. Codebooks that a batch does not use stay as they are. ``None`` uses
            all.
        revive_below: An entry used less than this fraction of its fair share, on average, is replaced by a random
            frame. The fair share is the number of frames per step that use the codebook, divided by its entries.
            SoundStream and EnCodec give a count of 2 instead, which suits only one batch size, and not a codebook that
            dropout leaves few frames: with EnCodec's batches (64 × 75 frames over 1,024 entries) it is 0.43;
            SoundStream's are not published.
        kmeans_iterations: Iterations of the clustering that initializes the codebooks.
        warmup_steps: Training steps in which latents pass unchanged. Codebooks that are fitted to the latents of an
            untrained encoder collapse.
    """

    started: Tensor

    def __init__(
        self,
        *,
        num_codebooks: int = 8,
        cardinality: int = 1024,
        decay: float = 0.99,
        dropout: float = 1.0,
        codebook_choices: tuple[int, ...] | None = None,
        revive_below: float = 0.1,
        kmeans_iterations: int = 50,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__()
        if num_codebooks < 1 or cardinality < 2:
            raise ValueError(
                f"a quantizer needs a codebook of two entries, not {num_codebooks} codebooks of {cardinality}"
            )
        for name, value in (("decay", decay), ("dropout", dropout), ("revive_below", revive_below)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value}")
        choices = None if codebook_choices is None else tuple(codebook_choices)
        if choices is not None and not (choices and all(1 <= number <= num_codebooks for number in choices)):
            raise ValueError(f"codebook_choices must be numbers from 1 to {num_codebooks}, not {list(choices)}")
        if choices is not None and dropout:
            raise ValueError(f"with codebook_choices, dropout must be 0, not {dropout:g}: either draws the codebooks")
        self.num_codebooks, self.cardinality, self.codebook_choices = num_codebooks, cardinality, choices
        self.decay, self.dropout, self.revive_below = decay, dropout, revive_below
        self.kmeans_iterations, self.warmup_steps = kmeans_iterations, warmup_steps

    def build(self, dim: int) -> None:
        """Create the codebooks, for latents of width ``dim``."""
        super().build(dim)
        from loguru import logger
        from vector_quantize_pytorch import ResidualVQ

        # The library warns if a batch has fewer frames than entries, but revival fixes that within a few steps.
        logger.disable("vector_quantize_pytorch")
        self.layers = ResidualVQ(
            dim=dim,
            num_quantizers=self.num_codebooks,
            codebook_size=self.cardinality,
            decay=self.decay,
            kmeans_iters=self.kmeans_iterations,
            threshold_ema_dead_code=1,  # set on each step
            rotation_trick=False,
        )
        self.register_buffer("started", torch.tensor(False))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """All codebooks have the same number of entries."""
        return (self.cardinality,) * self.num_codebooks

    @property
    def codebooks(self) -> Tensor:
        """A copy of the codebooks, ``[K, cardinality, D]``."""
        return self.layers.codebooks

    def forward(self, encoded: Tensor, step: Tensor, keep: Tensor | None = None) -> Passed:
        """The quantized latents and the commitment. In training, the codebooks follow the batch.

        They stay as they are if the encoder is frozen (``fit.trainable``), so that its output has no gradient: codes
        keep their meaning for stages that were trained on them.

        The gradient passes to the input unchanged. The commitment is the mean squared distance of the residuals to
        their codebook entries, averaged over the codebooks that each example uses, and over examples.

        Args:
            encoded: The encoder's output ``[B, D, S]``.
            step: Training steps so far, a scalar.
            keep: The codebooks that each example uses, ``[B, K]`` bool. ``None`` draws them.
        """
        if self.training and step < self.warmup_steps and not self.started:
            return Passed(encoded, {})
        latents, _, commitment = self.quantize(encoded, follow=encoded.requires_grad or not self.started, keep=keep)
        return Passed(latents, {"commitment": commitment})

    def quantize(self, latents: Tensor, *, follow: bool = True, keep: Tensor | None = None) -> Quantized:
        """Quantize latents ``[B, D, S]``. In training, the codebooks follow the batch if ``follow`` is true.

        ``keep`` is as in :meth:`forward`.
        """
        with torch.autocast(latents.device.type, enabled=False):
            frames = latents.float().mT
            dropout = self.dropout if self.training else 0.0
            if keep is None:
                choices = self.codebook_choices if self.training else None
                keep = codebooks_in_use(self.num_codebooks, dropout, len(frames), frames.device, choices)
            left_out = ~keep.any(0) if self.codebook_choices else None
            if self.training and follow:
                self._prepare(frames.detach(), keep)
            residual, total, codes, distances = frames, torch.zeros_like(frames), [], []
            for k, (layer, used) in enumerate(zip(self.layers.layers, keep.unbind(1), strict=True)):
                learns_from = used[:, None].expand(frames.shape[:2]) if dropout else None
                frozen = not follow or (left_out is not None and bool(left_out[k]))
                entries, indices, _ = layer._codebook(residual.detach(), mask=learns_from, freeze_codebook=frozen)
                codes.append(indices)
                distances.append((residual - entries).square().mean((1, 2)) * used)
                residual = residual - entries
                total = total + entries * used[:, None, None]
            commitment = (torch.stack(distances, 1).sum(1) / keep.sum(1)).mean()
            # straight through, once for all codebooks
            return Quantized(latents + (total.mT - latents).detach(), torch.stack(codes, 1), commitment)

    def encode(self, encoded: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Latents ``[B, D, S]`` to codes ``[B, num_codebooks, S]``, ``None`` uses all codebooks."""
        with torch.autocast(encoded.device.type, enabled=False):
            residual, codes = encoded.float().mT, []
            for codebook in self.codebooks[:num_codebooks]:
                codes.append(torch.cdist(residual, codebook).argmin(-1))
                residual = residual - F.embedding(codes[-1], codebook)
            return torch.stack(codes, 1)

    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of all codebooks or the first few, to latents ``[B, D, S]``."""
        books, codes = self.codebooks, representation
        return torch.stack([F.embedding(codes[:, k], books[k]) for k in range(codes.shape[1])]).sum(0).mT

    def doubt(self, steps: int) -> str | None:
        """A warning that the codebooks learn nothing if the training ends within the warm-up."""
        if steps > self.warmup_steps:
            return None
        return (
            f"the codebooks stay random, as they learn only after bottleneck.warmup_steps ({self.warmup_steps:,}): "
            f"raise fit.steps ({steps:,}), or lower bottleneck.warmup_steps"
        )

    def _prepare(self, frames: Tensor, keep: Tensor) -> None:
        """Share statistics between processes, scale the threshold to the batch, and start on the first one."""
        processes = world_size()
        fewest = keep.sum(0)  # lowest number of examples of a process that use each codebook
        if processes > 1:
            torch.distributed.all_reduce(fewest, torch.distributed.ReduceOp.MIN)
        for k, (layer, examples) in enumerate(zip(self.layers.layers, fewest.tolist(), strict=True)):
            codebook = layer._codebook
            if processes > 1:
                _synchronize(codebook)
            used = 1 - self.dropout * k / self.num_codebooks  # of all frames, on average
            share = processes * frames.shape[0] * frames.shape[1] * used / self.cardinality
            codebook.threshold_ema_dead_code = self.revive_below * share
            # either all processes contribute frames to replace entries, or none
            codebook.has_dead_code_replacement = self.revive_below > 0 and examples > 0
            codebook.reset_cluster_size = share
        if not self.started:
            for layer in self.layers.layers:
                layer._codebook.initted.fill_(False)
            with torch.no_grad():
                self.layers(frames, freeze_codebook=True)
            self.started.fill_(True)


def _synchronize(codebook: Any) -> None:
    """Make a codebook learn from the batches of all processes.

    The library decides this in its constructor, which runs before the processes exist here.
    """
    codebook.use_ddp = True
    codebook.all_reduce_fn = codebook.kmeans_all_reduce_fn = torch.distributed.all_reduce
    codebook.sample_fn = codebook.replace_sample_fn = _sample


def _sample(frames: Tensor, number: int) -> Tensor:
    """Draw ``[1, number, D]`` from the frames ``[1, N, D]`` of all processes, as a single process would."""
    from vector_quantize_pytorch.vector_quantize_pytorch import (
        all_gather_sizes,
        all_gather_variably_sized,
        sample_vectors,
    )

    sizes = all_gather_sizes(frames[0], dim=0).tolist()
    whole = torch.cat(all_gather_variably_sized(frames[0].contiguous(), sizes))
    with drawing_together(frames.device):
        return sample_vectors(whole, number)[None]
