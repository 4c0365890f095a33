"""Quantizer dropout: training with random numbers of codebooks, so that fewer can be used later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.processes import drawing_together, per_example


def codebooks_in_use(
    num_codebooks: int, dropout: float, batch: int, device: torch.device, choices: Sequence[int] | None = None
) -> Tensor:
    """Draw the number of codebooks of each example, as SoundStream does (arXiv 2107.03312 §III-C).

    Several processes that train together draw as one with all of their examples.

    Args:
        num_codebooks: Number of codebooks, ``K``.
        dropout: Probability that an example uses a random number of them, from 1 to ``K``; the others use all.
        batch: Number of examples, ``B``.
        device: Device of the result.
        choices: Numbers of codebooks, one of which is drawn for all examples (EnCodec, arXiv 2210.13438 §3.2). ``None``
            draws by ``dropout``.

    Returns:
        ``[B, K]`` bool, true for the codebooks that each example uses.
    """
    keep = torch.full((batch,), num_codebooks, device=device)
    if choices:
        with drawing_together(device):
            keep = torch.tensor(choices, device=device)[torch.randint(len(choices), (), device=device)].expand(batch)
    elif dropout:
        fewer = per_example(lambda n: torch.randint(1, num_codebooks + 1, (n,), device=device), batch, device)
        chosen = per_example(lambda n: torch.rand(n, device=device), batch, device)
        keep = torch.where(chosen < dropout, fewer, keep)
    return torch.arange(num_codebooks, device=device) < keep[:, None]
