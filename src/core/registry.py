"""Names for parts: a part is found by its family and registered name, never by an import path.

The parts of this package are found by reading their source, those of other packages by their entry points (group
``partita.<family>``). So names can be listed, and suggested for a misspelled one, without importing torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

FAMILIES = {"tokenizer": "tokenizers", "conditioner": "conditioners", "generator": "generators", "data": "data"}
"""Each family of parts, and the folder that holds it."""

COMPONENTS = {
    "autoencoder": "tokenizers/autoencoders",
    "bottleneck": "tokenizers/bottlenecks",
    "discriminator": "tokenizers/discriminators",
    "backbone": "generators/backbones",
    "adapter": "generators/adapters",
    "denoiser": "generators/denoisers",
    "audio_tower": "conditioners/audio_towers",
    "text_tower": "conditioners/text_towers",
}
"""Each family of components, which parts are made of, and the folder that holds it."""

EXTENSIONS = {"field": "data/fields", "score": "evaluation/scores"}
"""Each family of extensions other than the parts of a system, and the folder that holds it."""

REGISTERED = FAMILIES | COMPONENTS | EXTENSIONS

FORMATS = {
    "checkpoint": ("generators/checkpoints", "tokenizers/checkpoints", "conditioners/checkpoints"),
    "published": ("publishing/formats",),
}
"""Each family that is chosen by the content of a file instead of by name, and the folders that hold it."""

PACKAGE, PACKAGE_NAME = Path(__file__).parents[1], __package__.rpartition(".")[0]
"""The folder of this package, and its name."""

OWN = " (a part in a file of your own: partita --import FILE.py …; in Python, import it first)"
"""The end of messages about unknown parts."""

T = TypeVar("T", bound=type)
_classes: dict[tuple[str, str], type] = {}


class UnknownName(KeyError):
    """An unregistered name. The message suggests similar names."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Source(NamedTuple):
    module: str
    summary: str


def register(family: str, name: str) -> Callable[[T], T]:
    """Class decorator that makes a part available to recipes as ``name``.

    Raises:
        ValueError: The family does not exist, or another class has the name.
    """
    if family not in REGISTERED and family not in FORMATS:
        raise ValueError(f"no family {family!r}: choose one of {', '.join((*REGISTERED, *FORMATS))}")

    def decorate(cls: T) -> T:
        taken = _classes.get((family, name))
        identity = (cls.__module__, cls.__qualname__)
        if taken is not None and (taken.__module__, taken.__qualname__) != identity:
            raise ValueError(f"{family} {name!r} is already {taken.__module__}.{taken.__qualname__}")
        if taken is None and name in _sources(family) and _sources(family)[name].module != cls.__module__:
            raise ValueError(f"{family} {name!r} is already a part of partita")
        _classes[family, name] = cls
        cls.family, cls.registered_name = family, name  # type: ignore[attr-defined]
        return cls

    return decorate


def lookup(family: str, name: str) -> Any:
    """The class registered as ``name``.

    Raises:
        UnknownName: No class is registered under this name.
    """
    if (family, name) not in _classes:
        if name in _sources(family):
            importlib.import_module(_sources(family)[name].module)
        elif name in _entry_points(family):
            register(family, name)(_entry_points(family)[name].load())
        else:
            raise UnknownName(f"no {family} is called {name!r}{did_you_mean(name, names(family))}{OWN}")
    return _classes[family, name]


def names(family: str) -> dict[str, str]:
    """Every registered name of a family with a one-line summary, sorted, without importing any part."""
    found = {name: (cls.__doc__ or "").strip().split("\n")[0] for (f, name), cls in _classes.items() if f == family}
    found |= {
        name: f"from the package {e.dist.name if e.dist else e.module}" for name, e in _entry_points(family).items()
    }
    found |= {name: source.summary for name, source in _sources(family).items()}
    return dict(sorted(found.items()))


def with_article(family: str) -> str:
    """The name of a family with its indefinite article.

    >>> with_article("autoencoder"), with_article("data")
    ('an autoencoder', 'a data source')
    """
    return f"{'an' if family[0] in 'aeiou' else 'a'} {'data source' if family == 'data' else family}"


def did_you_mean(name: object, candidates: Iterable[str]) -> str:
    """``": did you mean x?"``, or a list of all candidates; empty if there are none."""
    choices = list(candidates)
    close = difflib.get_close_matches(str(name), choices, n=2, cutoff=0.6)
    if close:
        return f": did you mean {' or '.join(repr(c) for c in close)}?"
    return f": choose from {', '.join(choices)}" if choices else ""


@cache
def _entry_points(family: str) -> dict[str, EntryPoint]:
    return {e.name: e for e in _all_entry_points().select(group=f"partita.{family}")}


@cache
def _all_entry_points() -> Any:
    return entry_points()  # reads the metadata of every installed package


@cache
def _sources(family: str) -> dict[str, _Source]:
    """Registered classes of this package by name, read from the source without importing it."""
    folders = FORMATS.get(family) or (REGISTERED[family],)
    found = {}
    for path in (path for folder in folders for path in sorted((PACKAGE / folder).glob("*.py"))):
        folder = path.parent.relative_to(PACKAGE).as_posix()
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "@register(" in text else ():
            for name in _registered_names(node, family):
                summary = (ast.get_docstring(node) or "").split("\n")[0]  # type: ignore[arg-type]
                found[name] = _Source(f"{PACKAGE_NAME}.{folder.replace('/', '.')}.{path.stem}", summary)
    return found


def _registered_names(node: ast.AST, family: str) -> Iterable[str]:
    for decorator in getattr(node, "decorator_list", []):
        match decorator:
            case ast.Call(
                func=ast.Name(id="register"), args=[ast.Constant(value=decorated), ast.Constant(value=str(name))]
            ) if decorated == family:
                yield name
