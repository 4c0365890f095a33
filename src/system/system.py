"""A system: what it generates, and how it is saved and loaded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from torch import Tensor

from ..core.console import bars
from ..core.contracts import Generated, finite
from ..core.devices import find_device
from ..core.excerpt import spliced
from ..core.rates import exact
from ..core.registry import did_you_mean
from ..errors import PartitaError
from ..recipe.plan import load_recipe
from ..recipe.recipe_files import recipes
from ..storage.download import fetch
from ..storage.files import kind
from .assembly import FILES, INDEX, Assembly
from .generation import Progress, decoded, generate, heard_frames, not_finite
from .prompts import doubts
from .request import Continued, Guidance, Prompts, Request
from .saved import checked_plan
from .summary import PartSummary, described, overview, summary


class System(Assembly):
    """Tokenizers, conditioners and stages that fit together, ready to be trained or to generate."""

    def summary(self) -> list[PartSummary]:
        """A line on every part."""
        return summary(self)

    def overview(self) -> Group:
        """The table of all parts, and lines on the data, as `partita check` prints them."""
        return overview(self)

    def __repr__(self) -> str:
        return described(self)

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
                place of a prompt, a :class:`partita.Story` holds several with their times. Fields of audio take the
                path of a file, samples ``[C, T]`` at the rate of the output, or a :class:`partita.Excerpt`. Times
                are in seconds from the start of the clip, in a story from the start of the segment.
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
        spec, known = self.output.spec, request.heard.shape[-1]
        frames = heard_frames(known, spec.sample_rate, spec)
        return spliced(
            audio, request.heard, round(frames * exact(spec.sample_rate) / exact(spec.rate)), spec.sample_rate
        )

    def generate_representations(
        self, *args: Any, progress: Progress | bool | None = True, **kwargs: Any
    ) -> dict[str, Generated]:
        """What every stage generates, by representation; takes the arguments of :meth:`generate`, but no ``splice``."""
        return self._represented(Request.of(self, *args, **kwargs), progress)

    @torch.inference_mode()
    def _represented(self, request: Request, progress: Progress | bool | None) -> dict[str, Generated]:
        with bars(progress is True) as bar:
            return generate(self, request, bar if progress is True else progress or None)

    @torch.inference_mode()
    def decode(self, representations: Mapping[str, Generated]) -> Tensor:
        """Audio ``[B, C, T]`` from what :meth:`generate_representations` returns."""
        if not self.plan.stages:
            raise PartitaError("this system has no stage: decode with its tokenizer, system.tokenizers[…].decode(…)")
        target = list(self.plan.stages.values())[-1].target
        if not isinstance(representations, Mapping) or target.source not in representations:
            raise PartitaError(f"decode takes what generate_representations returns, a mapping with {target.source!r}")
        try:
            audio = decoded(self.output, representations[target.source]).float()
        except NotImplementedError as error:
            raise PartitaError(f"what the last stage generates cannot be heard: {error}") from None
        if not finite(audio):
            raise not_finite(f"the tokenizer {target.tokenizer}", "audio that is not finite numbers")
        return audio.clamp(-1, 1)

    def save(self, folder: str | Path) -> None:
        """Write the index and a sub-folder per part; :func:`load` reads them back."""
        self.save_index(folder)
        for name, part in self.parts.items():
            part.save(Path(folder) / name)


def load(source: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu") -> System:
    """A system with its weights.

    Args:
        source: A run folder, an export, a hub id, or a recipe whose parts all have weights.
        revision: A branch, tag or commit of a hub id.
        device: Where the system goes, as torch names devices; ``auto`` for a GPU if there is one.

    Raises:
        PartitaError: There is no such thing, or it is not complete; the message says what to do.
    """
    path, device = Path(source), find_device(device)
    if revision is not None and (kind(path) or str(source) in recipes()):
        raise PartitaError(f"{source} is not on the hub, so it has no revision {revision!r}")
    if kind(path) == "folder":
        if kind(path / INDEX) != "file":
            raise PartitaError(f"{path} holds no system: there is no {INDEX} in it")
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
