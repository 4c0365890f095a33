"""The system class: generation, decoding, saving and loading."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Group
from torch import Tensor

from ..core.background import Handing, in_background
from ..core.console import showing_progress
from ..core.contracts import Generated, finite
from ..core.devices import find_device
from ..core.excerpt import spliced
from ..core.progress import progress
from ..core.registry import did_you_mean
from ..errors import PartitaError
from ..recipe.plan import load_recipe
from ..recipe.recipe_files import read_yaml, recipes
from ..storage.download import fetch
from ..storage.files import kind
from ..storage.untrusted import own_file
from .adapters import apply_adapters, base_of, holds_adapters
from .assembly import FILES, INDEX, Assembly
from .checked_request import CheckedRequest
from .forecast import forecast
from .generation import continuation_samples, decoded, generate, not_finite_error
from .mix import mixed
from .prompts import input_warnings
from .request import Prompts, Request, build_request, takes_request
from .saved import check_index, checked_plan
from .saved_words import add_words
from .streaming import StreamDecoder, check_streamable
from .summary import PartSummary, overview, summary, summary_text


class System(Assembly):
    """Compatible tokenizers, conditioners and stages that can be trained and can generate audio."""

    def summary(self) -> list[PartSummary]:
        """Return a summary of each part."""
        return summary(self)

    def overview(self) -> Group:
        """Return a table of all parts, followed by lines about the data, as `partita check` prints them."""
        return overview(self)

    def forecast(
        self, *, devices: int | None = None, strategy: str | None = None, hardware: str | None = None
    ) -> Group:
        """Return a table of what training each part takes; see :func:`partita.system.forecast.forecast`.

        Args:
            devices: Number of devices that train together. ``None`` takes those of the recipe, or one.
            strategy: ``ddp`` or ``fsdp2``. ``None`` takes that of the recipe.
            hardware: ``a100``, ``h100``, ``l4``, ``4090``, or ``cpu`` for this processor. ``None`` takes this machine.
        """
        return forecast(self, devices=devices, strategy=strategy, hardware=hardware)

    def __repr__(self) -> str:
        return summary_text(self)

    @takes_request
    def generate(self, prompts: Prompts | Request = None, *, progress: bool = True, **options: Any) -> Tensor:
        """Generate audio ``[B, C, T]`` in [-1, 1] at the sample rate of :attr:`output`.

        Clips longer than the window of a stage are generated window by window; each window continues the previous one.

        Args:
            prompts: A text, a list of texts, a mapping from input fields to lists, or a :class:`partita.Request`.
            progress: Whether to show a progress bar on a terminal or in a notebook. Inside
                :func:`partita.core.progress.reporting`, the listener receives (stage, finished steps, total steps)
                instead.
            options: Fields of :class:`partita.Request`, which describes them: ``duration``, ``seed``, ``guidance``,
                ``sampling``, ``negative``, ``continuation``, ``transition``, ``splice``, ``precision``,
                ``compile``.

        Raises:
            PartitaError: No part reads an input, or an argument is invalid. The message says what is accepted.
        """
        request = CheckedRequest.of(self, build_request(prompts, options))
        for warning in input_warnings(self, request.inputs):
            warnings.warn(warning, stacklevel=2)
        return self.fulfill(request, progress=progress)

    def fulfill(self, request: CheckedRequest, *, progress: bool = True) -> Tensor:
        """Generate audio ``[B, C, T]`` for a checked request, like :meth:`generate`."""
        audio = self.decode(self._represented(request, progress))
        start = request.original_start
        if start is None:
            return audio
        spec = self.output.spec
        return spliced(audio, start, continuation_samples(start.shape[-1], spec), spec.sample_rate)

    @takes_request
    def stream(
        self, prompts: Prompts | Request = None, *, progress: bool = True, chunk: float = 0.5, **options: Any
    ) -> Iterator[Tensor]:
        """Yield the audio of :meth:`generate`, chunk by chunk while it is generated: ``[B, C, n]`` in [-1, 1].

        The chunks together are the result of :meth:`generate`, up to rounding. An autoregressive stage at the end of
        the chain yields frames as soon as their codes are complete, and a diffusion stage yields its windows. Earlier
        stages generate the whole clip before the first chunk. Generation runs in a thread, at most a few chunks ahead
        of the loop over the chunks, and stops with it.

        Args:
            prompts: Prompts as in :meth:`generate`.
            progress: Whether to show a progress bar.
            chunk: Seconds of audio that are generated between chunks. The first chunk comes later by the context of
                the decoder.
            options: Fields of :class:`partita.Request`.

        Raises:
            PartitaError: The request is invalid, or the tokenizer decodes only whole clips.
        """
        request = CheckedRequest.of(self, build_request(prompts, options))
        if not isinstance(chunk, int | float) or not 0 < chunk < math.inf:
            raise PartitaError(f"chunk must be more than 0 seconds, not {chunk!r}")
        check_streamable(self, request)
        for warning in input_warnings(self, request.inputs):
            warnings.warn(warning, stacklevel=2)
        return in_background(lambda handing: self._stream(request, handing, progress, chunk))

    @torch.inference_mode()
    def _stream(self, request: CheckedRequest, handing: Handing, show: bool, chunk: float) -> None:
        decoder = StreamDecoder(self, request, handing.hand_out)

        def report(stage: str, done: int, total: int) -> None:
            handing.check()
            progress(stage, done, total)

        with showing_progress(show):
            generate(self, request, report, decoder, chunk)
        decoder.finish()

    @takes_request
    def generate_representations(
        self, prompts: Prompts | Request = None, *, progress: bool = True, **options: Any
    ) -> dict[str, Generated]:
        """Generate the representations of all stages, by name. Takes the arguments of :meth:`generate`.

        ``splice`` has no effect, since it applies to audio.
        """
        return self._represented(CheckedRequest.of(self, build_request(prompts, options)), progress)

    @torch.inference_mode()
    def _represented(self, request: CheckedRequest, show: bool) -> dict[str, Generated]:
        with showing_progress(show):
            return generate(self, request, progress)

    @torch.inference_mode()
    def decode(self, representations: Mapping[str, Generated]) -> Tensor:
        """Decode the result of :meth:`generate_representations` to audio ``[B, C, T]``: a mix of all ends."""
        ends = self.decode_ends(representations)
        return mixed(list(ends.values()), [self.tokenizer_of(end).spec for end in self.plan.ends]).clamp(-1, 1)

    @takes_request
    def generate_ends(
        self, prompts: Prompts | Request = None, *, progress: bool = True, **options: Any
    ) -> dict[str, Tensor]:
        """Generate audio ``[B, C, T]`` for each end of the chain, by name. Takes the arguments of :meth:`generate`.

        The result of :meth:`generate` is their sum, clipped to [-1, 1]. ``splice`` has no effect.
        """
        return self.decode_ends(self.generate_representations(prompts, progress=progress, **options))

    @torch.inference_mode()
    def decode_ends(self, representations: Mapping[str, Generated]) -> dict[str, Tensor]:
        """Decode the result of :meth:`generate_representations` to audio ``[B, C, T]`` of each end, by name.

        Each clip has the sample rate and channels of its tokenizer and may exceed [-1, 1].
        """
        if not self.plan.stages:
            raise PartitaError("this system has no stage: use system.tokenizers[…].decode(…)")
        made = {}
        for end in self.plan.ends:
            if not isinstance(representations, Mapping) or not isinstance(representations.get(end.source), Generated):
                raise PartitaError(
                    f"decode takes the result of generate_representations, a mapping with {end.source!r}"
                )
            try:
                audio = decoded(self.tokenizer_of(end), representations[end.source]).float()
            except NotImplementedError as error:
                raise PartitaError(f"the output of the last stage cannot be decoded to audio: {error}") from None
            if not finite(audio):
                raise not_finite_error(f"the tokenizer {end.tokenizer} returns audio that is not finite numbers")
            made[end.source] = audio
        return made

    def save(self, folder: str | Path) -> None:
        """Write the resolved recipe and a subfolder for each part, for :func:`load`. Adapters stay merged."""
        self.save_index(folder)
        for name, part in self.parts.items():
            part.save(Path(folder) / name)


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    adapters: Mapping[str | Path, float] | None = None,
    words: Sequence[str | Path] = (),
) -> System:
    """Load a system with its weights.

    Args:
        source: A run folder, an export, a hub id, or a recipe in which all parts have weights. If it holds adapters,
            the system that they belong to is loaded with them, and its data are those that they were trained on.
        revision: Branch, tag or commit of a hub id. ``None`` uses the main branch.
        device: Device in the notation of torch; ``auto`` uses a GPU if there is one.
        adapters: Adapters that are added to the weights of the stages, by run folder or hub id, each with a weight:
            1 adds all of its change, 0 nothing.
        words: Pseudo-words that prompts can have, by folder or hub id (``partita.invert``).

    Raises:
        PartitaError: The source does not exist or is incomplete, or an adapter belongs to another system, or is named
            twice. The message says what to do.
    """
    if adapters is not None and not isinstance(adapters, Mapping):
        raise PartitaError(f"adapters must have a weight for each, {{'runs/folk': 0.7}}, not {adapters!r:.200}")
    chosen: dict[str | Path, float] = dict(adapters or {})
    found, overrides = _fetched(source, revision), list[str]()
    if holds_adapters(Path(found)):
        if (twice := next((one for one in chosen if str(one) == str(source) or _same(one, found)), None)) is not None:
            raise PartitaError(
                f"{source} already has all of the adapter {twice}: for another weight, name its system instead, "
                f"partita.load({base_of(found)!r}, adapters={{{str(twice)!r}: 0.7}}) or "
                f"partita generate {base_of(found)} --adapter {twice}=0.7"
            )
        chosen, overrides = {found: 1.0} | chosen, _data(Path(found))
        found = _base(Path(found))
    system = _with_weights(found, overrides)
    add_words(system, words)
    apply_adapters(system, chosen)
    return system.to(find_device(device))


def _fetched(source: str | Path, revision: str | None = None) -> str | Path:
    """Return the folder of a source on the Hub, which is downloaded, and any other source as it is."""
    local = kind(Path(source)) or str(source) in recipes()
    if revision is not None and local:
        raise PartitaError(f"{source} is not on the hub, so it has no revision {revision!r}")
    return source if local or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) else fetch(str(source), FILES, revision)


def _same(one: str | Path, other: str | Path) -> bool:
    """Whether two sources are the same folder here."""
    return kind(Path(one)) == "folder" and Path(one).resolve() == Path(other).resolve()


def _data(path: Path) -> list[str]:
    """Return what the recipe of adapters sets in that of their system: the data that they were trained on."""
    if kind(path / INDEX) != "file":
        return []
    check_index(own_file(path, INDEX))
    data = read_yaml(path / INDEX).get("data")
    return [] if data is None else [f"data={yaml.safe_dump(data, default_flow_style=True, width=math.inf)}"]


def _base(path: Path) -> str | Path:
    """Return the system that the adapters of a folder belong to.

    Raises:
        PartitaError: It does not exist here, or it is no system of its own.
    """
    base = base_of(path)
    if Path(base).is_absolute() and kind(Path(base) / INDEX) != "file":
        raise PartitaError(
            f"{path} holds adapters of {base}, which is not there: put that system back, or say where it is now, with "
            f"partita.load(SYSTEM, adapters={{{str(path)!r}: 1}}) or partita generate SYSTEM --adapter {path}"
        )
    found = _fetched(base)
    if holds_adapters(Path(found)):
        raise PartitaError(f"{path} holds adapters of {base}, which holds adapters itself, not a system")
    return found


def _with_weights(source: str | Path, overrides: Sequence[str] = ()) -> System:
    """Load a system on the CPU from a folder, with changes to its recipe, or from a recipe whose parts have weights."""
    path = Path(source)
    if kind(path) == "folder":
        if kind(path / INDEX) != "file":
            raise PartitaError(f"{path} is not a saved system: it contains no {INDEX}")
        return System(checked_plan(path, overrides), loading=True).load_parts(path)
    if kind(path) != "file" and str(source) not in recipes():
        raise PartitaError(
            f"{source!s:.200} is neither a folder with a system, nor a hub id (user/name), nor a recipe"
            f"{did_you_mean(source, recipes())}"
        )
    plan = load_recipe(source)
    System.outline(plan)  # checks limits before memory is allocated
    system = System(plan, loading=True)
    for name, part in system.parts.items():
        weights = system.part_plan(name).weights
        if weights is None:
            raise PartitaError(
                f"{source}: {name} has no weights: `partita train {source}` first, then load its run folder"
            )
        part.load_weights(weights)
        part.eval()
    return system
