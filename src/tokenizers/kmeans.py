"""Semantic tokens by k-means clustering of features (AudioLM, 2209.03143 §III; MusicLM, 2301.11325)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.processes import drawing_together, from_first, of_all
from ..core.registry import register
from ..layers.chunks import Local, Step
from ..layers.clustering import lloyd, nearest, plus_plus
from ..layers.standardize import Standardize
from ..metrics.codec import CodebookUsage
from .base import Tokenizer

MEMORY = 0.98
"""Decay of the moving average of cluster usage."""


@register("tokenizer", "kmeans")
class KMeans(Tokenizer):
    """K-means clusters of another tokenizer's latents: one code per frame, for the content rather than the sound.

    The first ``updates`` training batches provide the mean and deviation of each channel, and a random sample of
    frames.
    On this sample, k-means++ and Lloyd's algorithm find the clusters, which then follow the remaining batches: each
    center is the mean of all frames assigned to it (mini-batch k-means, Sculley 2010). The features are frozen.

    MusicLM and AudioLM use standardized activations of w2v-BERT's layer 7 and 1024 clusters.

    Args:
        features: A continuous tokenizer, which stays frozen.
        cardinality: Number of clusters.
        updates: Number of training batches for the statistics and the initial clusters.
        reservoir: Number of frames, drawn at random from those batches, to which the initial clusters are fitted.
        iterations: Iterations of Lloyd's algorithm on these frames.
        revive_below: A cluster whose share of frames, averaged over about 50 batches, is less than this fraction of a
            fair share moves to a frame that is far from all clusters.
    """

    training_only = ("reservoir", "priority", "count", "share")
    centers: nn.Parameter
    started: Tensor
    reservoir: Tensor
    priority: Tensor
    count: Tensor
    share: Tensor

    def __init__(
        self,
        *,
        features: Tokenizer,
        cardinality: int = 1024,
        updates: int = 50,
        reservoir: int = 65536,
        iterations: int = 30,
        revive_below: float = 0.02,
    ) -> None:
        super().__init__()
        spec = features.spec
        if spec.dim is None:
            raise ValueError(f"features must be continuous, but {features.registered_name} yields {spec}")
        if cardinality < 2:
            raise ValueError(f"cardinality must be at least 2, not {cardinality}")
        if reservoir < cardinality:
            raise ValueError(f"reservoir must hold a frame for each of {cardinality} clusters, not {reservoir}")
        for name, value in (("updates", updates), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= revive_below < 1:
            raise ValueError(f"revive_below must be at least 0 and below 1, not {revive_below}")
        self.automatic_optimization = False
        self.features, self.updates, self.iterations = features, updates, iterations
        self.revive_below = revive_below
        self.standardize = Standardize(spec.dim, updates)
        self.centers = nn.Parameter(torch.randn(cardinality, spec.dim))
        self.usage = CodebookUsage(1, cardinality)
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("reservoir", torch.zeros(reservoir, spec.dim))
        self.register_buffer("priority", torch.full((reservoir,), -1.0))  # −1 for empty slots
        self.register_buffer("count", torch.zeros(cardinality))
        self.register_buffer("share", torch.ones(cardinality))

    @property
    def spec(self) -> RepresentationSpec:
        """Spec with one code per frame of the features."""
        spec = self.features.spec
        return RepresentationSpec(spec.sample_rate, spec.channels, spec.frame_rate, 1, len(self.centers))

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to the nearest clusters ``[B, 1, S]``."""
        return self._codes(self._latents(audio))

    @torch.no_grad()
    def decode(self, representation: Tensor) -> Tensor:
        """Decode the centers of clusters ``[B, 1, S]`` with the tokenizer of the features.

        Raises:
            NotImplementedError: The tokenizer of the features cannot decode.
        """
        return self.features.decode(self._features(representation))

    def encoding_steps(self, latents: bool = False) -> list[Step] | None:
        """The steps of the features, and the choice of the nearest clusters."""
        steps = None if latents else self.features.encoding_steps()
        return None if steps is None else [*steps, Local(self._codes)]

    def decoding_steps(self, latents: bool = False) -> list[Step] | None:
        """The centers of clusters, and the steps of the features."""
        steps = None if latents else self.features.decoding_steps()
        return None if steps is None else [Local(self._features), *steps]

    def _codes(self, latents: Tensor) -> Tensor:
        """Nearest clusters ``[B, 1, S]`` of the features' latents ``[B, D, S]``."""
        return nearest(self._standardized(latents), self.centers)[1][:, None]

    def _features(self, representation: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` of the centers of clusters ``[B, 1, S]``."""
        return self.standardize.inverse(self.centers[representation[:, 0]].mT)

    def setup(self, stage: str) -> None:
        """Freeze everything but the centers."""
        self.features.requires_grad_(False)

    @torch.no_grad()
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Learn from ``batch["audio"]`` ``[B, C, T]``."""
        latents = self._latents(batch["audio"])
        if not self.started:
            self.standardize.observe(latents)
            self._collect(of_all(latents.mT.flatten(0, 1)))
            if self.standardize.count >= self.updates:
                with drawing_together(latents.device):
                    self._start()
        frames = self._standardized(latents).flatten(0, 1)
        distances, codes = nearest(frames, self.centers)
        self._follow(of_all(frames), of_all(distances), of_all(codes))
        self.log("train/loss", distances.mean() / frames.shape[1], prog_bar=True)

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Initialize the clusters from the frames so far if the training was too short to do so."""
        if not self.started:
            self._start()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log how far the frames of ``batch["audio"]`` ``[B, C, T]`` are from their clusters."""
        frames = self._standardized(self._latents(batch["audio"]))
        distances, codes = nearest(frames, self.centers)
        self.usage.update(codes[:, None])
        self.log("val/loss", distances.mean() / frames.shape[-1], prog_bar=True, batch_size=len(frames), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the usage of the clusters."""
        usage = self.usage.compute().items()
        self.log_dict({f"val/{name}": value.reshape(-1)[0] for name, value in usage}, sync_dist=True)
        self.usage.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Mini-batch k-means is gradient descent on the squared distance, at a rate of its own for each center."""
        return torch.optim.SGD([self.centers], lr=1.0)

    def _latents(self, audio: Tensor) -> Tensor:
        """The features ``[B, D, S]`` of audio ``[B, C, T]``; they are not trained here."""
        return self.features.eval().encode(audio).float()

    def _standardized(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to frames ``[B, S, D]``."""
        return self.standardize(latents).mT

    def _collect(self, frames: Tensor) -> None:
        """Keep a uniform sample of all frames so far: each gets a random number, and the highest are kept."""
        candidates = torch.cat([self.reservoir, frames])
        with drawing_together(frames.device):
            priority = torch.cat([self.priority, torch.rand(len(frames), device=frames.device)])
        kept = priority.topk(len(self.reservoir)).indices
        self.reservoir.copy_(candidates[kept])
        self.priority.copy_(priority[kept])
        from_first(self.reservoir, self.priority)

    def _start(self) -> None:
        """Fit the clusters to the frames that were kept."""
        kept = self.reservoir[self.priority >= 0]
        frames = self.standardize(kept.mT[None])[0].mT
        with torch.autocast(frames.device.type, enabled=False):
            centers = lloyd(frames, plus_plus(frames, len(self.centers)), self.iterations)
        self.centers.copy_(centers)
        self.count.copy_(torch.bincount(nearest(frames, centers)[1], minlength=len(centers)))
        self.started.fill_(True)
        from_first(self.centers.data, self.count)

    def _follow(self, frames: Tensor, distances: Tensor, codes: Tensor) -> None:
        """Move each center to the mean of all its frames, or elsewhere if it has too few."""
        found = torch.bincount(codes, minlength=len(self.centers))
        self.count += found * self.started
        optimizer: Any = self.optimizers()
        with torch.enable_grad():  # the rate is one over the number of frames so far, and zero before initialization
            rates = self.started / self.count.clamp(min=1)
            # the gradient of an index would be summed in the order in which threads come to it
            loss = (F.embedding(codes, self.centers) - frames).square().sum(1) * rates[codes] / 2
            self.manual_backward(loss.sum())
        optimizer.step()
        optimizer.zero_grad()
        if not self.started:
            return
        self.share.lerp_(found * (len(found) / len(frames)), 1 - MEMORY)
        lost = (self.share < self.revive_below).nonzero()[:, 0][: len(frames)]
        if len(lost):
            with drawing_together(frames.device):
                self.centers[lost] = frames[torch.multinomial(distances + 1e-12, len(lost))]
            self.count[lost], self.share[lost] = 0.0, 1.0
            from_first(self.centers.data)
