import tomllib
from pathlib import Path

import pytest

import partita
from partita.core.registry import UnknownName, lookup, names, register


def test_the_packages_of_the_wheel_are_those_of_the_tree():
    root = Path(partita.__file__).parent
    listed = set(tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"partita." + ".".join(p.parent.relative_to(root).parts) for p in root.rglob("*/__init__.py")}
    assert listed == found | {"partita", "partita.recipes"}


def test_every_listed_part_can_be_looked_up_and_has_a_line_on_what_it_is():
    for family in ("tokenizer", "conditioner", "generator", "data"):
        for name, line in names(family).items():
            assert lookup(family, name).registered_name == name
            assert line


def test_an_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(UnknownName, match="did you mean 'vggish'"):
        lookup("tokenizer", "vgigsh")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already"):
        register("tokenizer", "toy-codec")(type("Other", (), {}))
    with pytest.raises(ValueError, match="already"):
        register("tokenizer", "codec")(type("Mine", (), {}))
    with pytest.raises(ValueError, match="no family"):
        register("tokenzier", "mine")


def test_another_package_adds_a_part_by_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "zither-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: zither\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[partita.tokenizer]\nzither = zither:Zither\n")
    (tmp_path / "zither.py").write_text("class Zither:\n    '''A part from elsewhere.'''\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from partita.core import registry

    registry._all_entry_points.cache_clear()
    registry._entry_points.cache_clear()
    try:
        assert "zither" in names("tokenizer")["zither"]
        assert lookup("tokenizer", "zither").__name__ == "Zither"
    finally:
        registry._classes.pop(("tokenizer", "zither"), None)
        registry._all_entry_points.cache_clear()
        registry._entry_points.cache_clear()
