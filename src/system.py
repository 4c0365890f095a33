"""A system: tokenizers, conditioners and an ordered chain of stages, assembled from a plan."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from omegaconf import OmegaConf
from torch import Tensor

from .compose import compose
from .conditioners.base import Conditioner
from .console import bars
from .contracts import ALIGNED_ENTRIES, Given, Representation, finite
from .data.base import Source
from .data.mixture import Mixture
from .data.overview import not_supplied
from .errors import PartitaError, Problem, RecipeError
from .excerpt import spliced
from .files import kind, replacing_file
from .fit import Fit
from .frugal import outlining
from .generation import Progress, generate, heard_frames, not_finite
from .generators.base import Generator
from .hub import fetch
from .limits import TooMuch
from .part import Part
from .prompts import doubts
from .rates import at_least, exact
from .recipe import PartPlan, Plan, StagePlan, draft, load_recipe
from .recipe_files import recipes
from .reference import Reference
from .registry import did_you_mean
from .request import Continued, Guidance, Prompts, Request
from .schema import build
from .seeds import derive_seed
from .summary import PartSummary, described, summary
from .tokenizers.base import Latents, Tokenizer

INDEX = "recipe.yaml"
"""The file that makes a folder a system: its resolved recipe."""

FILES = ["*.yaml", "*.json", "*.safetensors", "*.model"]
"""What a repository on the Hub needs of its files; nothing else is downloaded."""


Note = Callable[..., None]


class System:
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

        def make(part: PartPlan, facts: Mapping[str, Any] | None = None) -> Any:
            if not part.sound:
                return None  # complained about already
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derive_seed(plan.seed, part.key))
                    inner = {name: make(plan_of) for name, plan_of in part.parts.items()}
                    if None in inner.values():
                        return None
                    built = build(part.cls, {**part.arguments, **inner, **(facts or {})})
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
        self.stages: dict[str, Generator] = {}
        made: dict[str, int] = {}

        def note(key: str, message: str, suggestion: str = "") -> None:
            problems.append(Problem(plan.blame(key), key, message, suggestion))

        for name, stage in plan.stages.items():
            facts = self._facts(name, stage, made, note)
            if facts is not None:
                self.stages[name] = make(stage.part, facts)
        if files:
            problems += self._missing_files()
        problems += self._missing_fields()
        if problems:
            raise RecipeError(problems)
        self._join()

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
        return summary(self)

    def __repr__(self) -> str:
        return described(self)

    @property
    def output(self) -> Tokenizer | Latents:
        """What turns the representation that the last stage generates into audio; without stages, the one tokenizer."""
        if self.plan.stages:
            return self.tokenizer_of(list(self.plan.stages.values())[-1].target)
        if len(self.tokenizers) != 1:
            raise PartitaError("this system has no stage, and no one tokenizer: nothing of it can be heard")
        return next(iter(self.tokenizers.values()))

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

    def generate(
        self,
        prompts: Prompts = None,
        *,
        duration: float | None = None,
        seed: int | Sequence[int] = 0,
        guidance: Guidance | Mapping[str, Guidance] = None,
        sampling: Mapping[str, Any] | None = None,
        negative: Prompts = None,
        continuation: Continued = None,
        transition: float | None = None,
        splice: bool = True,
        progress: Progress | bool | None = True,
    ) -> Tensor:
        """Audio ``[B, C, T]`` in [-1, 1] at the sample rate of :attr:`output`.

        What is longer than a stage's window is generated window by window, each going on from the one before.

        Args:
            prompts: Texts, or per input field (``text``, ``melody`` …) a list; none to generate unconditionally. In the
                place of a prompt, a :class:`partita.Story` holds several with their times.
            duration: Seconds; the last stage's window where none are given, after the last change of a story.
            seed: One per sample, or the first of consecutive ones. A sample depends on its own seed and prompt alone.
            guidance: Scale of classifier-free guidance, or a list of :class:`partita.Term`, for every stage, or a
                mapping from a stage's name to either; each stage's own where none is given.
            sampling: Changes to how stages draw, such as ``{"temperature": 0.8, "steps": 50}``: each for the stages
                that know it, or for one alone, ``{"semantic": {"temperature": 0.8}}``.
            negative: What guidance leads away from in the place of nothing: prompts as above, without stories.
            continuation: What the result starts with, shorter than ``duration``: the path of a file, audio
                ``[B, C, T]`` at the rate of the output, or a :class:`partita.Excerpt` of either, at any rate.
            transition: Seconds of what came before from which a story's next prompt goes on: 0 to begin anew; as much
                as between windows where none are given.
            splice: Whether the result starts with the very samples of ``continuation``, which a codec changes: they go
                over into its version within the last tenth of a second. Without it, all is as the codec has it.
            progress: Called with (stage, steps done, steps in all). Unless given, a bar on a terminal or in a notebook;
                ``None`` or ``False`` for none.

        Raises:
            PartitaError: A prompt for an input that nothing reads, or another argument that cannot be; the message says
                what can.
        """
        request = Request.of(
            self,
            prompts,
            duration=duration,
            seed=seed,
            guidance=guidance,
            sampling=sampling,
            negative=negative,
            continuation=continuation,
            transition=transition,
        )
        for doubt in doubts(self, request.inputs):
            warnings.warn(doubt, stacklevel=2)
        return self.fulfill(request, splice=splice, progress=progress)

    def fulfill(self, request: Request, *, splice: bool = True, progress: Progress | bool | None = True) -> Tensor:
        """Audio ``[B, C, T]`` for a checked request; see :meth:`generate`."""
        audio = self.decode(self._represented(request, progress))
        if request.heard is None or not splice:
            return audio
        facts, known = self.output.representation, request.heard.shape[-1]
        frames = heard_frames(known, facts.sample_rate, facts)
        return spliced(
            audio, request.heard, round(frames * exact(facts.sample_rate) / exact(facts.frame_rate)), facts.sample_rate
        )

    def generate_representations(
        self, *args: Any, progress: Progress | bool | None = True, **kwargs: Any
    ) -> dict[str, Tensor]:
        """What every stage generates, by representation; takes the arguments of :meth:`generate`, but no ``splice``."""
        return self._represented(Request.of(self, *args, **kwargs), progress)

    @torch.inference_mode()
    def _represented(self, request: Request, progress: Progress | bool | None) -> dict[str, Tensor]:
        with bars(progress is True) as bar:
            return generate(self, request, bar if progress is True else progress or None)

    @torch.inference_mode()
    def decode(self, representations: Mapping[str, Tensor]) -> Tensor:
        """Audio ``[B, C, T]`` from what :meth:`generate_representations` returns."""
        if not self.plan.stages:
            raise PartitaError("this system has no stage: decode with its tokenizer, system.tokenizers[…].decode(…)")
        target = list(self.plan.stages.values())[-1].target
        if not isinstance(representations, Mapping) or target.source not in representations:
            raise PartitaError(f"decode takes what generate_representations returns, a mapping with {target.source!r}")
        try:
            audio = self.output.decode(representations[target.source]).float()
        except NotImplementedError as error:
            raise PartitaError(f"what the last stage generates cannot be heard: {error}") from None
        if not finite(audio):
            raise not_finite(f"the tokenizer {target.tokenizer}", "audio that is not finite numbers")
        return audio.clamp(-1, 1)

    def prompts_of(self, pieces: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]] | None:
        """What :meth:`generate` takes to make clips like those whose fields are given; none where nothing is read."""
        inputs = dict.fromkeys(conditioner.input for conditioner in self.conditioners.values())
        return {name: [fields.get(name) for fields in pieces] for name in inputs} or None

    @property
    def reads(self) -> dict[str, str]:
        """By conditioner (``conditioners.text``), the field of the data that it reads."""
        return {f"conditioners.{name}": conditioner.input for name, conditioner in self.conditioners.items()}

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
        for name, conditioner in self.conditioners.items():
            if conditioner is None or conditioner.input in self.source.fields:
                continue
            without = [f"conditioners.{name}=null"]
            for stage, plan in self.plan.stages.items():
                if name in plan.given:
                    left = ",".join(given for given in plan.given if given != name)
                    without.append(f"stages.{stage}.given=[{left}]")
            message, suggestion = not_supplied(self.source, conditioner.input, f"conditioners.{name}")
            suggestion += f"; to train without it, set {' '.join(without)}" if self.source.fields_known else ""
            problems.append(Problem(self.plan.blame("data"), "data", message, suggestion))
        return problems

    def _missing_files(self) -> list[Problem]:
        """Weights and data that are not where the recipe says."""
        plan, problems = self.plan, []

        def look(part: PartPlan) -> None:
            wrong = None if part.weights is None else part.cls.missing_weights(part.weights)
            if wrong is not None:
                problems.append(Problem(plan.origin(f"{part.key}.weights"), f"{part.key}.weights", wrong))
            for inner in part.parts.values():
                look(inner)

        for part in (*plan.tokenizers.values(), *plan.conditioners.values(), *(s.part for s in plan.stages.values())):
            look(part)
        for name, message in self.source.missing() if self.source is not None else ():
            problems.append(Problem(plan.origin(f"data.{name}"), f"data.{name}", message))
        return problems

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

    def tokenizer_of(self, reference: Reference) -> Tokenizer | Latents:
        """What turns audio into the source of a representation, and back."""
        tokenizer = self.tokenizers[reference.tokenizer]
        return Latents(tokenizer) if reference.latents else tokenizer

    def facts(self, reference: Reference) -> Representation:
        """The facts of a representation that a stage generates or is given."""
        return reference.facts(self.tokenizer_of(reference).representation)

    def _facts(self, name: str, stage: StagePlan, made: dict[str, int], note: Note) -> dict[str, Any] | None:
        """What the system tells a stage: its target and what it is given.

        Args:
            name: Of the stage.
            stage: Its plan.
            made: What earlier stages generate: by source, the number of codebooks, 0 for latents. This one's is added.
            note: Takes a key, what is wrong with it, and what was probably meant.
        """
        key, generator = f"stages.{name}", stage.part.cls
        references, before = [stage.target, *stage.references.values()], dict(made)
        conditioners = [given for given in stage.given if given not in stage.references]
        if any(self.tokenizers.get(r.tokenizer) is None for r in references):
            return None
        if any(self.conditioners.get(given) is None for given in conditioners):
            return None
        target = self._target(stage, made, partial(note, f"{key}.target"), partial(note, f"{key}.overlap"))
        specs = {given: self.conditioners[given].spec for given in conditioners}
        for given, reference in stage.references.items():
            try:
                specs[given] = self.facts(reference).as_condition()
            except ValueError as error:
                note(f"{key}.given", str(error))
                return None
            if reference.within(stage.target):
                earlier = f": give it {reference.source}[:{stage.target.start}]" if stage.target.start else ""
                note(f"{key}.given", f"{given} holds what the stage itself generates, {stage.target}", earlier)
                return None
            last = max(reference.codebooks(self.tokenizer_of(reference).representation), default=0)
            if last >= max(1, before.get(reference.source, 0)):
                note(f"{key}.given", f"earlier stages do not generate all of {given}")
                return None
        if target is None:
            return None
        givens = {}
        for given, entry in stage.given.items():
            entry = generator.default_entry(specs[given]) if entry is None else entry
            where = f"{key}.given.{given}"
            if entry not in generator.entries:
                note(where, f"cannot enter by {entry!r}", did_you_mean(entry, generator.entries))
            elif entry in ALIGNED_ENTRIES and specs[given].frame_rate is None:
                others = " or ".join(e for e in generator.entries if e not in ALIGNED_ENTRIES)
                hint = f": use {others}" if others else f", and {generator.registered_name} knows no other way"
                note(where, f"is not aligned in time, so it cannot enter by {entry}", hint)
            else:
                givens[given] = Given(specs[given], entry)
        return {"target": target, "given": givens} if len(givens) == len(stage.given) else None

    def _target(self, stage: StagePlan, made: dict[str, int], note: Note, overlaps: Note) -> Representation | None:
        """The facts of what a stage generates, which must follow what is generated already."""
        generator, reference = stage.part.cls, stage.target
        try:
            whole, facts = self.tokenizer_of(reference).representation, self.facts(reference)
        except ValueError as error:
            note(str(error))
            return None
        if facts.discrete != generator.discrete:
            makes = "codes" if generator.discrete else "latents"
            latents = facts.discrete and self.tokenizers[reference.tokenizer].latent_dim is not None
            hint = f": the latents before them are {reference.tokenizer}/latents" if latents else ""
            note(f"{generator.registered_name} generates {makes}, but {reference} is {facts}", hint)
            return None
        if exact(stage.window) * exact(facts.frame_rate) < 1:
            note(f"a frame of {reference} is longer than the window of {stage.window:g} s")
            return None
        window = facts.frames(stage.window)
        if window > 1 and at_least(stage.overlap, facts.frame_rate) >= window:
            longest = (window - 1) / facts.frame_rate
            message = (
                f"{stage.overlap:g} s are the {window} frames of the whole window, so that nothing new would follow"
            )
            overlaps(message, f": at most {longest:g} s")
            return None
        codebooks = reference.codebooks(whole)
        if reference.source in made and (not codebooks or codebooks[0] < made[reference.source]):
            note(f"an earlier stage generates {reference} already, or a part of it")
            return None
        if codebooks and codebooks[0] > made.get(reference.source, 0):
            note(f"no stage generates what comes before {reference}")
            return None
        made[reference.source] = codebooks[-1] + 1 if codebooks else 0
        return facts

    def _join(self) -> None:
        """Hand each conditioner that has no training of its own to the first stage that is given it."""
        taken: set[str] = set()
        for name, stage in self.plan.stages.items():
            for given in (given for given in stage.given if given not in stage.references):
                conditioner = self.conditioners[given]
                if conditioner.with_stage and self.plan.conditioners[given].weights is None and given not in taken:
                    self.stages[name].joint[given] = conditioner
                    taken.add(given)


def load(source: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu") -> System:
    """A system with its weights, from a run folder, an export, a hub id, or a recipe whose parts all have weights.

    Raises:
        PartitaError: There is no such thing, or it is not complete; the message says what to do.
    """
    path = Path(source)
    if revision is not None and (kind(path) or str(source) in recipes()):
        raise PartitaError(f"{source} is not on the hub, so it has no revision {revision!r}")
    if kind(path) == "folder":
        if kind(path / INDEX) != "file":
            raise PartitaError(f"{path} holds no system: there is no {INDEX} in it")
        from .saved import checked_plan

        return System(checked_plan(path)).load_parts(path).to(device)
    if kind(path) != "file" and str(source) not in recipes():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise PartitaError(
                f"{source!s:.200} is neither a folder with a system, nor a hub id (user/name), nor a recipe"
                f"{did_you_mean(source, recipes())}"
            )
        return load(fetch(str(source), FILES, revision), device=device)
    plan = load_recipe(source)
    System.outline(plan)  # which takes no memory
    system = System(plan)
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
