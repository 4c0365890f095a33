"""Lookup-free quantization, whose codes are the signs of a few channels (arXiv 2310.05737)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.processes import mean_of_all, of_all
from ...core.registry import register
from .residual_fsq import ResidualFSQ, Stage


@register("bottleneck", "lfq")
class LFQ(ResidualFSQ):
    """Lookup-free quantization: the bits of a code are the signs of channels (MAGVIT-v2, arXiv 2310.05737).

    A linear layer reduces latents to one channel per bit, and another one goes back, unless the latents have as many
    channels. The entries of the codebook are all vectors of -1 and 1; the gradient passes to the channels unchanged.
    Each further codebook quantizes the residual of those before it, with entries of half their size. The first channel
    is the lowest bit. Everything is computed in single precision even under autocast.

    Of the squared distances of a frame to all entries, a softmax makes probabilities. The entropy loss is the entropy
    of the probabilities of each frame, which should be decided, minus ``diversity`` times the entropy of their mean
    over all frames of a step, whose codes should differ; with several processes, of the frames of all. Distances are
    in units of the codebook, and the loss is averaged over codebooks.

    Args:
        bits: Channels, from 1 to 18. A codebook has ``2 ** bits`` entries.
        num_codebooks: Codes per frame, from 1 to 24.
        entropy: Weight of the entropy loss, in nats.
        diversity: Weight of the entropy of the mean probabilities, relative to that of each frame.
        commitment: Weight of the mean squared distance of the residuals to their entries, averaged over the codebooks
            that each example uses, and over examples. The default is that of VQ-VAE (arXiv 1711.00937 §3.2).
        temperature: Temperature of the softmax. 0.01 is that of vector-quantize-pytorch.
        dropout: Probability that an example is quantized with a random number of codebooks in training, so that fewer
            can be used later.
    """

    def __init__(
        self,
        *,
        bits: int = 10,
        num_codebooks: int = 1,
        entropy: float = 0.1,
        diversity: float = 1.0,
        commitment: float = 0.25,
        temperature: float = 0.01,
        dropout: float = 1.0,
    ) -> None:
        if not 1 <= bits <= 18:
            raise ValueError(f"bits must be 1 to 18, not {bits}")
        super().__init__(levels=(2,) * bits, num_codebooks=num_codebooks, dropout=dropout)
        for name, weight in (("entropy", entropy), ("diversity", diversity), ("commitment", commitment)):
            if weight < 0:
                raise ValueError(f"{name} must not be negative, not {weight}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        self.entropy, self.diversity = entropy, diversity
        self.commitment, self.temperature = commitment, temperature

    def _channels(self, encoded: Tensor) -> Tensor:
        """The channels to quantize, ``[B, S, bits]``."""
        return self.project_in(encoded.float().mT)

    def _losses(self, stages: list[Stage], keep: Tensor) -> dict[str, Tensor]:
        """The entropy loss and the commitment, weighted."""
        used = keep.float()
        distances = [(stage.residual - stage.values * stage.scale).square().mean((1, 2)) for stage in stages]
        commitment = ((torch.stack(distances, 1) * used).sum(1) / used.sum(1)).mean()
        relative = torch.stack([stage.residual / stage.scale for stage in stages])
        alone, together = self.entropies(relative, used.T)
        entropy = (alone - self.diversity * together).mean()
        return {"entropy": self.entropy * entropy, "commitment": self.commitment * commitment}

    def entropies(self, values: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean entropy of each frame's probabilities, and the entropy of the mean probabilities, in nats.

        A frame's bits are independent: its distances to all entries are sums over bits. So the first is a sum over
        bits, and the mean over frames is a matrix product of the probabilities of all combinations of one half of the
        bits and of the other. That takes memory for ``2 ** (bits / 2)`` numbers per frame, not ``2 ** bits``.

        Args:
            values: The channels that each codebook quantizes, ``[K, B, S, bits]``, relative to its entries.
            used: 1 for the examples that use the codebook, otherwise 0, ``[K, B]``.

        Returns:
            Two tensors ``[K]``.
        """
        logits = 4 * values / self.temperature  # of a bit to be set: distances differ by 4 times the value
        frames = values.shape[2] * used.sum(1)
        entropies = (F.softplus(logits) - logits * logits.sigmoid()).sum(-1)
        alone = torch.einsum("kbs,kb->k", entropies, used) / mean_of_all(frames).clamp(min=1e-6)
        low, high = (_combinations(half) for half in logits.tensor_split(2, -1))
        sums = torch.einsum("kbsi,kbsj->kij", low * used[..., None, None], high)
        mean = of_all(sums[None]).sum(0) / of_all(frames[None]).sum(0).clamp(min=1)[:, None, None]
        smallest = torch.finfo(mean.dtype).tiny  # the logarithm of 0 has no gradient
        return alone, -(mean * mean.clamp(min=smallest).log()).sum((1, 2))


def _combinations(logits: Tensor) -> Tensor:
    """Logits of bits ``[…, N]`` to the probabilities of their combinations, ``[…, 2 ** N]``."""
    found = torch.ones_like(logits[..., :0].sum(-1, keepdim=True))
    for logit in logits.unbind(-1):
        set_or_not = torch.stack([-logit, logit], -1).sigmoid()
        found = (set_or_not[..., None] * found[..., None, :]).flatten(-2)
    return found
