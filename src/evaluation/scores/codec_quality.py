"""Scores of the system's codec: distances of its reconstructions, use of its codebooks, bit rate and speed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.contracts import RepresentationSpec
from ...core.registry import register
from ...metrics.codec import CodebookUsage, ConstantSpectrum, MelDistance
from ...metrics.reconstruction import mel_distance, si_sdr, stft_distance
from ...storage.audio_file import write_audio
from ...tokenizers.base import LatentView
from ..comparison import Comparison
from ..embedders import batches
from ..rows import Rows, make_row, mean_row
from ..score import Score

TIMED = 2
"""How often each direction is timed; the shorter time counts."""
SHOWN = 3
"""Number of recordings and reconstructions on the page of a system with stages."""
FOLDER = "codec"
"""Folder of these clips in that of the evaluation."""

log = logging.getLogger(__name__)


@register("score", "codec")
class Codec(Score):
    """Reconstructions of real clips by the codec of the system's output, use of its codebooks, its bit rate and speed.

    The chance level of the codec distance is the distance to the best sound that is constant over time, fitted to other
    real clips. A mean over clips has an interval over pieces. Silent clips have no SI-SDR.
    """

    about: ClassVar = {
        "codec distance": "Mean difference between the log-mel spectra of real clips and of their reconstructions, in "
        "nepers; stages can hardly come nearer to real audio than their codec.",
        "mel distance": "DAC's mel distance: differences of decimal logarithms, summed over windows of 32 to "
        "2048 samples.",
        "STFT distance": "DAC's STFT distance: differences of magnitudes and of decimal logarithms of power, summed "
        "over windows of 512 and 2048 samples.",
        "SI-SDR": "Scale-invariant signal-to-distortion ratio in dB, which compares waveforms: a codec that does "
        "not keep phases can have a low ratio and sound well.",
        "codebook usage": "Fraction of the entries of a codebook that occur in the codes of these clips, the mean over "
        "codebooks; few clips cannot use all entries.",
        "codebook perplexity": "Number of equally frequent entries with the entropy of the codes, the mean over "
        "codebooks.",
        "bitrate": "Bits of the codes in use, in kbit/s, without entropy coding.",
        "encoding speed": "Seconds of audio encoded per second, one clip at a time, in this evaluation.",
        "decoding speed": "Seconds of audio decoded per second, one clip at a time, in this evaluation.",
    }
    subject = "codec"

    def measure(self, comparison: Comparison) -> Rows:
        """Return rows of distances and speeds, and those of codes if the codec has codes."""
        log.info("codec")
        rows = self._distances(comparison)
        spec: RepresentationSpec = comparison.system.output.spec
        if spec.discrete and spec.frame_rate is not None:
            rows |= _codes(comparison, spec)
        if comparison.system.stages:
            _write_clips(comparison)
        return rows | _speeds(comparison)

    def explanation(self, rows: Rows) -> str:
        """Return the figures of each codebook."""
        used, perplexity = rows.get("codebook usage"), rows.get("codebook perplexity")
        if used is None or perplexity is None or len(used["codebooks"]) < 2:
            return ""
        return (
            f"By codebook, entries in use: {', '.join(f'{value:.0%}' for value in used['codebooks'])}; perplexity: "
            f"{', '.join(f'{value:,.0f}' for value in perplexity['codebooks'])}."
        )

    def clips(self, rows: Rows, folder: Path) -> Iterator[tuple[str, Path]]:
        """Yield recordings and their reconstructions, for systems whose own clips are generated."""
        for path in sorted((folder / FOLDER).glob("*-recording.flac")):
            yield "real clip", path
            yield "reconstructed", path.with_name(path.name.replace("recording", "reconstruction"))

    def _distances(self, comparison: Comparison) -> Rows:
        rate, pieces = comparison.spec.sample_rate, comparison.piece_ids
        constant = ConstantSpectrum(rate)
        for batch in batches([clip.audio for clip in comparison.reference]):
            constant.fit(batch)
        distances: dict[str, list[Tensor]] = {name: [] for name in ("codec", "mel distance", "STFT distance", "SI-SDR")}
        for after, before in zip(batches(comparison.reconstructed), batches(comparison.real), strict=True):
            constant.update(before)
            for one, other in zip(after.split(1), before.split(1), strict=True):
                distance = MelDistance(rate)
                distance.update(one, other)
                distances["codec"].append(distance.compute()[None])
            distances["mel distance"].append(mel_distance(after, before, rate))
            distances["STFT distance"].append(stft_distance(after, before))
            distances["SI-SDR"].append(si_sdr(after, before))
        found = {name: torch.cat(values) for name, values in distances.items()}
        name = _name(comparison)
        more: dict[str, Any] = {"chance": constant.compute(), "reference_clips": len(comparison.reference)}
        embedding = f"log-mel spectrum, {name}"
        rows = {"codec distance": mean_row(found.pop("codec"), pieces, "lower", embedding, **more)}
        for label, values in found.items():
            known = [i for i, value in enumerate(values.tolist()) if not math.isnan(value)]
            if known:
                better, measured = ("higher", "waveform") if label == "SI-SDR" else ("lower", "spectrum")
                of = [pieces[i] for i in known]
                rows[label] = mean_row(values[known], of, better, f"{measured}, {name}")
        return rows


def _codes(comparison: Comparison, spec: RepresentationSpec) -> Rows:
    """Return rows on the codes of the real clips."""
    usage = CodebookUsage(len(spec.cardinalities), max(spec.cardinalities))
    for codes in comparison.encoded:
        usage.update(codes)
    found = {name: value.reshape(-1) for name, value in usage.compute().items()}  # one codebook loses its axis
    used = found["usage"] * max(spec.cardinalities) / torch.tensor(spec.cardinalities)
    embedding, clips = f"codes of {_name(comparison)}", len(comparison.pieces)
    bits = spec.rate * sum(math.log2(size) for size in spec.cardinalities) / 1000

    def row(value: Tensor, better: str, **more: Any) -> dict[str, Any]:
        return make_row({"value": value}, "value", better, embedding, clips, **more)

    return {
        "codebook usage": row(used.mean(), "higher", codebooks=used.tolist()),
        "codebook perplexity": row(found["perplexity"].mean(), "higher", codebooks=found["perplexity"].tolist()),
        "bitrate": row(torch.tensor(bits), "lower"),
    }


@torch.inference_mode()
def _speeds(comparison: Comparison) -> Rows:
    """Return rows on the speed of the codec."""
    codec, device = comparison.system.output, comparison.system.device
    audio = comparison.real[:1].to(device)
    seconds = audio.shape[-1] / comparison.spec.sample_rate
    threads = torch.get_num_threads()
    cpu = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    encoded = codec.encode(audio)
    rows: Rows = {}
    for label, work in (("encoding", lambda: codec.encode(audio)), ("decoding", lambda: codec.decode(encoded))):
        speed = seconds / min(_seconds(work, device) for _ in range(TIMED))
        rows[f"{label} speed"] = make_row(
            {"value": torch.tensor(speed)}, "value", "higher", f"time on {where}, {_name(comparison)}", 1
        )
    return rows


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _write_clips(comparison: Comparison) -> None:
    """Write the first recordings and their reconstructions, for the page."""
    folder = comparison.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(min(SHOWN, len(comparison.pieces))):
        for what, clips in (("recording", comparison.real), ("reconstruction", comparison.reconstructed)):
            audio = clips[number].clamp(-1, 1).numpy()
            write_audio(folder / f"{number:05d}-{what}.flac", audio, comparison.spec.sample_rate, bits=24)


def _name(comparison: Comparison) -> str:
    output = comparison.system.output
    return (output.codec if isinstance(output, LatentView) else output).registered_name
