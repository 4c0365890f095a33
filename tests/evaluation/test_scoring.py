"""What single scores say of systems that are known to be good or bad."""

import pytest

from evaluation_toys import FEW, JOINT, scored
from partita.evaluation.evaluate import evaluate


def test_a_classifier_hears_who_does_as_told(run, singer):
    """What sings the tone of its caption is near the piece, and as far from another's piece as that is from it."""
    options = scored(kld={"classifiers": ["toy-listener"]})
    good = evaluate(singer, options=options)["metrics"]["KLD (toy-listener)"]
    bad = evaluate(run, options=options)["metrics"]["KLD (toy-listener)"]
    assert good["value"] < 0.1 < 3 < good["chance"]
    assert bad["value"] > 3
    assert "real" not in good
    assert good["codec"] < 0.1


def test_captions_and_clips_are_compared_in_one_space(run, singer, joint):
    name, options = f"text–audio consistency ({JOINT})", scored(consistency={"conditioners": [joint]})
    good, bad = (evaluate(made, options=options)["metrics"][name] for made in (singer, run))
    assert good["value"] > 0.95
    assert good["value"] == pytest.approx(good["real"], abs=0.02)
    assert good["chance"] < 0.1
    assert bad["value"] < 0.7 < bad["real"]


def test_the_melody_is_compared_where_it_was_told(other, run):
    tuned = other("data={name: toy-loops}", "conditioners.text=toy-tune")
    row = evaluate(tuned, options=FEW)["metrics"]["melody kept"]
    assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert row["clips"] == 5
    assert "chance" in row
    assert "melody kept" not in evaluate(run, options=FEW)["metrics"]


def test_a_codec_that_keeps_the_sound_is_near_it(run, singer):
    rough, fine = (evaluate(made, options=FEW)["metrics"]["codec distance"] for made in (run, singer))
    assert 0 < fine["value"] < rough["value"]
    assert fine["chance"] == pytest.approx(rough["chance"])
    assert (fine["clips"], fine["reference_clips"]) == (5, 6)
