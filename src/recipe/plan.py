"""A recipe checked whole: every mistake found at once, before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.nn import ModuleDict

from ..core.fit import Fit
from ..core.reference import Reference
from ..core.registry import UnknownName, did_you_mean, lookup, names
from ..core.schema import SUPPLIED, Mistake, arguments, check
from ..errors import Problem, RecipeError
from ..storage.saved_format import mismatch
from .chain import PartPlan, StagePlan, chain, check_use, last_stages, note
from .compose import compose
from .slots import SLOTS, at, family_of, slots, slots_inside
from .trainer_options import check_trainer
from .tree import Tree

LONGEST_NAME = 100
"""Bytes of the name of a slot: folders and files are called after it, and a file system takes 255."""

PART_KEYS = ("name", "weights", "init", "fit")
"""What a slot of a trained family holds beside the arguments of its part."""

READS = "reads"
"""What the slot of a tokenizer holds beside these: a field of audio that it encodes in the place of the mix."""

TRAINED = ("tokenizer", "conditioner", "generator")
"""The families whose parts have weights and a training of their own."""


@dataclass
class RecipeKeys:
    """The top level of a recipe.

    Args:
        tokenizers: By name, what turns audio into a representation.
        conditioners: By name, what turns a person's input into a condition.
        stages: By name and in order, what generates.
        data: Where examples come from: a source, or a list of several. In a list each can have a ``weight``, how often
            clips are drawn of it relative to the others, whatever their sizes; 1 unless given.
        seed: Of everything random in training.
        trainer: Options of ``L.Trainer`` for every part, see
            :class:`~partita.recipe.trainer_options.TrainerOptions`; a part's ``fit.trainer`` counts over them.
        description: A line on what it is.
        format: Of a saved system, the number of the format; other recipes have none.
    """

    tokenizers: dict[str, Any]
    data: Any
    conditioners: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    format: int | None = None


@dataclass
class Plan:
    """A recipe that names only things that exist, with values of the right types.

    ``origin`` tells a key's file, and ``blame`` who had the last say in a key or anything below it. A :func:`draft`
    also has ``problems``, and lacks what they concern.
    """

    values: dict[str, Any]
    tokenizers: dict[str, PartPlan]
    conditioners: dict[str, PartPlan]
    stages: dict[str, StagePlan]
    data: list[PartPlan]
    seed: int
    trainer: dict[str, Any]
    origin: Callable[[str], str]
    blame: Callable[[str], str]
    problems: list[Problem] = field(default_factory=list)

    @property
    def last_stage(self) -> StagePlan:
        """The stage that generates what is decoded; a recipe without stages has none, and this is an error there."""
        return next(reversed(self.stages.values()))

    @property
    def ends(self) -> list[Reference]:
        """What the chain ends with, in the order of the stages: the representations that are heard."""
        named = [target for stage in last_stages(self.stages).values() for target in stage.targets]
        return [replace(r, start=0, stop=None) for r in {r.source: r for r in named}.values()]

    def reads(self, reference: Reference) -> str | None:
        """The field that is encoded as a representation; ``None`` for the mix."""
        return self.tokenizers[reference.tokenizer].reads

    def __repr__(self) -> str:
        """The parts and the chain, a line each."""
        groups = (self.tokenizers, self.conditioners, {name: stage.part for name, stage in self.stages.items()})
        lines = [f"{part.key}: {part.cls.registered_name}" for group in groups for part in group.values()]
        for name, stage in self.stages.items():
            lines.append(f"stages.{name}: {stage.named_targets} given {', '.join(stage.given) or 'nothing'}")
        return "\n".join([*lines, *(f"data: {part.cls.registered_name}" for part in self.data)])


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Compose and check a recipe.

    Raises:
        RecipeError: With every mistake, each naming file, key and what was probably meant.
        PartitaError: There is no such recipe.
    """
    return check_recipe(compose(recipe, overrides))


def check_recipe(tree: Tree) -> Plan:
    """Check a composed recipe and turn it into a plan.

    Raises:
        RecipeError: With every mistake.
    """
    made = draft(tree)
    if made.problems:
        raise RecipeError(made.problems)
    return made


def draft(tree: Tree) -> Plan:
    """The plan of a composed recipe as far as it goes, with every mistake in it, so that more can be looked for."""
    note(tree, check(RecipeKeys, tree.values))
    if "format" in tree.values and (wrong := mismatch(tree.values["format"])) is not None:
        tree.complain("format", f"this recipe {wrong}")
    _names(tree)
    parts = {path: made for path in slots(tree.values) if (made := _part(tree, path)) is not None}
    stages = chain(tree, parts)
    check_use(tree, stages, parts)
    groups = {group: {path[1]: part for path, part in parts.items() if path[0] == group} for group in SLOTS}
    return Plan(
        values=tree.values,
        tokenizers=groups["tokenizers"],
        conditioners=groups["conditioners"],
        stages=stages,
        data=[part for path, part in parts.items() if path[0] == "data"],
        seed=0 if tree.problems else int(tree.values.get("seed", 0)),
        trainer={} if tree.problems else dict(tree.values.get("trainer") or {}),
        origin=tree.origin,
        blame=tree.blame,
        problems=tree.problems,
    )


def _names(tree: Tree) -> None:
    """Names of slots become folders, and names of modules."""
    for group in (*SLOTS, "stages"):
        for name in tree.values[group] if isinstance(tree.values.get(group), dict) else ():
            fits = re.fullmatch(r"[A-Za-z][\w-]*", name) and len(name.encode()) <= LONGEST_NAME
            if not fits or hasattr(ModuleDict, name) or name == "training":
                hint = f": take another word of letters, digits, - and _, of at most {LONGEST_NAME} bytes"
                tree.complain(f"{group}.{name:.{LONGEST_NAME}}", "cannot be used as a name", hint)


def _of_another_source(mistake: Mistake, key: str) -> Mistake:
    """A mistake in the data, with the source that has such a key, as the folder has the ``path`` of one's own music."""
    name = mistake.key.removeprefix(f"{key}.")
    owners = [source for source in names("data") if name in arguments(lookup("data", source))]
    if not owners or not mistake.suggestion.startswith(": choose from"):
        return mistake
    return mistake._replace(suggestion=f"; {owners[0]} has it: {key}={{name: {owners[0]}, {name}: …}}")


def _check_init(tree: Tree, key: str, init: Any, weights: Any, cls: Any) -> None:
    """See that something can be trained from a starting point."""
    if not isinstance(init, str):
        tree.complain(key, f"expected a run, an export, a hub id or a path, got {init!r}")
    elif weights is not None:
        tree.complain(key, "the part has weights, which are final: it would not be trained", ": leave one out")
    elif not cls.trainable or cls.weightless:
        tree.complain(key, f"{cls.registered_name} is never trained here", ": set weights")


def _own_keys(family: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """What a slot holds beside the arguments of its part or component."""
    if family in TRAINED:
        return (*PART_KEYS, READS) if family == "tokenizer" and len(path) == 2 else PART_KEYS
    return ("name", "weight") if family == "data" and len(path) > 1 else ("name",)


def _part(tree: Tree, path: tuple[str, ...], inside: str | None = None, loaded: bool = False) -> PartPlan | None:
    """The plan of a slot.

    Args:
        tree: The recipe.
        path: Of the slot.
        inside: The family, as the argument of the part around it says; none where there is no part around it.
        loaded: Whether its weights come with those of the part around it.
    """
    key, family = ".".join(path), inside or str(family_of(path))
    value = at(tree.values, path)
    if not isinstance(value, dict) or "name" not in value:
        if not any(f"{problem.key}.".startswith(f"{key}.") for problem in tree.problems):
            tree.complain(key, f"expected the name of a {family} or a mapping, got {value!r}")
        return None
    try:
        cls = lookup(family, str(value["name"]))
    except UnknownName as error:
        tree.complain(f"{key}.name", str(error))
        return None
    except ImportError as error:
        tree.complain(f"{key}.name", f"{value['name']} needs a package that is not installed: {error}")
        return None
    own = _own_keys(family, path)
    given = {k: v for k, v in value.items() if k not in own}
    beside = [name for name in own if name != "name" and not (name == "fit" and inside)]
    beside += [f"fit.{name}" for name in arguments(Fit)] if "fit" in beside else []
    skip = SUPPLIED if family == "generator" else ()
    mistakes = check(cls, given, skip=skip, key=key, leave_parts=True, beside=beside)
    note(tree, [_of_another_source(mistake, key) for mistake in mistakes] if family == "data" else mistakes)
    weights, init, fit, wrong = value.get("weights"), value.get("init"), value.get("fit"), []
    loaded = loaded or weights is not None
    parts = {name: _part(tree, (*path, name), of, loaded) for name, of in slots_inside(family, value).items()}
    if family in TRAINED:
        if weights is not None and cls.weightless:
            tree.complain(f"{key}.weights", f"{value['name']} has no weights: leave this out")
        elif weights is not None and not isinstance(weights, str):
            tree.complain(f"{key}.weights", f"expected a hub id or a path, got {weights!r}")
        if init is not None and inside:
            tree.complain(f"{key}.init", "a part inside another is not trained on its own", ": give it weights")
        elif init is not None:
            _check_init(tree, f"{key}.init", init, weights, cls)
        if fit is not None and inside:
            tree.complain(f"{key}.fit", "a part inside another is not trained on its own", ": give it weights")
        elif fit is not None and not isinstance(fit, dict):
            tree.complain(f"{key}.fit", f"expected a mapping, got {fit!r}")
        elif fit:
            wrong = check(Fit, fit, key=f"{key}.fit")
            note(tree, wrong)
            note(tree, check_trainer(fit.get("trainer"), f"{key}.fit.trainer"))
        if not (loaded or cls.weightless or (cls.trainable and not inside)):
            where = "not trained inside another part" if cls.trainable else "never trained here"
            tree.complain(
                f"{key}.weights", f"{value['name']} is {where} and has no weights", ": add a hub id or a path"
            )
    reads = _reads(tree, f"{key}.{READS}", value[READS]) if value.get(READS) is not None and READS in own else None
    weight = value.get("weight", 1.0) if "weight" in own else 1.0
    if type(weight) not in (int, float) or not 0 < weight < math.inf:
        tree.complain(f"{key}.weight", f"expected a number above 0, got {weight!r}")
        weight = 1.0
    inner = {name: part for name, part in parts.items() if part is not None}
    return PartPlan(
        key,
        cls,
        {k: v for k, v in given.items() if k not in parts},
        weights if isinstance(weights, str) else None,
        init if isinstance(init, str) else None,
        fit if isinstance(fit, dict) and not wrong else {},
        inner,
        float(weight),
        sound=not mistakes and len(inner) == len(parts),
        reads=reads,
    )


def _reads(tree: Tree, key: str, value: Any) -> str | None:
    """What a tokenizer encodes in the place of the mix: a field of audio, or a stem."""
    name, _, stem = str(value).partition(".")
    audible = [known for known in names("field") if lookup("field", known).kind == "audio"]
    if name not in audible:
        tree.complain(key, f"{value!r} is no field of audio", did_you_mean(name, audible))
    elif (name == "stems") != bool(stem):
        tree.complain(key, f"expected a field, or a stem as stems.NAME, got {value!r}")
    else:
        return None if value == "audio" else str(value)
    return None
