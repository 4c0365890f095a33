"""Playing clips on the audio device while they are generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import PartitaError
from .batches import common_request, row_request
from .prompts import Row
from .request import Request
from .system import System


def check_player() -> Any:
    """Return the module sounddevice, after checking that it finds a device to play on.

    Raises:
        PartitaError: The package, its library or a device is missing.
    """
    try:
        import sounddevice
    except ImportError:
        raise PartitaError("playback requires the package sounddevice: pip install 'partita[play]'") from None
    except OSError:
        raise PartitaError(
            "playback requires the library PortAudio: install it (Debian and Ubuntu: apt install libportaudio2)"
        ) from None
    try:
        sounddevice.query_devices(kind="output")
    except (sounddevice.PortAudioError, ValueError):
        raise PartitaError("this machine has no audio device to play on: leave out --play") from None
    return sounddevice


class Player:
    """Plays audio on the default device. Used as a context manager, it waits at the end until all is played.

    Args:
        sample_rate: Sample rate in Hz.
        channels: Number of channels.

    Raises:
        PartitaError: There is no device for such audio.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        sounddevice = check_player()
        try:
            self._stream = sounddevice.OutputStream(samplerate=sample_rate, channels=channels, dtype="float32")
        except (sounddevice.PortAudioError, ValueError) as error:
            raise PartitaError(
                f"the audio device does not play {sample_rate} Hz with {channels} channels ({error}): leave out --play"
            ) from None

    def __enter__(self) -> Self:
        self._stream.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._stream.stop()
        else:
            self._stream.abort()
        self._stream.close()

    def play(self, audio: Tensor) -> None:
        """Play audio ``[C, n]`` after what was played before. This waits while the device has enough to play."""
        self._stream.write(audio.T.contiguous().numpy())


def play_each(system: System, rows: Sequence[Row], request: Request | None = None) -> Iterator[tuple[int, Tensor]]:
    """Generate and play the clips of all rows, one after the other, and yield the index of each row and its ``[C, T]``.

    What is played has the level that the system generates: the loudness of a clip is known only at its end.

    Args:
        system: System to generate with.
        rows: Rows, one clip for each.
        request: Options common to all rows, as in :func:`partita.generate_each`.

    Raises:
        PartitaError: The request or a row is invalid, or there is no device. Nothing has been generated yet.
    """
    common = common_request(request, {})
    streams = [system.stream(row_request(rows, [i], common)) for i in range(len(rows))]  # checks all requests
    with Player(system.sample_rate, system.output.spec.channels) as player:
        for i, stream in enumerate(streams):
            chunks = []
            for chunk in stream:
                chunks.append(chunk[0].cpu())
                player.play(chunks[-1])
            yield i, torch.cat(chunks, 1)
