"""Embeddings of clips, by the tokenizers, classifiers and joint conditioners that scores measure with."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..conditioners.base import JointConditioner
from ..core.part import Part
from ..core.resample import convert
from ..data.library import default_cache_dir
from ..errors import PartitaError
from ..metrics.frechet import FrechetDistance
from ..metrics.gaussian import Gaussian
from ..metrics.kernel import Sample
from ..recipe.recipe_files import read_value
from ..recipe.slots import slot_name
from ..system.ready_parts import build_part
from ..tokenizers.base import LatentView, Tokenizer

AT_ONCE = 16
"""Clips that are embedded together."""

log = logging.getLogger(__name__)


class Embedder:
    """Turns clips into embeddings: the latents of a tokenizer (of a codec, those before quantization) or a joint
    conditioner's embeddings.

    Args:
        name: Its name in rows.
        part: The tokenizer or conditioner, with its weights.
        weights: Where the weights came from; ``None`` for a part without weights.

    Raises:
        PartitaError: The part embeds no audio.
    """

    def __init__(self, name: str, part: Part, weights: str | None = None) -> None:
        self.name, self.part, self.weights = name, part.eval(), weights
        self.tokenizer: Tokenizer | LatentView | None = None
        if isinstance(part, Tokenizer):
            try:
                self.tokenizer = LatentView(part) if part.spec.discrete else part
            except ValueError as error:
                raise PartitaError(f"{name} cannot be compared in: {error}") from None
            spec = self.tokenizer.spec
            self.sample_rate, self.channels, self.dim = spec.sample_rate, spec.channels, spec.dim or 1
        elif isinstance(part, JointConditioner):
            self.sample_rate, self.channels, self.dim = part.sample_rate, 1, part.dim
        else:
            raise PartitaError(f"{name} is a conditioner that embeds no audio: name a tokenizer or one such as CLAP")

    @property
    def label(self) -> str:
        """Its name with its weights."""
        weights = "" if self.weights is None else slot_name(self.weights)
        return self.name if weights in self.name else f"{self.name}, {weights}"

    def joint(self) -> JointConditioner:
        """The part, which embeds texts and audio in one space.

        Raises:
            PartitaError: It does not.
        """
        if not isinstance(self.part, JointConditioner):
            raise PartitaError(
                f"{self.name} does not have texts and audio in one space: name one such as CLAP or MuLan"
            )
        return self.part

    def check_classifier(self) -> None:
        """Check that it yields logits.

        Raises:
            PartitaError: It does not.
        """
        if not getattr(self.part, "logits", False):
            raise PartitaError(f"{self.name} is no classifier: what it yields are not the logits of labels")

    @torch.inference_mode()
    def __call__(self, audio: Tensor, rate: int) -> Tensor:
        """Clips ``[B, C, T]`` at ``rate`` Hz to embeddings ``[B, S, D]`` on the CPU.

        Only frames that end within the clip count, if there are any, as in other implementations of Fréchet distances.
        All windows of a classifier count, as in other implementations of divergences.
        """
        device = next((p.device for p in self.part.parameters()), torch.device("cpu"))
        own = convert(audio, rate, self.sample_rate, self.channels).to(device)
        if self.tokenizer is None:
            return self.joint().embed_audio(own).float().cpu()
        found = self.tokenizer.encode(own).mT.float().cpu()
        if getattr(self.part, "logits", False):
            return found
        whole = self.tokenizer.spec.whole_frames(own.shape[-1], self.sample_rate)
        return found[:, : max(1, whole)]

    def of_all(self, clips: Sequence[Tensor] | Tensor, rate: int) -> Tensor:
        """Any number of clips ``[C, T]`` to embeddings ``[N, S, D]``."""
        return torch.cat([self(batch, rate) for batch in batches(clips)])

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to embeddings ``[N, D]`` on the CPU."""
        starts = range(0, len(texts), AT_ONCE)
        return torch.cat([self.joint().embed_text(texts[i : i + AT_ONCE]).float().cpu() for i in starts])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that changes embeddings: arguments, weights, and the embedding of two seconds of noise."""
        digest = self.part.digest()
        noise = 0.1 * torch.randn(1, self.channels, 2 * self.sample_rate, generator=torch.Generator().manual_seed(0))
        embedded = self(noise, self.sample_rate)[0]
        # to three digits, as machines round differently
        digest.update(" ".join(f"{float(x):.2e}" for x in (embedded.mean(), embedded.std(), embedded[0, 0])).encode())
        return digest.hexdigest()


class Embedders(dict[str, Embedder]):
    """Embedders by slot, each loaded once, so that scores share them."""

    def slot(self, slot: Any) -> Embedder:
        """The embedder of a slot, as :func:`read_embedder` reads it."""
        key = slot if isinstance(slot, str) else json.dumps(slot, sort_keys=True, default=str)
        if key not in self:
            self[key] = read_embedder(slot)
        return self[key]


def read_embedder(slot: Any) -> Embedder:
    """An embedder with its weights.

    Args:
        slot: The name of a tokenizer or else of a conditioner; or a recipe slot (``{preset: …, weights: …}``), as a
            mapping or as YAML.

    Raises:
        PartitaError: There is no such part, it has no weights, or it embeds no audio.
    """
    try:
        slot = read_value(slot) if isinstance(slot, str) else slot
    except ValueError as error:
        raise PartitaError(f"expected the name of a tokenizer or conditioner, or a recipe slot: {error}") from None
    if not isinstance(slot, str | Mapping):
        raise PartitaError(f"expected the name of a tokenizer or conditioner, or a recipe slot, not {slot!r:.80}")
    part, weights = build_part(slot)
    return Embedder(slot_name(slot), part, weights)


def read_reference(embedder: Embedder, clips: Sequence[Tensor], rate: int) -> tuple[Gaussian, Sample]:
    """Statistics of reference clips ``[C, T]`` for distances; kept in the user's cache for the next evaluation.

    The files are found by the clips' samples and the embedder's fingerprint. Clips of another length, number or piece,
    and other weights, therefore have files of their own; and each file names what it was computed from once more.

    Args:
        embedder: Embeds the clips.
        clips: Clips of one shape.
        rate: Their sample rate, in Hz.

    Returns:
        The statistics for the Fréchet distance, and those for the kernel distance.
    """
    digest = hashlib.blake2b(f"{rate} {[list(clip.shape) for clip in clips]}".encode(), digest_size=16)
    for clip in clips:
        digest.update(clip.contiguous().numpy().tobytes())
    source, embedding = digest.hexdigest(), f"{embedder.label} {embedder.fingerprint}"
    key = hashlib.blake2b(f"{embedding} {source}".encode(), digest_size=12).hexdigest()
    folder = default_cache_dir() / "references"
    paths = {Gaussian: folder / f"reference-{key}.safetensors", Sample: folder / f"frames-{key}.safetensors"}
    if all(path.is_file() for path in paths.values()):
        try:
            gaussian = Gaussian.load(paths[Gaussian], embedding=embedding, source=source)
            sample = Sample.load(paths[Sample], embedding=embedding, source=source)
            log.info("the statistics of the real clips in %s are known from before", embedder.name)
            return gaussian, sample
        except PartitaError as error:
            log.info("%s; it is computed again", error)
    metric, samples = FrechetDistance(embedder.dim), []
    for batch in batches(clips):
        frames = embedder(batch, rate)
        metric.update(frames.flatten(0, 1), reference=True)
        samples.append(Sample.of(frames.flatten(0, 1), torch.full((len(frames),), frames.shape[1])))
    gaussian, sample = metric.reference_statistics, Sample.joined(samples)
    try:
        gaussian.save(paths[Gaussian], embedding=embedding, source=source)
        sample.save(paths[Sample], embedding=embedding, source=source)
    except OSError as error:
        log.info("cannot keep statistics of the real clips in %s (%s); set PARTITA_CACHE", folder, error)
    return gaussian, sample


def batches(clips: Sequence[Tensor] | Tensor, size: int = AT_ONCE) -> Iterator[Tensor]:
    """Clips ``[C, T]`` in batches ``[B, C, T]``."""
    for start in range(0, len(clips), size):
        yield torch.stack(list(clips[start : start + size]))
