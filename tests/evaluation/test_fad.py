"""Distances of Fréchet and of kernels, in an evaluation."""

from dataclasses import replace

import pytest
import soundfile
import torch

import toys
from evaluation_toys import JOINT, LOG_MEL, scored
from partita.core.contracts import RepresentationSpec
from partita.data.examples import Examples
from partita.evaluation.embedders import read_embedder
from partita.evaluation.evaluate import SEED, evaluate
from partita.metrics.gaussian import Gaussian, frechet_distance
from partita.publishing.card import collect


def test_real_clips_score_better_than_what_random_weights_make(run, pictures):
    score = evaluate(run, options=LOG_MEL)["metrics"]["FAD (log-mel-16khz)"]
    assert 0 <= score["real"] < 0.2 * score["value"]
    assert score["real"] < score["codec"] < score["value"]
    assert score["low"] < score["high"]
    assert (score["clips"], score["reference_clips"]) == (5, 6)
    assert score["embedding"] == "log-mel-16khz"
    page = (run / "evaluation" / "evaluation.html").read_text()
    assert page.count("<audio") == page.count("data:image/png") == 10 + 6  # of the codec
    assert "log-mel-16khz" in page


def test_the_limit_is_only_shown_where_clips_can_tell_it(run, lines):
    options = replace(LOG_MEL, clips=16, reference_clips=16)
    rows = evaluate(run, options=options)["metrics"]
    few = evaluate(run, options=LOG_MEL)["metrics"]
    limit, distance = rows["FAD∞ (log-mel-16khz)"], rows["FAD (log-mel-16khz)"]["value"]
    assert limit["low"] < limit["value"] < limit["high"]
    assert limit["value"] < distance * (1 + 1e-6)  # these clips are nearly the same, so that there is hardly a bias
    assert "FAD∞ (log-mel-16khz)" not in few
    assert any(line.startswith("FAD∞ (log-mel-16khz) is not measured: it needs at least 8 clips") for line in lines)


def test_kernel_distances_stand_beside_those_of_frechet(run):
    row = evaluate(run, options=LOG_MEL)["metrics"]["KAD (log-mel-16khz)"]
    assert abs(row["real"]) < 0.2 * row["value"]
    assert row["real"] < row["codec"] < row["value"]
    assert row["low"] < row["value"] < row["high"]
    assert (row["clips"], row["pieces"], row["reference_clips"]) == (5, 5, 6)
    for text in ((run / "evaluation" / "evaluation.html").read_text(), collect(run, "me/mine")["README.md"].decode()):
        assert "A kernel distance (KAD) has neither bias" in text


def test_the_distance_in_a_joint_space_is_that_of_its_embeddings(singer, joint):
    rows = evaluate(singer, options=scored(fad={"embeddings": [joint]}))["metrics"]
    embedder = read_embedder(joint)
    paths = sorted((singer / "evaluation" / "clips").iterdir())
    audio = [soundfile.read(path, dtype="float32")[0] for path in paths]
    assert len(audio) == 5
    made = torch.stack([torch.from_numpy(clip)[None] for clip in audio])
    examples = Examples.for_spec(RepresentationSpec(4000, 1, 40.0), toys.ToySines(), "test", 6, 1.0, SEED + 1)
    real = torch.stack([examples[i].audio for i in range(6)])
    sides = [Gaussian.of(embedder(clips, 4000).flatten(0, 1)) for clips in (made, real)]
    assert rows[f"FAD ({JOINT})"]["value"] == pytest.approx(frechet_distance(*sides).item(), rel=1e-6)
