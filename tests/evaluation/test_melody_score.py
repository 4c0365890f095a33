"""Agreement of generated clips with the recordings of melodies that they were conditioned on."""

from types import SimpleNamespace

import numpy as np
import torch

from partita.conditioners.audio_towers.pitch_classes import PitchClasses
from partita.conditioners.melody_embedding import MelodyEmbedding, MelodySpectrum
from partita.core.contracts import Example
from partita.evaluation.comparison import Comparison
from partita.evaluation.embedders import Embedders
from partita.evaluation.evaluation_options import Evaluation
from partita.evaluation.rows import beats_chance
from partita.evaluation.scores.melody_kept import Melody

RATE, PIECES = 8000, 6


def play(tune, key=0, seconds=0.5):
    time = torch.arange(int(seconds * RATE)) / RATE
    return 0.3 * torch.cat([torch.sin(2 * torch.pi * 220 * 2 ** ((s + key) / 12) * time) for s in tune])[None]


def comparison(folder, made, inputs=("text", "cover")):
    """Clips of tunes that were made by a function of the number of a piece, beside two clips of each piece."""
    tunes = np.random.default_rng(0).integers(0, 12, (PIECES, 8))
    numbers = [number for number in range(PIECES) for _ in range(2)]
    pieces = []
    for number in numbers:
        fields = {"id": f"piece {number}", "cover": play(tunes[number], key=5, seconds=0.4)}
        pieces.append(Example(play(tunes[number]), 8 * RATE // 2, fields))
    generated = torch.stack([play(tunes[made(number)], key=2, seconds=0.5) for number in numbers])
    spec = SimpleNamespace(sample_rate=RATE, channels=1)
    system = SimpleNamespace(output=SimpleNamespace(spec=spec), inputs=inputs)
    return Comparison(system, generated, pieces, [], Evaluation(clips=len(pieces)), folder)


def test_clips_with_the_melody_are_told_from_others(tmp_path):
    row = Melody().measure(comparison(tmp_path, lambda number: number))["melody agreement"]
    assert row["chance"] < row["low"] < row["value"] < row["high"] <= 1
    assert (row["clips"], row["pieces"]) == (2 * PIECES, PIECES)
    assert row["real"] > row["chance"]
    assert row["p"] == 2 / 2**PIECES  # the least that the test over pieces can find
    assert beats_chance(row)


def test_clips_without_it_do_not_beat_chance(tmp_path):
    rows = Melody().measure(comparison(tmp_path, lambda number: (number + 3) % PIECES))
    assert not beats_chance(rows["melody agreement"])
    assert rows["melody agreement"]["p"] > 0.01


def test_embeddings_that_keep_the_key_are_compared_in_the_best_key(tmp_path):
    """Untrained: they tell the tunes because they hear them, in keys that are three semitones apart."""
    torch.manual_seed(0)
    tower = {"width": 8, "hidden": 32, "bands_per_semitone": 1, "keep_key": True}
    spectrum = {"sample_rate": RATE, "window": 1024, "hop": 256, "bands": 36, "f_min": 110.0, "per_octave": 12}
    sizes, weights = {"dim": 24, "window": 4.0}, str(tmp_path / "weights")
    MelodyEmbedding(audio_tower=PitchClasses(**tower), spectrum=MelodySpectrum(**spectrum), **sizes).save(weights)
    slot = {"name": "melody-embedding", "audio_tower": {"name": "pitch-classes"} | tower, "spectrum": spectrum}
    slot |= sizes | {"weights": weights}
    score, embedders = Melody(embeddings=(slot,)), Embedders()
    score.load(embedders)
    of_pieces = comparison(tmp_path, lambda number: number)
    of_pieces.embedders = embedders
    (row,) = (row for name, row in score.measure(of_pieces).items() if "(" in name)
    assert row["value"] > 0.9
    assert row["value"] > row["chance"]


def test_it_needs_the_melody_of_the_system_and_of_the_pieces(tmp_path):
    assert not Melody().measure(comparison(tmp_path, lambda number: number, inputs=("text",)))
    without = comparison(tmp_path, lambda number: number)
    for piece in without.pieces:
        del piece.fields["cover"]
    assert not Melody().measure(without)
