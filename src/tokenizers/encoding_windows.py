"""Overlapping windows in which encoders whose attention sees everything encode long clips in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """The windows in which long clips are encoded, so that memory does not grow with the square of their length.

    Args:
        seconds: Length of a window, about the length of training clips. A clip that fits into one is encoded whole.
        context: Part of a window at either end from which no features are taken, except at the ends of the clip.

    Raises:
        ValueError: A window is not longer than its context.
    """

    seconds: float = 20.0
    context: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.context < self.seconds:
            raise ValueError(f"a window of {self.seconds} s must be longer than twice its context of {self.context} s")

    def slices(self, frames: int, frame_rate: float) -> list[tuple[slice, slice]]:
        """Windows of a clip of a number of frames, and which frames of each window are kept.

        >>> for window, kept in Windows(seconds=6, context=1).slices(9, frame_rate=1):
        ...     print(window.start, window.stop, kept.start, kept.stop)
        0 6 0 4
        3 9 1 5
        3 9 5 6
        """
        length, context = max(1, round(self.seconds * frame_rate)), round(self.context * frame_rate)
        if frames <= length:
            return [(slice(0, frames), slice(0, frames))]
        step, found = max(1, length - 2 * context), []
        for start in range(0, frames, step):
            stop = min(start + step, frames)
            first = max(0, min(start - context, frames - length))  # a window at the end is as long as the others
            found.append((slice(first, first + length), slice(start - first, stop - first)))
        return found

    def encode(self, encode: Callable[[Tensor], Tensor], audio: Tensor, hop: int, frame_rate: float) -> Tensor:
        """Encode audio ``[B, C, T]`` as ``[B, D, ceil(T / hop)]`` window by window.

        Args:
            encode: Function from the audio of a window to its frames.
            audio: The audio of whole clips.
            hop: Samples per frame.
            frame_rate: Frames per second.
        """
        made = [
            encode(audio[..., window.start * hop : window.stop * hop])[..., kept]
            for window, kept in self.slices(-(-audio.shape[-1] // hop), frame_rate)
        ]
        return torch.cat(made, -1)


WINDOWS = Windows()
