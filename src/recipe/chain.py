"""The stages of a recipe as a chain: what each generates and is given, and which come before it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.reference import OutputReference, Reference
from ..core.registry import did_you_mean
from ..core.schema import Mistake, check
from ..limits import LONGEST_WINDOW, TooMuch, beyond
from .slots import SLOTS
from .trainer_options import check_trainer
from .tree import Tree


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


def note(tree: Tree, mistakes: Sequence[Mistake]) -> None:
    """Note mistakes in a recipe."""
    for mistake in mistakes:
        tree.complain(mistake.key, mistake.message, mistake.suggestion)


def chain(tree: Tree, parts: dict[tuple[str, ...], PartPlan]) -> dict[str, StagePlan]:
    """The stages of a recipe in the order in which they run, with every mistake noted in the tree.

    Args:
        tree: The recipe.
        parts: The plans of its slots, by path.
    """
    note(tree, check_trainer(tree.values.get("trainer"), "trainer"))
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
        note(tree, mistakes)
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


def check_use(tree: Tree, stages: dict[str, StagePlan], parts: dict[tuple[str, ...], PartPlan]) -> None:
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
    ends = last_stages(stages)
    heard = {r.source: r.tokenizer for stage in ends.values() for r in stage.targets}
    read = [parts["tokenizers", tokenizer].reads for tokenizer in heard.values() if ("tokenizers", tokenizer) in parts]
    if len(read) > 1 and (None in read or len(set(read)) < len(read)):
        who = ends if len(ends) > 1 else heard
        message = f"{' and '.join(who)} all end the chain, and only one can be heard"
        hint = ": give a stage what another generates, or take one out with stages.NAME=null"
        hint += "; for parts of a mix, let each tokenizer read its own (reads: stems.NAME)"
        tree.complain("stages", message, hint)


def last_stages(stages: dict[str, StagePlan]) -> dict[str, StagePlan]:
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
