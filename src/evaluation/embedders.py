"""Embeddings of clips for scores, computed by tokenizers, classifiers and conditioners."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..conditioners.embedding import EmbeddingConditioner
from ..conditioners.joint import JointConditioner
from ..core.part import Part
from ..core.resample import convert
from ..errors import PartitaError
from ..metrics.frechet import FrechetDistance
from ..metrics.gaussian import Gaussian
from ..metrics.kernel import Sample
from ..recipe.recipe_files import read_value
from ..recipe.slots import slot_name
from ..storage.cache import default_cache_dir
from ..system.ready_parts import build_part, load_part
from ..system.system import System
from ..tokenizers.base import LatentView, Tokenizer

BATCH_SIZE = 16
"""Number of clips that are embedded together."""

OF_SYSTEM = re.compile(r"(tokenizers|conditioners)/[\w-]+")
"""Key of a part of the evaluated system, as a slot."""

log = logging.getLogger(__name__)


class Embedder:
    """A function from clips to embeddings: latents of a tokenizer, or embeddings of a conditioner such as CLAP.

    The latents of a codec are those before quantization.

    Args:
        name: Name of the embedding in the rows of scores.
        part: Tokenizer or conditioner with its weights.
        weights: Source of the weights; ``None`` for a part without weights.

    Raises:
        PartitaError: The part does not embed audio.
    """

    def __init__(self, name: str, part: Part, weights: str | None = None) -> None:
        self.name, self.part, self.weights = name, part.eval(), weights
        self.tokenizer: Tokenizer | LatentView | None = None
        if isinstance(part, Tokenizer):
            try:
                self.tokenizer = LatentView(part) if part.spec.discrete else part
            except ValueError as error:
                raise PartitaError(f"{name} cannot be used as an embedding: {error}") from None
            spec = self.tokenizer.spec
            self.sample_rate, self.channels, self.dim = spec.sample_rate, spec.channels, spec.dim or 1
        else:
            # what quantizes embeddings, such as those of MuLan, embeds as the conditioner inside
            embedding = next((one for one in part.modules() if isinstance(one, EmbeddingConditioner)), None)
            if embedding is None:
                raise PartitaError(
                    f"{name} is a conditioner that embeds no audio: name a tokenizer, or a joint conditioner such as "
                    "CLAP"
                )
            self.part = self.embedding = embedding
            self.sample_rate, self.channels, self.dim = embedding.sample_rate, 1, embedding.dim

    @property
    def label(self) -> str:
        """The name of the embedding and the source of its weights."""
        weights = "" if self.weights is None else slot_name(self.weights)
        return self.name if weights in self.name else f"{self.name}, {weights}"

    def joint(self) -> JointConditioner:
        """Return the part as a joint conditioner, which embeds texts and audio in one space.

        Raises:
            PartitaError: The part is not a joint conditioner.
        """
        if not isinstance(self.part, JointConditioner):
            raise PartitaError(
                f"{self.name} does not embed texts and audio in one space: name a joint conditioner such as CLAP"
            )
        return self.part

    def check_classifier(self) -> None:
        """Check that the embeddings are the logits of a classifier.

        Raises:
            PartitaError: The part is not a classifier.
        """
        if not getattr(self.part, "logits", False):
            raise PartitaError(f"{self.name} is not a classifier, because it does not return the logits of labels")

    @torch.inference_mode()
    def __call__(self, audio: Tensor, rate: int) -> Tensor:
        """Embed clips ``[B, C, T]`` at ``rate`` Hz, and return embeddings ``[B, S, D]`` on the CPU.

        Frames that extend beyond the clip are dropped, except the first, as in other implementations of Fréchet
        distances. All windows of a classifier are kept, as in other implementations of divergences.
        """
        device = next((p.device for p in self.part.parameters()), torch.device("cpu"))
        own = convert(audio, rate, self.sample_rate, self.channels).to(device)
        if self.tokenizer is None:
            return self.embedding.embed_audio(own).float().cpu()
        found = self.tokenizer.encode(own).mT.float().cpu()
        if getattr(self.part, "logits", False):
            return found
        whole = self.tokenizer.spec.whole_frames(own.shape[-1], self.sample_rate)
        return found[:, : max(1, whole)]

    def embed_clips(self, clips: Sequence[Tensor] | Tensor, rate: int) -> Tensor:
        """Embed any number of clips ``[C, T]`` in batches, and return embeddings ``[N, S, D]``."""
        return torch.cat([self(batch, rate) for batch in batches(clips)])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts, and return embeddings ``[N, D]`` on the CPU."""
        starts = range(0, len(texts), BATCH_SIZE)
        return torch.cat([self.joint().embed_text(texts[i : i + BATCH_SIZE]).float().cpu() for i in starts])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that affects embeddings: arguments, weights, and the embedding of two seconds of noise."""
        digest = self.part.digest()
        noise = 0.1 * torch.randn(1, self.channels, 2 * self.sample_rate, generator=torch.Generator().manual_seed(0))
        embedded = self(noise, self.sample_rate)[0]
        # three digits only, because rounding differs between machines
        digest.update(" ".join(f"{float(x):.2e}" for x in (embedded.mean(), embedded.std(), embedded[0, 0])).encode())
        return digest.hexdigest()


class Embedders(dict[str, Embedder]):
    """Embedders by recipe slot; each is loaded once and shared by all scores."""

    def slot(self, slot: Any) -> Embedder:
        """Return the embedder of a slot, which :func:`read_embedder` loads on the first call."""
        key = slot if isinstance(slot, str) else json.dumps(slot, sort_keys=True, default=str)
        if key not in self:
            self[key] = read_embedder(slot)
        return self[key]


def of_system(slot: Any) -> bool:
    """Return whether a slot is the key of a part of the evaluated system.

    >>> of_system("conditioners/music"), of_system("clap-music"), of_system("runs/mine/conditioners/music")
    (True, False, False)
    """
    return isinstance(slot, str) and OF_SYSTEM.fullmatch(slot) is not None


def missing_part(slots: Sequence[Any], system: System) -> str | None:
    """Return the reason if one of these slots is the key of a part that a system does not have."""
    missing = [slot for slot in slots if of_system(slot) and slot not in system.parts]
    if not missing:
        return None
    known = [key for key in system.parts if of_system(key)]
    return f"this system has no {missing[0]}, but {', '.join(known)}"


def read_embedder(slot: Any) -> Embedder:
    """Load an embedder with its weights.

    Args:
        slot: Name of a tokenizer or conditioner, the folder of a saved one (``runs/mine/conditioners/music``), or a
            recipe slot (``{preset: …, weights: …}``) as a mapping or as YAML. A tokenizer takes precedence over a
            conditioner with the same name.

    Raises:
        PartitaError: There is no such part, it has no weights, or it embeds no audio.
    """
    try:
        slot = read_value(slot) if isinstance(slot, str) else slot
    except ValueError as error:
        raise PartitaError(f"expected the name of a tokenizer or conditioner, or a recipe slot: {error}") from None
    if not isinstance(slot, str | Mapping):
        raise PartitaError(f"expected the name of a tokenizer or conditioner, or a recipe slot, not {slot!r:.80}")
    if isinstance(slot, str) and "/" in slot:
        return Embedder(slot, load_part(slot), slot)
    part, weights = build_part(slot)
    return Embedder(slot_name(slot), part, weights)


def read_reference(embedder: Embedder, clips: Sequence[Tensor], rate: int) -> tuple[Gaussian, Sample]:
    """Compute the statistics of reference clips ``[C, T]``, or read them from the user's cache.

    The names of the cached files are digests of the samples and of the embedder's fingerprint, so other clips or other
    weights have their own files. The content of each file is checked against the same digests.

    Args:
        embedder: Embedder of the clips.
        clips: Clips of one shape.
        rate: Sample rate of the clips in Hz.

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
            log.info("the statistics of the real clips in %s are read from the cache", embedder.name)
            return gaussian, sample
        except PartitaError as error:
            log.info("%s; the statistics are computed again", error)
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
        log.info("cannot store the statistics of the real clips in %s (%s): set PARTITA_CACHE", folder, error)
    return gaussian, sample


def batches(clips: Sequence[Tensor] | Tensor, size: int = BATCH_SIZE) -> Iterator[Tensor]:
    """Yield clips ``[C, T]`` in batches ``[B, C, T]``."""
    for start in range(0, len(clips), size):
        yield torch.stack(list(clips[start : start + size]))
