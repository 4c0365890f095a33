from dataclasses import asdict, dataclass
from typing import Literal

import pytest

from partita.contracts import ConditionSpec, Given, Representation
from partita.schema import FACTS, arguments, build, check


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
        target: Representation,
        given: dict[str, Given],
        *,
        width: int,
        group: Group = Group(),
        ratios: tuple[int, ...] = (2, 4),
        rates: dict[str, float] | None = None,
    ):
        self.values = (target, given, width, group, ratios, rates)


TARGET, GIVEN = Representation(16000, 1, 50.0, 4, 256), {"text": Given(ConditionSpec(dim=8), "cross")}


def test_every_mistake_is_reported_with_its_key():
    values = {
        "width": "wide",
        "group": {"size": "x", "mode": "fastt", "sice": 1},
        "ratios": [1, "b"],
        "rates": {"a": "z"},
    }
    mistakes = check(Thing, values, skip=FACTS)
    assert {m.key for m in mistakes} == {"width", "group.size", "group.mode", "group.sice", "ratios", "rates"}
    assert "'fast'" in next(m.suggestion for m in mistakes if m.key == "group.mode")
    assert "size" in next(m.suggestion for m in mistakes if m.key == "group.sice")


def test_missing_and_surplus_and_supplied_keys():
    mistakes = {m.key: m for m in check(Thing, {"widht": 3, "target": 1}, skip=FACTS)}
    assert mistakes.keys() == {"widht", "target", "width"}
    assert "'width'" in mistakes["widht"].suggestion
    assert "How wide." in mistakes["width"].suggestion


def test_a_group_that_refuses_its_values_is_a_mistake():
    assert [m.message for m in check(Thing, {"width": 1, "group": {"size": -1}}, skip=FACTS)] == [
        "size must not be negative"
    ]


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
