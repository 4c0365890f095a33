"""The runs of an ablation, their recipes, and the parts that they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
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
from ..recipe.token_options import TokenOptions
from ..recipe.tree import COMMAND_LINE
from ..system.system import System
from .ablation import GROUPS, Ablation, Variant, variants


@dataclass
class Run:
    """One variant with one seed, whose recipe has been checked.

    Args:
        variant: The variant.
        seed: Seed of the training.
        plan: The checked recipe.
        outline: The system without weights.
    """

    variant: Variant
    seed: int
    plan: Plan
    outline: System

    @property
    def folder(self) -> str:
        """Path of the run's folder, relative to the folder of the ablation."""
        return f"variants/{self.variant.name}/seed-{self.seed}"


def make_runs(ablation: Ablation, *, skip_unfit: bool = False) -> tuple[list[Run], dict[str, str]]:
    """Return the runs of an ablation, ordered by seed and variant, with budgets in steps and tokens applied.

    Args:
        ablation: The description of the ablation.
        skip_unfit: Whether to leave out variants that are not valid systems instead of raising an error.

    Returns:
        The runs, and the reason for each variant that is left out, by its title.

    Raises:
        PartitaError: A variant or the baseline is not a valid system, or a budget applies to no trained part.
    """
    found: list[Run] = []
    unfit: dict[str, str] = {}
    for seed, variant in product(ablation.seeds, variants(ablation)):
        if variant.title in unfit:
            continue
        removed = tuple(f"{key}." for key, value in variant.changes.items() if value is None)
        common = {key: value for key, value in ablation.set.items() if not key.startswith(removed)}
        changes = {**common, **variant.changes, "seed": seed}
        # shorter keys first: replacing a whole slot discards changes inside it that were made before
        ordered = sorted(changes.items(), key=lambda change: change[0].count("."))
        try:
            outline = System.checked(ablation.recipe, [f"{key}={_as_override(value)}" for key, value in ordered])
            _ = outline.output  # variants are compared by their audio
            found.append(with_steps(Run(variant, seed, outline.plan, outline), ablation.budget))
        except RecipeError as error:
            ours = [p._replace(file="changes of the ablation") if p.file == COMMAND_LINE else p for p in error.problems]
            unfit[variant.title] = str(RecipeError(ours))
        except PartitaError as error:
            unfit[variant.title] = str(error)
    first = variants(ablation)[0].title
    if first in unfit:
        raise PartitaError(f"the first variant, which is the baseline, is not a valid system: {first}: {unfit[first]}")
    if unfit and not skip_unfit:
        lines = "\n".join(f"{name}: {reason}" for name, reason in unfit.items())
        raise PartitaError(
            f"these variants are not valid systems: correct them, or leave them out with --skip-unfit:\n{lines}"
        )
    if "minutes" in ablation.budget.get("stages", {}) and any(stored_tokens(run) for run in found):
        raise PartitaError(
            "stages that are trained on stored tokens cannot have a budget in minutes, because speed is measured "
            "before tokens are stored: give a budget in steps or tokens, or set tokens=null"
        )
    idle = set(ablation.budget) - {key.group for run in found for key in trained_parts(run)}
    if idle:
        raise PartitaError(
            f"there is a budget for {', '.join(sorted(idle))}, but none of these parts is trained: leave it out"
        )
    return found, unfit


def standalone_parts(run: Run) -> dict[PartKey, Part]:
    """Return the parts of a run that are trained or loaded on their own, by key, also those inside others.

    In the order of training. Conditioners that are trained with a stage and parts without weights are left out.
    """
    joint = {PartKey.of("conditioners", name) for stage in run.outline.stages.values() for name in stage.joint}
    parts = run.outline.training_order.items()
    return {key: part for key, part in parts if key not in joint and not part.weightless}


def trained_parts(run: Run) -> dict[PartKey, Part]:
    """Return the standalone parts that are trained: those without pretrained weights, and stages with an adapter."""
    outline = run.outline
    return {
        key: part
        for key, part in standalone_parts(run).items()
        if outline.part_plan(key).weights is None or outline.adapter_of(key) is not None
    }


def with_steps(run: Run, budget: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float] | None = None) -> Run:
    """Return the run with the numbers of steps that its budgets allow.

    Args:
        run: The run.
        budget: Amount by unit, for each group of parts.
        seconds: Measured seconds per step of each part, by key. ``None`` leaves budgets in minutes unapplied.
    """
    values = deepcopy(run.plan.values)
    for key in trained_parts(run):
        unit, amount = next(iter(budget.get(key.group, {"": 0}).items()))
        if unit == "tokens":
            amount /= tokens_per_step(run.outline, key)
        elif unit == "minutes" and seconds is not None:
            amount = amount * 60 / seconds[key]
        elif unit != "steps":
            continue
        slot = _slot(values, key)
        slot["fit"] = {**(slot.get("fit") or {}), "steps": max(1, round(amount))}
    if values == run.plan.values:
        return run
    plan = check_recipe(compose(values))
    return replace(run, plan=plan, outline=System.outline(plan))


def tokens_per_step(system: System, key: PartKey) -> int:
    """Return the number of codes, or frames of latents, in one training step of a part in one process."""
    part: Any = system.training_order[key]
    fit = part.fit_options
    if key.group == "conditioners":
        raise PartitaError(f"{key} produces no tokens to count: give it a budget in steps or minutes")
    stage = system.plan.stages.get(key.name) if key.group == "stages" else None
    spec = part.spec if stage is None else system.catalog.target_spec(stage)
    seconds = fit.crop if stage is None else stage.window
    return fit.examples * spec.frames(seconds) * (spec.num_codebooks or 1)


def recipe_of(run: Run, key: PartKey) -> dict[str, Any]:
    """Return the recipe of one part: the part with this key, what it is inside, and everything that it depends on.

    Settings that affect only generation are left out.
    """
    outermost = [key, *key.around][-1]
    return _restricted(run, key, {outermost, *_with_generators(run.outline, outermost)})


def _restricted(run: Run, key: PartKey, needed: Collection[PartKey]) -> dict[str, Any]:
    """Return the recipe of a run with the parts with these keys only, to train the part ``key``."""
    values: dict[str, Any] = {}
    for group in GROUPS:
        slots = run.plan.values.get(group) or {}
        values[group] = {name: value for name, value in slots.items() if PartKey.of(group, name) in needed}
    for name, stage in values["stages"].items():
        generator = {key: value for key, value in stage["generator"].items() if key != "sampling"}
        stage = {key: value for key, value in stage.items() if key != "overlap"}
        values["stages"][name] = stage | {"generator": generator}
    kept = ["data", "trainer", *(["finetune"] if any("adapter" in s for s in values["stages"].values()) else [])]
    values |= {key: run.plan.values[key] for key in kept if key in run.plan.values}
    # pretrained weights are the same for every seed
    return values | {"seed": run.seed if key in trained_parts(run) else 0}


def identity_of(run: Run, key: PartKey) -> str:
    """Return what identifies the training of a part: runs in which it is equal share the part.

    What has no influence on the training is left out: the parts around an inner part, and the stages that generate the
    codes that another stage is given, because it is trained on codes of real clips. If the tokens of these clips are
    stored, stages that differ in nothing else share a training, on the tokens of the first run.
    """
    if not key.around:
        values = _restricted(run, key, set(_with_dependencies(run.outline, key)))
        options = stored_tokens(run)
        if options is not None and key.group == "stages":  # conditions of a stored clip depend on its length
            values |= {"tokens": run.plan.values["tokens"], "clip": options.clip or run.plan.window}
        return fingerprint(values, key)
    common = _restricted(run, key, ())
    return fingerprint(common | {"part": _slot(run.plan.values, key)}, key)


def stored_tokens(run: Run) -> TokenOptions | None:
    """Return how the tokens are stored on which the stages of a run are trained; None if they are trained on audio."""
    return run.plan.tokens if run.outline.stages else None


def tokens_identity(run: Run) -> str:
    """Return what identifies the stored tokens of a run: runs in which it is equal share them.

    These are the data, the parts whose output is stored and their weights, and what the stages read of them in windows
    of which lengths, but not the networks of the stages.
    """
    values = {key: run.plan.values.get(key) for key in ("tokenizers", "conditioners", "data", "tokens", "trainer")}
    reads = {
        name: {"target": stage["target"], "given": list(stage.get("given") or ()), "window": stage["window"]}
        for name, stage in run.plan.values["stages"].items()
    }
    return fingerprint(values | {"stages": reads, "seed": run.seed})


def dependencies(run: Run, key: PartKey) -> list[PartKey]:
    """Return the keys of the parts that must be trained before ``key``, without those that are trained with it."""
    stages = {PartKey.of("stages", name): stage for name, stage in run.outline.stages.items()}
    own = {PartKey.of("conditioners", name) for name in stages[key].joint} if key in stages else set()
    needed = set(_with_dependencies(run.outline, key)) - own - {key}
    trained_here = {key, *own}
    return [f for f in run.outline.training_order if f in needed or trained_here & set(f.around)]


def fingerprint(values: Mapping[str, Any], key: PartKey | None = None) -> str:
    """Return a digest of a recipe that ignores the order of keys where the order has no effect.

    With a part's key, the digest is prefixed by it.
    """
    digest = hashlib.blake2b(
        json.dumps(_canonical(values, ordered=False), default=str).encode(), digest_size=6
    ).hexdigest()
    return digest if key is None else f"{key.group}-{key.name}-{digest}"


def _slot(values: Mapping[str, Any], key: PartKey) -> dict[str, Any]:
    """Return the slot of a part in a resolved recipe."""
    name, *inside = key.name.split(".")
    slot: dict[str, Any] = values[key.group][name]
    for inner in ["generator"] * (key.group == "stages") + inside:
        slot = slot[inner]
    return slot


def _canonical(value: Any, ordered: bool) -> Any:
    """Turn mappings into sorted pairs, except mappings whose order of names matters."""
    if isinstance(value, Mapping):
        items = list(value.items()) if ordered else sorted(value.items())
        return [[k, _canonical(v, ordered=k in (*GROUPS, "given"))] for k, v in items]
    return [_canonical(v, ordered=False) for v in value] if isinstance(value, list | tuple) else value


def _as_override(value: Any) -> str:
    """Return a value in the syntax of a recipe override."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**30, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _with_dependencies(system: System, key: PartKey) -> Iterator[PartKey]:
    """Yield the key of a part and the keys of all parts that its training depends on."""
    yield key
    group, name = key.group, key.name
    if group != "stages":
        return
    stage = system.plan.stages[name]
    yield from (PartKey.of("tokenizers", r.tokenizer) for r in (*stage.targets, *stage.references.values()))
    for given in stage.conditioners:
        yield PartKey.of("conditioners", given)
        for other, generator in system.stages.items():  # the stage that a conditioner is trained with comes first
            if given in generator.joint and other != name:
                yield from _with_dependencies(system, PartKey.of("stages", other))
    for output in stage.outputs.values():
        yield from _with_dependencies(system, PartKey.of("stages", output.stage))


def _with_generators(system: System, key: PartKey) -> Iterator[PartKey]:
    """Yield the keys of all parts of the smallest valid recipe with a part: also stages that generate its inputs."""
    yield from _with_dependencies(system, key)
    for other in system.plan.stages[key.name].dependencies if key.group == "stages" else ():
        yield from _with_generators(system, PartKey.of("stages", other))
