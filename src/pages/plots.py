"""Plots of audio and of training curves."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

LOWEST, ROWS = 60.0, 300
"""Lowest frequency of a spectrogram, in Hz, and its rows."""


def spectrogram_figure(audio: Tensor, sample_rate: int, *, top_db: float = 80.0) -> Figure:
    """Plot the spectrogram of audio ``[C, T]`` in dB relative to its peak, with a logarithmic frequency axis.

    Args:
        audio: Audio ``[C, T]``, whose channels are averaged.
        sample_rate: Sample rate in Hz.
        top_db: Dynamic range of the colors in dB.
    """
    mono = audio.detach().float().mean(0)
    n_fft, hop = 2048, 256
    window = torch.hann_window(n_fft)
    padded = torch.nn.functional.pad(mono, (0, max(0, n_fft - len(mono))))
    power = torch.stft(padded, n_fft, hop, window=window, return_complex=True).abs().square()
    decibel = 10 * torch.log10(power.clamp(min=1e-10))
    picture = (decibel - decibel.max()).clamp(min=-top_db).numpy()
    # rows evenly spaced in pitch, each the loudest of its bins, so that no partial falls between two rows
    nyquist = sample_rate / 2
    bins = np.geomspace(LOWEST, nyquist, ROWS + 1)[:-1] * n_fft / sample_rate
    rows = np.maximum.reduceat(picture, bins.round().astype(int))
    figure = Figure(figsize=(7, 2.4))
    axes = figure.add_axes((0.09, 0.19, 0.895, 0.77))  # a layout that is computed takes most of the time to draw
    extent = (0.0, max(len(mono), n_fft) / sample_rate, math.log10(LOWEST), math.log10(nyquist))
    axes.imshow(rows, origin="lower", aspect="auto", cmap="magma", extent=extent)
    ticks = [tick for tick in (100, 200, 500, 1000, 2000, 5000, 10000, 20000) if tick <= nyquist]
    axes.set_yticks(np.log10(ticks), [f"{tick / 1000:g}k" if tick >= 1000 else str(tick) for tick in ticks])
    axes.set(xlabel="time (s)", ylabel="frequency (Hz)")
    return figure


def curves_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> Figure:
    """Plot curves over training steps; ``curves`` maps each label to (steps, values)."""
    many = len(curves) > 4  # a legend with more lines goes below the plot
    figure = Figure(figsize=(4.2, 2.6 + (0.14 * len(curves) if many else 0)), layout="constrained")
    axes = figure.subplots()
    colors = matplotlib.colormaps["tab10" if len(curves) <= 10 else "turbo"]
    for i, (label, (steps, values)) in enumerate(curves.items()):
        color = colors(i if len(curves) <= 10 else i / (len(curves) - 1))
        axes.plot(steps, values, label=label, color=color, linewidth=1.2, marker="." if len(steps) < 3 else None)
    axes.set(title=title, xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(alpha=0.3)
    if many:
        figure.legend(fontsize=7, frameon=False, loc="outside lower left")
    elif len(curves) > 1:
        axes.legend(fontsize=7, frameon=False)
    return figure


def bands_figure(curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], title: str) -> Figure:
    """Plot means over several runs with bands of one standard deviation.

    ``curves`` maps each label to pairs (steps, values), one for each run. A shorter run counts up to its last step.
    """
    means, bands = {}, {}
    for label, runs in curves.items():
        steps = max((run[0] for run in runs), key=lambda steps: steps[-1])
        values = np.stack([np.interp(steps, *run, right=np.nan) for run in runs])
        means[label] = (steps, np.nanmean(values, 0))
        bands[label] = np.nanstd(values, 0) * (len(runs) / max(1, len(runs) - 1)) ** 0.5
    figure = curves_figure(means, title)
    axes = figure.axes[0]
    for line, (label, (steps, mean)) in zip(axes.lines, means.items(), strict=True):
        band = bands[label]
        axes.fill_between(steps, mean - band, mean + band, color=line.get_color(), alpha=0.2, linewidth=0)
    return figure


def png(figure: Figure, dpi: int = 90) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
