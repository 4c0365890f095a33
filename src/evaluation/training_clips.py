"""The clips on which a stage was trained."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from ..core.contracts import Example
from ..core.part_key import PartKey
from ..core.seeds import derive_seed
from ..data.examples import Examples
from ..data.fields.base import crop_fields
from ..data.shards import crop_start, version_of
from ..data.token_catalog import Catalog
from ..system.system import System
from ..training.readings import crop_id_of, reading_seed
from ..training.token_plan import make_catalog, plan_tokens


def training_clips(system: System, name: str, count: int) -> Examples:
    """Return the first clips of the training of a stage, as long as its window.

    Args:
        system: The system, with its data set up.
        name: Name of the stage.
        count: Number of clips.
    """
    order = derive_seed(system.plan.seed, PartKey.of("stages", name), "data")
    spec, seconds = system.output.spec, system.plan.stages[name].window
    clips: dict[str, Any] = {
        "length": count,
        "seconds": seconds,
        "sample_rate": spec.sample_rate,
        "channels": spec.channels,
        "seed": order,
    }
    if system.plan.tokens is None:
        return Examples(system.source, "train", **clips)
    catalog = make_catalog(system, plan_tokens(system, system.plan.tokens), system.plan.tokens)
    return StoredClips(catalog, system.source, "train", **clips)


class StoredClips(Examples):
    """The clips of a training on stored tokens, which reads crops of the stored versions of each piece.

    Args:
        catalog: The catalog of the stored tokens.
        options: Arguments of :class:`~partita.data.examples.Examples`.
    """

    def __init__(self, catalog: Catalog, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.catalog = catalog

    def _read(self, piece: int, seed: int) -> Example:
        catalog, rate = self.catalog, self.sample_rate
        whole = self.source.read(
            self.pieces,
            piece,
            seed=reading_seed(catalog, self.split, version_of(seed, catalog.versions[self.split])),
            seconds=None if catalog.whole else catalog.window,
            sample_rate=rate,
            channels=self.channels,
        )
        seconds = whole.num_samples / rate
        crop_id = crop_id_of(catalog, str(whole.fields.get("id", piece)))
        start = crop_start(catalog, crop_id, seed, seconds, self.seconds)
        first, length = round(start * rate), round(self.seconds * rate)
        num_samples = min(length, whole.num_samples - first)
        audio = F.pad(whole.audio[:, first : first + num_samples], (0, length - num_samples))
        return Example(audio, num_samples, crop_fields(whole.fields, float(start), num_samples / rate))
