"""The house keeps its order: rooms, imports, and functions that take few arguments."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import partita

ROOT = Path(partita.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = {
    *(
        "diffusers",
        "encodec",
        "huggingface_hub",
        "librosa",
        "peft",
        "loguru",
        "mir_eval",
        "music21",
        "PIL",
        "pyloudnorm",
    ),
    *("datasets", "litdata", "sounddevice", "submitit", "torchaudio", "trackio", "transformers"),
    "vector_quantize_pytorch",
}
"""Packages that are imported where they are used: slow to import, or optional."""


def named(path):
    return str(path.relative_to(ROOT))


def groups():
    """Names of dataclasses and components, which stand for several arguments at once."""
    found = {"Backbone", "Denoiser", "Autoencoder", "Bottleneck", "Discriminator"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                found.add(node.name)
    return found


GROUPS = groups()


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_there_are_few_rooms():
    assert len([path for path in ROOT.iterdir() if (path / "__init__.py").is_file()]) <= 15
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "errors.py", "limits.py"}


@pytest.mark.parametrize("room", sorted(path.parent for path in ROOT.rglob("*/__init__.py")), ids=named)
def test_a_room_says_what_belongs_there(room):
    assert len(ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or "") > 20


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_inside_functions_are_of_heavy_packages(path):
    for function in functions(ast.parse(path.read_text())):
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                found = {"." if node.level else str(node.module).split(".")[0]}
            else:
                found = {name.name.split(".")[0] for name in node.names} if isinstance(node, ast.Import) else set()
            assert found <= HEAVY, f"line {getattr(node, 'lineno', 0)}"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_functions_take_few_arguments(path):
    for function in functions(ast.parse(path.read_text())):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        own = [argument for argument in arguments if argument.arg not in ("self", "cls")]
        names = [a.arg for a in own if a.annotation is None or not GROUPS & set(ast.unparse(a.annotation).split(" | "))]
        assert len(names) <= 8, f"{function.name} takes {len(names)}"


def test_a_name_means_one_thing():
    """Every room may have a base.py, and a command has the name of what it runs; any other name is there once."""
    apart = ("__init__", "__main__", "base")
    counted = Counter(path.stem for path in FILES if path.stem not in apart and path.parent.name != "cli")
    assert [name for name, count in counted.items() if count > 1] == []
