"""What an evaluation can be asked for, in Python and on the command line."""

import json
import sys

import pytest
import yaml

import toys
from evaluation_toys import CODEC_ROWS, FEW, scored, timeless
from partita.cli import main as cli
from partita.errors import PartitaError
from partita.evaluation.embedders import read_embedder
from partita.evaluation.evaluate import evaluate
from partita.evaluation.evaluation_options import Evaluation


@pytest.mark.parametrize(
    ("scores", "word"),
    [
        ({"fad": {"embeddings": ["lgo-mel"]}}, "no tokenizer and no conditioner is called 'lgo-mel'.*'log-mel"),
        ({"fad": {"embeddings": ["soundstream-tiny"]}}, "soundstream-tiny has no weights"),
        ({"fad": {"embeddings": ["{"]}}, "'{' is not a YAML value"),
        ({"fad": {"embeddings": ["3"]}}, "expected the name of a tokenizer"),
        ({"fad": {"embeddings": [3]}}, "expected the name of a tokenizer"),
        (
            {"fad": {"embedding": ["log-mel-16khz"]}},
            r"scores\.fad\.embedding: there is no such key: did you mean",
        ),
        ({"fid": True}, "no score is called 'fid': did you mean 'fad'"),
        ({"fad": 3}, "scores.fad must be a mapping"),
        ({"kld": True}, "scores.kld.classifiers: must be given"),
        ({"fad": {"embeddings": ["toy-joint"]}}, "toy-joint has no weights"),
        ({"kld": {"classifiers": ["log-mel-16khz"]}}, "log-mel-16khz is not a classifier"),
        ({"consistency": {"conditioners": ["log-mel-16khz"]}}, "texts and audio in one space"),
    ],
)
def test_what_cannot_be_evaluated_is_one_message(run, scores, word):
    with pytest.raises(PartitaError, match=word):
        evaluate(run, options=Evaluation(clips=2, reference_clips=2, scores=scores))
    assert not (run / "evaluation").exists()


def test_a_duration_is_above_zero():
    with pytest.raises(PartitaError, match="duration"):
        Evaluation(duration=-1.0)


def test_a_conditioner_without_embeddings_of_audio_is_no_embedding(run, tmp_path):
    toys.ToyLetters().save(tmp_path / "letters")
    with pytest.raises(PartitaError, match="embeds no audio"):
        read_embedder(f"{{name: toy-letters, weights: {tmp_path / 'letters'}}}")


def test_what_a_system_was_not_asked_is_not_measured(toy_recipe, other, joint):
    recipe = toy_recipe.read_text().replace("conditioners:\n  text: toy-letters\n", "")
    toy_recipe.write_text(recipe.replace("given: [text]", "given: []").replace("toy-sines", "toy-silent"))
    dumb = other()
    with pytest.raises(PartitaError, match="reads no text"):
        evaluate(dumb, options=scored(consistency={"conditioners": [joint]}))
    with pytest.raises(PartitaError, match="has no conditioner"):
        evaluate(dumb, options=scored(kld={"classifiers": ["toy-listener"]}))
    assert not (dumb / "evaluation").exists()


def command(monkeypatch, capfd, *arguments):
    """Status and output of ``partita evaluate``."""
    monkeypatch.setattr(sys, "argv", ["partita", "evaluate", *map(str, arguments), "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capfd.readouterr()
    return stop.value.code or 0, captured.out + captured.err


def test_the_command_takes_every_score(run, joint, monkeypatch, capfd):
    scores = ["fad={embeddings: [toy-listener]}", "kld={classifiers: [toy-listener]}"]
    scores += [f"consistency={{conditioners: [{joint}]}}", "memorization"]
    options = [word for score in scores for word in ("--score", score)]
    status, printed = command(monkeypatch, capfd, run, "--clips", 3, "--reference-clips", 3, *options)
    assert status == 0, printed
    for name in ("FAD (toy-listener)", "KLD (toy-listener)", "text–audio consistency", "memorized exactly"):
        assert name in printed
    kept = json.loads((run / "evaluation" / "evaluation.json").read_text())["metrics"]
    assert "codec distance" in kept
    assert "KLD (toy-listener)\n" in printed  # what is logged is printed


def test_the_command_leaves_scores_out(run, monkeypatch, capfd):
    few = ["--clips", 3, "--reference-clips", 3]
    status, printed = command(monkeypatch, capfd, run, *few, "--no-score", "fad", "--no-score", "agreement")
    assert status == 0, printed
    assert json.loads((run / "evaluation" / "evaluation.json").read_text())["metrics"].keys() == CODEC_ROWS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score", "fid"], "no score is called 'fid': did you mean 'fad'"),
        (["--score", "fad=encodec-24khz"], "--score fad takes options as {option: value}"),
        (["--score", "fad={"], "--score fad: "),
        (["--score", "fad", "--score", "fad={embeddings: []}"], "--score fad is given twice"),
        (["--score", "fad", "--no-score", "fad"], "contradict each other"),
        (["--no-score", "fid"], "did you mean 'fad'"),
    ],
)
def test_scores_that_the_command_cannot_take(run, monkeypatch, capfd, words, message):
    status, printed = command(monkeypatch, capfd, run, *words)
    assert status == 2
    assert message in printed
    assert not (run / "evaluation").exists()


def test_a_slot_can_be_a_mapping_or_its_text(run, joint):
    """In files and in Python, a mapping; where only text can be given, the same as YAML."""
    slot = yaml.safe_load(joint)
    rows = [timeless(evaluate(run, options=scored(fad={"embeddings": [given]}))) for given in (slot, joint)]
    assert rows[0] == rows[1]


def test_what_runs_by_default_is_left_out_where_it_cannot_be_measured(run, monkeypatch, lines):
    """And refused where it was asked for: a missing package, with the command that installs it."""
    monkeypatch.setattr("partita.evaluation.score.find_spec", lambda name: None if name == "mir_eval" else object())
    assert evaluate(run, options=FEW)["metrics"].keys() == CODEC_ROWS
    assert any(line.startswith("agreement is not measured: it needs mir_eval (pip install") for line in lines)
    with pytest.raises(PartitaError, match=r"agreement is not measured: it needs mir_eval \(pip install"):
        evaluate(run, options=scored(agreement=True))
    with pytest.raises(PartitaError, match="melody cannot be measured: this system reads no cover or melody"):
        evaluate(run, options=scored(melody=True))


def test_the_command_refuses_before_anything_slow(run, monkeypatch, capfd):
    status, printed = command(monkeypatch, capfd, run, "--score", "kld={classifiers: [log-mel-16khz]}")
    assert status == 2
    assert "is not a classifier" in printed
    assert not (run / "evaluation").exists()


def test_no_clips_is_a_mistake():
    with pytest.raises(PartitaError, match="clips must be a whole number of at least 1"):
        Evaluation(clips=0)
