"""The stages of a recipe as a chain: the targets and inputs of each stage, and the order in which stages run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.reference import OutputReference, Reference
from ..core.registry import did_you_mean
from ..core.schema import Mistake, check
from ..limits import LONGEST_WINDOW, TooMuch, beyond
from .slots import SLOT_GROUPS
from .trainer_options import check_trainer
from .tree import Tree


@dataclass
class StageKeys:
    """Keys of a stage in a recipe.

    Args:
        generator: The generator part.
        target: The representation that the stage generates: the name of a tokenizer, some of its codebooks
            (``acoustic[:4]``), or the latents before quantization (``acoustic/latents``). The representations of a list
            are generated together and must have the same frame rate.
        given: Inputs of the stage: names of conditioners, of representations that other stages generate, and of side
            outputs of stages (``plan:hidden``). They form a list, or a mapping from name to fusion.
        window: Length of the training crop and of a window in generation, in seconds.
        overlap: Length of the previous window's end that the next window continues, in seconds. ``None`` uses half a
            window.
        adapter: Small change of the generator that is trained while the generator keeps the weights of the system that
            ``finetune`` names. ``None`` trains the generator itself.
    """

    generator: Any
    target: Any
    given: Any = None
    window: float = 10.0
    overlap: float | None = None
    adapter: Any = None


@dataclass
class PartPlan:
    """Plan of one part: a slot of a checked recipe.

    Attributes:
        key: Dotted key of the slot in the recipe, such as ``tokenizers.acoustic``.
        cls: The registered class.
        arguments: Constructor arguments, without specifications and nested parts.
        weights: Hub id or path of final weights. ``None`` trains the part.
        init: Run, export, hub id or path whose weights training starts from. ``None`` trains from scratch.
        fit: The ``fit:`` block.
        parts: Plans of nested parts, by constructor argument.
        weight: Sampling weight of a data source, relative to the other sources.
        valid: Whether all arguments are valid, so that the part can be built.
        reads: Field or stem that a tokenizer encodes in training, such as ``stems.drums``. ``None`` encodes the mix.
    """

    key: str
    cls: Any
    arguments: dict[str, Any]
    weights: str | None = None
    init: str | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, PartPlan] = field(default_factory=dict)
    weight: float = 1.0
    valid: bool = True
    reads: str | None = None


@dataclass
class StagePlan:
    """Plan of one stage of a checked recipe.

    Attributes:
        part: Plan of the generator.
        targets: Representations that the stage generates. Several are stacked in this order.
        given: Fusion of each input, by name. ``None`` uses the default fusion.
        references: Inputs that are representations of other stages, by name.
        window: Length of a window, in seconds.
        overlap: Overlap of consecutive windows, in seconds.
        dependencies: Names of the stages whose output this stage continues or takes as input.
        outputs: Inputs that are side outputs of other stages, by name.
        adapter: Plan of the adapter that is trained in the place of the generator; ``None`` without one.
    """

    part: PartPlan
    targets: tuple[Reference, ...]
    given: dict[str, str | None]
    references: dict[str, Reference]
    window: float
    overlap: float
    dependencies: frozenset[str] = frozenset()
    outputs: dict[str, OutputReference] = field(default_factory=dict)
    adapter: PartPlan | None = None

    @property
    def target(self) -> Reference:
        """The first target, usually the only one."""
        return self.targets[0]

    @property
    def named_targets(self) -> str:
        """The targets as text for messages."""
        return " and ".join(map(str, self.targets))

    def before(self, other: StagePlan) -> bool:
        """Return whether ``other`` generates later codebooks of a representation that this stage generates."""
        return any(mine.before(theirs) for mine in self.targets for theirs in other.targets)

    def generates(self, reference: Reference) -> bool:
        """Return whether the stage generates any part of ``reference``."""
        return any(reference.within(target) for target in self.targets)

    @property
    def conditioners(self) -> list[str]:
        """Names of the inputs that are conditioners."""
        return [name for name in self.given if name not in self.references and name not in self.outputs]


def add_mistakes(tree: Tree, mistakes: Sequence[Mistake]) -> None:
    """Record mistakes in the tree of a recipe."""
    for mistake in mistakes:
        tree.add_problem(mistake.key, mistake.message, mistake.suggestion)


def plan_stages(tree: Tree, parts: dict[tuple[str, ...], PartPlan]) -> dict[str, StagePlan]:
    """Return the stages of a recipe in the order in which they run, and record every mistake in the tree.

    Args:
        tree: The composed recipe.
        parts: Plans of the slots of the recipe, by path.
    """
    add_mistakes(tree, check_trainer(tree.values.get("trainer"), "trainer"))
    groups = (tree.values.get(group) for group in SLOT_GROUPS)
    tokenizers, conditioners = (group if isinstance(group, dict) else {} for group in groups)
    stages = tree.values.get("stages")
    found = {}
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        key = f"stages.{name}"
        if not isinstance(stage, dict):
            tree.add_problem(key, f"expected a mapping with generator, target and given, got {stage!r}")
            continue
        mistakes = check(StageKeys, stage, key=key)
        add_mistakes(tree, mistakes)
        given = _given(tree, stage.get("given"), f"{key}.given")
        outputs = {source: output for source in given if (output := OutputReference.parse(str(source)))}
        for source, output in outputs.items():
            known = [other for other in stages or () if other != name]
            if output.stage not in known:
                others = did_you_mean(output.stage, known)
                tree.add_problem(f"{key}.given", f"{source!r} is not an output of another stage", others)
        references = {
            source: reference
            for source in given
            if source not in conditioners
            and source not in outputs
            and (reference := _reference(tree, str(source), f"{key}.given", tokenizers, conditioners))
        }
        for source in given:
            if source in conditioners and source in tokenizers:
                tree.add_problem(
                    f"{key}.given", f"{source!r} is both a conditioner and a tokenizer: rename one of them"
                )
        if mistakes:
            continue
        targets = _targets(tree, stage["target"], f"{key}.target", tokenizers)
        window = float(stage.get("window", StageKeys.window))
        overlap = float(window / 2 if stage.get("overlap") is None else stage["overlap"])
        if not window > 0:
            tree.add_problem(f"{key}.window", f"must be positive, not {window}")
            window = StageKeys.window  # avoids further mistakes about the same value
        elif beyond(window, LONGEST_WINDOW):
            too_much = TooMuch(f"a window of {window:g} s exceeds the limit of {LONGEST_WINDOW:g} s: refused")
            tree.add_problem(f"{key}.window", str(too_much))
            window = StageKeys.window
        elif not 0 <= overlap < window:
            tree.add_problem(
                f"{key}.overlap", f"must be 0 or more, and shorter than the window of {window:g} s, not {overlap:g}"
            )
            overlap = 0.0  # avoids further mistakes about the same value
        part = parts.get(("stages", name, "generator"))
        if part is not None and targets:
            adapter = parts.get(("stages", name, "adapter"))
            found[name] = StagePlan(part, targets, given, references, window, overlap, outputs=outputs, adapter=adapter)
    return _ordered(tree, found)


def _targets(tree: Tree, value: Any, key: str, tokenizers: Iterable[str]) -> tuple[Reference, ...]:
    """Return the targets of a stage, or an empty tuple if any of them is invalid."""
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(one, str) for one in several):
        tree.add_problem(key, f"expected a representation or a list of them, got {value!r}")
        return ()
    found = [reference for one in several if (reference := _reference(tree, one, key, tokenizers))]
    sources = [reference.source for reference in found]
    if twice := [source for source in dict.fromkeys(sources) if sources.count(source) > 1]:
        tree.add_problem(key, f"{twice[0]} is named twice")
        return ()
    return tuple(found) if len(found) == len(several) else ()


def _reference(
    tree: Tree, text: str, key: str, tokenizers: Iterable[str], conditioners: Iterable[str] = ()
) -> Reference | None:
    """Return the representation that a name in a recipe refers to, or ``None`` if there is none."""
    reference = Reference.parse(text)
    if reference is not None and reference.tokenizer in tokenizers:
        return reference
    what = "neither a conditioner nor a tokenizer" if key.endswith("given") else "not a tokenizer"
    stages, name = tree.values.get("stages"), re.split(r"[/\[]", text)[0]
    hint = did_you_mean(text, [*conditioners, *tokenizers])
    if isinstance(stages, dict) and isinstance(stage := stages.get(text), dict):
        hint = f": it is a stage; name its target {stage.get('target')!r} instead"
    elif name != text and name in tokenizers:
        what, hint = "not a representation", f": write {name}[:2] or {name}[2:] for codebooks, or {name}/latents"
    tree.add_problem(key, f"{text!r} is {what} of this recipe", hint)
    return None


def _ordered(tree: Tree, stages: dict[str, StagePlan]) -> dict[str, StagePlan]:
    """Return the stages with each one after its dependencies, otherwise in the order of the recipe."""
    dependencies: dict[str, set[str]] = {}
    for name, stage in stages.items():
        others = {n: other for n, other in stages.items() if n != name}
        dependencies[name] = {n for n, other in others.items() if other.before(stage)}
        dependencies[name] |= {output.stage for output in stage.outputs.values() if output.stage in others}
        for source, reference in stage.references.items():
            generators = {n for n, other in others.items() if other.generates(reference)}
            if not generators and len(stages) == len(tree.values["stages"]):  # an invalid stage may generate it
                targets = [str(target) for other in others.values() for target in other.targets]
                hint = f": choose from {', '.join(targets)}" if targets else ""
                tree.add_problem(f"stages.{name}.given", f"no other stage generates {source!r}", hint)
            dependencies[name] |= generators
        stage.dependencies = frozenset(dependencies[name])
    chain: dict[str, StagePlan] = {}
    while len(chain) < len(stages):
        ready = [n for n in stages if n not in chain and dependencies[n] <= chain.keys()]
        if not ready:
            left = [n for n in stages if n not in chain]
            message = f"{' and '.join(left)} depend on each other in a circle"
            tree.add_problem("stages", message, file=tree.blame("stages"))
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
    tree.add_problem(key, f"expected a list of names, or a mapping from name to fusion, got {given!r}")
    return {}


def check_use(tree: Tree, stages: dict[str, StagePlan], parts: dict[tuple[str, ...], PartPlan]) -> None:
    """Record slots that no stage uses, which are usually misspelled overrides, and ends of the chain that conflict."""
    if any(problem.key.split(".")[0] in ("", "stages") for problem in tree.problems):
        return
    if not any(path[0] in SLOT_GROUPS for path in parts):
        tree.add_problem("tokenizers", "the recipe has no parts: add tokenizers or conditioners")
        return
    used = {
        "tokenizers": {r.tokenizer for s in stages.values() for r in (*s.targets, *s.references.values())},
        "conditioners": {n for s in stages.values() for n in s.given},
    }
    if not stages:  # a recipe may train tokenizers and conditioners alone, except those that train with a stage
        alone = {
            path
            for path, p in parts.items()
            if p.weights is not None or not getattr(p.cls, "trained_with_stage", False)
        }
        used = {group: {path[1] for path in alone if path[0] == group} for group in SLOT_GROUPS}
    for group, wanted in used.items():
        for _, name in (path for path in parts if path[0] == group):
            if name not in wanted:
                used_here = [other for other in wanted if (group, other) in parts]
                tree.add_problem(f"{group}.{name}", "no stage uses this", did_you_mean(name, used_here))
    # Several ends are mixed to one output if each of them encodes a different part of the mix.
    ends = last_stages(stages)
    decoded = {r.source: r.tokenizer for stage in ends.values() for r in stage.targets}
    read = [
        parts["tokenizers", tokenizer].reads for tokenizer in decoded.values() if ("tokenizers", tokenizer) in parts
    ]
    if len(read) > 1 and (None in read or len(set(read)) < len(read)):
        who = ends if len(ends) > 1 else decoded
        message = f"{' and '.join(who)} all end the chain, but only one can be decoded to audio"
        hint = ": give one stage the output of another, or remove one with stages.NAME=null"
        hint += "; to generate parts of a mix, let each tokenizer read its own stem (reads: stems.NAME)"
        tree.add_problem("stages", message, hint)


def last_stages(stages: dict[str, StagePlan]) -> dict[str, StagePlan]:
    """Return the stages that end the chain: no other stage uses their output or generates further codebooks of it."""
    return {
        name: stage
        for name, stage in stages.items()
        if not any(
            stage.before(other)
            or any(stage.generates(r) for r in other.references.values())
            or any(output.stage == name for output in other.outputs.values())
            for other in stages.values()
        )
    }
