"""Assembling a system from a plan: its parts, built and fitted to each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from ..data.base import Source
from ..data.clips import ALWAYS
from ..data.mixture import Mixture
from ..data.overview import not_supplied
from ..errors import PartitaError, Problem, RecipeError
from ..generators.base import Generator
from ..limits import TooMuch
from ..recipe.chain import PartPlan
from ..recipe.compose import compose
from ..recipe.plan import Plan, draft, load_recipe
from ..storage.files import replacing_file
from ..storage.saved_format import numbered
from ..tokenizers.base import LatentView, Tokenizer
from .compatibility import CompatibilityChecker, PartCatalog
from .mix import Mix
from .outline import outlining

INDEX = "recipe.yaml"
"""The file that makes a folder a system: its resolved recipe."""

PART_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)/((?:tokenizers|conditioners|stages)/[\w-]+)")
"""A part of a system on the Hub, such as ``user/name/stages/acoustic``: the repository, and the part in it."""

FILES = ["*.yaml", "*.json", "*.safetensors", "*.model"]
"""What a repository on the Hub needs of its files; nothing else is downloaded."""


class Assembly:
    """Tokenizers, conditioners and stages that fit together.

    Args:
        plan: A checked recipe.
        files: Whether the files must be there that training would need: data, and weights of others.

    Attributes:
        tokenizers: By name.
        conditioners: By name.
        stages: By name, in the order of the chain.
        source: Where training examples come from.

    Raises:
        RecipeError: Parts do not fit together; every misfit is named.
    """

    def __init__(self, plan: Plan, *, files: bool = False) -> None:
        self.plan = plan
        problems = list(plan.problems)

        def make(part: PartPlan, spec: Mapping[str, Any] | None = None) -> Any:
            if not part.valid:
                return None  # complained about already
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derive_seed(plan.seed, part.key))
                    inner = {name: make(plan_of) for name, plan_of in part.parts.items()}
                    if None in inner.values():
                        return None
                    built = build(part.cls, {**part.arguments, **inner, **(spec or {})})
            except TooMuch as error:  # of all parts together: there is no room to look further
                raise RecipeError([*problems, Problem(plan.blame(part.key), part.key, str(error))]) from None
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
        self.catalog = PartCatalog(self.tokenizers, self.conditioners, self.stages)
        checker = CompatibilityChecker(self.catalog)

        def note(key: str, message: str, suggestion: str = "") -> None:
            problems.append(Problem(plan.blame(key), key, message, suggestion))

        for name, stage in plan.stages.items():
            spec = checker.stage_arguments(name, stage, note)
            if spec is not None:
                self.stages[name] = make(stage.part, spec)
        if files:
            problems += self._missing_files()
        problems += self._missing_fields()
        if problems:
            raise RecipeError(problems)
        self._assign_joint_conditioners()
        self._check_trainable()

    @classmethod
    def from_recipe(cls, recipe: str | Path, overrides: Sequence[str] = ()) -> Self:
        """A system with random weights, from a recipe's path or name."""
        return cls(load_recipe(recipe, overrides))

    @classmethod
    def checked(cls, recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """The outline of a recipe, once everything has been looked for that can be wrong with it, files included.

        Raises:
            RecipeError: With every mistake: of composition, of values, of parts, and files that are not there.
            PartitaError: There is no such recipe.
        """
        plan = draft(compose(recipe, overrides))
        with outlining():
            return cls(plan, files=True)

    @classmethod
    def outline(cls, plan: Plan) -> Self:
        """The same without allocating any weight: facts, shapes and parameter counts are all there."""
        with outlining():
            return cls(plan)

    @property
    def parts(self) -> dict[PartKey, Part]:
        """Every part by its key (``tokenizers/acoustic``), in the order in which they are trained."""
        groups = (("tokenizers", self.tokenizers), ("conditioners", self.conditioners), ("stages", self.stages))
        return {PartKey.of(group, name): part for group, parts in groups for name, part in parts.items()}

    def part_plan(self, key: PartKey) -> PartPlan:
        """The plan of the part with this key, one of those of :attr:`parts`."""
        return self.plan.stages[key.name].part if key.group == "stages" else getattr(self.plan, key.group)[key.name]

    @property
    def output(self) -> Tokenizer | LatentView | Mix:
        """What turns the representation that ends the chain into audio; without stages, the one tokenizer."""
        if self.plan.stages:
            ends = self.plan.ends
            if len(ends) > 1:
                return Mix([end.source for end in ends], self.tokenizer_of(ends[0]).spec)
            return self.tokenizer_of(self.plan.last_stage.target)
        if len(self.tokenizers) != 1:
            raise PartitaError("this system has no stage, and no one tokenizer: nothing of it can be heard")
        return next(iter(self.tokenizers.values()))

    @property
    def sample_rate(self) -> int:
        """Of what :meth:`generate` returns, in Hz."""
        return self.output.spec.sample_rate

    def to(self, device: str | torch.device) -> Self:
        """Move every part."""
        for part in self.parts.values():
            part.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return next((p.device for part in self.parts.values() for p in part.parameters()), torch.device("cpu"))

    def prompts_of(self, pieces: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]] | None:
        """What :meth:`generate` takes to make clips like those whose fields are given; none where nothing is read."""
        return {name: [fields.get(name) for fields in pieces] for name in self.inputs} or None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields that any of its conditioners reads."""
        return tuple(dict.fromkeys(name for part in self.conditioners.values() for name in part.inputs))

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """By conditioner (``conditioners.text``), the fields of the data that it reads."""
        return {f"conditioners.{name}": conditioner.inputs for name, conditioner in self.conditioners.items()}

    def check_fields(self) -> None:
        """See that the data supplies what the conditioners read; it may know better once it is set up.

        Raises:
            RecipeError: It does not.
        """
        if problems := self._missing_fields():
            raise RecipeError(problems)

    def _missing_fields(self) -> list[Problem]:
        if self.source is None:
            return []
        problems = []
        for name, tokenizer in self.plan.tokenizers.items():
            read = (tokenizer.reads or "audio").partition(".")[0]
            if read not in self.source.fields | ALWAYS:
                message, suggestion = not_supplied(self.source, read, f"tokenizers.{name}")
                problems.append(Problem(self.plan.blame("data"), "data", message, suggestion))
        for name, conditioner in self.conditioners.items():
            # what hears the clips themselves learns without the fields that take their place in generation
            if conditioner is None or "audio" in conditioner.inputs:
                continue
            lacking = [field for field in conditioner.inputs if field not in self.source.fields | ALWAYS]
            if not lacking:
                continue
            without = [f"conditioners.{name}=null"]
            for stage, plan in self.plan.stages.items():
                if name in plan.given:
                    left = ",".join(given for given in plan.given if given != name)
                    without.append(f"stages.{stage}.given=[{left}]")
            message, suggestion = not_supplied(self.source, lacking[0], f"conditioners.{name}")
            suggestion += f"; to train without it, set {' '.join(without)}" if self.source.fields_known else ""
            problems.append(Problem(self.plan.blame("data"), "data", message, suggestion))
        return problems

    def _missing_files(self) -> list[Problem]:
        """Weights and data that are not where the recipe says."""
        plan, problems = self.plan, []

        def look(part: PartPlan) -> None:
            for name, source in (("weights", part.weights), ("init", part.init)):
                on_hub = name == "init" and PART_ON_HUB.fullmatch(source or "")
                wrong = None if source is None or on_hub else part.cls.missing_weights(source)
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
        """What turns audio into the source of a representation, and back."""
        return self.catalog.tokenizer_of(reference)

    def spec(self, reference: Reference) -> RepresentationSpec:
        """The facts of a representation that a stage generates or is given."""
        return self.catalog.spec(reference)

    def _assign_joint_conditioners(self) -> None:
        """Hand each conditioner that has no training of its own to the first stage that is given it."""
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
        """See that every part has the parameters that its ``fit.trainable`` names."""
        problems = []
        for name, part in self.parts.items():
            if (patterns := part.fit_options.trainable) is not None:
                key = f"{self.part_plan(name).key}.fit.trainable"
                try:
                    part.train_only(patterns)
                except ValueError as error:
                    problems.append(Problem(self.plan.blame(key), key, str(error)))
        if problems:
            raise RecipeError(problems)

    def save_index(self, folder: str | Path) -> None:
        """Write the resolved recipe alone."""
        with replacing_file(Path(folder) / INDEX) as new:
            new.write_text(index_yaml(self.plan), encoding="utf-8")

    def load_parts(self, folder: str | Path) -> Self:
        """Take over the weights of every part from a saved system."""
        missing = [name for name in self.parts if not (Path(folder) / name / "model.safetensors").is_file()]
        if missing:
            raise PartitaError(
                f"{folder} has no weights yet for {', '.join(missing)}: its training has not finished; run the same "
                "`partita train` command again to go on"
            )
        for name, part in self.parts.items():
            part.load_weights(Path(folder) / name)
            part.eval()
        return self


def index_yaml(plan: Plan) -> str:
    """The resolved recipe as YAML, the way it stands in a system's folder."""
    return OmegaConf.to_yaml(OmegaConf.create(numbered(plan.values)))
