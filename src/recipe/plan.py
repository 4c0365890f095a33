"""Checking a composed recipe and turning it into a plan. Every mistake is reported at once, before a part is built."""

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
from ..core.registry import UnknownName, did_you_mean, lookup, names, with_article
from ..core.schema import SUPPLIED, Mistake, arguments, build, check
from ..errors import Problem, RecipeError
from ..storage.saved_format import mismatch
from .chain import PartPlan, StagePlan, add_mistakes, check_use, last_stages, plan_stages
from .compose import compose
from .slots import SLOT_GROUPS, at, family_of, slots, slots_inside
from .token_options import TokenOptions
from .trainer_options import check_trainer
from .tree import Tree

LONGEST_NAME = 100
"""Maximum length of the name of a slot, in bytes. It becomes a file name, for which file systems allow 255 bytes."""

PART_KEYS = ("name", "weights", "init", "fit")
"""Keys of a slot of a trained family other than the arguments of its part."""

READS = "reads"
"""Key of a tokenizer's slot for the audio field or stem that the tokenizer encodes instead of the mix."""

TRAINED = ("tokenizer", "conditioner", "generator")
"""Families whose parts have weights and can be trained."""


@dataclass
class RecipeKeys:
    """Top-level keys of a recipe.

    Args:
        tokenizers: Parts that turn audio into a representation, by name.
        conditioners: Parts that turn user input into a condition, by name.
        stages: Stages that generate representations, by name.
        data: Source of training examples, or a list of sources. In a list, each source can have a ``weight``: how often
            clips are drawn from it relative to the other sources, regardless of their sizes. The default is 1.
        seed: Seed of all random numbers in training.
        trainer: Options of ``L.Trainer`` for every part, see
            :class:`~partita.recipe.trainer_options.TrainerOptions`. A part's ``fit.trainer`` overrides them.
        description: One line that describes the system.
        finetune: The saved system to which the adapters of the stages belong: a run, an export or a hub id. In a recipe
            without adapters, it is replaced by the weights of that system.
        imported: Checkpoint of another library from which the system comes, a hub id or a path. `partita import` writes
            it, and model cards name it.
        format: Format version of a saved system. Other recipes have none.
        tokens: Whether to store the tokens of all data before stages are trained, in the folder ``tokens`` of the run:
            ``store``, or the options of :class:`~partita.recipe.token_options.TokenOptions`. ``None`` encodes the audio
            in every step.
    """

    data: Any
    tokenizers: dict[str, Any] = field(default_factory=dict)
    conditioners: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    finetune: str = ""
    imported: str = ""
    format: int | None = None
    tokens: Any = None


@dataclass
class Plan:
    """A checked recipe, in which all names exist and all values have the right types.

    ``origin`` returns the file that set a key, and ``blame`` the most likely origin of a mistake in a key. A plan from
    :func:`draft` can have ``problems``, and then lacks the parts and stages that they concern.
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
    tokens: TokenOptions | None = None

    @property
    def last_stage(self) -> StagePlan:
        """The last stage in the order of generation, in a recipe that has stages."""
        return next(reversed(self.stages.values()))

    @property
    def window(self) -> float:
        """The longest window of the stages in seconds, which is the default length of a clip."""
        return max(stage.window for stage in self.stages.values())

    @property
    def ends(self) -> list[Reference]:
        """The representations at the ends of the chain, which are decoded to audio, in the order of the stages."""
        named = [target for stage in last_stages(self.stages).values() for target in stage.targets]
        return [replace(r, start=0, stop=None) for r in {r.source: r for r in named}.values()]

    def reads(self, reference: Reference) -> str | None:
        """Return the field or stem that a representation encodes, or ``None`` if it encodes the mix."""
        return self.tokenizers[reference.tokenizer].reads

    def __repr__(self) -> str:
        """One line for each part and each stage."""
        groups = (self.tokenizers, self.conditioners, {name: stage.part for name, stage in self.stages.items()})
        lines = [f"{part.key}: {part.cls.registered_name}" for group in groups for part in group.values()]
        for name, stage in self.stages.items():
            lines.append(f"stages.{name}: {stage.named_targets} given {', '.join(stage.given) or 'nothing'}")
        return "\n".join([*lines, *(f"data: {part.cls.registered_name}" for part in self.data)])


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Compose and check a recipe.

    Raises:
        RecipeError: The recipe has mistakes. The message names the file, the key and a suggestion for each.
        PartitaError: The recipe does not exist.
    """
    return check_recipe(compose(recipe, overrides))


def check_recipe(tree: Tree) -> Plan:
    """Check a composed recipe and turn it into a plan.

    Raises:
        RecipeError: The recipe has mistakes. The message lists all of them.
    """
    plan = draft(tree)
    if plan.problems:
        raise RecipeError(plan.problems)
    return plan


def draft(tree: Tree) -> Plan:
    """Return the plan of a recipe, with all mistakes in ``problems`` so that further checks can add to them."""
    add_mistakes(tree, check(RecipeKeys, tree.values))
    if "format" in tree.values and (wrong := mismatch(tree.values["format"])) is not None:
        tree.add_problem("format", f"this recipe {wrong}")
    _check_names(tree)
    parts = {path: made for path in slots(tree.values) if (made := _plan_part(tree, path)) is not None}
    stages = plan_stages(tree, parts)
    check_use(tree, stages, parts)
    tokens = _token_options(tree)
    groups = {group: {path[1]: part for path, part in parts.items() if path[0] == group} for group in SLOT_GROUPS}
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
        tokens=tokens,
    )


def _check_names(tree: Tree) -> None:
    """Report slot names that cannot be names of folders and modules."""
    for group in (*SLOT_GROUPS, "stages"):
        for name in tree.values[group] if isinstance(tree.values.get(group), dict) else ():
            fits = re.fullmatch(r"[A-Za-z][\w-]*", name) and len(name.encode()) <= LONGEST_NAME
            if not fits or hasattr(ModuleDict, name) or name == "training":
                hint = f": start with a letter and use only letters, digits, - and _, at most {LONGEST_NAME} bytes"
                tree.add_problem(f"{group}.{name:.{LONGEST_NAME}}", "cannot be used as a name", hint)


def _token_options(tree: Tree) -> TokenOptions | None:
    """Return the options of stored tokens; ``None`` if the recipe stores none, or if they are invalid."""
    value = tree.values.get("tokens")
    if value is None:
        return None
    if value != "store" and not isinstance(value, dict):
        tree.add_problem("tokens", f"expected store, or a mapping of options, got {value!r}")
        return None
    values = value if isinstance(value, dict) else {}
    mistakes = check(TokenOptions, values, key="tokens")
    add_mistakes(tree, mistakes)
    return None if mistakes else build(TokenOptions, values)


def _suggest_other_source(mistake: Mistake, key: str) -> Mistake:
    """Add to a mistake in ``data`` the source that has the unknown key, such as ``folder`` for ``path``."""
    name = mistake.key.removeprefix(f"{key}.")
    owners = [source for source in names("data") if name in arguments(lookup("data", source))]
    if not owners or not mistake.suggestion.startswith(": choose from"):
        return mistake
    return mistake._replace(suggestion=f"; {owners[0]} has it: {key}={{name: {owners[0]}, {name}: …}}")


def _check_init(tree: Tree, key: str, init: Any, weights: Any, cls: Any) -> None:
    """Report an ``init`` that is not a text, or that belongs to a part that is not trained."""
    if not isinstance(init, str):
        tree.add_problem(key, f"expected a run, an export, a hub id or a path, got {init!r}")
    elif weights is not None:
        tree.add_problem(
            key, "the part has weights, which are final: it would not be trained", ": remove weights or init"
        )
    elif not cls.trainable or cls.weightless:
        tree.add_problem(key, f"{cls.registered_name} cannot be trained", ": set weights instead")


def _own_keys(family: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys of a slot other than the arguments of its part or component."""
    if family in TRAINED:
        return (*PART_KEYS, READS) if family == "tokenizer" and len(path) == 2 else PART_KEYS
    return ("name", "weight") if family == "data" and len(path) > 1 else ("name",)


def _plan_part(tree: Tree, path: tuple[str, ...], inside: str | None = None, loaded: bool = False) -> PartPlan | None:
    """Return the plan of a slot and record every mistake in it; ``None`` if it names no known part.

    Args:
        tree: The recipe.
        path: Path of the slot.
        inside: Family of a part nested in another part, as declared by the argument of the outer part. ``None`` if the
            slot is not nested.
        loaded: Whether the weights are loaded together with those of the outer part.
    """
    key, family = ".".join(path), inside or str(family_of(path))
    value = at(tree.values, path)
    if not isinstance(value, dict) or "name" not in value:
        if not any(f"{problem.key}.".startswith(f"{key}.") for problem in tree.problems):
            tree.add_problem(key, f"expected the name of {with_article(family)} or a mapping, got {value!r}")
        return None
    try:
        cls = lookup(family, str(value["name"]))
    except UnknownName as error:
        tree.add_problem(f"{key}.name", str(error))
        return None
    except ImportError as error:
        tree.add_problem(f"{key}.name", f"{value['name']} needs a package that is not installed: {error}")
        return None
    own = _own_keys(family, path)
    given = {k: v for k, v in value.items() if k not in own}
    beside = [name for name in own if name != "name"]
    beside += [f"fit.{name}" for name in arguments(Fit)] if "fit" in beside else []
    skip = SUPPLIED if family == "generator" else ()
    mistakes = check(cls, given, skip=skip, key=key, leave_parts=True, beside=beside)
    add_mistakes(tree, [_suggest_other_source(mistake, key) for mistake in mistakes] if family == "data" else mistakes)
    # A component has no such keys; one that names them is already reported as a mistake.
    weights, init, fit = (value.get(name) if name in own else None for name in ("weights", "init", "fit"))
    wrong: list[Mistake] = []
    loaded = loaded or weights is not None
    parts = {name: _plan_part(tree, (*path, name), of, loaded) for name, of in slots_inside(family, value).items()}
    if family in TRAINED:
        if weights is not None and cls.weightless:
            tree.add_problem(f"{key}.weights", f"{value['name']} has no weights: remove this key")
        elif weights is not None and not isinstance(weights, str):
            tree.add_problem(f"{key}.weights", f"expected a hub id or a path, got {weights!r}")
        if init is not None:
            _check_init(tree, f"{key}.init", init, weights, cls)
        if fit is not None and cls.weightless:
            tree.add_problem(f"{key}.fit", f"{value['name']} has nothing to train", ": remove this key")
        elif fit is not None and not isinstance(fit, dict):
            tree.add_problem(f"{key}.fit", f"expected a mapping, got {fit!r}")
        elif fit:
            wrong = check(Fit, fit, key=f"{key}.fit")
            add_mistakes(tree, wrong)
            add_mistakes(tree, check_trainer(fit.get("trainer"), f"{key}.fit.trainer"))
        if not (loaded or cls.weightless or cls.trainable):
            message = f"{value['name']} is not trainable and has no weights"
            tree.add_problem(f"{key}.weights", message, ": add a hub id or a path")
    reads = (
        _check_reads(tree, f"{key}.{READS}", value[READS]) if value.get(READS) is not None and READS in own else None
    )
    weight = value.get("weight", 1.0) if "weight" in own else 1.0
    if type(weight) not in (int, float) or not 0 < weight < math.inf:
        tree.add_problem(f"{key}.weight", f"expected a number above 0, got {weight!r}")
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
        valid=not mistakes and len(inner) == len(parts),
        reads=reads,
    )


def _check_reads(tree: Tree, key: str, value: Any) -> str | None:
    """Return the audio field or stem that a tokenizer encodes, or ``None`` for the mix."""
    name, _, stem = str(value).partition(".")
    audible = [known for known in names("field") if lookup("field", known).kind == "audio"]
    if name not in audible:
        tree.add_problem(key, f"{value!r} is not an audio field", did_you_mean(name, audible))
    elif (name == "stems") != bool(stem):
        tree.add_problem(key, f"expected a field, or a stem as stems.NAME, got {value!r}")
    else:
        return None if value == "audio" else str(value)
    return None
