"""What a system shows of itself."""

import partita
from partita.recipe.plan import load_recipe
from partita.system.system import System


def test_systems_show_the_table_of_check_and_plans_their_parts(saved_toy, toy_recipe):
    plan = load_recipe(toy_recipe)
    text = repr(System(plan))
    assert text == str(System(plan))
    assert repr(plan).splitlines() == [
        "tokenizers.acoustic: toy-codec",
        "conditioners.text: toy-letters",
        "stages.main.generator: toy-bigram",
        "stages.main: acoustic given text",
        "data: toy-sines",
    ]
    header, *rows = text.splitlines()
    assert header.split()[:2] == ["part", "kind"]
    assert [row.split()[0] for row in rows] == [
        *("tokenizers/acoustic", "conditioners/text", "stages/main"),
        *("data:", "data:"),
    ]
    assert rows[-1] == "data: made of toy-sines: license not stated; state it with `license` of the folder"
    assert "\x1b" not in text
    assert "toy-bigram" in repr(partita.load(saved_toy))
