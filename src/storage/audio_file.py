"""Audio files: what is in them, and clips of them at any rate, by random access. Files are resampled here alone."""

from __future__ import annotations

import io
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from ..errors import PartitaError, printable
from .files import replacing_file

SUFFIXES = frozenset((".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"))
"""What names of audio files end in. Files that turn out not to be readable are reported, not passed over."""

MARGIN = 0.05
"""Seconds read on either side of a clip, so that the resampler sees what it would in the whole file."""
LOUDEST = 100.0
"""Largest sample that is believed, 40 dB above full scale: what is louder is damaged or not scaled to [-1, 1]."""
SAMPLE_RATES = (1_000, 768_000)
"""Lowest and highest rate of audio, in Hz. A header that claims another one is damaged."""
MOST_CHANNELS = 64
"""Channels that a file can have; ambisonics of the seventh order has as many."""

_BLOCK = 1 << 18
"""Samples decoded at once where a whole file is checked."""
_LARGEST_OGG_PAGE = 65307
_MOST_WRITTEN = 16384
_PCM = {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}
_WRITABLE: dict[str, tuple[str, dict[int, str]]] = {
    ".aif": ("AIFF", _PCM),
    ".aiff": ("AIFF", _PCM),
    ".au": ("AU", _PCM),
    ".caf": ("CAF", _PCM),
    ".flac": ("FLAC", {16: "PCM_16", 24: "PCM_24"}),
    ".mp3": ("MP3", {0: "MPEG_LAYER_III"}),
    ".oga": ("OGG", {0: "VORBIS"}),
    ".ogg": ("OGG", {0: "VORBIS"}),
    ".opus": ("OGG", {0: "OPUS"}),
    ".w64": ("W64", _PCM),
    ".wav": ("WAV", _PCM),
}
"""By ending, the format and by bits per sample its subtypes, the usual one first; 0 where there is no such number."""


def flac(audio: np.ndarray, sample_rate: int) -> bytes:
    """Audio ``[C, T]`` in [-1, 1] as the bytes of a FLAC of 16 bits, ``sample_rate`` in Hz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.T, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class AudioInfo(NamedTuple):
    """Length in samples, rate in Hz and number of channels of a file."""

    num_samples: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Length of the file."""
        return self.num_samples / self.sample_rate


def inspect_audio(path: Path) -> AudioInfo:
    """Look at a file's header and at its end, without reading what is between.

    Raises:
        PartitaError: It is missing, empty, truncated or not audio; the message says which, without the path.
    """
    with _opened(path) as file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
        if file.format == "OGG" and not _ogg_ends(path):
            raise PartitaError("the file is truncated: its last page is missing")
        if info.num_samples <= 0:
            raise PartitaError("there are no samples in it")
        if _promises_more(file.extra_info):
            raise PartitaError("the file is truncated: its header promises more than there is")
        last = min(info.num_samples, info.sample_rate // 10 + 1)
        file.seek(info.num_samples - last)
        if len(file.read(last, dtype="float32")) < last:
            raise PartitaError("the file is truncated: its end cannot be read")
    return info


def check_audio(path: Path) -> None:
    """Decode a whole file, a block at a time.

    Raises:
        PartitaError: Somewhere in it there is something wrong; the message says what and where, without the path.
    """
    info, done = inspect_audio(path), 0
    with _opened(path) as file:
        while done < info.num_samples:
            try:
                sound = file.read(min(_BLOCK, info.num_samples - done), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                where = f"between {done / info.sample_rate:.1f} and {(done + _BLOCK) / info.sample_rate:.1f} s"
                raise PartitaError(f"it cannot be decoded {where}: {error.error_string}") from None
            if not len(sound):
                raise PartitaError(f"it ends after {done / info.sample_rate:.1f} s: the file is truncated")
            _check_samples(sound, done, info.sample_rate)
            done += len(sound)


def read_clip(
    path: Path, start: float, seconds: float | None, sample_rate: int, channels: int, longest: float | None = None
) -> tuple[np.ndarray, int]:
    """A clip of a file, the same samples as that part of the whole file resampled.

    Args:
        path: Of the file.
        start: In seconds; rounded to a sample of the result.
        seconds: Length of the clip; all that is left of the file where none is given.
        sample_rate: Of the result, in Hz.
        channels: Of the result: the file's own as they are, one copied, or several mixed to one (and copied).
        longest: Seconds beyond which a clip is refused, before any of it is read; none for any length.

    Returns:
        Audio ``[C, T]`` float32 in [-1, 1], padded with silence where the file ends, and how many samples are not.

    Raises:
        PartitaError: The file cannot be read, there; the message names it.
    """
    try:
        with _opened(path) as file:
            source = file.samplerate
            begin = round(start * sample_rate)
            left = max(0, math.ceil(file.frames * sample_rate / source) - begin)
            length = left if seconds is None else round(seconds * sample_rate)
            if longest is not None and length > round(longest * sample_rate):
                raise PartitaError(
                    f"it lasts {length / sample_rate:,.1f} s, and at most {longest:g} s can be used here"
                )
            num_samples = min(length, left)
            # Both rates have a sample at every multiple of this step; a clip that is cut there has the phase of the
            # whole file.
            common = math.gcd(source, sample_rate)
            source_step, step = source // common, sample_rate // common
            if num_samples == 0:
                return np.zeros((channels, length), np.float32), 0
            margin = 0 if source == sample_rate else math.ceil(MARGIN * source)
            steps = max(0, begin * source // sample_rate - margin) // source_step
            first = steps * source_step
            last = min(file.frames, math.ceil((begin + num_samples) * source / sample_rate) + margin)
            file.seek(first)
            sound = file.read(max(0, last - first), dtype="float32", always_2d=True)
            if len(sound) < last - first:
                raise PartitaError(f"it ends after {(first + len(sound)) / source:.1f} s: the file is truncated")
            _check_samples(sound, first, source)
    except PartitaError as error:
        raise PartitaError(f"{printable(path)}: {error}") from None
    if sound.shape[1] != channels:
        sound = np.repeat(sound.mean(axis=1, keepdims=True), channels, axis=1)
    if source != sample_rate:
        # of a length between two samples soxr leaves out the last: silence follows, and enough of it for one more
        sound = np.pad(sound, ((0, source // sample_rate + 2), (0, 0)))
        sound = soxr.resample(sound, source, sample_rate)
    skip = begin - steps * step
    clip = sound[skip : skip + num_samples].T
    padded = np.zeros((channels, length), np.float32)
    padded[:, : clip.shape[1]] = np.clip(clip, -1, 1)
    return padded, num_samples


def write_audio(path: str | Path, audio: np.ndarray, sample_rate: int, bits: int | None = None) -> None:
    """Write audio ``[C, T]`` in [-1, 1] in the format that the name ends in, whole or not at all.

    Args:
        path: Of the file.
        audio: What is outside [-1, 1] is clipped where the samples are integers.
        sample_rate: In Hz.
        bits: Per sample, of formats without loss: 16 (unless given), 24, or 32 (floating point).

    Raises:
        PartitaError: The format, or the rate in this format, is not known, or the file cannot be written there.
    """
    path, (kind, subtype) = Path(path), check_writable(path, bits)
    encoded = io.BytesIO()  # libsndfile says nothing when the end of a FLAC, MP3 or Ogg finds no room on the disk
    try:
        _write(encoded, audio.T, sample_rate, kind, subtype)
        with replacing_file(path) as new:
            new.write_bytes(encoded.getbuffer())
    except (soundfile.LibsndfileError, OSError) as error:
        raise PartitaError(f"cannot write {path}: {getattr(error, 'error_string', error)}") from None


def check_writable(
    path: str | Path, bits: int | None = None, sample_rate: int | None = None, channels: int = 1
) -> tuple[str, str]:
    """The names of the format that a path ends in and of the way its samples are kept.

    Raises:
        PartitaError: It is none that can be written, or not with so many bits, this rate or so many channels.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITABLE:
        raise PartitaError(f"{path}: cannot tell the format from this name; end it in .wav, .flac, .ogg or .mp3")
    kind, subtypes = _WRITABLE[suffix]
    if bits is not None and bits not in subtypes:
        known = ", ".join(str(depth) for depth in subtypes if depth)
        raise PartitaError(f"{path}: {suffix} has no {bits} bits per sample; it takes {known or 'no number of bits'}")
    subtype = subtypes[bits] if bits is not None else next(iter(subtypes.values()))
    if sample_rate is not None:
        try:
            _write(io.BytesIO(), np.zeros((1, channels), np.float32), sample_rate, kind, subtype)
        except soundfile.LibsndfileError as error:
            raise PartitaError(
                f"{path}: no {suffix} of {sample_rate} Hz with {channels} channels: {error.error_string}"
            ) from None
    return kind, subtype


def _write(file: Any, samples: np.ndarray, sample_rate: int, kind: str, subtype: str) -> None:
    """Write samples ``[T, C]``, in blocks: libsndfile's Vorbis encoder overflows the stack on some minutes at once."""
    with soundfile.SoundFile(file, "w", sample_rate, samples.shape[1], subtype, format=kind) as sink:
        for start in range(0, len(samples), _MOST_WRITTEN):
            sink.write(samples[start : start + _MOST_WRITTEN])


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """An audio file to read from, once it is known to be a file and its header to be possible.

    A pipe or a device, whose reading may never end, is not even opened.

    Raises:
        PartitaError: It cannot be read, now or while this lasts; the message says why, without the path.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PartitaError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
        if status.st_size == 0:
            raise PartitaError("the file is empty")
        # By its number: libsndfile knows no name that is not UTF-8, and asks for more of what ends in .raw.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            with soundfile.SoundFile(descriptor, closefd=False) as file:
                if not SAMPLE_RATES[0] <= file.samplerate <= SAMPLE_RATES[1]:
                    raise PartitaError(f"its header is damaged: it claims a sample rate of {file.samplerate:,} Hz")
                if file.channels > MOST_CHANNELS:
                    raise PartitaError(f"its header is damaged: it claims {file.channels:,} channels")
                yield file
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise PartitaError("there is no such file") from None
    except soundfile.LibsndfileError as error:
        raise PartitaError(f"cannot be read as audio: {error.error_string}") from None
    except OSError as error:
        raise PartitaError(f"cannot be read: {error.strerror or error}") from None
    except (RuntimeError, ValueError, MemoryError) as error:
        raise PartitaError(f"cannot be read: {error}") from None


def _check_samples(sound: np.ndarray, first: int, sample_rate: int) -> None:
    """See that samples ``[T, C]`` are audio, the first of them at sample ``first`` of the file.

    Raises:
        PartitaError: They are not; the message says where and what is wrong, without the path.
    """
    wrong = ~(np.abs(sound) <= LOUDEST).all(axis=1)  # NaN is not, either
    if wrong.any():
        at = int(wrong.argmax())
        worst = float(sound[at][~(np.abs(sound[at]) <= LOUDEST)][0])
        value = f"a sample of {worst:.3g}, where audio lies between -1 and 1"
        what = value if math.isfinite(worst) else "a sample that is not a number"
        raise PartitaError(f"there is {what} at {(first + at) / sample_rate:.2f} s")


def _promises_more(log: str) -> bool:
    """Whether libsndfile notes that there is less in the file than its header says, of which it reads what there is.

    Programs that write to a pipe cannot know a length and put the largest there is.
    """
    note = re.search(r"^\s*(?:data|SSND|riff) : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    return note is not None and int(note[2]) < int(note[1]) < 0x7FFF0000


def _ogg_ends(path: Path) -> bool:
    """Whether the last page of an Ogg file is whole and says that it is the last (RFC 3533, §6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LARGEST_OGG_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
