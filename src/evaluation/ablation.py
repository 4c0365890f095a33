"""Ablations: which variants of a recipe are compared."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..core.registry import did_you_mean
from ..core.schema import build, check
from ..errors import PartitaError, Problem, RecipeError
from ..limits import MOST_VARIANTS, TooMuch, beyond
from ..recipe.recipe_files import find_recipe, read_values, read_yaml
from ..recipe.slots import slot_name
from ..recipe.tree import COMMAND_LINE
from ..storage.files import kind
from .evaluation_options import Evaluation

GROUPS = ("tokenizers", "conditioners", "stages")
UNITS = ("steps", "tokens", "minutes")
LARGEST_BUDGET = 1e15
"""Largest budget in steps, tokens or minutes: more than any model has been trained for."""
LONGEST = 80
"""Largest length of a folder's name in characters, without its digest."""


@dataclass
class Ablation:
    """What is compared: the keys of an ablation file.

    Args:
        recipe: Name or path of the recipe that is varied.
        vary: By dotted key, the values it takes; every combination is a variant, and the first of each makes the
            baseline. ``seed`` is varied, too, and makes runs of one variant.
        variants: By name, changes that go together (a mapping from dotted keys to values); one more thing to combine.
        set: Changes to every variant, by dotted key.
        budget: What every part that is trained may use, by group (``tokenizers``, ``conditioners`` or ``stages``) and
            unit: ``steps``, ``tokens`` (what it generates or yields, all codebooks counted) or ``minutes`` (at the
            speed of its first steps here). As the recipe says where a group is not named.
        evaluation: How runs are evaluated.
    """

    recipe: str
    vary: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, Any] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        for key, values in self.vary.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"vary.{key} must be a list of values, not {values!r}")
        count = math.prod(len(values) for values in self.vary.values()) * max(1, len(self.variants))
        if beyond(count, MOST_VARIANTS):  # before any of them is looked at
            raise TooMuch(f"these are {count:,} runs, and an ablation has at most {MOST_VARIANTS:,}: refused")
        for key, values in self.vary.items():
            texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
            if twice := [text for text in texts if texts.count(text) > 1]:
                raise ValueError(f"vary.{key} has {twice[0]} twice")
        if wrong := [seed for seed in self.seeds if type(seed) is not int]:
            raise ValueError(f"vary.seed must be whole numbers, not {wrong[0]!r}")
        for name, changes in self.variants.items():
            if not isinstance(changes, Mapping):
                raise ValueError(f"variants.{name} must be a mapping from keys to values, not {changes!r}")
            if both := [key for key in changes if key in self.vary or key == "seed"]:
                raise ValueError(f"variants.{name} sets {both[0]}, which is varied by itself")
        if both := [key for key in self.set if key in self.vary]:
            raise ValueError(f"{both[0]} is both set and varied")
        for group, amount in self.budget.items():
            if group not in GROUPS:
                raise ValueError(f"budget.{group}: there is no such group{did_you_mean(group, GROUPS)}")
            fits = isinstance(amount, Mapping) and len(amount) == 1
            unit, value = next(iter(amount.items())) if fits else ("", 0)
            if unit not in UNITS or type(value) not in (int, float) or not 0 < value <= LARGEST_BUDGET:
                raise ValueError(
                    f"budget.{group} must be one of {', '.join(UNITS)} with a number above 0 and up to "
                    f"{LARGEST_BUDGET:g}, not {amount!r}"
                )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs of each variant."""
        return tuple(self.vary.get("seed", (self.set.get("seed", 0),)))

    @property
    def axes(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What is varied: by key, the choices by label, each the changes that it makes."""
        axes = {
            key: {label: {key: value} for label, value in zip(_labels(key, values), values, strict=True)}
            for key, values in self.vary.items()
            if key != "seed"
        }
        if self.variants:
            axes["variants"] = {name: dict(changes) for name, changes in self.variants.items()}
        return axes


class Variant(NamedTuple):
    """One combination of choices.

    Args:
        name: Name of its folder. It follows from the changes alone, whatever else is varied.
        choices: Label of each choice, by key.
        changes: Changes to the recipe, by dotted key.
    """

    name: str
    choices: dict[str, str]
    changes: dict[str, Any]

    @property
    def title(self) -> str:
        """The labels of all choices."""
        return " + ".join(self.choices.values()) or "baseline"


def read_ablation(
    source: str, changes: Sequence[str] = (), budget: Sequence[str] = (), evaluation: Mapping[str, Any] | None = None
) -> Ablation:
    """An ablation from a recipe or an ablation file, and from the arguments of a command line.

    Args:
        source: A recipe's name or path, or the path of a file with the keys of :class:`Ablation`.
        changes: ``key=value``, which is set, or ``key=a,b``, which is varied.
        budget: ``unit=amount`` of the stages, or ``group.unit=amount``.
        evaluation: Changes to how runs are evaluated, by field of :class:`~partita.evaluation.evaluate.Evaluation`.

    Raises:
        PartitaError: Something in it is wrong.
    """
    changes = [changes] if isinstance(changes, str) else changes
    path = find_recipe(source)
    values: dict[str, Any] = {"recipe": source}
    found = read_yaml(path)
    if "recipe" in found:
        values = found
        beside = path.parent / str(found["recipe"])
        if kind(beside) == "file":
            values["recipe"] = str(beside)
    for group in ("vary", "set", "budget", "evaluation"):
        if not isinstance(values.setdefault(group, {}), dict):
            raise PartitaError(f"{path}: {group} must be a mapping, not {values[group]!r}")
    for change in changes:
        key, choices = _split(change)
        values["vary"].pop(key, None)
        values["set"].pop(key, None)
        values["vary" if len(choices) > 1 else "set"][key] = choices if len(choices) > 1 else choices[0]
    spent: dict[str, Any] = {}
    for text in budget:
        amount = _amount(text)
        if twice := spent.keys() & amount.keys():
            raise PartitaError(f"there are two budgets for {twice.pop()}: give one")
        spent |= amount
    values["budget"] |= spent
    scores = _scores(values["evaluation"], path) | dict((evaluation or {}).get("scores", {}))
    values["evaluation"] |= {**(evaluation or {}), "scores": scores}
    if mistakes := check(Ablation, values):
        file = str(path) if "recipe" in found else COMMAND_LINE
        raise RecipeError([Problem(file, m.key, m.message, m.suggestion) for m in mistakes])
    return build(Ablation, values)


def _scores(evaluation: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The scores that an ablation file asks for."""
    scores = evaluation.get("scores", {})
    if not isinstance(scores, dict):
        raise PartitaError(f"{path}: evaluation.scores must be a mapping, not {scores!r:.80}")
    return scores


def variants(ablation: Ablation) -> list[Variant]:
    """Every combination of choices, the baseline first."""
    axes = ablation.axes
    found: list[Variant] = []
    for labels in product(*axes.values()):
        choices = dict(zip(axes, labels, strict=True))
        changes: dict[str, Any] = {}
        for key, label in choices.items():
            changes |= axes[key][label]
        found.append(Variant(_folder(choices, changes), choices, changes))
    return found


def _folder(choices: Mapping[str, str], changes: Mapping[str, Any]) -> str:
    """A safe name for a folder. It ends in a digest if the words alone would not determine the changes."""
    words, exact = [], True
    for key, label in choices.items():
        value = changes.get(key, label) if key != "variants" else label
        word = value if isinstance(value, str) else f"{key.rpartition('.')[2]}={slot_name(value)}"
        if isinstance(value, Mapping):
            word, exact = str(value.get("preset", value.get("name", word))), False
        words.append(re.sub(r"[^\w.=-]+", "-", word, flags=re.ASCII).strip("-."))
        exact = exact and words[-1] == word.lower()
    name = "+".join(words) or "baseline"
    if exact and len(name) <= LONGEST:
        return name
    digest = hashlib.blake2b(json.dumps(changes, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
    return f"{name[:LONGEST]}-{digest}"


def _labels(key: str, values: Sequence[Any]) -> list[str]:
    """A label for each value. A part is called by its name or preset if no other value has the same."""
    made_from = [v.get("preset", v.get("name")) if isinstance(v, Mapping) else v for v in values]
    last, labels = key.rpartition(".")[2], []
    for value, name in zip(values, made_from, strict=True):
        if isinstance(value, Mapping) and isinstance(name, str) and made_from.count(name) == 1:
            labels.append(name)
        else:
            labels.append(value if isinstance(value, str) else f"{last}={slot_name(value)}")
    whole = [f"{last}={json.dumps(value, default=str, ensure_ascii=False)}" for value in values]
    return [text if labels.count(label) > 1 else label for label, text in zip(labels, whole, strict=True)]


def _split(change: str) -> tuple[str, list[Any]]:
    """A key and its values; commas inside brackets and quotes do not separate."""
    key, equals, text = change.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise PartitaError(
            f"expected key=value or key=a,b, such as tokenizers.acoustic=spectral-tiny,soundstream-tiny, not {change!r}"
        )
    try:
        values = read_values(text)  # as a recipe's overrides are read
    except ValueError as error:
        raise PartitaError(f"{key}: {error}") from None
    if not values:
        raise PartitaError(f"{key} is given no value")
    return key, values


def _amount(text: str) -> dict[str, dict[str, float]]:
    match = re.fullmatch(r"(?:(\w+)\.)?(\w+)=(.+)", text)
    try:
        amount = float(match[3]) if match else 0.0
    except ValueError:
        amount = 0.0
    if match is None or match[2] not in UNITS or not 0 < amount <= LARGEST_BUDGET:
        raise PartitaError(
            f"--budget takes {', '.join(UNITS)} with a number above 0 and up to {LARGEST_BUDGET:g}, such as minutes=20 "
            f"or tokenizers.steps=1000, not {text!r:.80}"
        )
    return {match[1] or "stages": {match[2]: amount}}
