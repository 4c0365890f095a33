import re

import pytest

from chains import CHAIN
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.tokenizers.base import Tokenizer
from partita.training.report import write_report


@pytest.fixture
def system(tmp_path):
    (tmp_path / "recipe.yaml").write_text(CHAIN)
    system = System(load_recipe(tmp_path / "recipe.yaml"))
    system.source.setup()
    return system


def test_a_chain_is_shown_with_what_its_stages_make_of_each_other(system, tmp_path):
    page = write_report(system, tmp_path, title="chain", clips=2, measured=2).read_text()
    # two clips and a story, and a pair for each clip and tokenizer
    assert page.count("<audio") == 3 + 2 * 2 * 2
    assert "… from 2 s:" in page
    assert "codes of coarse that the generated audio has, too" in page
    assert "made of toy-sines: license not stated; state it with `license` of the folder" in page


@pytest.mark.parametrize(("data", "told"), [("toy-trained", 2), ("toy-sines", 0)])
def test_nothing_is_called_unseen_that_was_trained_on(system, tmp_path, data, told):
    recipe = load_recipe(tmp_path / "recipe.yaml", [f"data={data}"])
    page = write_report(System(recipe), tmp_path, title="chain", clips=2, measured=2).read_text()
    assert page.count("training pieces replace them") == told
    assert ("held-out pieces" in page) == (told == 0)


def test_it_says_what_stages_listen_to(toy_recipe, tmp_path):
    page = write_report(System(load_recipe(toy_recipe)), tmp_path, title="toy", clips=1, measured=2).read_text()
    assert "Use of conditions" in page
    assert re.search(r"<td>main</td><td>text</td>.*nats", page)


def test_what_cannot_be_heard_is_not_shown(system, tmp_path, monkeypatch):
    coarse = system.tokenizers["coarse"]
    monkeypatch.setattr(coarse, "decode", lambda codes: Tokenizer.decode(coarse, codes))
    page = write_report(system, tmp_path, title="chain", clips=2, measured=2).read_text()
    assert page.count("<audio") == 3 + 2 * 2
    assert page.count("codes in use") == 2
