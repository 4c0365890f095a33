"""What a system shows of itself."""

import partita
from partita.recipe import load_recipe
from partita.system import System


def test_systems_and_plans_show_the_table_of_check(saved_toy, toy_recipe):
    plan = load_recipe(toy_recipe)
    text = repr(System(plan))
    assert repr(plan) == text == str(System(plan))
    header, *rows = text.splitlines()
    assert header.split()[:2] == ["part", "kind"]
    assert [row.split()[0] for row in rows] == [
        *("tokenizers/acoustic", "conditioners/text", "stages/main"),
        *("data:", "data:"),
    ]
    assert rows[-1] == "data: made of toy-sines: license not stated; it is yours to state (`license` of a folder)"
    assert "\x1b" not in text
    assert "toy-bigram" in repr(partita.load(saved_toy))
