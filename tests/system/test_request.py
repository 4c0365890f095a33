"""One request, however it is put: as keyword options, as a whole, and for many rows."""

import inspect
from dataclasses import fields

import pytest
import torch

import partita
from partita.core.progress import reporting
from partita.errors import PartitaError
from partita.system.prompts import Row


@pytest.fixture
def system(toy_recipe):
    return partita.System.from_recipe(toy_recipe)


def test_options_and_a_request_are_the_same(system):
    request = partita.Request(["organ"], duration=1.5, seed=3, guidance=2.0)
    audio = system.generate(request)
    assert torch.equal(audio, system.generate(["organ"], duration=1.5, seed=3, guidance=2.0))
    assert torch.equal(audio, system.generate(partita.Request(["organ"], guidance=2.0), duration=1.5, seed=3))
    codes = system.generate_representations(request)
    assert torch.equal(audio, system.decode(codes))
    ((place, clip),) = partita.generate_each(
        system, [Row({"text": "organ"})], partita.Request(duration=1.5, seed=3, guidance=2.0)
    )
    assert place == 0
    assert torch.allclose(clip, audio[0], atol=1e-6)


def test_the_signature_names_every_option(system):
    shown = inspect.signature(system.generate).parameters
    assert list(shown) == [*(field.name for field in fields(partita.Request)), "progress"]
    assert shown["seed"].default == 0
    assert shown["splice"].default is True
    assert shown["prompts"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert all(shown[name].kind is inspect.Parameter.KEYWORD_ONLY for name in shown if name != "prompts")
    each = list(inspect.signature(partita.generate_each).parameters)
    assert each[:3] == ["system", "rows", "request"]
    assert "options" not in each
    assert "guidance" in each
    for field in fields(partita.Request):
        assert f"\n        {field.name}: " in (partita.Request.__doc__ or "")


@pytest.mark.parametrize("method", ["generate", "generate_representations"])
def test_an_unknown_option_is_one_message_with_what_was_meant(system, method):
    with pytest.raises(PartitaError, match=r"'durration'.*duration"):
        getattr(system, method)(["organ"], durration=5)
    with pytest.raises(PartitaError, match=r"'temperature'"):
        getattr(system, method)(["organ"], temperature=0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidence": 2.0}, r"'guidence'.*guidance"),
        ({"seed": [1]}, "the seed of the first row"),
        ({"negative": ["noise"]}, "one text"),
        ({"prompts": ["organ"]}, "the rows contain the prompts"),
    ],
)
def test_what_rows_cannot_be_asked(system, options, message):
    with pytest.raises(PartitaError, match=message):
        list(partita.generate_each(system, [Row({"text": "organ"})], **options))


def test_whoever_listens_hears_each_stage(system):
    heard = []
    with reporting(lambda *at: heard.append(at)):
        system.generate(["organ"])
        assert heard
        assert {name for name, _, _ in heard} == {"main"}
        assert heard[-1][1] == heard[-1][2]
        heard.clear()
        system.generate(["organ"], progress=False)
    assert not heard
