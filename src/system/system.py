"""A system: what it generates, and how it is saved and loaded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from torch import Tensor

from ..core.console import showing_progress
from ..core.contracts import Generated, finite
from ..core.devices import find_device
from ..core.excerpt import spliced
from ..core.progress import progress
from ..core.rates import exact
from ..core.registry import did_you_mean
from ..errors import PartitaError
from ..recipe.plan import load_recipe
from ..recipe.recipe_files import recipes
from ..storage.download import fetch
from ..storage.files import kind
from .assembly import FILES, INDEX, Assembly
from .checked_request import CheckedRequest
from .generation import continuation_frames, decoded, generate, not_finite_error
from .mix import mixed
from .prompts import input_warnings
from .request import Prompts, Request, build_request, takes_request
from .saved import checked_plan
from .summary import PartSummary, overview, summary, summary_text


class System(Assembly):
    """Tokenizers, conditioners and stages that fit together, ready to be trained or to generate."""

    def summary(self) -> list[PartSummary]:
        """A line on every part."""
        return summary(self)

    def overview(self) -> Group:
        """The table of all parts, and lines on the data, as `partita check` prints them."""
        return overview(self)

    def __repr__(self) -> str:
        return summary_text(self)

    @takes_request
    def generate(self, prompts: Prompts | Request = None, *, progress: bool = True, **options: Any) -> Tensor:
        """Audio ``[B, C, T]`` in [-1, 1] at the sample rate of :attr:`output`.

        What is longer than a stage's window is generated window by window, each going on from the one before.

        Args:
            prompts: One text or a list of them, per input field a list, or a whole :class:`partita.Request`.
            progress: Whether a bar is shown on a terminal or in a notebook. Inside
                :func:`partita.core.progress.reporting`, its listener gets (stage, steps done, steps in all) instead.
            options: The fields of :class:`partita.Request`, which says what each means: ``duration``, ``seed``,
                ``guidance``, ``sampling``, ``negative``, ``continuation``, ``transition``, ``splice``.

        Raises:
            PartitaError: A prompt for an input that nothing reads, or another argument that cannot be; the message says
                what can.
        """
        request = CheckedRequest.of(self, build_request(prompts, options))
        for warning in input_warnings(self, request.inputs):
            warnings.warn(warning, stacklevel=2)
        return self.fulfill(request, progress=progress)

    def fulfill(self, request: CheckedRequest, *, progress: bool = True) -> Tensor:
        """Audio ``[B, C, T]`` for a checked request; see :meth:`generate`."""
        audio = self.decode(self._represented(request, progress))
        if request.continuation is None or not request.splice:
            return audio
        spec, known = self.output.spec, request.continuation.shape[-1]
        frames = continuation_frames(known, spec.sample_rate, spec)
        return spliced(
            audio, request.continuation, round(frames * exact(spec.sample_rate) / exact(spec.rate)), spec.sample_rate
        )

    @takes_request
    def generate_representations(
        self, prompts: Prompts | Request = None, *, progress: bool = True, **options: Any
    ) -> dict[str, Generated]:
        """What every stage generates, by representation; takes the arguments of :meth:`generate`.

        ``splice``, which is about audio, changes nothing here.
        """
        return self._represented(CheckedRequest.of(self, build_request(prompts, options)), progress)

    @torch.inference_mode()
    def _represented(self, request: CheckedRequest, show: bool) -> dict[str, Generated]:
        with showing_progress(show):
            return generate(self, request, progress)

    @torch.inference_mode()
    def decode(self, representations: Mapping[str, Generated]) -> Tensor:
        """Audio ``[B, C, T]`` from what :meth:`generate_representations` returns: the mix of all ends of the chain."""
        ends = self.decode_ends(representations)
        return mixed(list(ends.values()), [self.tokenizer_of(end).spec for end in self.plan.ends]).clamp(-1, 1)

    @takes_request
    def generate_ends(
        self, prompts: Prompts | Request = None, *, progress: bool = True, **options: Any
    ) -> dict[str, Tensor]:
        """By name, the audio ``[B, C, T]`` of each end of the chain; takes the arguments of :meth:`generate`.

        What :meth:`generate` returns is their sum, within [-1, 1]. ``splice`` changes nothing here.
        """
        return self.decode_ends(self.generate_representations(prompts, progress=progress, **options))

    @torch.inference_mode()
    def decode_ends(self, representations: Mapping[str, Generated]) -> dict[str, Tensor]:
        """By name, audio ``[B, C, T]`` of each end of the chain, from what :meth:`generate_representations` returns.

        Each has the sample rate and the channels of its tokenizer, and may exceed [-1, 1].
        """
        if not self.plan.stages:
            raise PartitaError("this system has no stage: decode with its tokenizer, system.tokenizers[…].decode(…)")
        made = {}
        for end in self.plan.ends:
            if not isinstance(representations, Mapping) or end.source not in representations:
                raise PartitaError(f"decode takes what generate_representations returns, a mapping with {end.source!r}")
            try:
                audio = decoded(self.tokenizer_of(end), representations[end.source]).float()
            except NotImplementedError as error:
                raise PartitaError(f"what the last stage generates cannot be heard: {error}") from None
            if not finite(audio):
                raise not_finite_error(f"the tokenizer {end.tokenizer}", "audio that is not finite numbers")
            made[end.source] = audio
        return made

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
