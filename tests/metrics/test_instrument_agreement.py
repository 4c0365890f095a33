"""Instruments are told apart by what they sound like, whatever their pitch and level."""

import pytest
import torch

from partita.errors import PartitaError
from partita.metrics.instrument_agreement import InstrumentAgreement, InstrumentClassifier

RATE = 16000


def tone(name, pitch, level=0.3):
    """A second of a note with odd overtones, with all, or with none."""
    steps = {"clarinet": range(1, 16, 2), "brass": range(1, 16), "flute": range(1, 2)}[name]
    time = torch.arange(RATE) / RATE
    return level * sum(torch.sin(2 * torch.pi * pitch * k * time) / k for k in steps)[None]


NAMES = ["brass", "clarinet", "flute"]


@pytest.fixture(scope="module")
def classifier():
    found = InstrumentClassifier(RATE)
    for pitch in range(220, 440, 20):
        found.add(torch.stack([tone(name, pitch) for name in NAMES]), [[name] for name in NAMES])
    return found.fit()


def test_pitches_and_levels_that_were_never_heard(classifier):
    for name in NAMES:
        for pitch, level in ((271, 0.3), (393, 0.01), (229, 1.0)):
            assert classifier.names[classifier(tone(name, pitch, level)[None]).argmax()] == name


def test_several_at_once():
    """Of clips with two instruments, both are heard at other pitches."""
    several = InstrumentClassifier(RATE)
    pairs = [("brass", "flute"), ("clarinet", "flute"), ("brass", "clarinet")]
    mixed = {pair: [tone(pair[0], p) + tone(pair[1], 1.5 * p) for p in range(200, 420, 10)] for pair in pairs}
    for pair, clips in mixed.items():
        several.add(torch.stack(clips), [pair] * len(clips))
    several.fit()
    metric = InstrumentAgreement(several.names)
    for first, second in pairs:
        metric.update(several((tone(first, 293) + tone(second, 439))[None]), [[first, second]])
    assert metric.compute()["instruments"] > 0.8


def test_the_mean_is_that_of_the_named_instruments_that_are_heard():
    metric = InstrumentAgreement(NAMES)
    metric.update(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), [["brass"], ["flute"]], ["one", "two"])
    metric.update(torch.tensor([[3.0, 2.0, 1.0]]), [["brass", "flute"]], ["two"])
    found = metric.compute()
    assert found["instruments"] == 0.5
    assert found["pieces"] == 2
    assert metric.values[:, 0].tolist() == [1.0, 0.0, 0.5]


def test_what_cannot_be_told_is_said():
    with pytest.raises(PartitaError, match=r"\['harp'\] is not among the instruments that are told apart: brass"):
        InstrumentAgreement(NAMES).update(torch.zeros(1, 3), [["harp"]])
    with pytest.raises(PartitaError, match="a clip has none"):
        InstrumentAgreement(NAMES).update(torch.zeros(1, 3), [[]])
    alone = InstrumentClassifier(RATE)
    alone.add(tone("flute", 300)[None], [["flute"]])
    with pytest.raises(PartitaError, match="cannot be told apart"):
        alone.fit()
