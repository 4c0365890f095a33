"""What the stages of a system need from stored tokens: which parts, of which excerpts, in which layout."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, gcd
from typing import Any

from ..conditioners.base import Conditioner
from ..core.part_key import PartKey
from ..core.rates import exact
from ..core.reference import Reference
from ..core.registry import lookup, names
from ..data.base import StoredNeed
from ..data.token_catalog import SPLITS, Catalog
from ..errors import PartitaError
from ..recipe.token_options import TokenOptions
from ..storage.shard_folder import require_litdata
from ..system.system import System
from .batch_encoder import representation_key
from .fit_data import FitData

VARIED_VERSIONS = 4
"""Number of stored readings of each training piece if readings differ."""

COARSEST = Fraction(1, 2)
"""Crops start at frames of all representations if these coincide at least this often, in seconds."""


@dataclass
class TokenPlan:
    """What is stored for the stages of a system.

    Args:
        references: Representations to encode, by their key.
        conditioners: Conditioners whose output is stored, by its key.
        sample_rate: Highest sample rate of the audio that any part reads, in Hz.
        channels: Most channels that any part reads.
        window: Longest window of the stages, or length of the stored clips, in seconds.
        whole: Whether whole pieces are stored. Otherwise clips are, and stages with shorter windows read crops of them
            with the conditions of the whole clip.
        excerpts: Whether a conditioner reads another excerpt of each piece.
    """

    references: dict[str, Reference] = field(default_factory=dict)
    conditioners: dict[str, tuple[str, Conditioner]] = field(default_factory=dict)
    sample_rate: int = 1
    channels: int = 1
    window: float = 0.0
    whole: bool = True
    excerpts: bool = False


def check_tokens(system: System, options: TokenOptions) -> None:
    """Check that the stages of a system can be trained on stored tokens. It needs no weights.

    Raises:
        PartitaError: They cannot, or litdata is not installed.
    """
    require_litdata()
    if not system.stages:
        raise PartitaError("this recipe has no stage, and only stages can be trained on stored tokens")
    if not system.source.carries_audio:
        raise PartitaError("the data of this recipe are stored tokens already: name data with audio")
    stages = system.plan.stages
    joint = {name for stage in system.stages.values() for name in stage.joint}
    for key in dict.fromkeys(name for stage in stages.values() for name in stage.conditioners):
        conditioner = system.conditioners[key]
        if conditioner.reads_audio and (key in joint or conditioner.draws):
            why = "learns together with its stage" if key in joint else "draws at random in every step"
            raise PartitaError(
                f"conditioners.{key} reads audio and {why}, so its stages cannot be trained on stored tokens: "
                "train them on the audio"
            )
    if overlaid := [name for name, part in system.stages.items() if part.fit_options.overlay]:
        raise PartitaError(
            f"stages.{overlaid[0]} lays clips over each other (fit.overlay), so it cannot be trained on stored tokens: "
            "train it on the audio, or set fit.overlay to 0"
        )
    if options.clip is not None and options.clip < system.plan.window:
        raise PartitaError(
            f"clips of {options.clip:g} s are too short for a window of {system.plan.window:g} s: raise tokens.clip"
        )
    references = [r for stage in stages.values() for r in (*stage.targets, *stage.references.values())]
    lengths = {stage.window for stage in stages.values()} | ({options.clip} if options.clip is not None else set())
    if len(lengths) > 1 and any(system.tokenizer_of(r).spec.frame_rate is None for r in references):
        listed = ", ".join(f"{length:g}" for length in sorted(lengths))
        raise PartitaError(
            "a representation without a frame rate cannot be cropped, so it is stored in clips of the length of a "
            f"window, but the windows of these stages or the clips differ ({listed} s): give them the same length, or "
            "train them on the audio"
        )


def plan_tokens(system: System, options: TokenOptions) -> TokenPlan:
    """Return what the stages of a checked system need. Its source is set up; its parts may be untrained."""
    plan = TokenPlan(window=options.clip or system.plan.window, whole=options.clip is None)
    joint = {name for stage in system.stages.values() for name in stage.joint}
    for name in system.stages:
        data = FitData(system, PartKey.of("stages", name))
        plan.sample_rate, plan.channels = max(plan.sample_rate, data.sample_rate), max(plan.channels, data.channels)
        for reference in data.references:
            plan.references.setdefault(representation_key(system, reference), reference)
            plan.whole &= system.tokenizer_of(reference).spec.frame_rate is not None
        for key, conditioner in data.conditioners.items():
            if key in joint or conditioner.draws or not (conditioner.reads_audio or _is_storable(conditioner)):
                continue
            plan.conditioners.setdefault(conditioner.fingerprint(), (key, conditioner))
            plan.whole &= conditioner.spec.frame_rate is not None or not conditioner.reads_audio
            plan.excerpts |= "excerpt" in conditioner.inputs
    plan.whole &= not plan.excerpts
    return plan


def _is_storable(conditioner: Conditioner) -> bool:
    """Return whether the output does not depend on the crop, or is aligned in time so that it can be cropped."""
    if conditioner.spec.frame_rate is not None:
        return "seconds_start" not in conditioner.inputs
    return not any(lookup("field", name).timed for name in conditioner.inputs) and (
        "seconds_total" not in conditioner.inputs  # its default depends on the clip
    )


def make_catalog(system: System, plan: TokenPlan, options: TokenOptions) -> Catalog:
    """Return the catalog of a folder of shards before anything is written. The source must be set up.

    Raises:
        PartitaError: The longest excerpt is shorter than two windows.
    """
    if plan.whole and options.longest < 2 * plan.window:
        raise PartitaError(
            f"longest is {options.longest:g} s, but excerpts must contain two windows of {plan.window:g} s: raise it"
        )
    source = system.source
    specs = {key: system.tokenizer_of(reference).spec for key, reference in plan.references.items()}
    rates = {key: spec.frame_rate for key, spec in specs.items()}
    conditions = {key: one.spec.frame_rate for key, (_, one) in plan.conditioners.items()}
    step = _step([rate for rate in (*rates.values(), *conditions.values()) if rate is not None])
    hop = max(1, int((exact(options.longest) - exact(plan.window)) / step)) * step
    varied = source.varied or not plan.whole
    known = names("field")
    members = []
    # not the shares, whose rounding could change the order of the sources
    weights = [part.weight for part in system.plan.data] if len(source.members) > 1 else [1.0]
    for member, weight in zip(source.members, weights, strict=True):
        summary = member.source.summary
        members.append(
            {
                "label": member.label,
                "weight": weight,
                "unit": summary.unit,
                "splits": {split: member.source.size(split) for split in SPLITS},
                "known": dict(summary.known),
                "seconds": summary.seconds,
            }
        )
    return Catalog(
        parts={key: {"fingerprint": print_, "config": config} for key, print_, config in _parts(system, plan)},
        representations=rates,
        conditions=conditions,
        fields=sorted(f for f in source.fields if f not in known or lookup("field", f).kind != "audio"),
        members=members,
        origins=[[origin.what, origin.license] for origin in source.origins],
        versions={"train": options.versions or (VARIED_VERSIONS if varied else 1), "validation": 1, "test": 1},
        whole=plan.whole,
        window=plan.window,
        step=str(step),
        hop=float(hop),
        data=_digest(system.plan.values["data"]),
        seed=system.plan.seed,
    )


def _parts(system: System, plan: TokenPlan) -> list[tuple[str, str, dict[str, Any]]]:
    """Return key, fingerprint and configuration of every part whose output is stored."""
    tokenizers = {reference.tokenizer: system.tokenizers[reference.tokenizer] for reference in plan.references.values()}
    found: list[tuple[str, Any]] = [(PartKey.of("tokenizers", name), part) for name, part in tokenizers.items()]
    found += [(PartKey.of("conditioners", name), part) for name, part in plan.conditioners.values()]
    return [(str(key), part.fingerprint(), json.loads(json.dumps(part.config, default=str))) for key, part in found]


def stored_needs(system: System, key: PartKey) -> list[StoredNeed]:
    """Return what a stage needs from examples that carry stored tokens instead of audio."""
    data, needs = FitData(system, key), []
    for reference in data.references:
        part = system.tokenizers[reference.tokenizer]
        tokenizer = PartKey.of("tokenizers", reference.tokenizer)
        needs.append(StoredNeed(tokenizer, representation_key(system, reference), part.config, data.seconds, True))
    joint = {name for plan in data.plans for name in system.stages[plan].joint}
    for name, one in data.conditioners.items():
        if name not in joint:
            found = PartKey.of("conditioners", name), one.fingerprint(), one.config
            needs.append(StoredNeed(*found, data.seconds, one.reads_audio))
    return needs


def _step(rates: list[float]) -> Fraction:
    """Return the fraction of a second at whose multiples all representations have a frame.

    If that is too seldom, return the duration of a frame of the slowest representation; the others are then off by up
    to half of one of their frames.

    >>> _step([25.0]), _step([50.0, 75.0]), _step([86.1328125, 50.0])
    (Fraction(1, 25), Fraction(1, 25), Fraction(1, 50))
    """
    if not rates:
        return Fraction(1, 100)
    steps = [1 / exact(rate) for rate in rates]
    common = steps[0]
    for step in steps[1:]:  # the least common multiple of two fractions
        numerator = common.numerator * step.denominator
        other = step.numerator * common.denominator
        least = numerator * other // gcd(numerator, other)
        common = Fraction(least, common.denominator * step.denominator)
    return common if common <= max(COARSEST, *steps) else max(steps)


def excerpt_starts(seconds: float, catalog: Catalog) -> list[Fraction]:
    """Return the starts of the excerpts of a piece, in seconds. Each window lies completely within one of them."""
    hop, window = exact(catalog.hop), exact(catalog.window)
    count = max(1, ceil((exact(seconds) - window) / hop)) if catalog.whole else 1
    return [number * hop for number in range(count)]


def _digest(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
