"""What single scores say of systems that are known to be good or bad."""

import pytest

from evaluation_toys import FEW, JOINT, scored
from partita.errors import PartitaError
from partita.evaluation.evaluate import evaluate
from partita.evaluation.scores.instruments_heard import Instruments


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


def test_a_system_is_measured_by_its_own_joint_conditioner(run, singer):
    """Unless another one is named; a system without one has no such score, and says so if it is asked for."""
    own = evaluate(singer, options=FEW)["metrics"]["text–audio consistency (conditioners/text)"]
    assert own["value"] > 0.95
    assert own["p"] == 2 / 2**5  # the smallest that five pieces allow
    assert not any("consistency" in name for name in evaluate(run, options=FEW)["metrics"])
    with pytest.raises(PartitaError, match="embeds texts and audio in one space: name one"):
        evaluate(run, options=scored(consistency=True))


def test_distances_in_parts_of_the_system_and_in_folders(singer):
    folder = f"{singer}/conditioners/text"
    rows = evaluate(singer, options=scored(fad={"embeddings": ["conditioners/text", folder]}))["metrics"]
    assert rows["FAD (conditioners/text)"]["value"] == pytest.approx(rows[f"FAD ({folder})"]["value"])
    with pytest.raises(PartitaError, match=r"this system has no conditioners/tekst, but tokenizers/acoustic"):
        evaluate(singer, options=scored(fad={"embeddings": ["conditioners/tekst"]}))


def test_a_classifier_that_mistakes_real_clips_is_not_reliable():
    row = {"value": 0.8, "real": 0.85, "required": 0.9, "reference_clips": 256}
    assert (
        Instruments()
        .explanation({"right instruments": row})
        .endswith("less than 90 %: “right instruments” is not reliable.")
    )
    assert "not reliable" not in Instruments().explanation({"right instruments": row | {"real": 0.95}})


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
