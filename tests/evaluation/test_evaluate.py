"""Evaluations: clips that are kept, notes that are passed on, and folders that are not mixed up."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import yaml

from evaluation_toys import CODEC_ROWS, FEW, JOINT, LOG_MEL, scored, timeless
from partita.core.progress import reporting
from partita.data.base import Source
from partita.data.examples import Examples
from partita.errors import PartitaError
from partita.evaluation.evaluate import evaluate
from partita.evaluation.evaluation_options import Evaluation
from partita.publishing.card import collect
from partita.recipe.plan import load_recipe
from partita.system.system import System, load


def test_an_evaluation_that_was_interrupted_goes_on_and_ends_the_same(run, tmp_path, lines):
    whole = evaluate(run, tmp_path / "whole", options=LOG_MEL)

    def interrupt(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reporting(interrupt):
        evaluate(run, options=FEW)
    kept = sorted((run / "evaluation" / "clips").iterdir())
    assert len(kept) == 2
    times = [path.stat().st_mtime_ns for path in kept]
    resumed = evaluate(run, options=LOG_MEL)
    assert timeless(resumed) == timeless(whole)
    assert "2 of 5 clips exist already" in lines
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert json.loads((run / "evaluation" / "evaluation.json").read_text()) == resumed


def test_every_row_says_what_measured_it_and_on_how_many(run, joint):
    options = scored(
        fad={"embeddings": ["log-mel-16khz", joint]},
        kld={"classifiers": ["toy-listener"]},
        consistency={"conditioners": [joint]},
    )
    rows = evaluate(run, options=options)["metrics"]
    assert {"FAD (log-mel-16khz)", f"FAD ({JOINT})", "KLD (toy-listener)", f"text–audio consistency ({JOINT})"} <= set(
        rows
    )
    for name, row in rows.items():
        assert row["embedding"], name
        assert row["better"] in ("lower", "higher"), name
        if not name.startswith(("codebook", "bitrate", "encoding", "decoding")):  # which say nothing about other clips
            assert row["clips"] == 5, name
            assert row["low"] <= row["high"], name
    assert all("weights:" in row["embedding"] for name, row in rows.items() if joint in name)


def test_the_page_names_the_precision(run):
    evaluate(run, options=replace(FEW, precision="bf16"))
    assert "precision bf16" in (run / "evaluation" / "evaluation.html").read_text()


def test_what_stages_listen_to_is_in_the_results(other, lines):
    """Weights that project a text to nothing make nothing of it."""
    deaf = other("stages.main.generator={name: toy-bigram}")
    system = load(deaf)
    torch.nn.init.zeros_(system.stages["main"].projections["text"].weight)
    system.save(deaf)
    (use,) = evaluate(deaf, options=FEW)["conditions"]
    assert (use["stage"], use["what"], use["rise"], use["unit"]) == ("main", "text", 0, "nats")
    assert any("no effect found" in line for line in lines)
    assert "no effect found" in (deaf / "evaluation" / "evaluation.html").read_text()


def test_a_line_is_said_for_every_score(run, joint, lines):
    options = scored(
        LOG_MEL, kld={"classifiers": ["toy-listener"]}, consistency={"conditioners": [joint]}, memorization=True
    )
    evaluate(run, options=options)
    for line in (
        "FAD and KAD (log-mel-16khz)",
        "KLD (toy-listener)",
        f"text–audio consistency ({JOINT})",
        "memorization",
    ):
        assert line in lines


def test_scores_can_be_added_to_clips_that_are_there(run, lines):
    evaluate(run, options=LOG_MEL)
    more = evaluate(run, options=scored(LOG_MEL, kld={"classifiers": ["toy-listener"]}))
    assert "5 of 5 clips exist already" in lines
    assert {"FAD (log-mel-16khz)", "KLD (toy-listener)"} <= more["metrics"].keys()


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content[:60]])
def test_a_damaged_clip_of_before_is_named(run, tmp_path, damage):
    evaluate(run, tmp_path / "evaluation", options=FEW)
    clip = tmp_path / "evaluation" / "clips" / "00001.flac"
    clip.write_bytes(damage(clip.read_bytes()))
    with pytest.raises(PartitaError, match=r"00001\.flac.*: delete (it|this clip) and run the same command again"):
        evaluate(run, tmp_path / "evaluation", options=FEW)
    clip.unlink()
    evaluate(run, tmp_path / "evaluation", options=FEW)


def test_a_clip_of_before_that_is_shorter_is_named(run, tmp_path):
    evaluate(run, tmp_path / "evaluation", options=FEW)
    clip = tmp_path / "evaluation" / "clips" / "00002.flac"
    soundfile.write(clip, np.zeros(100), soundfile.info(clip).samplerate)
    with pytest.raises(PartitaError, match=r"00002\.flac is shorter than the other clips: delete it"):
        evaluate(run, tmp_path / "evaluation", options=FEW)


def test_clips_of_another_request_are_not_taken_for_ones_own(run, tmp_path, monkeypatch):
    evaluate(run, options=FEW)
    with pytest.raises(PartitaError, match=r"a different evaluation.*-o[\s\S]*seed: 0 → 1"):
        evaluate(run, options=Evaluation(clips=5, reference_clips=6, duration=1.0, seed=1))
    more = replace(FEW, clips=6, reference_clips=7)
    assert evaluate(run, options=more)["request"]["clips"] == 6  # of the same clips there can be more
    with monkeypatch.context() as changed:  # the data gives other clips than it did before
        changed.setattr(Source, "revision", 1)
        with pytest.raises(PartitaError, match=r"a different evaluation[\s\S]*data_revision: None → 1"):
            evaluate(run, options=FEW)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(PartitaError, match="not empty"):
        evaluate(run, tmp_path / "mine", options=FEW)


def test_training_pieces_never_pass_for_test_pieces(run, other, lines):
    """Where nothing is held out, training pieces stand in, and whoever reads the scores is told."""
    trained = other("data=toy-trained")
    results = evaluate(trained, options=FEW)
    (note,) = results["notes"]
    assert note.startswith("the data has no test pieces, so training pieces replace them")
    assert note in lines
    assert results["request"]["pieces"] == "training"
    assert note in (trained / "evaluation" / "evaluation.html").read_text()
    assert note in collect(trained, "me/mine")["README.md"].decode()
    results = evaluate(run, options=FEW)
    assert (results["request"]["pieces"], results["notes"]) == ("test", [])


def test_clips_that_nothing_was_asked_for_are_told(run, tmp_path, monkeypatch, lines):
    """Of test pieces without captions, what is generated answers no prompt."""

    def without_captions(self, index):
        example = read(self, index)
        if index < 2:
            example.fields.pop("text", None)
        return example

    read = Examples.__getitem__
    monkeypatch.setattr(Examples, "__getitem__", without_captions)
    (note,) = evaluate(run, tmp_path / "evaluation", options=FEW)["notes"]
    assert note.startswith("2 of 5 clips are of pieces without caption: they are generated without conditioners.text")
    assert note in lines
    assert note in (tmp_path / "evaluation" / "evaluation.html").read_text()


def test_other_data_is_named_by_data_alone(run):
    with pytest.raises(PartitaError, match="changes data only"):
        evaluate(run, data=["seed=3"], options=FEW)
    assert evaluate(run, data=["data.pieces=3"], options=FEW)["request"]["data_changes"] == ["data.pieces=3"]


def test_a_codec_alone_is_scored_on_what_it_makes_of_real_clips(toy_recipe, tmp_path):
    recipe = yaml.safe_load(toy_recipe.read_text())
    del recipe["stages"], recipe["conditioners"]
    scores = {}
    for levels in (2, 256):
        recipe["tokenizers"]["acoustic"] |= {"cardinality": levels, "hop": 4}
        toy_recipe.write_text(yaml.safe_dump(recipe))
        System(load_recipe(toy_recipe)).save(tmp_path / str(levels))
        scores[levels] = evaluate(tmp_path / str(levels), options=LOG_MEL)["metrics"]
    for name in ("FAD (log-mel-16khz)", "codec distance"):
        assert scores[256][name]["value"] < scores[2][name]["value"]
    assert set(scores[2]) == CODEC_ROWS | {name for name in scores[2] if "log-mel" in name}
    assert {scores[2][name]["subject"] for name in scores[2]} == {"codec"}
    assert scores[256]["SI-SDR"]["value"] > scores[2]["SI-SDR"]["value"]
    assert (scores[2]["bitrate"]["value"], scores[256]["bitrate"]["value"]) == (1, 8)  # a code of 1000 a second
    assert scores[2]["codebook usage"]["codebooks"] == [1]
    assert 1 < scores[2]["codebook perplexity"]["value"] <= 2
    assert scores[2]["encoding speed"]["value"] > 0
    page = (tmp_path / "2" / "evaluation" / "evaluation.html").read_text()
    assert page.count("reconstructed: ") == 2 * page.count(">real clip<")
    clip, _ = soundfile.read(tmp_path / "2" / "evaluation" / "clips" / "00000.flac")
    assert len(np.unique(clip)) <= 2
    with pytest.raises(PartitaError, match=r"memorization cannot be measured: .*this system is a codec alone"):
        evaluate(tmp_path / "2", options=scored(memorization=True))
