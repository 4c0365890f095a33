"""A recipe checked whole: every mistake found at once, before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.nn import ModuleDict

from ..core.fit import Fit
from ..core.reference import OutputReference, Reference
from ..core.registry import UnknownName, did_you_mean, lookup, names
from ..core.schema import SUPPLIED, Mistake, arguments, check
from ..errors import Problem, RecipeError
from ..limits import LONGEST_WINDOW, TooMuch, beyond
from ..storage.saved_format import mismatch
from .compose import SLOTS, Tree, at, compose, family_of, slots, slots_inside
from .trainer_options import check_trainer

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
class StageKeys:
    """One stage of a recipe.

    Args:
        generator: The part.
        target: The representation it generates: a tokenizer's name, some of its codebooks (``acoustic[:4]``), or the
            latents before its codes (``acoustic/latents``). A list of several generates them together, at one frame
            rate.
        given: Names of conditioners, of representations that other stages generate, and of other outputs of stages
            (``plan:hidden``), as a list, or a mapping from name to the way it enters.
        window: Seconds that the stage sees at once: its training crop.
        overlap: Seconds of what came before that a window goes on from, where more than one is generated; half a window
            where none are given.
    """

    generator: Any
    target: Any
    given: Any = None
    window: float = 10.0
    overlap: float | None = None


@dataclass
class PartPlan:
    """One slot of a checked recipe.

    Attributes:
        key: Where it stands in the recipe, such as ``tokenizers.acoustic``.
        cls: The registered class.
        arguments: What to build it with, facts and parts excepted.
        weights: A hub id or path to load instead of training.
        init: A run, an export, a hub id or a path whose weights training starts from.
        fit: The ``fit:`` block.
        parts: Plans of the parts that it is built from, by argument.
        weight: How often clips are drawn of a source of data, relative to others.
        sound: Whether its arguments are of the right types, so that it can be built.
        reads: What a tokenizer encodes in training, such as ``stems.drums``; ``None`` for the mix.
    """

    key: str
    cls: Any
    arguments: dict[str, Any]
    weights: str | None = None
    init: str | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, PartPlan] = field(default_factory=dict)
    weight: float = 1.0
    sound: bool = True
    reads: str | None = None


@dataclass
class StagePlan:
    """One stage of a checked recipe.

    Attributes:
        part: What generates.
        targets: What it generates; several representations are stacked in this order.
        given: By name, how each thing it is given enters; none where the recipe does not say.
        references: Those of ``given`` that are representations of other stages.
        window: In seconds.
        overlap: In seconds.
        after: The stages that generate what this one goes on from or is given.
        outputs: Those of ``given`` that are side outputs of other stages.
    """

    part: PartPlan
    targets: tuple[Reference, ...]
    given: dict[str, str | None]
    references: dict[str, Reference]
    window: float
    overlap: float
    after: frozenset[str] = frozenset()
    outputs: dict[str, OutputReference] = field(default_factory=dict)

    @property
    def target(self) -> Reference:
        """The first of its targets, mostly the only one."""
        return self.targets[0]

    @property
    def named_targets(self) -> str:
        """Its targets, as people read them."""
        return " and ".join(map(str, self.targets))

    def before(self, other: StagePlan) -> bool:
        """Whether ``other`` generates later codebooks of something that this one generates."""
        return any(mine.before(theirs) for mine in self.targets for theirs in other.targets)

    def makes(self, reference: Reference) -> bool:
        """Whether it generates any of ``reference``."""
        return any(reference.within(target) for target in self.targets)

    @property
    def conditioners(self) -> list[str]:
        """Those of ``given`` that are conditioners."""
        return [name for name in self.given if name not in self.references and name not in self.outputs]


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
        named = [target for stage in _last(self.stages).values() for target in stage.targets]
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
    _note(tree, check(RecipeKeys, tree.values))
    if "format" in tree.values and (wrong := mismatch(tree.values["format"])) is not None:
        tree.complain("format", f"this recipe {wrong}")
    _names(tree)
    parts = {path: made for path in slots(tree.values) if (made := _part(tree, path)) is not None}
    stages = _stages(tree, parts)
    _unused(tree, stages, parts)
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


def _note(tree: Tree, mistakes: Sequence[Mistake]) -> None:
    for mistake in mistakes:
        tree.complain(mistake.key, mistake.message, mistake.suggestion)


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
    _note(tree, [_of_another_source(mistake, key) for mistake in mistakes] if family == "data" else mistakes)
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
            _note(tree, wrong)
            _note(tree, check_trainer(fit.get("trainer"), f"{key}.fit.trainer"))
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


def _targets(tree: Tree, value: Any, key: str, tokenizers: Iterable[str]) -> tuple[Reference, ...]:
    """What a stage generates; nothing where something of it is wrong."""
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(one, str) for one in several):
        tree.complain(key, f"expected a representation or a list of them, got {value!r}")
        return ()
    found = [reference for one in several if (reference := _reference(tree, one, key, tokenizers))]
    sources = [reference.source for reference in found]
    if twice := [source for source in dict.fromkeys(sources) if sources.count(source) > 1]:
        tree.complain(key, f"{twice[0]} is named twice")
        return ()
    return tuple(found) if len(found) == len(several) else ()


def _stages(tree: Tree, parts: dict[tuple[str, ...], PartPlan]) -> dict[str, StagePlan]:
    _note(tree, check_trainer(tree.values.get("trainer"), "trainer"))
    groups = (tree.values.get(group) for group in SLOTS)
    tokenizers, conditioners = (group if isinstance(group, dict) else {} for group in groups)
    stages = tree.values.get("stages")
    found = {}
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        key = f"stages.{name}"
        if not isinstance(stage, dict):
            tree.complain(key, f"expected a mapping with generator, target and given, got {stage!r}")
            continue
        mistakes = check(StageKeys, stage, key=key)
        _note(tree, mistakes)
        given = _given(tree, stage.get("given"), f"{key}.given")
        outputs = {source: output for source in given if (output := OutputReference.parse(str(source)))}
        for source, output in outputs.items():
            known = [other for other in stages or () if other != name]
            if output.stage not in known:
                others = did_you_mean(output.stage, known)
                tree.complain(f"{key}.given", f"{source!r} is an output of no other stage", others)
        references = {
            source: reference
            for source in given
            if source not in conditioners
            and source not in outputs
            and (reference := _reference(tree, str(source), f"{key}.given", tokenizers, conditioners))
        }
        for source in given:
            if source in conditioners and source in tokenizers:
                tree.complain(f"{key}.given", f"{source!r} is both a conditioner and a tokenizer: rename one of them")
        if mistakes:
            continue
        targets = _targets(tree, stage["target"], f"{key}.target", tokenizers)
        window = float(stage.get("window", StageKeys.window))
        overlap = float(window / 2 if stage.get("overlap") is None else stage["overlap"])
        if not window > 0:
            tree.complain(f"{key}.window", f"must be positive, not {window}")
            window = StageKeys.window  # so that nothing else is said of it
        elif beyond(window, LONGEST_WINDOW):
            too_much = TooMuch(f"{window:g} s at once, and no stage sees more than {LONGEST_WINDOW:g} s: refused")
            tree.complain(f"{key}.window", str(too_much))
            window = StageKeys.window
        elif not 0 <= overlap < window:
            tree.complain(
                f"{key}.overlap", f"must be 0 or more, and shorter than the window of {window:g} s, not {overlap:g}"
            )
        part = parts.get(("stages", name, "generator"))
        if part is not None and targets:
            found[name] = StagePlan(part, targets, given, references, window, overlap, outputs=outputs)
    return _ordered(tree, found)


def _reference(
    tree: Tree, text: str, key: str, tokenizers: Iterable[str], conditioners: Iterable[str] = ()
) -> Reference | None:
    """The representation that a name in a recipe means."""
    reference = Reference.parse(text)
    if reference is not None and reference.tokenizer in tokenizers:
        return reference
    what = "no conditioner and no tokenizer" if key.endswith("given") else "no tokenizer"
    stages, name = tree.values.get("stages"), re.split(r"[/\[]", text)[0]
    hint = did_you_mean(text, [*conditioners, *tokenizers])
    if isinstance(stages, dict) and isinstance(stage := stages.get(text), dict):
        hint = f": it is a stage; name what it generates, {stage.get('target')!r}"
    elif name != text and name in tokenizers:
        what, hint = "no part", f": write {name}[:2] or {name}[2:] for codebooks, or {name}/latents"
    tree.complain(key, f"{text!r} is {what} of this recipe", hint)
    return None


def _ordered(tree: Tree, stages: dict[str, StagePlan]) -> dict[str, StagePlan]:
    """The stages as a chain: each after those that generate what it is given, otherwise in the order of the recipe."""
    needs: dict[str, set[str]] = {}
    for name, stage in stages.items():
        others = {n: other for n, other in stages.items() if n != name}
        needs[name] = {n for n, other in others.items() if other.before(stage)}
        needs[name] |= {output.stage for output in stage.outputs.values() if output.stage in others}
        for source, reference in stage.references.items():
            makers = {n for n, other in others.items() if other.makes(reference)}
            if not makers and len(stages) == len(tree.values["stages"]):  # else it may be one with a mistake
                targets = [str(target) for other in others.values() for target in other.targets]
                hint = f": what there is: {', '.join(targets)}" if targets else ""
                tree.complain(f"stages.{name}.given", f"no other stage generates {source!r}", hint)
            needs[name] |= makers
        stage.after = frozenset(needs[name])
    chain: dict[str, StagePlan] = {}
    while len(chain) < len(stages):
        ready = [n for n in stages if n not in chain and needs[n] <= chain.keys()]
        if not ready:
            left = [n for n in stages if n not in chain]
            message = f"{' and '.join(left)} are given what the others of them generate, in a circle"
            tree.complain("stages", message, file=tree.blame("stages"))
            return {}
        chain[ready[0]] = stages[ready[0]]
    return chain


def _given(tree: Tree, given: Any, key: str) -> dict[str, str | None]:
    if given is None:
        return {}
    if isinstance(given, list) and all(isinstance(g, str) for g in given):
        return dict.fromkeys(given)
    if isinstance(given, dict) and all(isinstance(v, str | None) for v in given.values()):
        return given
    tree.complain(key, f"expected a list of names, or a mapping from name to entry, got {given!r}")
    return {}


def _unused(tree: Tree, stages: dict[str, StagePlan], parts: dict[tuple[str, ...], PartPlan]) -> None:
    """A slot that nothing uses is most often a misspelled override."""
    if any(problem.key.split(".")[0] in ("", "stages") for problem in tree.problems):
        return
    used = {
        "tokenizers": {r.tokenizer for s in stages.values() for r in (*s.targets, *s.references.values())},
        "conditioners": {n for s in stages.values() for n in s.given},
    }
    if not stages:  # a recipe for tokenizers or conditioners alone, but not for those that learn with a stage
        alone = {
            path
            for path, p in parts.items()
            if p.weights is not None or not getattr(p.cls, "trained_with_stage", False)
        }
        used = {group: {path[1] for path in alone if path[0] == group} for group in SLOTS}
    for group, wanted in used.items():
        for _, name in (path for path in parts if path[0] == group):
            if name not in wanted:
                tree.complain(f"{group}.{name}", "no stage uses this", did_you_mean(name, wanted))
    # several can be heard together where each is another part of the mix
    ends = _last(stages)
    heard = {r.source: r.tokenizer for stage in ends.values() for r in stage.targets}
    read = [parts["tokenizers", tokenizer].reads for tokenizer in heard.values() if ("tokenizers", tokenizer) in parts]
    if len(read) > 1 and (None in read or len(set(read)) < len(read)):
        who = ends if len(ends) > 1 else heard
        message = f"{' and '.join(who)} all end the chain, and only one can be heard"
        hint = ": give a stage what another generates, or take one out with stages.NAME=null"
        hint += "; for parts of a mix, let each tokenizer read its own (reads: stems.NAME)"
        tree.complain("stages", message, hint)


def _last(stages: dict[str, StagePlan]) -> dict[str, StagePlan]:
    """The stages of which no other is given anything, and that go on in no later slice: they end the chain."""
    return {
        name: stage
        for name, stage in stages.items()
        if not any(
            stage.before(other)
            or any(stage.makes(r) for r in other.references.values())
            or any(output.stage == name for output in other.outputs.values())
            for other in stages.values()
        )
    }
