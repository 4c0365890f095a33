"""Readings of pieces whose tokens are stored: read in worker processes, encoded on the device, packed as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..core.contracts import Clip, Condition, Example
from ..core.rates import exact
from ..core.registry import lookup, names
from ..core.resample import convert
from ..core.seeds import derive_seed
from ..data.base import Split, UnreadableClip
from ..data.clips import clip_for, tokenizer_audio
from ..data.fields.base import crop_fields
from ..data.token_catalog import Catalog
from ..errors import PartitaError
from ..storage.packed import pack
from ..system.system import System
from .token_plan import TokenPlan, excerpt_starts


@dataclass
class Excerpted:
    """An excerpt of a piece, before it is encoded.

    Args:
        audio: Audio ``[C, T]`` by what tokenizers read; ``None`` is the mix.
        num_samples: Number of samples that are not padding.
        fields: Plain values of the fields.
        prepared: The prepared tensors of each conditioner whose output is stored, by its key.
    """

    audio: dict[str | None, Tensor]
    num_samples: int
    fields: dict[str, Any]
    prepared: dict[str, dict[str, Tensor]]


@dataclass
class Reading:
    """One version of a piece.

    Args:
        piece: Name of the piece.
        seconds: Length of the piece or clip.
        excerpts: Its excerpts. Empty if it is damaged.
        damaged: Why it cannot be read.
        crop_id: Name of the piece within its source, on which the positions of its crops depend.
    """

    piece: str
    seconds: float = 0.0
    excerpts: list[Excerpted] = field(default_factory=list)
    damaged: str | None = None
    crop_id: str = ""


class Readings(Dataset):
    """The readings of one split, in the order of the pieces and their versions.

    Args:
        system: The system with the data.
        plan: What is stored.
        catalog: The catalog of the shards.
        split: The split.
    """

    def __init__(self, system: System, plan: TokenPlan, catalog: Catalog, split: Split) -> None:
        self.source, self.plan, self.catalog, self.split = system.source, plan, catalog, split
        self.reads = list(dict.fromkeys(system.plan.reads(reference) for reference in plan.references.values()))
        self.conditioners = {key: conditioner for key, (_, conditioner) in plan.conditioners.items()}

    def __len__(self) -> int:
        return self.catalog.readings(self.split)

    def __getitem__(self, number: int) -> Reading:
        piece, version = divmod(number, self.catalog.versions[self.split])
        seed = reading_seed(self.catalog, self.split, version)
        try:
            example = self._read(piece, seed)
            if self.plan.excerpts and example.fields.get("excerpt") is None:
                example.fields["excerpt"] = self.source.read_beside(self.split, piece, **self._clip(seed))
        except UnreadableClip as error:
            return Reading(error.piece, damaged=error.reason)
        name = str(example.fields.get("id", piece))
        rate = self.plan.sample_rate
        seconds = example.num_samples / rate
        audio = {reads: self._audio(example, reads) for reads in self.reads}
        starts = excerpt_starts(seconds, self.catalog)
        return Reading(
            name,
            seconds,
            [self._excerpt(example, audio, s, len(starts)) for s in starts],
            crop_id=crop_id_of(self.catalog, name),
        )

    def _read(self, piece: int, seed: int) -> Example:
        return self.source.read(self.split, piece, **self._clip(seed))

    def _clip(self, seed: int) -> dict[str, Any]:
        """What is read of a piece."""
        return {
            "seed": seed,
            "seconds": None if self.plan.whole else self.plan.window,
            "sample_rate": self.plan.sample_rate,
            "channels": self.plan.channels,
        }

    def _audio(self, example: Example, reads: str | None) -> Tensor:
        audio = tokenizer_audio(example, reads, self.plan.sample_rate)
        if audio is None:
            raise PartitaError(
                f"{example.fields.get('id')} has no {reads or 'audio'}, of which tokens are to be stored"
            )
        return audio

    def _excerpt(self, example: Example, audio: Mapping[str | None, Tensor], start: Any, count: int) -> Excerpted:
        rate, catalog = self.plan.sample_rate, self.catalog
        first = round(start * rate)
        most = round((exact(catalog.hop) + exact(catalog.window)) * rate)
        num_samples = min(example.num_samples - first, most) if count > 1 else example.num_samples
        length = max(num_samples, round(catalog.window * rate))  # short pieces are padded as in training
        kept = {
            reads: F.pad(found[:, first : first + num_samples], (0, length - num_samples))
            for reads, found in audio.items()
        }
        fields = crop_fields(example.fields, float(start), num_samples / rate) if count > 1 else example.fields
        mix = F.pad(example.audio[:, first : first + num_samples], (0, length - num_samples))
        clip = Clip(fields, length / rate, mix, rate)
        prepared = {key: one.prepare([clip_for(one, clip)]) for key, one in self.conditioners.items()}
        return Excerpted(kept, num_samples, plain_fields(fields), prepared)


def reading_seed(catalog: Catalog, split: Split, version: int) -> int:
    """Return the seed with which a version of every piece is read."""
    return derive_seed(catalog.seed, "tokens", split, version) % 2**31


def crop_id_of(catalog: Catalog, name: str) -> str:
    """Return the name within its source of a piece, whose name begins with that of the source if there are several."""
    labels = [member["label"] for member in catalog.members] if len(catalog.members) > 1 else []
    return name.partition("/")[2] if any(name.startswith(f"{label}/") for label in labels) else name


class TokenEncoder:
    """Encodes readings on a device.

    Args:
        system: The system, with trained tokenizers and frozen conditioners.
        plan: What is stored.
        device: The device.
    """

    def __init__(self, system: System, plan: TokenPlan, device: torch.device) -> None:
        self.system, self.plan, self.device = system, plan, device
        for reference in plan.references.values():
            system.tokenizers[reference.tokenizer].to(device).eval()
        for _, conditioner in plan.conditioners.values():
            conditioner.to(device).eval()

    @torch.no_grad()
    def __call__(self, reading: Reading) -> list[bytes]:
        """Return the packed examples of a reading, at least one."""
        if reading.damaged is not None:
            return [pack({}, {"damaged": reading.damaged, "id": reading.piece})]
        return [self._packed(reading, excerpt) for excerpt in reading.excerpts]

    def _packed(self, reading: Reading, excerpt: Excerpted) -> bytes:
        tensors, plan = {}, self.plan
        for key, reference in plan.references.items():
            tokenizer, reads = self.system.tokenizer_of(reference), self.system.plan.reads(reference)
            spec, audio = tokenizer.spec, excerpt.audio[reads][None].to(self.device)
            encoded = tokenizer.encode(convert(audio, plan.sample_rate, spec.sample_rate, spec.channels))
            held = torch.tensor([excerpt.num_samples], device=self.device)
            frames = int(spec.present(encoded, held, plan.sample_rate).sum())
            kept = encoded[0, :, :frames]
            tensors[f"representation {key}"] = kept.to(_smallest(max(spec.cardinalities))) if spec.discrete else kept
        for key, (_, conditioner) in plan.conditioners.items():
            prepared = {name: tensor.to(self.device) for name, tensor in excerpt.prepared[key].items()}
            condition: Condition = conditioner(prepared)
            tensors[f"condition {key}"], tensors[f"mask {key}"] = condition.values[0], condition.mask[0]
        values = {"id": reading.piece, "crop_id": reading.crop_id, "seconds": reading.seconds, "fields": excerpt.fields}
        return pack(tensors, values)


def plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a clip as values for JSON, without audio and without values that are not plain."""
    known, found = names("field"), {}
    for name, value in fields.items():
        if value is None or name == "id" or (name in known and lookup("field", name).kind == "audio"):
            continue
        try:
            found[name] = json.loads(json.dumps(value, default=_plain))
        except (TypeError, ValueError):
            continue
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    raise TypeError


def _smallest(cardinality: int) -> torch.dtype:
    """Return the smallest type of whole numbers that holds the codes of a codebook."""
    return torch.uint8 if cardinality <= 1 << 8 else torch.int16 if cardinality <= 1 << 15 else torch.int32
