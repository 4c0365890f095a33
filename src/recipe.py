"""A recipe checked whole: every mistake found at once, before anything is built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer
from torch.nn import ModuleDict

from .compose import SLOTS, Tree, compose, family_of, slots
from .errors import RecipeError
from .fit import Fit
from .registry import UnknownName, did_you_mean, lookup
from .schema import FACTS, Mistake, check

PART_KEYS = ("name", "weights", "fit")
"""What a slot holds beside the arguments of its part."""


@dataclass
class RecipeKeys:
    """The top level of a recipe.

    Args:
        tokenizers: By name, what turns audio into a representation.
        conditioners: By name, what turns a person's input into a condition.
        stages: By name and in order, what generates.
        data: Where examples come from.
        seed: Of everything random in training.
        trainer: What ``L.Trainer`` takes, for every part; a part's ``fit.trainer`` counts over it.
        description: A line on what it is.
    """

    tokenizers: dict[str, Any]
    data: Any
    conditioners: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)
    description: str = ""


@dataclass
class StageKeys:
    """One stage of a recipe.

    Args:
        generator: The part.
        target: The tokenizer whose representation it generates.
        given: Names of conditioners, as a list, or a mapping from name to the way it enters.
        window: Seconds that the stage sees at once: its training crop.
    """

    generator: Any
    target: str
    given: Any = None
    window: float = 10.0


@dataclass
class PartPlan:
    """One slot of a checked recipe.

    Attributes:
        key: Where it stands in the recipe, such as ``tokenizers.acoustic``.
        cls: The registered class.
        arguments: What to build it with, facts excepted.
        weights: A hub id or path to load instead of training.
        fit: The ``fit:`` block.
    """

    key: str
    cls: Any
    arguments: dict[str, Any]
    weights: str | None = None
    fit: dict[str, Any] = field(default_factory=dict)


@dataclass
class StagePlan:
    """One stage of a checked recipe: its part and what it models; ``given`` maps names to entries or none."""

    part: PartPlan
    target: str
    given: dict[str, str | None]
    window: float


@dataclass
class Plan:
    """A recipe that names only things that exist, with values of the right types; ``origin`` tells a key's file."""

    values: dict[str, Any]
    tokenizers: dict[str, PartPlan]
    conditioners: dict[str, PartPlan]
    stages: dict[str, StagePlan]
    data: PartPlan
    seed: int
    trainer: dict[str, Any]
    origin: Callable[[str], str]


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Compose and check a recipe.

    Raises:
        RecipeError: With every mistake, each naming file, key and what was probably meant.
        PartitaError: There is no such recipe.
    """
    return plan(compose(recipe, overrides))


def plan(tree: Tree) -> Plan:
    """Check a composed recipe and turn it into a plan.

    Raises:
        RecipeError: With every mistake.
    """
    _note(tree, check(RecipeKeys, tree.values))
    _names(tree)
    parts = {path: made for path in slots(tree.values) if (made := _part(tree, path)) is not None}
    stages = _stages(tree, parts)
    _unused(tree, stages)
    if tree.problems:
        raise RecipeError(tree.problems)
    groups = {group: {path[1]: part for path, part in parts.items() if path[0] == group} for group in SLOTS}
    return Plan(
        values=tree.values,
        tokenizers=groups["tokenizers"],
        conditioners=groups["conditioners"],
        stages=stages,
        data=parts["data",],
        seed=int(tree.values.get("seed", 0)),
        trainer=dict(tree.values.get("trainer") or {}),
        origin=tree.origin,
    )


def _note(tree: Tree, mistakes: Sequence[Mistake]) -> None:
    for mistake in mistakes:
        tree.complain(mistake.key, mistake.message, mistake.suggestion)


def _names(tree: Tree) -> None:
    """Names of slots become folders, and names of modules."""
    for group in (*SLOTS, "stages"):
        for name in tree.values[group] if isinstance(tree.values.get(group), dict) else ():
            if not re.fullmatch(r"[A-Za-z][\w-]*", name) or hasattr(ModuleDict, name) or name == "training":
                tree.complain(
                    f"{group}.{name}", "cannot be used as a name", ": take another word of letters, digits, - and _"
                )


def _part(tree: Tree, path: tuple[str, ...]) -> PartPlan | None:
    key, family = ".".join(path), str(family_of(path))
    value: Any = tree.values
    for step in path:
        value = value[step]
    if not isinstance(value, dict) or "name" not in value:
        return None  # complained about while composing
    try:
        cls = lookup(family, str(value["name"]))
    except UnknownName as error:
        tree.complain(f"{key}.name", str(error))
        return None
    except ImportError as error:
        tree.complain(f"{key}.name", f"{value['name']} needs a package that is not installed: {error}")
        return None
    own = PART_KEYS if family != "data" else ("name",)
    arguments = {k: v for k, v in value.items() if k not in own}
    _note(tree, check(cls, arguments, skip=FACTS if family == "generator" else (), key=key))
    weights, fit = value.get("weights"), value.get("fit")
    if family != "data":
        if weights is not None and not isinstance(weights, str):
            tree.complain(f"{key}.weights", f"expected a hub id or a path, got {weights!r}")
        if fit is not None and not isinstance(fit, dict):
            tree.complain(f"{key}.fit", f"expected a mapping, got {fit!r}")
        elif fit:
            _note(tree, check(Fit, fit, key=f"{key}.fit"))
            _trainer(tree, fit.get("trainer"), f"{key}.fit.trainer")
        if not cls.trainable and weights is None:
            tree.complain(
                f"{key}.weights",
                f"{value['name']} is never trained here and has no weights",
                ": add a hub id or a path",
            )
    return PartPlan(key, cls, arguments, weights, fit if isinstance(fit, dict) else {})


def _trainer(tree: Tree, values: Any, key: str) -> None:
    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    for name in values if isinstance(values, dict) else ():
        if name not in known:
            tree.complain(f"{key}.{name}", "L.Trainer takes no such argument", did_you_mean(name, known))
        elif name in _OURS:
            tree.complain(f"{key}.{name}", f"the fit block decides this: set {_OURS[name]}")


_OURS = {
    "max_steps": "fit.steps",
    "max_epochs": "fit.steps",
    "limit_train_batches": "fit.steps",
    "limit_val_batches": "fit.validation_examples",
    "val_check_interval": "fit.validate_every",
    "default_root_dir": "the run folder (-o)",
    "gradient_clip_val": "fit.gradient_clip",
}


def _stages(tree: Tree, parts: dict[tuple[str, ...], PartPlan]) -> dict[str, StagePlan]:
    _trainer(tree, tree.values.get("trainer"), "trainer")
    found = {}
    groups = (tree.values.get(group) for group in SLOTS)
    tokenizers, conditioners = (group if isinstance(group, dict) else {} for group in groups)
    stages = tree.values.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        key = f"stages.{name}"
        if not isinstance(stage, dict):
            tree.complain(key, f"expected a mapping with generator, target and given, got {stage!r}")
            continue
        mistakes = check(StageKeys, stage, key=key)
        _note(tree, mistakes)
        target, given = stage.get("target"), _given(tree, stage.get("given"), f"{key}.given")
        if isinstance(target, str) and target not in tokenizers:
            tree.complain(
                f"{key}.target", f"{target!r} is no tokenizer of this recipe", did_you_mean(target, tokenizers)
            )
        for source in given:
            if source not in conditioners:
                tree.complain(
                    f"{key}.given",
                    f"{source!r} is no conditioner of this recipe",
                    did_you_mean(source, conditioners),
                )
        window = stage.get("window", StageKeys.window)
        if not any(m.key == f"{key}.window" for m in mistakes) and float(window) <= 0:
            tree.complain(f"{key}.window", f"must be positive, not {window}")
        part = parts.get(("stages", name, "generator"))
        if part is not None and not mistakes:
            found[name] = StagePlan(part, str(target), given, float(window))
    return found


def _given(tree: Tree, given: Any, key: str) -> dict[str, str | None]:
    if given is None:
        return {}
    if isinstance(given, list) and all(isinstance(g, str) for g in given):
        return dict.fromkeys(given)
    if isinstance(given, dict) and all(isinstance(v, str | None) for v in given.values()):
        return given
    tree.complain(key, f"expected a list of names, or a mapping from name to entry, got {given!r}")
    return {}


def _unused(tree: Tree, stages: dict[str, StagePlan]) -> None:
    """A slot that nothing uses is most often a misspelt override."""
    if tree.problems:
        return
    used = {
        # without stages it is a recipe for tokenizers alone
        "tokenizers": {s.target for s in stages.values()} if stages else set(tree.values["tokenizers"]),
        "conditioners": {n for s in stages.values() for n in s.given},
    }
    for group, wanted in used.items():
        for name in tree.values.get(group) or {}:
            if name not in wanted:
                tree.complain(f"{group}.{name}", "no stage uses this", did_you_mean(name, wanted))
