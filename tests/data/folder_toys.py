"""A folder of audio files of many kinds, some of which cannot be used."""

import warnings

import numpy as np

from partita.data.folder import Folder


def tone(frequency, seconds, rate, channels=1):
    phase = 2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(phase + c) for c in range(channels)], axis=1)


def read(source, index=0, seed=0, seconds=1.0, split="train", sample_rate=16000, channels=1):
    return source.read(split, index, seed=seed, seconds=seconds, sample_rate=sample_rate, channels=channels)


def quiet(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.setup()
    return source


def report_of(folder, **arguments):
    """The report of a folder, and the names of the pieces that are used."""
    source = quiet(Folder(str(folder), validation=0.0, test=0.0, **arguments))
    used = {read(source, i, seconds=0.1).fields["id"] for i in range(source.size("train"))}
    return "\n".join(source.report), used
