"""Building the parts of a system from a plan and checking that they are compatible."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from omegaconf import OmegaConf

from ..conditioners.base import Conditioner
from ..core.contracts import RepresentationSpec
from ..core.fit import Fit
from ..core.part import Part
from ..core.part_key import PartKey
from ..core.reference import Reference
from ..core.schema import build
from ..core.seeds import derive_seed
from ..data.base import Source, Split
from ..data.clips import ALWAYS_SUPPLIED
from ..data.examples import Examples
from ..data.mixture import Mixture
from ..data.overview import not_supplied
from ..errors import PartitaError, Problem, RecipeError
from ..generators.adapters.base import Adapter
from ..generators.base import Generator
from ..limits import TooMuch
from ..recipe.chain import PartPlan
from ..recipe.compose import compose
from ..recipe.plan import Plan, draft, load_recipe
from ..recipe.slots import SLOT_GROUPS
from ..storage.files import kind, replacing_file
from ..storage.saved_format import FILES as FILES
from ..storage.saved_format import INDEX as INDEX
from ..storage.saved_format import numbered
from ..tokenizers.base import LatentView, Tokenizer
from .compatibility import CompatibilityChecker, PartCatalog
from .mix import Mix
from .outline import construct, outlining
from .uninitialized import without_drawing

SHORTCUTS = {"melody": ("cover", "melody"), "style": ("excerpt",), "style_streams": ("style_streams",)}
"""Options of generation that stand for an input of all clips, with the fields that each can mean. A melody is a
recording, or notes where the system reads notes."""

PART_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)/((?:tokenizers|conditioners|stages)/[\w-]+)")
"""Name of a part in a system on the Hub, such as ``user/name/stages/acoustic``: a repository and a part key."""


class Assembly:
    """Compatible tokenizers, conditioners and stages, built from a plan.

    Args:
        plan: Plan of a recipe.
        files: Whether to check that the data and the weights that training needs exist.
        loading: Whether all weights are loaded afterwards, so that weights need not be drawn at random first.

    Attributes:
        tokenizers: Tokenizers by name.
        conditioners: Conditioners by name.
        stages: Generators by name, in the order in which they run.
        adapters: Adapters that are trained in the place of stages, by the name of the stage.
        source: Source of training examples.

    Raises:
        RecipeError: Parts cannot be built or are incompatible, or files are missing. The message lists every mistake.
    """

    def __init__(self, plan: Plan, *, files: bool = False, loading: bool = False) -> None:
        self.plan = plan
        problems = list(plan.problems)

        def make(part: PartPlan, spec: Mapping[str, Any] | None = None) -> Any:
            if not part.valid:
                return None  # the plan already reports the problem

            def built_from_arguments() -> Any:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derive_seed(plan.seed, part.key))
                    inner = {name: make(plan_of) for name, plan_of in part.parts.items()}
                    return (
                        None if None in inner.values() else build(part.cls, {**part.arguments, **inner, **(spec or {})})
                    )

            try:
                if loading:
                    built = construct(lambda: without_drawing(built_from_arguments))
                else:
                    built = construct(built_from_arguments)
            except TooMuch as error:  # the limit counts all parts, so no further part can be built
                raise RecipeError([*problems, Problem(plan.blame(part.key), part.key, str(error))]) from None
            except RecipeError:  # an inner part exceeds the limit
                raise
            except (ValueError, TypeError, ArithmeticError, RuntimeError, PartitaError) as error:
                problems.append(Problem(plan.blame(part.key), part.key, str(error).split("\n")[0]))
                return None
            if isinstance(built, Part):
                built.fit_options = build(Fit, part.fit)
            return built

        sources: list[Any] = [make(part) for part in plan.data]
        source: Any = sources[0] if len(sources) == 1 else None
        if len(sources) > 1 and None not in sources:
            source = Mixture(sources, [part.weight for part in plan.data])
        self.source: Source = source
        self.tokenizers: dict[str, Tokenizer] = {name: make(part) for name, part in plan.tokenizers.items()}
        self.conditioners: dict[str, Conditioner] = {name: make(part) for name, part in plan.conditioners.items()}
        for name, conditioner in self.conditioners.items():
            try:
                _ = conditioner and conditioner.audio_format
            except ValueError as error:
                problems.append(Problem(plan.blame(f"conditioners.{name}"), f"conditioners.{name}", str(error)))
        self.stages: dict[str, Generator] = {}
        self.adapters: dict[str, Adapter] = {}
        self.catalog = PartCatalog(self.tokenizers, self.conditioners, self.stages)
        checker = CompatibilityChecker(self.catalog)

        def note(key: str, message: str, suggestion: str = "") -> None:
            problems.append(Problem(plan.blame(key), key, message, suggestion))

        for name, stage in plan.stages.items():
            spec = checker.stage_arguments(name, stage, note)
            if spec is not None:
                self.stages[name] = make(stage.part, spec)
            if stage.adapter is not None:
                self.adapters[name] = make(stage.adapter)
        if files:
            problems += self._missing_files()
        problems += self._missing_fields(training=files)
        if problems:
            raise RecipeError(problems)
        self._assign_joint_conditioners()
        self._check_trainable()

    @classmethod
    def from_recipe(cls, recipe: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Build a system with random weights from the path or name of a recipe."""
        return cls(load_recipe(recipe, overrides))

    @classmethod
    def checked(cls, recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """Build a recipe on the meta device and check everything about it, including that files exist.

        Raises:
            RecipeError: The recipe has mistakes. The message lists all of them, including missing files.
            PartitaError: The recipe does not exist.
        """
        plan = draft(compose(recipe, overrides))
        with outlining():
            return cls(plan, files=True)

    @classmethod
    def outline(cls, plan: Plan) -> Self:
        """Build a system on the meta device: with specifications, shapes and parameter counts, but without weights."""
        with outlining():
            return cls(plan)

    @property
    def parts(self) -> dict[PartKey, Part]:
        """All parts by key, such as ``tokenizers/acoustic``, in the order of training."""
        groups = (("tokenizers", self.tokenizers), ("conditioners", self.conditioners), ("stages", self.stages))
        return {PartKey.of(group, name): part for group, parts in groups for name, part in parts.items()}

    @property
    def training_order(self) -> dict[PartKey, Part]:
        """All parts by key in the order of training, each after the parts inside it that are trained on their own.

        An inner part has a key such as ``tokenizers/semantic.features``. Inner parts that are saved with pretrained
        weights, or that have nothing to train, are left out.
        """
        order: dict[PartKey, Part] = {}
        for key, part in self.parts.items():
            order |= _trained_inside(key, part, self.part_plan(key))
            order[key] = part
        return order

    def part_plan(self, key: PartKey) -> PartPlan:
        """Return the plan of the part with the given key, which is one of :attr:`training_order`."""
        name, *inside = key.name.split(".")
        plan = self.plan.stages[name].part if key.group == "stages" else getattr(self.plan, key.group)[name]
        for inner in inside:
            plan = plan.parts[inner]
        return plan

    def adapter_of(self, key: PartKey) -> Adapter | None:
        """Return the adapter that is trained instead of a part, which must be a stage; ``None`` if there is none."""
        return self.adapters.get(key.name) if key.group == "stages" else None

    @property
    def output(self) -> Tokenizer | LatentView | Mix:
        """Decoder of the representation that ends the chain, or a mix of several; without stages, the one tokenizer.

        Raises:
            PartitaError: The system has neither a stage nor exactly one tokenizer.
        """
        if self.plan.stages:
            ends = self.plan.ends
            if len(ends) > 1:
                return Mix([end.source for end in ends], self.tokenizer_of(ends[0]).spec)
            return self.tokenizer_of(self.plan.last_stage.target)
        if len(self.tokenizers) != 1:
            raise PartitaError("this system has no stage and not exactly one tokenizer, so it has no audio output")
        return next(iter(self.tokenizers.values()))

    @property
    def sample_rate(self) -> int:
        """Sample rate of the generated audio, in Hz."""
        return self.output.spec.sample_rate

    def to(self, device: str | torch.device) -> Self:
        """Move all parts to a device."""
        for part in self.parts.values():
            part.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the parameters; the CPU if there are none."""
        return next((p.device for part in self.parts.values() for p in part.parameters()), torch.device("cpu"))

    def prompts_of(self, pieces: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]] | None:
        """Return prompts of ``generate`` that describe the given pieces, or ``None`` if the system has no inputs.

        Args:
            pieces: Fields of each piece, by name.
        """
        return {name: [fields.get(name) for fields in pieces] for name in self.inputs} or None

    def examples(self, split: Split, length: int, seed: int, seconds: float | None = None) -> Examples:
        """Return examples of the data in the format of the output, with the fields that prompts take.

        Args:
            split: Split of the data; another one replaces it if it is empty.
            length: Number of examples.
            seed: Seed of the order and the crops.
            seconds: Length of each. ``None`` takes the longest window of the stages.
        """
        seconds = self.plan.window if seconds is None else seconds
        excerpts = "excerpt" in self.inputs
        return Examples.for_spec(self.output.spec, self.source, split, length, seconds, seed, excerpts)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the fields that the conditioners read."""
        return tuple(dict.fromkeys(name for part in self.conditioners.values() for name in part.inputs))

    def field_for(self, option: str) -> str:
        """Name of the field that an option of generation stands for.

        Args:
            option: One of :data:`SHORTCUTS`, such as ``melody``.

        Raises:
            PartitaError: No conditioner reads such a field.
        """
        found = next((name for name in SHORTCUTS[option] if name in self.inputs), None)
        if found is None:
            read = f"reads only {', '.join(self.inputs)}" if self.inputs else "reads no inputs"
            raise PartitaError(f"this system takes no {option.replace('_', ' ')}: it {read}")
        return found

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Fields of the data that each conditioner reads, by its key (``conditioners.text``)."""
        return {f"conditioners.{name}": conditioner.inputs for name, conditioner in self.conditioners.items()}

    def check_fields(self) -> None:
        """Check that the data supplies the fields that conditioners read and are trained on.

        A source may know them only after its setup.

        Raises:
            RecipeError: The data does not supply a field.
        """
        if problems := self._missing_fields(training=True):
            raise RecipeError(problems)

    def _missing_fields(self, *, training: bool) -> list[Problem]:
        if self.source is None:
            return []
        problems: dict[str, Problem] = {}  # by reader, one for each

        def note(reader: str, field: str, without: str = "") -> None:
            message, suggestion = not_supplied(self.source, field, reader)
            problems.setdefault(reader, Problem(self.plan.blame("data"), "data", message, suggestion + without))

        supplied = self.source.fields | ALWAYS_SUPPLIED
        for name, tokenizer in self.plan.tokenizers.items():
            read = (tokenizer.reads or "audio").partition(".")[0]
            if read not in supplied:
                note(f"tokenizers.{name}", read)
        for name, conditioner in self.conditioners.items():
            # A conditioner of the audio trains on the clips, without the fields that replace them in generation.
            if conditioner is None or "audio" in conditioner.inputs:
                continue
            lacking = [field for field in conditioner.inputs if field not in supplied]
            if not lacking:
                continue
            without = [f"conditioners.{name}=null"]
            for stage, plan in self.plan.stages.items():
                if name in plan.given:
                    left = ",".join(given for given in plan.given if given != name)
                    without.append(f"stages.{stage}.given=[{left}]")
            hint = f"; to train without it, set {' '.join(without)}" if self.source.fields_known else ""
            note(f"conditioners.{name}", lacking[0], hint)
        for key, part in self.training_order.items() if training and None not in self.parts.values() else ():
            if isinstance(part, Conditioner) and self.part_plan(key).weights is None:
                for field in part.trained_on:
                    if field not in supplied:
                        note(self.part_plan(key).key, field)
        return list(problems.values())

    def _missing_files(self) -> list[Problem]:
        """Return a problem for each file of weights or data that does not exist."""
        plan, problems = self.plan, []

        def look(part: PartPlan) -> None:
            for name, source in (("weights", part.weights), ("init", part.init)):
                on_hub = name == "init" and PART_ON_HUB.fullmatch(source or "")
                wrong = None if source is None or on_hub else part.cls.missing_weights(source)
                if name == "weights" and source is not None and kind(Path(source) / INDEX) == "file":
                    group = part.key.partition(".")[0]
                    wrong = f"{source} holds a whole system: name a part of it, such as {source}/{group}/NAME"
                if wrong is not None:
                    problems.append(Problem(plan.origin(f"{part.key}.{name}"), f"{part.key}.{name}", wrong))
            for inner in part.parts.values():
                look(inner)

        for part in (*plan.tokenizers.values(), *plan.conditioners.values(), *(s.part for s in plan.stages.values())):
            look(part)
        for name, message in self.source.missing() if self.source is not None else ():
            problems.append(Problem(plan.origin(f"data.{name}"), f"data.{name}", message))
        return problems

    def tokenizer_of(self, reference: Reference) -> Tokenizer | LatentView:
        """Return the tokenizer that encodes and decodes the source of a representation."""
        return self.catalog.tokenizer_of(reference)

    def spec(self, reference: Reference) -> RepresentationSpec:
        """Return the specification of a representation that a stage generates or takes as input."""
        return self.catalog.spec(reference)

    def _assign_joint_conditioners(self) -> None:
        """Assign each conditioner that trains with a stage to the first stage that uses it."""
        taken: set[str] = set()
        for name, stage in self.plan.stages.items():
            for given in stage.conditioners:
                conditioner = self.conditioners[given]
                if (
                    conditioner.trained_with_stage
                    and self.plan.conditioners[given].weights is None
                    and given not in taken
                ):
                    self.stages[name].joint[given] = conditioner
                    taken.add(given)

    def _check_trainable(self) -> None:
        """Check that every part has the parameters that its ``fit`` names, and the layers of its adapter."""
        problems = []
        for name, part in self.training_order.items():
            if (patterns := part.fit_options.trainable) is not None:
                key = f"{self.part_plan(name).key}.fit.trainable"
                try:
                    part.train_only(patterns)
                except ValueError as error:
                    problems.append(Problem(self.plan.blame(key), key, str(error)))
            try:
                part.check_names(part.fit_options.rates)
            except ValueError as error:
                key = f"{self.part_plan(name).key}.fit.rates"
                problems.append(Problem(self.plan.blame(key), key, str(error)))
        for stage, adapter in self.adapters.items():
            try:
                adapter.layers_of(self.stages[stage])
            except ValueError as error:
                key = f"stages.{stage}.adapter"
                problems.append(Problem(self.plan.blame(key), key, str(error)))
        if problems:
            raise RecipeError(problems)

    def save_index(self, folder: str | Path) -> None:
        """Write the resolved recipe, without weights. Adapters, which are merged into the weights, are left out."""
        with replacing_file(Path(folder) / INDEX) as new:
            new.write_text(index_yaml(replace(self.plan, values=_without_adapters(self.plan.values))), encoding="utf-8")

    def load_parts(self, folder: str | Path) -> Self:
        """Load the weights of all parts from the folder of a saved system.

        Raises:
            PartitaError: The folder lacks the weights of a part.
        """
        missing = [name for name in self.parts if not (Path(folder) / name / "model.safetensors").is_file()]
        if missing:
            raise PartitaError(
                f"{folder} has no weights yet for {', '.join(missing)}: its training has not finished; run the same "
                "`partita train` command again to resume it"
            )
        for name, part in self.parts.items():
            part.load_weights(Path(folder) / name)
            part.eval()
        return self


def _trained_inside(key: PartKey, part: Part, plan: PartPlan) -> dict[PartKey, Part]:
    """Return the parts inside a part that are trained on their own, in the order of training.

    Raises:
        PartitaError: The part keeps one of them elsewhere than in an attribute with the name of the argument.
    """
    found: dict[PartKey, Part] = {}
    for name, inner_plan in plan.parts.items() if plan.weights is None else ():
        inner, inner_key = getattr(part, name, None), key.inside(name)
        if not issubclass(inner_plan.cls, Part) or inner_plan.weights is not None or inner_plan.cls.weightless:
            continue
        if not isinstance(inner, Part):
            kind = part.registered_name
            raise PartitaError(f"{inner_key} is not trained unless {kind} keeps it in an attribute called {name}")
        found |= _trained_inside(inner_key, inner, inner_plan) | {inner_key: inner}
    return found


def _without_adapters(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe for the system that its adapters were merged into."""
    if "finetune" not in values:
        return values
    stages = {name: {k: v for k, v in stage.items() if k != "adapter"} for name, stage in values["stages"].items()}
    for name, stage in values["stages"].items():
        if "adapter" in stage:
            stages[name]["generator"] = {k: v for k, v in stage["generator"].items() if k != "weights"}
    return {key: value for key, value in values.items() if key != "finetune"} | {"stages": stages}


def index_yaml(plan: Plan) -> str:
    """Return the resolved recipe as YAML, as it is saved in the folder of a system.

    That of adapters names their system by ``finetune`` alone, which says where all weights are.
    """
    values = plan.values
    if "finetune" in values:
        values = {group: _without_weights(group, value) for group, value in values.items()}
    return OmegaConf.to_yaml(OmegaConf.create(numbered(values)))


def _without_weights(group: str, slots: Any) -> Any:
    """Return a group of the slots of a recipe without the weights of each."""

    def left(slot: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in slot.items() if key != "weights"}

    if group == "stages":
        return {name: stage | {"generator": left(stage["generator"])} for name, stage in slots.items()}
    return {name: left(slot) for name, slot in slots.items()} if group in SLOT_GROUPS else slots
