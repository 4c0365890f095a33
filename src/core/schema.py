"""The typed signature of a part is its schema: it gives the checks, the help and the documentation."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Union

from docstring_parser import parse as parse_docstring
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .registry import REGISTERED, UnknownName, did_you_mean, lookup, with_article

SUPPLIED = ("target", "given")
"""Arguments that the system supplies; a recipe cannot set them."""


class Argument(NamedTuple):
    """One argument of a part."""

    name: str
    type: Any
    default: Any
    doc: str

    @property
    def required(self) -> bool:
        """Whether the argument has no default."""
        return self.default is MISSING


class Mistake(NamedTuple):
    """An invalid value: its dotted key, what is wrong, and what was probably meant."""

    key: str
    message: str
    suggestion: str = ""


@cache
def arguments(cls: type) -> Mapping[str, Argument]:
    """The arguments of a class, or the fields of a dataclass, by name."""
    docs = _docs(cls)
    if is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(cls)}
    else:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
        defaults = {p.name: MISSING if p.default is inspect.Parameter.empty else p.default for p in parameters}
    return {
        name: Argument(name, hints.get(name, Any), default, docs.get(name, "")) for name, default in defaults.items()
    }


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance from the plain values of a recipe or a saved part.

    Raises:
        ValueError: The values do not fit the signature, or the constructor rejects them.
    """
    mistakes = check(cls, values)
    if mistakes:
        raise ValueError("; ".join(f"{m.key}: {m.message}{m.suggestion}" for m in mistakes))
    if any(isinstance(leaf, str) and "${" in leaf for leaf in _leaves(values)):
        raise ValueError("a text with ${ in it: only recipes can refer to other keys")  # nor to the environment
    return _instance(cls, values)


def check(
    cls: type,
    values: Mapping[str, Any],
    *,
    skip: Iterable[str] = (),
    key: str = "",
    leave_parts: bool = False,
    beside: Sequence[str] = (),
) -> list[Mistake]:
    """Every mistake in ``values``, each checked on its own against its type in the signature.

    Args:
        cls: A part, or a dataclass.
        values: Values by argument. An argument for a part holds a built part or the content of :attr:`Part.config`.
        skip: Arguments that the system supplies.
        key: Key of the values, for the messages.
        leave_parts: Whether the caller checks the values of arguments for parts.
        beside: Keys that the caller handles itself or that are nested (``fit.steps``), which messages may suggest.
    """
    known = {name: argument for name, argument in arguments(cls).items() if name not in skip}
    mistakes = []
    for name, value in values.items():
        path = f"{key}.{name}" if key else str(name)
        if name not in known:
            what = "the system supplies this; it cannot be set" if name in skip else "there is no such key"
            deeper = next((other for other in beside if other.endswith(f".{name}")), None)
            choices = [*known, *(other for other in beside if "." not in other)]
            mistakes.append(Mistake(path, what, did_you_mean(deeper or name, [deeper] if deeper else choices)))
        elif leave_parts and part_type(known[name].type):
            continue
        elif value != _OMEGA_MISSING:
            mistakes += _check_value(known[name], value, path)
    for name, argument in known.items():
        if values.get(name) == _OMEGA_MISSING or (argument.required and name not in values):
            mistakes.append(Mistake(f"{key}.{name}" if key else name, "must be given", _hint(argument)))
    if not mistakes and is_dataclass(cls):
        mistakes += _post_init(cls, values, key)
    return mistakes


def type_name(hint: Any) -> str:
    """A readable name of a type.

    >>> type_name(tuple[int, ...] | None), type_name(Literal["a", "b"]), type_name(float)
    ('tuple of int or null', 'a | b', 'float')
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (None, type(None)):
        return "null"
    if origin is Literal:
        return " | ".join(str(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin in (tuple, list):
        inner = " and ".join(dict.fromkeys(type_name(a) for a in args if a is not ...))
        return f"{origin.__name__} of {inner}" if inner else origin.__name__
    if origin is dict:
        return f"mapping of {type_name(args[1])}"
    if part_type(hint):
        return with_article(hint.family)
    return getattr(hint, "__name__", str(hint).removeprefix("typing."))


def plain(value: Any) -> Any:
    """A value for a file: dataclasses become mappings, tuples lists, and parts the arguments they are built from."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value.config if part_type(type(value)) else value


def nested(hint: Any) -> type | None:
    """The dataclass that a type is, optional or not; ``None`` for other types."""
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and is_dataclass(candidate):
            return candidate
    return None


def part_type(hint: Any) -> Any:
    """The class of parts that a type is, optional or not; ``None`` if an argument of this type takes no part."""
    optional = typing.get_origin(hint) in (Union, types.UnionType)
    for candidate in typing.get_args(hint) if optional else (hint,):
        if isinstance(candidate, type) and getattr(candidate, "family", None) in REGISTERED:
            return candidate
    return None


def part_arguments(cls: type) -> dict[str, str]:
    """The arguments of a class that take a part, and the family of each."""
    takes = {name: part_type(argument.type) for name, argument in arguments(cls).items()}
    return {name: base.family for name, base in takes.items() if base is not None}


def _leaves(value: Any) -> Iterator[Any]:
    """All values in nested mappings and lists."""
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(inner)
    else:
        yield value


def _places(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All values in nested mappings, with their keys. Those in a list have the key of the list."""
    if not isinstance(value, Mapping):
        yield from ((path, leaf) for leaf in _leaves(value))
        return
    for name, inner in value.items():
        yield from _places(inner, f"{path}.{name}")


def _check_part(argument: Argument, value: Any, path: str) -> list[Mistake]:
    base = part_type(argument.type)
    if isinstance(value, base) or (value is None and type(None) in typing.get_args(argument.type)):
        return []
    match value:
        case {"family": base.family, "name": str(name), "arguments": Mapping() as inner, **rest} if not rest:
            try:
                return check(lookup(base.family, name), inner, key=path)
            except UnknownName as error:
                return [Mistake(f"{path}.name", str(error))]
    return [Mistake(path, f"expected {type_name(argument.type)}, got {value!r}", _hint(argument))]


def _instance(cls: type, values: Mapping[str, Any], default: Any = None) -> Any:
    """An instance of a class from values that :func:`check` found no mistake in.

    Args:
        cls: A part, or a dataclass.
        values: Values by argument.
        default: An instance of the dataclass, whose values stay where ``values`` has none. Otherwise, the defaults of
            the class count.
    """
    known = arguments(cls)
    base = {f.name: getattr(default, f.name) for f in fields(cls)} if is_dataclass(cls) and default is not None else {}
    made = {n: _converted(known[n].type, value, base.get(n, known[n].default)) for n, value in values.items()}
    return cls(**base | made)


def _converted(hint: Any, value: Any, default: Any = None) -> Any:
    """A valid value with the type of its argument: ``"5"`` becomes 5, a list a tuple, a mapping a dataclass or part.

    A mapping changes values of ``default`` if that is a dataclass of the same type.
    """
    if part_type(hint):
        is_part = isinstance(value, Mapping)
        return _instance(lookup(value["family"], value["name"]), value["arguments"]) if is_part else value
    group = _group(hint)
    if group is not None and isinstance(value, Mapping):
        return _instance(group, value, default if type(default) is group else None)
    common = _common(hint, value)
    if common is not _UNSURE:
        return common
    return OmegaConf.to_object(OmegaConf.merge(_holder(hint), {"value": value})).value  # type: ignore[union-attr]


def _common(hint: Any, value: Any) -> Any:
    """A value that already has its type, or a whole number for a float, as OmegaConf converts it but much faster.

    ``_UNSURE`` leaves the value to OmegaConf: ``"5"`` for a number, what is invalid, and unusual types.
    """
    if hint is Any:
        hint = _PLAIN.get(type(value), type(value))
        if isinstance(value, str) and "${" in value:
            return _UNSURE
    if hint in (bool, int, float, str, type(None)):
        if hint is float and type(value) is int and abs(value) < _LARGEST_EXACT:
            return float(value)
        return value if type(value) is hint and value != _OMEGA_MISSING else _UNSURE
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value if any(type(value) is type(choice) and value == choice for choice in args) else _UNSURE
    if origin in (Union, types.UnionType):
        made = [_common(inner, value) for inner in (args if type(value) not in args else (type(value),))]
        return next((m for m in made if m is not _UNSURE), _UNSURE)
    if origin is dict and isinstance(value, dict) and all(type(key) is args[0] is str for key in value):
        made = [_common(args[1], inner) for inner in value.values()]
        return _UNSURE if _UNSURE in made else dict(zip(value, made, strict=True))
    if origin in (list, tuple) and isinstance(value, list | tuple):
        hints = args[:1] * len(value) if origin is list or args[-1:] == (...,) else args
        made = [_common(*pair) for pair in zip(hints, value, strict=False)]
        return _UNSURE if _UNSURE in made or len(hints) != len(value) else origin(made)
    if isinstance(hint, type) and is_dataclass(hint):
        return _common_dataclass(hint, value)
    return _UNSURE


def _common_dataclass(hint: type, value: Any) -> Any:
    """The same for an instance of a dataclass, or a mapping that gives its fields."""
    known = arguments(hint)
    if not isinstance(value, dict) or not {n for n, a in known.items() if a.required} <= set(value) <= set(known):
        return value if isinstance(value, hint) else _UNSURE
    made = {name: _common(known[name].type, inner) for name, inner in value.items()}
    return _UNSURE if _UNSURE in made.values() else hint(**made)


def _group(hint: Any) -> type | None:
    """The dataclass whose fields a mapping gives; a mapping to dataclasses is none."""
    return None if typing.get_origin(hint) is dict else nested(hint)


def _check_value(argument: Argument, value: Any, path: str) -> list[Mistake]:
    if part_type(argument.type):
        return _check_part(argument, value, path)
    group = _group(argument.type)
    if group is not None and isinstance(value, Mapping):
        return check(group, value, key=path)
    if endless := _endless(value, path):
        return endless
    try:
        if _nested_as(argument.type, value):
            return _endless(_converted(argument.type, value), path)  # of texts, such as "inf"
    except _REFUSALS:
        pass
    return [Mistake(path, f"expected {type_name(argument.type)}, got {value!r}", _hint(argument, value))]


def _nested_as(hint: Any, value: Any) -> bool:
    """Whether no list or mapping is in the place of a single value, which OmegaConf does not check within lists."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_nested_as(inner, value) for inner in args)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        hints = args[:1] * len(value) if origin is list or args[-1:] == (...,) else args
        return all(_nested_as(*pair) for pair in zip(hints, value, strict=False))
    if origin is dict and isinstance(value, Mapping):
        return all(_nested_as(args[1], inner) for inner in value.values())
    return hint not in (bool, int, float, str, type(None)) or not isinstance(value, Mapping | list | tuple)


def _endless(value: Any, path: str) -> list[Mistake]:
    numbers = [(at, leaf) for at, leaf in _places(value, path) if isinstance(leaf, float)]
    return [Mistake(at, f"expected a finite number, got {leaf}") for at, leaf in numbers if not math.isfinite(leaf)]


@cache
def _holder(hint: Any) -> DictConfig:
    """A config with one value of a type. Merging copies it, so that it can be cached."""
    return OmegaConf.structured(make_dataclass("Holder", [("value", hint, field(default=_OMEGA_MISSING))]))


def _post_init(cls: type, values: Mapping[str, Any], key: str) -> list[Mistake]:
    try:
        _instance(cls, values)
    except (ValueError, TypeError) as error:
        return [Mistake(key, str(error).split("\n")[0])]
    return []


def _hint(argument: Argument, value: Any = None) -> str:
    choices = [str(a) for a in typing.get_args(argument.type)] if typing.get_origin(argument.type) is Literal else []
    if choices:
        return did_you_mean(value, choices)
    if value == "None" and type(None) in typing.get_args(argument.type):
        return ": write null"
    return f" ({in_recipes(argument.doc)})" if argument.doc else ""


def in_recipes(doc: str) -> str:
    """A description of an argument as plain text, in which ``None`` is ``null``, as recipes have it."""
    return doc.replace("``None``", "null").replace("``", "")


@cache
def _docs(cls: type) -> dict[str, str]:
    """The description of each argument in the docstrings; that of a subclass takes precedence over that of its base."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if (base.__doc__ and base.__module__.startswith(__package__.partition(".")[0])) or base is cls:
            docs |= {
                p.arg_name: " ".join((p.description or "").split()) for p in parse_docstring(base.__doc__ or "").params
            }
    return docs


_OMEGA_MISSING = "???"
_REFUSALS = (
    *(OmegaConfBaseException, ValueError, TypeError, AssertionError),
    *(AttributeError, RecursionError, OverflowError),
)
"""What OmegaConf and constructors raise for a value that they cannot take."""
_UNSURE: Any = object()
_LARGEST_EXACT = 2**53
"""Whole numbers below this are floats without a loss."""
_PLAIN: dict[type, Any] = {dict: dict[str, Any], list: list[Any], tuple: tuple[Any, ...]}
"""What a container holds where any value is accepted."""
