"""A system: tokenizers, conditioners and an ordered chain of stages, assembled from a plan."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from omegaconf import OmegaConf
from torch import Tensor

from .compose import recipes
from .conditioners.base import Conditioner
from .contracts import Condition, Given, Representation
from .data.base import Source
from .errors import PartitaError, Problem, RecipeError
from .files import replacing_file
from .fit import Fit
from .generators.base import Generator, Term, classifier_free
from .hub import fetch
from .part import Part
from .recipe import PartPlan, Plan, StagePlan, load_recipe
from .registry import did_you_mean
from .schema import build
from .tokenizers.base import Tokenizer

INDEX = "recipe.yaml"
"""The file that makes a folder a system: its resolved recipe."""

FILES = ["*.yaml", "*.json", "*.safetensors", "*.model"]
"""What a repository on the Hub needs of its files; nothing else is downloaded."""


class PartSummary(NamedTuple):
    """A line on a part: where it is, what it is, how large, its facts, and how it is trained."""

    folder: str
    name: str
    parameters: int
    facts: str
    training: str


class System:
    """Tokenizers, conditioners and stages that fit together.

    Args:
        plan: A checked recipe.

    Attributes:
        tokenizers: By name.
        conditioners: By name.
        stages: By name, in the order of the chain.
        source: Where training examples come from.

    Raises:
        RecipeError: Parts do not fit together; every misfit is named.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        problems: list[Problem] = []

        def make(part: PartPlan, facts: Mapping[str, Any] | None = None) -> Any:
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derive_seed(plan.seed, part.key))
                    built = build(part.cls, {**part.arguments, **(facts or {})})
            except (ValueError, TypeError, ArithmeticError, RuntimeError, PartitaError) as error:
                problems.append(Problem(plan.origin(part.key), part.key, str(error).split("\n")[0]))
                return None
            if isinstance(built, Part):
                built.fit_options = build(Fit, part.fit)
            return built

        self.source: Source = make(plan.data)
        self.tokenizers: dict[str, Tokenizer] = {name: make(part) for name, part in plan.tokenizers.items()}
        self.conditioners: dict[str, Conditioner] = {name: make(part) for name, part in plan.conditioners.items()}
        self.stages: dict[str, Generator] = {}
        for name, stage in plan.stages.items():
            facts = self._facts(name, stage, problems)
            if facts is not None:
                self.stages[name] = make(stage.part, facts)
        if problems:
            raise RecipeError(problems)
        self.check_fields()
        self._join()

    @classmethod
    def from_recipe(cls, recipe: str | Path, overrides: Sequence[str] = ()) -> Self:
        """A system with random weights, from a recipe's path or name."""
        return cls(load_recipe(recipe, overrides))

    @classmethod
    def outline(cls, plan: Plan) -> Self:
        """The same without allocating any weight: facts, shapes and parameter counts are all there."""
        with torch.device("meta"):
            return cls(plan)

    @property
    def parts(self) -> dict[str, Part]:
        """Every part by its folder (``tokenizers/acoustic``), in the order in which they are trained."""
        groups = (("tokenizers", self.tokenizers), ("conditioners", self.conditioners), ("stages", self.stages))
        return {f"{group}/{name}": part for group, parts in groups for name, part in parts.items()}

    def part_plan(self, folder: str) -> PartPlan:
        """The plan of the part in ``folder`` (a key of :attr:`parts`)."""
        group, name = folder.split("/")
        return self.plan.stages[name].part if group == "stages" else getattr(self.plan, group)[name]

    def summary(self) -> list[PartSummary]:
        """A line on every part."""
        facts = {f"tokenizers/{name}": str(part.representation) for name, part in self.tokenizers.items()}
        facts |= {f"conditioners/{name}": f"{part.input} → {part.spec}" for name, part in self.conditioners.items()}
        for name, stage in self.plan.stages.items():
            given = ", ".join(f"{n} ({g.entry})" for n, g in self.stages[name].given.items())
            facts[f"stages/{name}"] = f"{stage.target} given {given or 'nothing'}, {stage.window:g} s"
        lines = []
        for folder, part in self.parts.items():
            weights, fit = self.part_plan(folder).weights, part.fit_options
            training = f"{fit.steps:,} steps of {fit.batch_size}" if weights is None else f"none: {weights}"
            if weights is None and getattr(part, "with_stage", False):
                training = "with its stage"
            lines.append(PartSummary(folder, part.registered_name, part.num_parameters, facts[folder], training))
        return lines

    @property
    def output(self) -> Tokenizer:
        """The tokenizer that turns what the last stage generates into audio."""
        if not self.plan.stages:
            raise PartitaError("this system has no stage: it can encode and decode, but not generate")
        return self.tokenizers[list(self.plan.stages.values())[-1].target]

    @property
    def sample_rate(self) -> int:
        """Of what :meth:`generate` returns, in Hz."""
        return self.output.representation.sample_rate

    def to(self, device: str | torch.device) -> Self:
        """Move every part."""
        for part in self.parts.values():
            part.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return next((p.device for part in self.parts.values() for p in part.parameters()), torch.device("cpu"))

    @torch.inference_mode()
    def generate(
        self,
        prompts: str | Sequence[str | None] | Mapping[str, Sequence[Any]] | None = None,
        *,
        duration: float | None = None,
        seed: int | Sequence[int] = 0,
        guidance: float | Sequence[Term] | None = None,
        sampling: Mapping[str, Any] | None = None,
        continuation: Tensor | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Tensor:
        """Audio ``[B, C, T]`` in [-1, 1] at the sample rate of :attr:`output`.

        Args:
            prompts: Texts, or per input field (``text``, ``melody`` …) a list; none to generate unconditionally.
            duration: Seconds; the last stage's window where none are given.
            seed: One per sample, or the first of consecutive ones. A sample depends on its own seed and prompt alone.
            guidance: Scale of classifier-free guidance, or a list of :class:`partita.Term`, for every stage; each
                stage's own where none is given.
            sampling: Changes to how every stage draws, such as ``{"temperature": 0.8, "top_k": 50}``.
            continuation: Audio ``[B, C, T]`` or ``[1, C, T]`` that the result starts with; shorter than ``duration``.
            progress: Called with (stage, steps done, steps in all).

        Raises:
            PartitaError: A prompt for an input that nothing reads, a duration beyond a stage's window, or another
                argument that cannot be; the message says what can.
        """
        inputs = self._inputs(prompts)
        if isinstance(guidance, int | float):
            guidance = classifier_free(float(guidance))
        if guidance is not None and not all(isinstance(t, Term) and math.isfinite(t.weight) for t in guidance):
            raise PartitaError(f"guidance is a number, or a list of partita.Term, not {guidance!r}")
        if not isinstance(seed, int) and not (isinstance(seed, Sequence) and all(isinstance(s, int) for s in seed)):
            raise PartitaError(f"seed is a whole number, or one for each sample, not {seed!r}")
        batch = len(next(iter(inputs.values()))) if inputs else 1 if isinstance(seed, int) else len(seed)
        seeds = [seed + i for i in range(batch)] if isinstance(seed, int) else list(seed)
        if len(seeds) != batch:
            raise PartitaError(f"{batch} prompts, but {len(seeds)} seeds: give one seed, or one per prompt")
        output, representation = self.output, torch.empty(0)
        for name, plan in self.plan.stages.items():
            stage, facts = self.stages[name].eval(), self.tokenizers[plan.target].representation
            seconds = plan.window if duration is None else duration
            if not isinstance(seconds, int | float) or not seconds > 0:
                raise PartitaError(f"duration is a positive number of seconds, not {seconds!r}")
            if seconds > plan.window + 1e-6:
                raise PartitaError(f"stage {name} generates up to {plan.window:g} s (its window), not {seconds:g} s")
            representation = stage.generate(
                {given: self._condition(given, inputs, batch) for given in plan.given},
                facts.frames(seconds),
                seeds=seeds,
                prompt=None if continuation is None else self._prompt(plan.target, continuation, batch, seconds),
                guidance=guidance,
                sampling=stage.changed_sampling(sampling or {}),
                progress=None if progress is None else partial(progress, name),
            )
        return output.decode(representation).float().clamp(-1, 1)

    def check_fields(self) -> None:
        """See that the data supplies what the conditioners read; it may know better once it is set up.

        Raises:
            RecipeError: It does not.
        """
        problems = [
            Problem(
                self.plan.origin(f"conditioners.{name}"),
                f"conditioners.{name}",
                f"reads {conditioner.input!r}, which the data ({self.source.registered_name}) does not supply",
                did_you_mean(conditioner.input, sorted(self.source.fields)),
            )
            for name, conditioner in self.conditioners.items()
            if conditioner.input not in self.source.fields
        ]
        if problems:
            raise RecipeError(problems)

    def save(self, folder: str | Path) -> None:
        """Write the index and a sub-folder per part; :func:`load` reads them back."""
        self.save_index(folder)
        for name, part in self.parts.items():
            part.save(Path(folder) / name)

    def save_index(self, folder: str | Path) -> None:
        """Write the resolved recipe alone."""
        with replacing_file(Path(folder) / INDEX) as new:
            new.write_text(index_text(self.plan), encoding="utf-8")

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

    def _facts(self, name: str, stage: StagePlan, problems: list[Problem]) -> dict[str, Any] | None:
        """What the system tells a stage: its target and what it is given."""
        key, generator = f"stages.{name}", stage.part.cls
        tokenizer = self.tokenizers.get(stage.target)
        if tokenizer is None or any(self.conditioners.get(given) is None for given in stage.given):
            return None
        target: Representation = tokenizer.representation
        if target.discrete != generator.discrete:
            makes = "codes" if generator.discrete else "latents"
            message = f"{generator.registered_name} generates {makes}, but {stage.target} is {target}"
            problems.append(Problem(self.plan.origin(f"{key}.target"), f"{key}.target", message))
            return None
        givens = {}
        for given, entry in stage.given.items():
            spec = self.conditioners[given].spec
            if entry is None:
                entry = "add" if spec.frame_rate is not None and "add" in generator.entries else generator.entries[0]
            if entry not in generator.entries:
                problems.append(
                    Problem(
                        self.plan.origin(f"{key}.given.{given}"),
                        f"{key}.given.{given}",
                        f"cannot enter by {entry!r}",
                        did_you_mean(entry, generator.entries),
                    )
                )
                return None
            if entry == "add" and spec.frame_rate is None:
                problems.append(
                    Problem(
                        self.plan.origin(f"{key}.given.{given}"),
                        f"{key}.given.{given}",
                        "is not aligned in time, so it cannot be added",
                        ": use cross or prepend",
                    )
                )
                return None
            givens[given] = Given(spec, entry)
        return {"target": target, "given": givens}

    def _join(self) -> None:
        """Hand each conditioner that has no training of its own to the first stage that is given it."""
        taken: set[str] = set()
        for name, stage in self.plan.stages.items():
            for given in stage.given:
                conditioner = self.conditioners[given]
                if conditioner.with_stage and self.plan.conditioners[given].weights is None and given not in taken:
                    self.stages[name].joint[given] = conditioner
                    taken.add(given)

    def _inputs(self, prompts: Any) -> dict[str, list[Any]]:
        if prompts is None:
            return {}
        if isinstance(prompts, str):
            prompts = [prompts]
        if not isinstance(prompts, Mapping):
            prompts = {"text": prompts}
        readable = {conditioner.input for conditioner in self.conditioners.values()}
        for field, values in prompts.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise PartitaError(f"{field} takes a list with one prompt for each clip, not {values!r}")
            if field not in readable:
                raise PartitaError(f"nothing in this system reads {field!r}{did_you_mean(field, sorted(readable))}")
        if len({len(values) for values in prompts.values()}) > 1:
            raise PartitaError(
                f"as many prompts for every input, please: got { {k: len(v) for k, v in prompts.items()} }"
            )
        return {field: list(values) for field, values in prompts.items()}

    def _prompt(self, tokenizer: str, audio: Tensor, batch: int, seconds: float) -> Tensor:
        """The representation of audio to continue, whole frames only."""
        facts = self.tokenizers[tokenizer].representation
        audio = torch.as_tensor(audio, dtype=torch.float32, device=self.device)
        if audio.dim() != 3 or audio.shape[0] not in (1, batch) or audio.shape[1] != facts.channels:
            shape = f"[{batch} or 1, {facts.channels}, T]"
            raise PartitaError(f"audio to continue has the shape {shape} here, not {list(audio.shape)}")
        heard = audio.shape[-1] / facts.sample_rate
        if heard >= seconds:
            raise PartitaError(
                f"the result starts with the {heard:.2f} s to continue, so it must be longer than {seconds:g} s; where "
                "that is the stage's whole window, give less audio to continue"
            )
        encoded = self.tokenizers[tokenizer].eval().encode(audio.expand(batch, -1, -1))
        return encoded[..., : max(1, int(heard * facts.frame_rate))]

    def _condition(self, name: str, inputs: dict[str, list[Any]], batch: int) -> tuple[Condition, Condition]:
        conditioner = self.conditioners[name].eval()
        prepared = conditioner.prepare(inputs.get(conditioner.input, [None] * batch))
        condition = conditioner({key: tensor.to(self.device) for key, tensor in prepared.items()})
        return condition, conditioner.null(condition)


def load(source: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu") -> System:
    """A system with its weights, from a run folder, an export, a hub id, or a recipe whose parts all have weights.

    Raises:
        PartitaError: There is no such thing, or it is not complete; the message says what to do.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise PartitaError(f"{path} holds no system: there is no {INDEX} in it")
        return System(load_recipe(path / INDEX)).load_parts(path).to(device)
    if not path.is_file() and str(source) not in recipes():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise PartitaError(
                f"{source} is neither a folder with a system, nor a hub id (user/name), nor a recipe"
                f"{did_you_mean(source, recipes())}"
            )
        return load(fetch(str(source), FILES, revision), device=device)
    system = System(load_recipe(source))
    for name, part in system.parts.items():
        weights = system.part_plan(name).weights
        if weights is None:
            raise PartitaError(
                f"{source}: {name} has no weights: `partita train {source}` first, then load its run folder"
            )
        part.load_weights(weights)
        part.eval()
    return system.to(device)


def index_text(plan: Plan) -> str:
    """The resolved recipe as YAML, the way it stands in a system's folder."""
    return OmegaConf.to_yaml(OmegaConf.create(plan.values))


def derive_seed(*parts: Any) -> int:
    """A seed that is a function of its arguments alone, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")
