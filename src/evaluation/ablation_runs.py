"""The runs of an ablation, the recipe of each, and which parts they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import yaml

from ..core.part import Part
from ..core.part_key import PartKey
from ..errors import PartitaError, RecipeError
from ..recipe.compose import compose
from ..recipe.plan import Plan, check_recipe
from ..recipe.tree import COMMAND_LINE
from ..system.system import System
from .ablation import GROUPS, Ablation, Variant, variants


@dataclass
class Run:
    """One variant with one seed, checked.

    Args:
        variant: The variant.
        seed: The seed of its training.
        plan: The checked recipe.
        outline: The system without weights.
    """

    variant: Variant
    seed: int
    plan: Plan
    outline: System

    @property
    def folder(self) -> str:
        """Its folder, in that of the ablation."""
        return f"variants/{self.variant.name}/seed-{self.seed}"


def runs(ablation: Ablation, *, skip_unfit: bool = False) -> tuple[list[Run], dict[str, str]]:
    """The runs of an ablation, the first seed of every variant first, with budgets that need no measuring applied.

    Args:
        ablation: What is compared.
        skip_unfit: Whether variants that no system can be made of are left out instead of refused.

    Returns:
        The runs, and by title of a variant that is left out, the reason.

    Raises:
        PartitaError: A variant makes no valid system, or the baseline does not; or a budget fits no trained part.
    """
    found: list[Run] = []
    unfit: dict[str, str] = {}
    for seed, variant in product(ablation.seeds, variants(ablation)):
        if variant.title in unfit:
            continue
        changes = {**ablation.set, **variant.changes, "seed": seed}
        # a slot that is named anew would take along what was set inside it
        ordered = sorted(changes.items(), key=lambda change: change[0].count("."))
        try:
            outline = System.checked(ablation.recipe, [f"{key}={_text(value)}" for key, value in ordered])
            found.append(with_steps(Run(variant, seed, outline.plan, outline), ablation.budget))
        except RecipeError as error:
            ours = [p._replace(file="what this ablation sets") if p.file == COMMAND_LINE else p for p in error.problems]
            unfit[variant.title] = str(RecipeError(ours))
        except PartitaError as error:
            unfit[variant.title] = str(error)
    first = variants(ablation)[0].title
    if first in unfit:
        raise PartitaError(f"the first variant, which the others are compared with, is none: {first}: {unfit[first]}")
    if unfit and not skip_unfit:
        lines = "\n".join(f"{name}: {reason}" for name, reason in unfit.items())
        raise PartitaError(f"these variants cannot be made; mend them, or leave them out with --skip-unfit:\n{lines}")
    idle = set(ablation.budget) - {key.group for run in found for key in trained(run)}
    if idle:
        raise PartitaError(f"there is a budget for {', '.join(sorted(idle))}, of which nothing is trained here")
    return found, unfit


def separate(run: Run) -> dict[PartKey, Part]:
    """The parts of a run, by key, that are trained or loaded on their own: not those that learn with a stage, nor
    those that hold nothing."""
    joint = {PartKey.of("conditioners", name) for stage in run.outline.stages.values() for name in stage.joint}
    parts = run.outline.parts.items()
    return {key: part for key, part in parts if key not in joint and not part.weightless}


def trained(run: Run) -> dict[PartKey, Part]:
    """Those of the separate parts that are trained, as they have no weights yet."""
    return {key: part for key, part in separate(run).items() if run.outline.part_plan(key).weights is None}


def with_steps(run: Run, budget: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float] | None = None) -> Run:
    """The run with as many steps as its parts' budgets allow.

    Args:
        run: The run.
        budget: By group, an amount.
        seconds: Seconds per step of each part, by key; ``None`` leaves budgets in minutes for later.
    """
    values = deepcopy(run.plan.values)
    for key in trained(run):
        group, name = key.group, key.name
        unit, amount = next(iter(budget.get(group, {"": 0}).items()))
        if unit == "tokens":
            amount /= tokens_per_step(run.outline, key)
        elif unit == "minutes" and seconds is not None:
            amount = amount * 60 / seconds[key]
        elif unit != "steps":
            continue
        slot = values[group][name]["generator"] if group == "stages" else values[group][name]
        slot["fit"] = {**(slot.get("fit") or {}), "steps": max(1, round(amount))}
    if values == run.plan.values:
        return run
    plan = check_recipe(compose(values))
    return replace(run, plan=plan, outline=System.outline(plan))


def tokens_per_step(system: System, key: PartKey) -> int:
    """Codes (of latents, frames) that a step of a part's training goes over, in one process."""
    group, name = key.group, key.name
    fit = system.parts[key].fit_options
    if group == "conditioners":
        raise PartitaError(f"{key} yields no tokens to count: give it a budget in steps or minutes")
    spec = (
        system.tokenizers[name].spec if group == "tokenizers" else system.catalog.target_spec(system.plan.stages[name])
    )
    seconds = fit.crop if group == "tokenizers" else system.plan.stages[name].window
    return fit.examples * spec.frames(seconds) * (spec.num_codebooks or 1)


def recipe_of(run: Run, key: PartKey) -> dict[str, Any]:
    """The recipe of one part: the part with this key, everything it depends on, and nothing else.

    Runs with the same recipe of a part share it, so settings that matter only in generation are left out.
    """
    needed = set(_needed(run.outline, key))
    values: dict[str, Any] = {}
    for group in GROUPS:
        slots = run.plan.values.get(group) or {}
        values[group] = {name: value for name, value in slots.items() if PartKey.of(group, name) in needed}
    for name, stage in values["stages"].items():
        generator = {key: value for key, value in stage["generator"].items() if key != "sampling"}
        stage = {key: value for key, value in stage.items() if key != "overlap"}
        values["stages"][name] = stage | {"generator": generator}
    values |= {key: run.plan.values[key] for key in ("data", "trainer") if key in run.plan.values}
    # what is loaded is the same with every seed
    return values | {"seed": run.seed if key in trained(run) else 0}


def dependencies(run: Run, key: PartKey) -> list[PartKey]:
    """The keys of the parts that must be there before ``key`` is trained, without those that learn with it."""
    stages = {PartKey.of("stages", name): stage for name, stage in run.outline.stages.items()}
    own = {PartKey.of("conditioners", name) for name in stages[key].joint} if key in stages else set()
    needed = set(_needed(run.outline, key)) - own - {key}
    return [f for f in run.outline.parts if f in needed]


def fingerprint(values: Mapping[str, Any], key: PartKey | None = None) -> str:
    """A name for what is made from a recipe, in whatever order its keys are where that makes no difference."""
    digest = hashlib.blake2b(
        json.dumps(_canonical(values, ordered=False), default=str).encode(), digest_size=6
    ).hexdigest()
    return digest if key is None else f"{key.group}-{key.name}-{digest}"


def _canonical(value: Any, ordered: bool) -> Any:
    """Mappings as sorted pairs, but for those of names that the recipe gives, whose order counts."""
    if isinstance(value, Mapping):
        items = list(value.items()) if ordered else sorted(value.items())
        return [[k, _canonical(v, ordered=k in (*GROUPS, "given"))] for k, v in items]
    return [_canonical(v, ordered=False) for v in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    """A value as one says it in an override."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**30, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _needed(system: System, key: PartKey) -> Iterator[PartKey]:
    """A part and all it depends on."""
    yield key
    group, name = key.group, key.name
    if group != "stages":
        return
    stage = system.plan.stages[name]
    yield from (PartKey.of("tokenizers", r.tokenizer) for r in (*stage.targets, *stage.references.values()))
    for given in stage.conditioners:
        yield PartKey.of("conditioners", given)
        for other, generator in system.stages.items():  # it learns with that one, which must come first
            if given in generator.joint and other != name:
                yield from _needed(system, PartKey.of("stages", other))
    for other in stage.dependencies:
        yield from _needed(system, PartKey.of("stages", other))
