"""How conditions enter a stage: projected to its width and grouped by fusion, with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.contracts import ALIGNED_FUSIONS, Condition, Given
from ..core.rates import exact
from .positions import sinusoidal
from .transformer_blocks import scaled_normal_

Interpolation = Literal["linear", "nearest"]


@dataclass(frozen=True)
class Prefix:
    """How conditions with fusion ``prepend`` form a prefix.

    Args:
        places: Maximum number of places of a condition, by its name: of more, so many are taken, evenly spaced from the
            first on.

    Raises:
        ValueError: A number is below 1.
    """

    places: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, places in self.places.items():
            if places < 1:
                raise ValueError(f"places of {name} must be at least 1, not {places}")


DEFAULT_PREFIX = Prefix()


@dataclass
class Context:
    """The conditions of a stage, projected and grouped by fusion.

    Attributes:
        prefix: ``[B, P, width]``, prepended; ``None`` without such a condition.
        prefix_mask: ``[B, P]`` bool, false on padding.
        prefix_frames: ``[P]``, the frame of the target that each place of the prefix belongs to, as a fraction; -1 for
            places that belong to no frame. ``None`` if no place belongs to one.
        cross: ``[B, L, width]``, for cross-attention; ``None`` without such a condition.
        cross_mask: ``[B, L]`` bool, false on padding.
        added: ``[B, T, width]``, added frame by frame; ``None`` without such a condition.
        pooled: ``[B, width]``, one vector per sample, for scale and shift; ``None`` without such a condition.
    """

    prefix: Tensor | None = None
    prefix_mask: Tensor | None = None
    prefix_frames: Tensor | None = None
    cross: Tensor | None = None
    cross_mask: Tensor | None = None
    added: Tensor | None = None
    pooled: Tensor | None = None


class EmbeddedCodes(nn.Module):
    """Codes ``[B, K, L]`` to embeddings ``[B, L, K, width]``, each codebook with its own rows of one table.

    Args:
        cardinalities: Entries of each codebook.
        width: Width of an embedding.
    """

    def __init__(self, cardinalities: Sequence[int], width: int) -> None:
        super().__init__()
        self.offsets = tuple(accumulate(cardinalities, initial=0))[:-1]
        self.weight = nn.Parameter(torch.empty(sum(cardinalities), width))
        scaled_normal_(self.weight, width)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed int64 codes, each in ``[0, cardinality)`` of its codebook."""
        offsets = torch.tensor(self.offsets, device=codes.device)
        return nn.functional.embedding(codes.transpose(1, 2) + offsets, self.weight)


class Conditioning(nn.Module):
    """Projects every condition to the width of a stage, and groups them by fusion.

    Embeddings pass through a linear layer, codes through one embedding per codebook. Codes with fusion ``cross`` or
    ``prepend`` are interleaved time-major: all codebooks of the first frame, then of the second (MusicLM, AudioLM);
    codes with fusion ``add`` are summed per frame. Conditions with the same fusion are joined in the order of
    ``given``. A condition with several fusions is projected once.

    Conditions that are aligned in time keep their time: with ``cross``, they get sinusoidal positions in frames of the
    target; with ``prepend``, :attr:`Context.prefix_frames` holds their frames. With ``cross``, codes that are not
    aligned and all conditions of a stage whose target has no frame rate get positions by their own order. ``concat`` is
    the same as ``add`` here: in a linear first layer, concatenating channels is equal to the sum of a projection of
    each.

    Args:
        given: The spec and fusion of each condition, by name.
        width: Width of the stage.
        frame_rate: Frame rate of the stage's target, in Hz; ``None`` if it has none, so that nothing is aligned with
            it.
        interpolation: Interpolation of aligned embeddings to that rate; aligned codes always take the nearest.
        prefix: How conditions form a prefix.

    Raises:
        ValueError: A condition is added or concatenated without being aligned in time, or a place of the prefix is that
            of a condition that is not prepended.
    """

    def __init__(
        self,
        given: dict[str, Given],
        width: int,
        frame_rate: float | None,
        interpolation: Interpolation = "linear",
        prefix: Prefix = DEFAULT_PREFIX,
    ) -> None:
        super().__init__()
        self.width = width
        self.fusions = {name: g.fusions for name, g in given.items()}
        self.prefix_places = prefix.places
        for name in self.prefix_places:
            if "prepend" not in self.fusions.get(name, ()):
                raise ValueError(f"prefix.places names {name!r}, which is not given by prepend")
        rates = {name: g.spec.frame_rate for name, g in given.items() if frame_rate and g.spec.frame_rate}
        self.ratios = {name: exact(rate) / exact(frame_rate) for name, rate in rates.items() if rate and frame_rate}
        # Conditions that have an order but share no time with the target get positions by their order.
        self.numbered = {
            name for name, g in given.items() if name not in rates and (g.spec.dim is None or g.spec.frame_rate)
        }
        self.nearest = {name for name, g in given.items() if interpolation == "nearest" or g.spec.dim is None}
        self.projections = nn.ModuleDict()
        for name, fusions in self.fusions.items():
            spec = given[name].spec
            for fusion in fusions:
                if fusion in ALIGNED_FUSIONS and name not in self.ratios:
                    raise ValueError(f"{name} is not aligned in time: it cannot enter by {fusion}")
            if spec.dim is not None:
                self.projections[name] = nn.Linear(spec.dim, width)
            elif spec.cardinalities:
                self.projections[name] = EmbeddedCodes(spec.cardinalities, width)
            else:
                raise ValueError(f"{name} declares neither its width nor its codebooks")

    def forward(self, conditions: dict[str, Condition], frames: int) -> Context:
        """All conditions, projected and grouped by fusion.

        Args:
            conditions: A batch of every condition, by name.
            frames: Length ``T`` of the target.
        """
        joined: dict[str, list[tuple[Tensor, Tensor]]] = {"cross": [], "prepend": [], "modulate": []}
        added: list[Tensor] = []
        places: list[Tensor] = []
        for name, fusions in self.fusions.items():
            projected, known = self._project(name, conditions[name])
            for fusion in fusions:
                if fusion in ALIGNED_FUSIONS:
                    summed = projected.sum(2) if projected.dim() == 4 else projected
                    added.append(_interpolate(summed, known, self.ratios[name], frames, name in self.nearest))
                    continue
                values, mask, time = projected, known, self._frames(name, known, fusion)
                if fusion == "prepend" and name in self.prefix_places:
                    picked = _evenly(mask.shape[1], self.prefix_places[name]).to(mask.device)
                    values, mask, time = values[:, picked], mask[:, picked], time[picked]
                if values.dim() == 4:
                    mask, time = (t.repeat_interleave(values.shape[2], dim=-1) for t in (mask, time))
                    values = values.flatten(1, 2)
                if fusion == "prepend":
                    places.append(time)
                elif fusion == "cross" and name in (*self.ratios, *self.numbered):
                    values = values + sinusoidal(time, self.width).to(values.dtype) * mask[..., None]
                joined[fusion].append((values, mask))
        prefix, prefix_mask = _join(joined["prepend"])
        cross, cross_mask = _join(joined["cross"])
        aligned = any("prepend" in fusions and n in self.ratios for n, fusions in self.fusions.items())
        return Context(
            prefix,
            prefix_mask,
            torch.cat(places) if aligned else None,
            cross,
            cross_mask,
            sum(added) if added else None,  # type: ignore[arg-type]
            _mean(*_join(joined["modulate"])),
        )

    def _frames(self, name: str, mask: Tensor, fusion: str) -> Tensor:
        """The frame of the target at the center of each place ``[L]``, -1 where the condition is not aligned.

        Conditions that are numbered by their own order get their own places instead.
        """
        if name in self.numbered and fusion == "cross":
            return torch.arange(mask.shape[1], device=mask.device)
        if name not in self.ratios:
            return mask.new_full((mask.shape[1],), -1.0, dtype=torch.float32)
        return (torch.arange(mask.shape[1], device=mask.device) + 0.5) / float(self.ratios[name]) - 0.5

    def _project(self, name: str, condition: Condition) -> tuple[Tensor, Tensor]:
        """Embeddings ``[B, L, width]`` (of codes ``[B, L, K, width]``), zero where masked, and the mask."""
        projection = self.projections[name]
        values = condition.values
        if values.is_floating_point():
            values = values.to(projection.weight.dtype)  # type: ignore[arg-type]
        values = projection(values)
        mask = condition.mask
        return values * mask.view(*mask.shape, *(1,) * (values.dim() - 2)), mask


def _join(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor | None, Tensor | None]:
    if not parts:
        return None, None
    return torch.cat([values for values, _ in parts], dim=1), torch.cat([mask for _, mask in parts], dim=1)


def _evenly(length: int, most: int) -> Tensor:
    """The numbers of at most ``most`` of so many places, evenly spaced from the first on."""
    if length <= most:
        return torch.arange(length)
    return (2 * torch.arange(most) * length + most) // (2 * most)


def _mean(values: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """The mean ``[B, width]`` over the places that are not masked; zero if all are."""
    if values is None or mask is None:
        return None
    return values.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _interpolate(values: Tensor, mask: Tensor, ratio: Fraction, frames: int, nearest: bool) -> Tensor:
    """Values ``[B, L, width]`` resampled to ``[B, frames, width]``, at steps of ``ratio`` of their own frames.

    A place takes the frame that contains its center, or a mixture of the two frames around it. Masked
    neighbors do not count, so that values do not fade out at a border. Where the center falls into a masked
    frame or past the end, the result is zero. A center on the border of two frames falls into both, so that the last
    frame of a sequence counts for the same places whether padding follows it or not.
    """
    centers = (2 * torch.arange(frames, device="cpu") + 1) * ratio.numerator
    whole = 2 * ratio.denominator  # unit in which centers are counted
    last = values.shape[1] - 1
    at = (centers // whole).clamp(max=last).to(values.device)
    before = ((centers - 1) // whole).clamp(max=last).to(values.device)  # another frame only on a border
    inside = (centers <= (last + 1) * whole).to(values.device)
    present = ((mask[:, at] | mask[:, before]) & inside)[..., None]
    if nearest:
        return torch.where(mask[:, at, None], values[:, at], values[:, before]) * present
    place = (centers.double() / whole - 0.5).clamp(0, last)
    low = place.long().to(values.device)
    high = (low + 1).clamp(max=last)
    fraction = place.frac().to(values.device, values.dtype)
    weight_low = ((1 - fraction) * mask[:, low])[..., None]
    weight_high = (fraction * mask[:, high])[..., None]
    share = present / (weight_low + weight_high).clamp(min=torch.finfo(values.dtype).tiny)
    return values[:, low] * (weight_low * share) + values[:, high] * (weight_high * share)
