"""Scores beside what chance would score, under names that people understand."""

import numpy as np
import pytest
import torch

from evaluation_toys import CODEC_ROWS
from partita.core.contracts import Example
from partita.evaluation.comparison import Comparison
from partita.evaluation.evaluation_options import Evaluation
from partita.evaluation.pairing import other_pieces
from partita.evaluation.scores.agreement import FIGURES, Agreement
from partita.evaluation.scores.codec_quality import Codec
from partita.evaluation.scoring import measure
from partita.recipe.plan import load_recipe
from partita.system.system import System

RATE = 4000
MAJOR = (0, 2, 4, 5, 7, 9, 11)
KEYS = {"C major": 0, "F# major": 6, "Eb major": 3}
SCORES = {"agreement": Agreement(), "codec": Codec()}


def scale(tonic):
    """Four seconds of a scale up and down to its tonic triad."""
    time = np.arange(RATE // 2) / RATE
    degrees = [*MAJOR, 12]
    notes = [[d] for d in degrees[::2]] + [[0, 4, 7]] * 4
    wave = [sum(np.sin(2 * np.pi * 261.63 * 2 ** ((tonic + d) / 12) * time) for d in chord) for chord in notes]
    return torch.from_numpy(np.concatenate(wave)[None] * 0.2).float()


def compared(toy_recipe, tmp_path, pieces, audio=None):
    """Toy clips beside pieces; what is generated is the pieces themselves unless given."""
    system = System(load_recipe(toy_recipe))
    audio = torch.stack([piece.audio for piece in pieces]) if audio is None else audio
    return Comparison(system, audio, pieces, pieces, Evaluation(), tmp_path)


def piece(key, name):
    audio = scale(KEYS[key])
    return Example(audio, audio.shape[1], {"text": key, "key": key, "id": name})


def test_chance_is_the_score_against_the_labels_of_other_pieces(toy_recipe, tmp_path):
    keys = list(KEYS) * 2
    pieces = [piece(key, f"{key} {i}") for i, key in enumerate(keys)]
    rows = Agreement().measure(compared(toy_recipe, tmp_path, pieces))
    assert rows.keys() == {"right key", "right or related key"}
    row = rows["right key"]
    # of the four pieces that each is compared with, the third is in the same key
    assert (row["value"], row["real"], row["chance"]) == (1, 1, pytest.approx(1 / 4))


def test_clips_of_one_piece_say_nothing_of_chance(toy_recipe, tmp_path):
    pieces = [piece("C major", "the same") for _ in range(3)]
    assert "chance" not in Agreement().measure(compared(toy_recipe, tmp_path, pieces))["right key"]


def test_what_chance_explains_is_marked(toy_recipe, tmp_path):
    """Where all pieces share a key, having it proves nothing."""
    alike = [piece("C major", str(i)) for i in range(4)]
    row = measure(SCORES, compared(toy_recipe, tmp_path, alike))["right key"]
    assert (row["value"], row["chance"], row["beats_chance"]) == (1, 1, False)
    pieces = [piece(key, f"{key} {i}") for i, key in enumerate(list(KEYS) * 4)]
    row = measure(SCORES, compared(toy_recipe, tmp_path, pieces))["right key"]
    assert row["beats_chance"] is True
    assert row["chance"] < row["low"]


def test_what_is_no_better_than_chance_is_marked_for_one_piece_too(toy_recipe, tmp_path):
    """One piece gives no interval; a codec that is worse than a sound that never changes is known to be."""
    one = [piece("C major", "one") for _ in range(3)]
    row = measure(SCORES, compared(toy_recipe, tmp_path, one))["codec distance"]
    assert "low" not in row
    assert row["value"] > row["chance"]
    assert row["beats_chance"] is False


def test_every_score_has_a_sentence_and_the_codec_is_set_apart(toy_recipe, tmp_path):
    made = compared(toy_recipe, tmp_path, [piece(key, key) for key in KEYS])
    rows = measure(SCORES, made)
    keys = {"right key": "system", "right or related key": "system"}
    assert {name: row["subject"] for name, row in rows.items()} == keys | dict.fromkeys(CODEC_ROWS, "codec")
    assert rows.keys() - Codec().measure(made).keys() == {"right key", "right or related key"}
    for row in rows.values():
        assert row["about"].endswith(".")
    assert set(FIGURES.values()) == Agreement.about.keys()


def test_no_clip_is_compared_with_its_own_piece():
    pieces = list("aabbbcad")
    for shift in range(1, 4):
        others = other_pieces(pieces, shift)
        assert all(pieces[i] != pieces[other] for i, other in enumerate(others))
    assert other_pieces(pieces, 4) is None
