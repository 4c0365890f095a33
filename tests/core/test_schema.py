import math
from dataclasses import asdict, dataclass, field, make_dataclass
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from partita.core.contracts import ConditionSpec, Given, RepresentationSpec
from partita.core.schema import SUPPLIED, arguments, build, check, part_arguments, plain, type_name
from partita.tokenizers.base import Tokenizer
from toys import ToyCodec, ToyLetters


@dataclass(frozen=True)
class Group:
    """A group of options.

    Args:
        size: How many.
    """

    size: int = 3
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self):
        if self.size < 0:
            raise ValueError("size must not be negative")


class Thing:
    """A thing.

    Args:
        width: How wide.
    """

    def __init__(
        self,
        target: RepresentationSpec,
        given: dict[str, Given],
        *,
        width: int,
        group: Group = Group(),
        ratios: tuple[int, ...] = (2, 4),
        rates: dict[str, float] | None = None,
    ):
        self.values = (target, given, width, group, ratios, rates)


TARGET, GIVEN = RepresentationSpec(16000, 1, 50.0, 4, 256), {"text": Given(ConditionSpec(dim=8), "cross")}


def test_every_mistake_is_reported_with_its_key():
    values = {
        "width": "wide",
        "group": {"size": "x", "mode": "fastt", "sice": 1},
        "ratios": [1, "b"],
        "rates": {"a": "z"},
    }
    mistakes = check(Thing, values, skip=SUPPLIED)
    assert {m.key for m in mistakes} == {"width", "group.size", "group.mode", "group.sice", "ratios", "rates"}
    assert "'fast'" in next(m.suggestion for m in mistakes if m.key == "group.mode")
    assert "size" in next(m.suggestion for m in mistakes if m.key == "group.sice")


def test_missing_and_surplus_and_supplied_keys():
    mistakes = {m.key: m for m in check(Thing, {"widht": 3, "target": 1}, skip=SUPPLIED)}
    assert mistakes.keys() == {"widht", "target", "width"}
    assert "'width'" in mistakes["widht"].suggestion
    assert "How wide." in mistakes["width"].suggestion


def test_a_group_that_refuses_its_values_is_a_mistake():
    assert [m.message for m in check(Thing, {"width": 1, "group": {"size": -1}}, skip=SUPPLIED)] == [
        "size must not be negative"
    ]


def test_part_of_a_group_changes_the_default_of_the_argument():
    class Whole:
        def __init__(self, *, group: Group = Group(5, "slow"), maybe: Group | None = Group(7)):
            self.groups = (group, maybe)

    @dataclass(frozen=True)
    class Outer:
        inner: Group = Group(6)

    class Deep:
        def __init__(self, *, outer: Outer = Outer(Group(8, "slow")), others: dict[str, Group] = {}):  # noqa: B006
            self.values = (outer, others)

    assert build(Whole, {"group": {"mode": "fast"}, "maybe": {"mode": "slow"}}).groups == (Group(5), Group(7, "slow"))
    assert build(Whole, {"group": {"size": "9"}, "maybe": None}).groups == (Group(9, "slow"), None)
    assert build(Deep, {"outer": {"inner": {"mode": "fast"}}}).values == (Outer(Group(8)), {})
    assert build(Deep, {"outer": {}, "others": {"a": {"mode": "slow"}}}).values == (
        Outer(Group(8, "slow")),
        {"a": Group(mode="slow")},
    )


def test_building_from_plain_values_gives_the_objects_of_the_signature():
    plain = {
        "target": asdict(TARGET),
        "given": {k: asdict(v) for k, v in GIVEN.items()},
        "width": 4,
        "group": {"size": 5},
        "ratios": [3, 5],
        "rates": {"a": 1},
    }
    assert build(Thing, plain).values == (TARGET, GIVEN, 4, Group(size=5), (3, 5), {"a": 1.0})


def test_building_with_objects_and_defaults():
    assert build(Thing, {"target": TARGET, "given": GIVEN, "width": 4}).values == (
        TARGET,
        GIVEN,
        4,
        Group(),
        (2, 4),
        None,
    )
    with pytest.raises(ValueError, match="width"):
        build(Thing, {"target": TARGET, "given": GIVEN})


def test_arguments_carry_docs_types_and_defaults():
    assert arguments(Thing)["width"].doc == "How wide."
    assert arguments(Thing)["width"].required
    assert arguments(Thing)["ratios"].default == (2, 4)


class Outer(Tokenizer):
    """A part that takes parts.

    Args:
        inner: What it listens to.
        other: What it also listens to.
        size: How many.
    """

    registered_name = "outer"

    def __init__(self, *, inner: Tokenizer, other: Tokenizer | None = None, size: int = 3):
        super().__init__()
        self.inner, self.other, self.size = inner, other, size

    @property
    def spec(self):
        return self.inner.spec

    def encode(self, audio):
        return self.inner.encode(audio)


SAVED = {"family": "tokenizer", "name": "toy-codec", "arguments": {"hop": 50}}


def test_a_part_is_an_argument_as_it_is_or_as_a_saved_one():
    assert part_arguments(Outer) == {"inner": "tokenizer", "other": "tokenizer"}
    inner = ToyCodec(hop=50)
    assert build(Outer, {"inner": inner}).inner is inner
    part = build(Outer, {"inner": SAVED, "other": inner, "size": 4})
    assert isinstance(part.inner, ToyCodec)
    assert (part.inner.hop, part.other, part.size) == (50, inner, 4)
    assert build(Outer, {"inner": inner, "other": None}).other is None


def test_a_part_in_an_argument_is_written_as_what_it_is_built_from():
    saved = plain(build(Outer, {"inner": SAVED}).arguments)
    assert saved == {"inner": SAVED | {"arguments": {"hop": 50, "cardinality": 16}}, "other": None, "size": 3}
    assert plain(build(Outer, saved).arguments) == saved


@pytest.mark.parametrize(
    ("value", "key", "word"),
    [
        (3, "inner", "expected a tokenizer, got 3"),
        (None, "inner", "expected a tokenizer, got None"),
        ("toy-codec", "inner", "got 'toy-codec'"),
        ({"name": "toy-codec"}, "inner", "expected a tokenizer"),
        (SAVED | {"family": "conditioner", "name": "toy-letters"}, "inner", "expected a tokenizer"),
        (ToyLetters(), "inner", "expected a tokenizer"),
        (SAVED | {"name": "toy-codek"}, "inner.name", "did you mean 'toy-codec'"),
        (SAVED | {"arguments": {"hopp": 3}}, "inner.hopp", "no such key"),
        (SAVED | {"arguments": 3}, "inner", "expected a tokenizer"),
    ],
)
def test_what_is_no_part_is_a_mistake(value, key, word):
    [mistake] = check(Outer, {"inner": value})
    assert mistake.key == key
    assert word in mistake.message + mistake.suggestion
    with pytest.raises(ValueError, match=key):
        build(Outer, {"inner": value})


def test_parts_can_be_left_to_the_recipe():
    assert not check(Outer, {"inner": "a preset"}, leave_parts=True)
    assert [m.key for m in check(Outer, {"size": "x"}, leave_parts=True)] == ["size", "inner"]


def test_types_are_shown_as_people_say_them():
    shown = {name: type_name(argument.type) for name, argument in arguments(Outer).items()}
    assert shown == {"inner": "a tokenizer", "other": "a tokenizer or null", "size": "int"}


def test_the_state_of_a_part_inside_another_is_what_that_part_exports():
    part, inner = Outer(inner=ToyCodec()), ToyCodec()
    assert part.exported_state().keys() == {"inner.gain"}
    inner.training_only = ("gain",)
    assert not Outer(inner=inner).exported_state()
    assert (part.num_parameters, Outer(inner=inner).num_parameters) == (1, 0)


def test_the_word_none_is_answered_with_null():
    class Limited:
        """A thing.

        Args:
            limit: Its limit; ``None`` sets none.
        """

        def __init__(self, *, limit: int | None = 3) -> None: ...

    [mistake] = check(Limited, {"limit": "None"})
    assert mistake[1:] == ("expected int or null, got 'None'", ": write null")
    [other] = check(Limited, {"limit": "much"})
    assert other[1:] == ("expected int or null, got 'much'", " (Its limit; null sets none.)")
    assert check(Limited, {"limit": None}) == []


HINTS = [
    *(int, float, str, bool, Any, Given, float | None, int | float, int | str | None, Literal["a", 1], list[int]),
    *(tuple[float, float], tuple[int, ...], list[float] | None, dict[str, Any], dict[str, int], dict[int, int]),
    *(dict[str, Given], dict[str, dict[str, float]], list[Any], tuple[Any, ...]),
]
SPEC = {"spec": {"dim": 3}, "fusion": "cross"}
VALUES = [
    *(1, 10**30, 1.5, True, None, "5", "x", "a", [], [1, 2], [1, 2.5], (1, 2), [1, (2, 3)], ["x"], [True], [None]),
    *({}, {"a": 1}, {"a": [1, 2]}, {"a": None}, {"a": "5"}, {1: 2}, {"a": {"b": 1}}, {"a": SPEC}, SPEC, {"a": True}),
]


OF_NUMBERS = (list[int], tuple[int, ...], tuple[float, float], list[float] | None, dict[str, int], dict[int, int])


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_values_are_converted_as_omegaconf_converts_them(hint):
    """What is converted without OmegaConf, for speed, is what OmegaConf makes of it, and nothing else is accepted."""
    holder = OmegaConf.structured(make_dataclass("Holder", [("value", hint, field(default="???"))]))

    class Takes:
        def __init__(self, value: hint):
            self.value = value

    def by_omegaconf(value):
        return OmegaConf.to_object(OmegaConf.merge(holder, {"value": value})).value

    for value in VALUES:
        elements = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if hint in OF_NUMBERS and any(isinstance(element, dict | list | tuple) for element in elements):
            assert check(Takes, {"value": value})  # which OmegaConf takes as an element of any type
        elif check(Takes, {"value": value}):
            with pytest.raises((OmegaConfBaseException, ValueError, TypeError, AssertionError)):
                by_omegaconf(value)
        else:
            made, expected = build(Takes, {"value": value}).value, by_omegaconf(value)
            assert (repr(made), type(made)) == (repr(expected), type(expected)), value


def test_a_number_without_a_float_is_a_mistake():
    assert [m.key for m in check(Thing, {"width": 1, "rates": {"a": 10**400}}, skip=SUPPLIED)] == ["rates"]


@pytest.mark.parametrize("hint", [Any, list[Any], dict[str, Any], tuple[Any, ...]])
@pytest.mark.parametrize("text", ["${x}", "???"])
def test_references_and_missing_values_are_mistakes(hint, text):
    class Takes:
        def __init__(self, value: hint):
            self.value = value

    value = {Any: text, dict[str, Any]: {"a": text}}.get(hint, [text])
    assert [mistake.key for mistake in check(Takes, {"value": value})] == ["value"]


@pytest.mark.parametrize("value", [[{"a": 1}, 0.9], [[0.9], 0.9], [0.9, [0.9, 0.95]]])
def test_a_list_or_mapping_in_the_place_of_a_number_is_a_mistake(value):
    class Taking:
        def __init__(self, *, betas: tuple[float, float] | None = None, more: dict[str, list[float]] | None = None): ...

    assert [mistake.key for mistake in check(Taking, {"betas": value})] == ["betas"]
    assert [mistake.key for mistake in check(Taking, {"more": {"a": value}})] == ["more"]
    assert not check(Taking, {"betas": [0.9, 0.95], "more": {"a": [1, 2.5]}})


def test_a_number_that_is_not_finite_is_one_mistake_wherever_it_is_checked():
    class Taking:
        def __init__(self, *, anything: dict[str, Any], rate: float = 1.0, gains: tuple[float, ...] = ()) -> None: ...

    values = {"anything": {"inner": {"rates": [1.0, math.nan], "rate": math.inf}}, "rate": math.inf}
    values["gains"] = ["1", "-inf"]  # texts that convert to numbers
    assert [(one.key, one.message) for one in check(Taking, values)] == [
        ("anything.inner.rates", "expected a finite number, got nan"),
        ("anything.inner.rate", "expected a finite number, got inf"),
        ("rate", "expected a finite number, got inf"),
        ("gains", "expected a finite number, got -inf"),
    ]
