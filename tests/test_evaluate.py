import json

import pytest

from partita.errors import PartitaError
from partita.evaluate import Evaluation, evaluate
from partita.recipe import load_recipe
from partita.system import System

FEW = Evaluation(clips=5, reference_clips=6, duration=1.0, batch_size=2)


@pytest.fixture
def run(toy_recipe, tmp_path):
    """A saved system with random weights."""
    System(load_recipe(toy_recipe)).save(tmp_path / "run")
    return tmp_path / "run"


def test_an_evaluation_that_was_interrupted_goes_on_and_ends_the_same(run, tmp_path):
    whole = evaluate(run, tmp_path / "whole", options=FEW)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(run, options=FEW, progress=interrupt)
    kept = sorted((run / "evaluation" / "clips").iterdir())
    assert len(kept) == 2
    times = [path.stat().st_mtime_ns for path in kept]
    lines = []
    assert evaluate(run, options=FEW, say=lines.append) == whole
    assert "2 of 5 clips are there already" in lines
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert json.loads((run / "evaluation" / "evaluation.json").read_text()) == whole


def test_real_clips_score_better_than_what_random_weights_make(run):
    score = evaluate(run, options=FEW)["metrics"]["FAD (log-mel-16khz)"]
    assert 0 <= score["real"] < 0.2 * score["value"]
    assert score["low"] < score["high"]
    assert (score["clips"], score["reference_clips"]) == (5, 6)
    page = (run / "evaluation" / "evaluation.html").read_text()
    assert page.count("<audio") == 10


def test_clips_of_another_request_are_not_taken_for_ones_own(run, tmp_path):
    evaluate(run, options=FEW)
    with pytest.raises(PartitaError, match=r"another model, data or options.*-o"):
        evaluate(run, options=Evaluation(clips=5, reference_clips=6, duration=1.0, seed=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(PartitaError, match="not empty"):
        evaluate(run, tmp_path / "mine", options=FEW)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"embeddings": ("lgo-mel",)}, "'log-mel"),
        ({"embeddings": ("soundstream-tiny",)}, "soundstream-tiny has no weights"),
        ({"embeddings": ("{",)}, "neither the name"),
        ({"embeddings": ("3",)}, "expected the name of a tokenizer"),
        ({"duration": -1.0}, "duration"),
    ],
)
def test_what_cannot_be_evaluated_is_one_message(run, options, word):
    with pytest.raises(PartitaError, match=word):
        evaluate(run, options=Evaluation(**{"clips": 2, "reference_clips": 2, **options}))


def test_other_data_is_named_by_data_alone(run):
    with pytest.raises(PartitaError, match="changes data only"):
        evaluate(run, data=["seed=3"], options=FEW)
    assert evaluate(run, data=["data.pieces=3"], options=FEW)["request"]["data_changes"] == ["data.pieces=3"]


def test_no_clips_is_a_mistake():
    with pytest.raises(PartitaError, match="clips must be at least 1"):
        Evaluation(clips=0)
