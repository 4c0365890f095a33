"""Mixing the audio of several representations at the end of a chain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.resample import convert
from ..errors import PartitaError


def mixed(clips: Sequence[Tensor], specs: Sequence[RepresentationSpec]) -> Tensor:
    """Sum clips ``[B, C, T]`` at the sample rate and channels of the first. Shorter ones are padded with silence.

    Args:
        clips: One or more clips.
        specs: Specification of each clip, with its sample rate and channels.
    """
    first = specs[0]
    alike = [
        convert(clip, spec.sample_rate, first.sample_rate, first.channels)
        for clip, spec in zip(clips, specs, strict=True)
    ]
    longest = max(clip.shape[-1] for clip in alike)
    return torch.stack([F.pad(clip, (0, longest - clip.shape[-1])) for clip in alike]).sum(0)


class Mix:
    """Output of a system whose chain has several ends. A mix can be neither encoded nor decoded as one representation.

    Args:
        names: Names of the representations at the ends.
        spec: Specification of the first one, with the sample rate and channels of the mix.
    """

    def __init__(self, names: Sequence[str], spec: RepresentationSpec) -> None:
        self.names, self.spec = list(names), spec

    @property
    def registered_name(self) -> str:
        """Names of the representations, joined by plus signs."""
        return " + ".join(self.names)

    def encode(self, audio: Tensor) -> Tensor:
        """Refuse to encode a mix.

        Raises:
            PartitaError: Always.
        """
        raise PartitaError(
            f"{' and '.join(self.names)} each encode a part of the mix; the mix itself cannot be encoded"
        )

    def decode(self, representation: Tensor) -> Tensor:
        """Refuse to decode a single representation as a mix.

        Raises:
            PartitaError: Always.
        """
        raise PartitaError(f"{' and '.join(self.names)} are decoded separately: use System.decode")
