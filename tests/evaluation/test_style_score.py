"""Similarity of generated clips to the recordings whose style they were to follow."""

from types import SimpleNamespace

import pytest
import torch

from partita.core.contracts import Example
from partita.evaluation.comparison import Comparison
from partita.evaluation.evaluation_options import Evaluation
from partita.evaluation.rows import beats_chance
from partita.evaluation.scores.style_kept import Style

RATE, PIECES = 16000, 7


def played(number, overtone, seconds=2.0):
    """A piece has a timbre of its own, an overtone; a clip of it has notes of its own."""
    time = torch.arange(int(seconds * RATE)) / RATE
    note = 220 * 2 ** (number % 5 / 12)
    return 0.2 * (torch.sin(2 * torch.pi * note * time) + torch.sin(2 * torch.pi * overtone * time))[None]


def comparison(folder, heard, excerpt_seconds=2.0):
    """Clips with the overtone of the piece ``heard(number)``, beside two clips of each piece."""
    overtones = [700 * 1.35**number for number in range(PIECES)]
    numbers = [number for number in range(PIECES) for _ in range(2)]
    pieces = [
        Example(
            played(i, overtones[number]),
            2 * RATE,
            {"id": f"piece {number}", "excerpt": played(i + 1, overtones[number], excerpt_seconds)},
        )
        for i, number in enumerate(numbers)
    ]
    generated = torch.stack([played(i + 2, overtones[heard(number)]) for i, number in enumerate(numbers)])
    spec = SimpleNamespace(sample_rate=RATE, channels=1)
    system = SimpleNamespace(output=SimpleNamespace(spec=spec), inputs=("excerpt",))
    compared = Comparison(system, generated, pieces, pieces, Evaluation(clips=len(pieces)), folder)
    compared.__dict__["reconstructed"] = compared.real
    return compared


@pytest.mark.parametrize("seconds", [2.0, 0.5])
def test_clips_in_the_style_are_told_from_others(tmp_path, seconds):
    rows = Style().measure(comparison(tmp_path, lambda number: number, seconds))
    kept, identified = rows["style kept (log-mel-16khz)"], rows["style identified (log-mel-16khz)"]
    assert kept["chance"] < kept["low"] < kept["value"] <= 1
    assert kept["p"] == 2 / 2**PIECES  # the least that the test over pieces can find
    assert beats_chance(kept)
    assert min(identified["value"], identified["real"]) > 0.9
    assert identified["chance"] == pytest.approx(1 / PIECES)
    assert (identified["clips"], identified["pieces"]) == (2 * PIECES, PIECES)


def test_clips_in_another_style_are_not(tmp_path):
    rows = Style().measure(comparison(tmp_path, lambda number: (number + 3) % PIECES))
    assert not beats_chance(rows["style kept (log-mel-16khz)"])
    assert rows["style identified (log-mel-16khz)"]["value"] == 0


def test_clips_without_a_recording_are_left_out(tmp_path):
    some = comparison(tmp_path, lambda number: number)
    some.pieces[0].fields["excerpt"] = None
    assert all(row["clips"] == 2 * PIECES - 1 for row in Style().measure(some).values())
    for piece in some.pieces:
        piece.fields.pop("excerpt")
    assert not Style().measure(some)
