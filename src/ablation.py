"""Ablations: which variants of a recipe are compared, and the recipe of each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .compose import COMMAND_LINE, compose, spoken
from .errors import PartitaError, Problem, RecipeError
from .evaluate import Evaluation
from .part import Part
from .recipe import Plan, load_recipe
from .recipe import plan as check_recipe
from .recipe_files import find_recipe, read_yaml
from .registry import did_you_mean
from .schema import build, check
from .system import System, index_text

GROUPS = ("tokenizers", "conditioners", "stages")
UNITS = ("steps", "tokens", "minutes")


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
            texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
            if twice := [text for text in texts if texts.count(text) > 1]:
                raise ValueError(f"vary.{key} has {twice[0]} twice")
        if wrong := [seed for seed in self.seeds if type(seed) is not int]:
            raise ValueError(f"vary.seed must be whole numbers, not {wrong[0]!r}")
        for name, changes in self.variants.items():
            if not isinstance(changes, Mapping):
                raise ValueError(f"variants.{name} must be a mapping from keys to values, not {changes!r}")
        for group, amount in self.budget.items():
            if group not in GROUPS:
                raise ValueError(f"budget.{group}: there is no such group{did_you_mean(group, GROUPS)}")
            fits = isinstance(amount, Mapping) and len(amount) == 1
            unit, value = next(iter(amount.items())) if fits else ("", 0)
            if unit not in UNITS or type(value) not in (int, float) or value <= 0:
                raise ValueError(f"budget.{group} must be one of {', '.join(UNITS)} with a number, not {amount!r}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs of each variant."""
        return tuple(self.vary.get("seed", (self.set.get("seed", 0),)))

    @property
    def axes(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What is varied: by key, the choices by label, each the changes that it makes."""
        axes = {key: _labelled(key, values) for key, values in self.vary.items() if key != "seed"}
        if self.variants:
            axes["variants"] = {name: dict(changes) for name, changes in self.variants.items()}
        return axes


class Variant(NamedTuple):
    """One combination of choices.

    Args:
        name: Of its folder.
        choices: Label of its choice by key.
        changes: To the recipe, by dotted key.
    """

    name: str
    choices: dict[str, str]
    changes: dict[str, Any]


@dataclass
class Run:
    """One variant with one seed, checked.

    Args:
        variant: That it is of.
        seed: Of its training.
        plan: Its recipe.
        outline: Its system without weights.
    """

    variant: Variant
    seed: int
    plan: Plan
    outline: System

    @property
    def folder(self) -> str:
        """Where it is kept, in the folder of the ablation."""
        return f"variants/{self.variant.name}/seed-{self.seed}"


def read_ablation(
    source: str, changes: Sequence[str] = (), budget: Sequence[str] = (), evaluation: Mapping[str, Any] | None = None
) -> Ablation:
    """An ablation from a recipe, or from an ablation file, and what the command line says.

    Args:
        source: A recipe's name or path, or the path of a file with the keys of :class:`Ablation`.
        changes: ``key=value``, which is set, or ``key=a,b``, which is varied.
        budget: ``unit=amount`` of the stages, or ``group.unit=amount``.
        evaluation: Changes to how runs are evaluated, by field of :class:`~partita.evaluate.Evaluation`.

    Raises:
        PartitaError: Something in it cannot be.
    """
    path = find_recipe(source)
    values: dict[str, Any] = {"recipe": source}
    found = read_yaml(path)
    if "recipe" in found:
        values = found
        beside = path.parent / str(found["recipe"])
        if beside.is_file():
            values["recipe"] = str(beside)
    for group in ("vary", "set", "budget", "evaluation"):
        if not isinstance(values.setdefault(group, {}), dict):
            raise PartitaError(f"{path}: {group} must be a mapping, not {values[group]!r}")
    for change in changes:
        key, choices = _split(change)
        values["vary"].pop(key, None)
        values["set"].pop(key, None)
        values["vary" if len(choices) > 1 else "set"][key] = choices if len(choices) > 1 else choices[0]
    for amount in budget:
        values["budget"] |= _amount(amount)
    values["evaluation"] |= evaluation or {}
    if mistakes := check(Ablation, values):
        file = str(path) if "recipe" in found else COMMAND_LINE
        raise RecipeError([Problem(file, m.key, m.message, m.suggestion) for m in mistakes])
    return build(Ablation, values)


def variants(ablation: Ablation) -> list[Variant]:
    """Every combination of choices, the baseline first."""
    axes = ablation.axes
    found: list[Variant] = []
    for labels in product(*axes.values()):
        choices = dict(zip(axes, labels, strict=True))
        changes: dict[str, Any] = {}
        for key, label in choices.items():
            changes |= axes[key][label]
        name = "+".join(re.sub(r"[^\w.=-]+", "-", label).strip("-.") for label in labels)[:100] or "baseline"
        taken = {variant.name for variant in found}
        if name in taken:
            name = f"{name}-{len(found)}"
        found.append(Variant(name, choices, changes))
    return found


def runs(ablation: Ablation) -> tuple[list[Run], dict[str, str]]:
    """The runs of an ablation, the first seed of every variant first, with budgets that need no measuring applied.

    Returns:
        The runs, and by name of a variant that cannot be, the reason.

    Raises:
        PartitaError: None of them can be, or a key is no recipe's.
    """
    found: list[Run] = []
    unfit: dict[str, str] = {}
    for seed, variant in product(ablation.seeds, variants(ablation)):
        if variant.name in unfit:
            continue
        changes = {**ablation.set, **variant.changes, "seed": seed}
        try:
            plan = load_recipe(ablation.recipe, [f"{key}={json.dumps(value)}" for key, value in changes.items()])
            found.append(with_steps(Run(variant, seed, plan, System.outline(plan)), ablation.budget))
        except PartitaError as error:
            unfit[variant.name] = str(error)
    if not found:
        name, reason = next(iter(unfit.items()))
        rest = f" (and none of the other {len(unfit) - 1} variants can be)" if len(unfit) > 1 else ""
        raise PartitaError(f"{name}: {reason}{rest}")
    return found, unfit


def separate(run: Run) -> dict[str, Part]:
    """The parts of a run, by folder, that are trained or loaded on their own: not those that learn with a stage, nor
    those that hold nothing."""
    joint = {f"conditioners/{name}" for stage in run.outline.stages.values() for name in stage.joint}
    parts = run.outline.parts.items()
    return {folder: part for folder, part in parts if folder not in joint and not part.weightless}


def trained(run: Run) -> dict[str, Part]:
    """Those of them that are trained: that have no weights yet."""
    return {f: part for f, part in separate(run).items() if run.outline.part_plan(f).weights is None}


def with_steps(run: Run, budget: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float] | None = None) -> Run:
    """The run with as many steps as its parts' budgets allow.

    Args:
        run: Whose parts are trained.
        budget: By group, an amount.
        seconds: That a step of each part takes, by folder; without it, budgets in minutes are left for later.
    """
    values = json.loads(json.dumps(run.plan.values))
    for folder in trained(run):
        group, name = folder.split("/")
        unit, amount = next(iter(budget.get(group, {"": 0}).items()))
        if unit == "tokens":
            amount /= tokens_per_step(run.outline, folder)
        elif unit == "minutes" and seconds is not None:
            amount = amount * 60 / seconds[folder]
        elif unit != "steps":
            continue
        slot = values[group][name]["generator"] if group == "stages" else values[group][name]
        slot["fit"] = {**(slot.get("fit") or {}), "steps": max(1, round(amount))}
    if values == run.plan.values:
        return run
    plan = check_recipe(compose(values))
    return replace(run, plan=plan, outline=System.outline(plan))


def tokens_per_step(system: System, folder: str) -> int:
    """Codes (of latents, frames) that a step of a part's training goes over, in one process."""
    group, name = folder.split("/")
    fit = system.parts[folder].fit_options
    if group == "conditioners":
        raise PartitaError(f"{folder} yields no tokens to count: give it a budget in steps or minutes")
    facts = (
        system.tokenizers[name].representation
        if group == "tokenizers"
        else system.facts(system.plan.stages[name].target)
    )
    seconds = fit.crop if group == "tokenizers" else system.plan.stages[name].window
    return fit.batch_size * facts.frames(seconds) * (facts.num_codebooks or 1)


def recipe_of(run: Run, folder: str) -> Plan:
    """The recipe of one part: of what is trained in ``folder`` and all that this depends on, and nothing else.

    Two runs with the same one share the part.
    """
    needed = set(_needed(run.outline, folder))
    values: dict[str, Any] = {}
    for group in GROUPS:
        slots = run.plan.values.get(group) or {}
        values[group] = {name: value for name, value in slots.items() if f"{group}/{name}" in needed}
    values |= {key: run.plan.values[key] for key in ("data", "trainer") if key in run.plan.values}
    # what is loaded is the same with every seed
    return check_recipe(compose(values | {"seed": run.seed if folder in trained(run) else 0}))


def dependencies(run: Run, folder: str) -> list[str]:
    """The folders of the parts that must be there before ``folder`` is trained, without those that learn with it."""
    stages = {f"stages/{name}": stage for name, stage in run.outline.stages.items()}
    own = {f"conditioners/{name}" for name in stages[folder].joint} if folder in stages else set()
    return [f for f in run.outline.parts if f in set(_needed(run.outline, folder)) - own - {folder}]


def fingerprint(plan: Plan, folder: str) -> str:
    """Of a part's recipe: a name for what is trained from it."""
    digest = hashlib.blake2b(f"{index_text(plan)}{folder}".encode(), digest_size=6).hexdigest()
    return f"{folder.replace('/', '-')}-{digest}"


def _needed(system: System, folder: str) -> Iterator[str]:
    """A part and all it depends on."""
    yield folder
    group, name = folder.split("/")
    if group != "stages":
        return
    stage = system.plan.stages[name]
    yield from (f"tokenizers/{r.tokenizer}" for r in (stage.target, *stage.references.values()))
    for given in (given for given in stage.given if given not in stage.references):
        yield f"conditioners/{given}"
        for other, generator in system.stages.items():  # it learns with that one, which must come first
            if given in generator.joint and other != name:
                yield from _needed(system, f"stages/{other}")
    for other in stage.after:
        yield from _needed(system, f"stages/{other}")


def _labelled(key: str, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Each value by what people call it: a part by the name that it is made from, where no other has the same."""
    made_from = [v.get("preset", v.get("name")) if isinstance(v, Mapping) else v for v in values]
    labels: dict[str, dict[str, Any]] = {}
    for value, name in zip(values, made_from, strict=True):
        if isinstance(value, Mapping) and isinstance(name, str) and made_from.count(name) == 1:
            label = name
        else:
            label = value if isinstance(value, str) else f"{key.rpartition('.')[2]}={spoken(value)}"
        labels[label] = {key: value}
    return labels


def _split(change: str) -> tuple[str, list[Any]]:
    """A key and its values; commas inside brackets and quotes do not separate."""
    key, equals, text = change.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise PartitaError(
            f"expected key=value or key=a,b, such as tokenizers.acoustic=spectral-tiny,soundstream-tiny, not {change!r}"
        )
    try:
        config = OmegaConf.create(f"value: [{text}]")  # as a recipe's overrides are read
        values: Any = OmegaConf.to_container(config, resolve=False)["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, KeyError) as error:
        raise PartitaError(f"{key}: {text!r} is not a list of YAML values: {' '.join(str(error).split())}") from None
    if not values:
        raise PartitaError(f"{key} is given no value")
    return key, values


def _amount(text: str) -> dict[str, dict[str, float]]:
    match = re.fullmatch(r"(?:(\w+)\.)?(\w+)=(.+)", text)
    try:
        amount = float(match[3]) if match else 0.0
    except ValueError:
        amount = 0.0
    if match is None or match[2] not in UNITS or amount <= 0:
        raise PartitaError(
            f"--budget takes {', '.join(UNITS)} with a number, such as minutes=20 or tokenizers.steps=1000, "
            f"not {text!r}"
        )
    return {match[1] or "stages": {match[2]: amount}}
