"""Audio files: headers, random access to clips at any sample rate, and writing. Only this module resamples files."""

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
"""File name extensions of audio. A file with one of them that cannot be read is reported, not skipped."""

MARGIN = 0.05
"""Seconds that are read on either side of a clip, so that the resampler sees the same samples as in the whole file."""
RUN_UP = {"MP3": 36_864, "OGG": 65_536}
"""Samples that are decoded before a clip and dropped, by format. The first frames after a seek lack the bits of earlier
frames in MP3 (up to 511 bytes, at most 23 frames), and may be misplaced within the last page in Ogg."""
LOUDEST = 100.0
"""Largest accepted sample, 40 dB above full scale. A file with larger ones is damaged or not scaled to [-1, 1]."""
SAMPLE_RATES = (1_000, 768_000)
"""Lowest and highest accepted sample rate, in Hz. A header with another rate is damaged."""
MOST_CHANNELS = 64
"""Maximum number of channels of a file; ambisonics of the seventh order has this many."""

_BLOCK = 1 << 18
"""Number of samples that are decoded at once when a whole file is checked."""
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
"""Format of each extension, and its subtype by bits per sample, the usual one first; the key 0 means no bit depth."""


def flac(audio: np.ndarray, sample_rate: int) -> bytes:
    """Audio ``[C, T]`` in [-1, 1] as the bytes of a 16-bit FLAC file; ``sample_rate`` in Hz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.T, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class AudioInfo(NamedTuple):
    """Length in samples, sample rate in Hz and number of channels of a file."""

    num_samples: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """Length of the file in seconds."""
        return self.num_samples / self.sample_rate


def inspect_audio(path: Path) -> AudioInfo:
    """Read the header of a file and check its end, without reading what is between.

    Raises:
        PartitaError: The file is missing, empty, truncated or not audio; the message says which, without the path.
    """
    with _opened(path) as file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
        if file.format == "OGG" and not _ogg_ends(path):
            raise PartitaError("the file is truncated: its last page is missing")
        if info.num_samples <= 0:
            raise PartitaError("it contains no samples")
        if _promises_more(file.extra_info):
            raise PartitaError("the file is truncated: its header promises more samples than it contains")
        last = min(info.num_samples, info.sample_rate // 10 + 1)
        file.seek(info.num_samples - last)
        if len(file.read(last, dtype="float32")) < last:
            raise PartitaError("the file is truncated: its end cannot be read")
    return info


def check_audio(path: Path) -> None:
    """Decode a whole file, a block at a time.

    Raises:
        PartitaError: Part of the file is damaged; the message says what is wrong and where, without the path.
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
    """A clip of a file, equal to the same part of the whole file after resampling.

    Args:
        path: Path of the file.
        start: Start of the clip in seconds, rounded to a sample of the result.
        seconds: Length of the clip. ``None`` reads to the end of the file.
        sample_rate: Sample rate of the result, in Hz.
        channels: Channels of the result. A single channel is copied; several are mixed to one if the number differs.
        longest: Longest clip in seconds; a longer one is rejected before it is read. ``None`` accepts any length.

    Returns:
        Audio ``[C, T]`` float32 in [-1, 1], padded with silence after the end of the file, and its number of samples
        without the padding.

    Raises:
        PartitaError: The file cannot be read at this place; the message names the file.
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
            # Both rates have a sample at every multiple of this step. Cutting there preserves the phase that resampling
            # the whole file would have.
            common = math.gcd(source, sample_rate)
            source_step, step = source // common, sample_rate // common
            if num_samples == 0:
                return np.zeros((channels, length), np.float32), 0
            margin = 0 if source == sample_rate else math.ceil(MARGIN * source)
            steps = max(0, begin * source // sample_rate - margin) // source_step
            first = steps * source_step
            last = min(file.frames, math.ceil((begin + num_samples) * source / sample_rate) + margin)
            run_up = min(first, RUN_UP.get(file.format, 0))
            file.seek(first - run_up)
            sound = file.read(max(0, last - first) + run_up, dtype="float32", always_2d=True)[run_up:]
            if len(sound) < last - first:
                raise PartitaError(f"it ends after {(first + len(sound)) / source:.1f} s: the file is truncated")
            _check_samples(sound, first, source)
    except PartitaError as error:
        raise PartitaError(f"{printable(path)}: {error}") from None
    if sound.shape[1] != channels:
        sound = np.repeat(sound.mean(axis=1, keepdims=True), channels, axis=1)
    if source != sample_rate:
        # if the exact length falls between two samples, soxr leaves out the last: add enough silence for one more
        sound = np.pad(sound, ((0, source // sample_rate + 2), (0, 0)))
        sound = soxr.resample(sound, source, sample_rate)
    skip = begin - steps * step
    clip = sound[skip : skip + num_samples].T
    padded = np.zeros((channels, length), np.float32)
    padded[:, : clip.shape[1]] = np.clip(clip, -1, 1)
    return padded, num_samples


def write_audio(path: str | Path, audio: np.ndarray, sample_rate: int, bits: int | None = None) -> None:
    """Write audio ``[C, T]`` in [-1, 1] in the format of the file name's extension. The file is written completely or
    not at all.

    Args:
        path: Path of the file.
        audio: Samples, clipped to [-1, 1] if the format stores integers.
        sample_rate: Sample rate in Hz.
        bits: Bits per sample of lossless formats: 16 (the default), 24, or 32 (floating point).

    Raises:
        PartitaError: The format is unknown or does not support the rate, the audio is not one clip, or the file cannot
            be written.
    """
    path, (kind, subtype) = Path(path), check_writable(path, bits)
    if audio.ndim != 2:
        raise PartitaError(f"{path}: a file holds one clip [C, T], such as audio[0], not {list(audio.shape)}")
    encoded = io.BytesIO()  # libsndfile reports no error when the disk is full at the end of a FLAC, MP3 or Ogg file
    try:
        _write(encoded, audio.T, sample_rate, kind, subtype)
        with replacing_file(path) as new:
            new.write_bytes(encoded.getbuffer())
    except (soundfile.LibsndfileError, OSError) as error:
        raise PartitaError(f"cannot write {path}: {getattr(error, 'error_string', error)}") from None


def check_writable(
    path: str | Path, bits: int | None = None, sample_rate: int | None = None, channels: int = 1
) -> tuple[str, str]:
    """The soundfile format and subtype for a path.

    Raises:
        PartitaError: The format cannot be written, or not with this bit depth, sample rate or number of channels.
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
    """Write samples ``[T, C]`` in blocks: libsndfile's Vorbis encoder overflows the stack on several minutes."""
    with soundfile.SoundFile(file, "w", sample_rate, samples.shape[1], subtype, format=kind) as sink:
        for start in range(0, len(samples), _MOST_WRITTEN):
            sink.write(samples[start : start + _MOST_WRITTEN])


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open an audio file for reading, after checking that it is a regular file with a plausible header.

    A pipe or a device is not even opened, because reading it may never end.

    Raises:
        PartitaError: The file cannot be read, now or inside the block; the message says why, without the path.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PartitaError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
        if status.st_size == 0:
            raise PartitaError("the file is empty")
        # Opened by its descriptor: libsndfile rejects names that are not UTF-8, and asks for options for .raw files.
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
    """Check that samples ``[T, C]``, of which the first is sample ``first`` of the file, are audio.

    Raises:
        PartitaError: They are not; the message says where and what is wrong, without the path.
    """
    wrong = ~(np.abs(sound) <= LOUDEST).all(axis=1)  # NaN is wrong, too
    if wrong.any():
        at = int(wrong.argmax())
        worst = float(sound[at][~(np.abs(sound[at]) <= LOUDEST)][0])
        value = f"a sample of {worst:.3g}, where audio lies between -1 and 1"
        what = value if math.isfinite(worst) else "a sample that is not a number"
        raise PartitaError(f"there is {what} at {(first + at) / sample_rate:.2f} s")


def _promises_more(log: str) -> bool:
    """Whether libsndfile notes that the file contains less than its header says. It reads what there is.

    Programs that write to a pipe cannot know the length, and state the largest possible one.
    """
    note = re.search(r"^\s*(?:data|SSND|riff) : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    return note is not None and int(note[2]) < int(note[1]) < 0x7FFF0000


def _ogg_ends(path: Path) -> bool:
    """Whether the last page of an Ogg file is complete and marked as the last (RFC 3533, §6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LARGEST_OGG_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
