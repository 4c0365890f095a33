"""What is heard of a system: the ends of its chain, and their mix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.resample import convert
from ..errors import PartitaError


def mixed(clips: Sequence[Tensor], specs: Sequence[RepresentationSpec]) -> Tensor:
    """The sum of clips ``[B, C, T]``, at the rate and with the channels of the first; shorter ones end in silence.

    Args:
        clips: One or more.
        specs: Whose sample rate and channels each has.
    """
    first = specs[0]
    alike = [
        convert(clip, spec.sample_rate, first.sample_rate, first.channels)
        for clip, spec in zip(clips, specs, strict=True)
    ]
    longest = max(clip.shape[-1] for clip in alike)
    return torch.stack([F.pad(clip, (0, longest - clip.shape[-1])) for clip in alike]).sum(0)


class Mix:
    """The output of a system whose chain has several ends. It has a rate, but nothing encodes a mix as its parts.

    Args:
        names: Names of the ends.
        spec: Facts of the first of them.
    """

    def __init__(self, names: Sequence[str], spec: RepresentationSpec) -> None:
        self.names, self.spec = list(names), spec

    @property
    def registered_name(self) -> str:
        """Names of the ends."""
        return " + ".join(self.names)

    def encode(self, audio: Tensor) -> Tensor:
        """No mix can be encoded.

        Raises:
            PartitaError: Always.
        """
        raise PartitaError(f"{' and '.join(self.names)} each encode a part of the mix; the mix itself is not encoded")

    def decode(self, representation: Tensor) -> Tensor:
        """No single representation is that of a mix.

        Raises:
            PartitaError: Always.
        """
        raise PartitaError(f"{' and '.join(self.names)} are decoded each on its own: use System.decode")
