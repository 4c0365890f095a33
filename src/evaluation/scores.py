"""What a system's clips score. A score is a function in :data:`SCORES`, from what is compared to rows by name.

A row holds ``value`` and ``better`` (``lower`` or ``higher``), ``about`` (a sentence on it), ``of`` (the ``system``,
its ``codec`` alone, or its ``memory`` of training clips), ``embedding`` (what it was measured in, with its
``fingerprint`` where it has weights) and ``clips`` (how many), and where there is such a thing ``reference_clips``,
``pieces`` (how many the clips are from), ``low`` and ``high`` (95 %, over pieces), and what to read the value against:
``real``, what real clips score in its place; ``codec``, what real clips score that went through the system's own codec,
which its stages can hardly surpass; ``chance``, what it is for clips that have nothing to do with what was asked for,
and ``beats_chance``, whether all of the interval is better than that; without one, only False is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import Example, RepresentationSpec
from ..errors import PartitaError
from ..metrics.clips import mean_over_pieces, piece_numbers
from ..metrics.codec import ConstantSpectrum, MelDistance
from ..metrics.divergence import KLDivergence
from ..metrics.frechet import FrechetInfinity
from ..metrics.harmony import ChordAgreement, KeyAgreement
from ..metrics.kernel import KernelDistance
from ..metrics.melody import MelodySimilarity
from ..metrics.rhythm import RhythmAgreement
from ..metrics.similarity import PairedCosine, clip_means
from ..system.system import System
from ..tokenizers.base import LatentView, Tokenizer
from .continuations import Continuations
from .embedders import Embedder, batches, read_embedder, read_reference
from .options import Evaluation
from .pairing import other_pieces
from .score_texts import NAMES, about

Rows = dict[str, dict[str, Any]]


@dataclass
class Comparison:
    """Generated clips, what they are compared with, and in what.

    Args:
        system: That generated them.
        audio: Generated clips ``[N, C, T]``, at the rate of the system's output.
        pieces: The real clips whose captions they were generated from, as long, in the same order.
        others: Other real clips.
        options: Of the evaluation.
        embedders: By what the options call them.
        folder: Of the evaluation.
        say: Gets a line on each thing done.
        progress: Called with (clips generated, clips in all) where a score generates more.
    """

    system: System
    audio: Tensor
    pieces: Sequence[Example]
    others: Sequence[Example]
    options: Evaluation
    embedders: Mapping[str, Embedder]
    folder: Path
    say: Callable[[str], None] = lambda line: None
    progress: Callable[[int, int], None] | None = None
    _embedded: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @property
    def spec(self) -> RepresentationSpec:
        """Rate and channels of all clips."""
        return self.system.output.spec

    @property
    def fields(self) -> list[dict[str, Any]]:
        """What is known of the pieces."""
        return [piece.fields for piece in self.pieces]

    @property
    def names(self) -> list[str | None]:
        """Of the pieces, one for each clip; none where they have none."""
        return names_of(self.pieces)

    @property
    def told(self) -> set[str]:
        """What the system is told of a piece."""
        return {conditioner.input for conditioner in self.system.conditioners.values()}

    def strangers(self, clips: Sequence[int], shift: int = 1) -> list[int] | None:
        """Of each of these clips, another one of them that is from another piece; none where all are from one."""
        others = other_pieces([self.pieces[i].fields.get("id", i) for i in clips], shift)
        return None if others is None else [clips[i] for i in others]

    @cached_property
    def real(self) -> Tensor:
        """The pieces themselves, ``[N, C, T]``."""
        return torch.stack([piece.audio for piece in self.pieces])

    @cached_property
    @torch.inference_mode()
    def coded(self) -> Tensor:
        """The pieces after the codec that makes the system's audio, ``[N, C, T]``."""
        kept = [reconstructed(self.system.output, batch, self.system.device) for batch in batches(self.real)]
        return torch.cat(kept)

    def embedded(self, embedder: Embedder, which: str) -> Tensor:
        """Embeddings ``[N, S, D]`` of the clips ``audio``, ``real`` or ``coded``; made once."""
        key = (embedder.name, which)
        if key not in self._embedded:
            self._embedded[key] = embedder.of_all(getattr(self, which), self.spec.sample_rate)
        return self._embedded[key]


def names_of(clips: Sequence[Example]) -> list[str | None]:
    """The names of the pieces that clips are from; none for a piece without a name."""
    return [None if clip.fields.get("id") is None else str(clip.fields["id"]) for clip in clips]


@torch.inference_mode()
def reconstructed(codec: Tokenizer | LatentView, audio: Tensor, device: torch.device) -> Tensor:
    """Clips ``[B, C, T]`` after a codec, as long as they were."""
    try:
        decoded = codec.decode(codec.encode(audio.to(device)))
    except NotImplementedError as error:
        raise PartitaError(f"nothing of this system can be heard: {error}") from None
    return decoded.float().cpu()[..., : audio.shape[-1]].clamp(-1, 1)


def read_embedders(options: Evaluation) -> dict[str, Embedder]:
    """Everything that the options name, by name.

    Raises:
        PartitaError: It cannot be read, or does not measure such a thing.
    """
    named = dict.fromkeys((*options.embeddings, *options.classifiers, *options.joint))
    embedders = {text: read_embedder(text) for text in named}
    for text in options.classifiers:
        embedders[text].check_classifier()
    for text in options.joint:
        embedders[text].joint()
    return embedders


def check_asked(system: System, options: Evaluation) -> None:
    """See that what the options ask for can be measured of a system.

    Raises:
        PartitaError: It cannot.
    """
    told = {conditioner.input for conditioner in system.conditioners.values()}
    if not system.stages:
        if options.joint or options.memorization:
            raise PartitaError("a codec alone reads no text and goes on with nothing: leave out joint and memorization")
        return
    if options.classifiers and not told:
        raise PartitaError(
            "a classifier compares clips with the pieces they were asked to be like, but nothing is asked of this "
            "system: it has no conditioner"
        )
    if options.joint and "text" not in told:
        raise PartitaError("how well clips and texts go together is not asked of this system: it reads no text")
    if options.memorization:
        Continuations.of(system)


def distances(compared: Comparison) -> Rows:
    """Fréchet and kernel audio distances to other real clips, and what the former tends to with more clips."""
    rows, rate = Rows(), compared.spec.sample_rate
    for text in compared.options.embeddings:
        embedder, found = compared.embedders[text], {}
        compared.say(f"FAD and KAD ({embedder.name})")
        gaussian, sample = read_reference(embedder, [o.audio for o in compared.others], rate, compared.say)
        sample = sample.from_pieces(names_of(compared.others))
        for which in ("audio", "real", "coded"):
            frames = compared.embedded(embedder, which)
            clips, sizes = frames.flatten(0, 1), torch.full((len(frames),), frames.shape[1])
            fad = FrechetInfinity(embedder.dim, reference=gaussian)
            fad.update(clips, sizes=sizes, pieces=compared.names)
            found[which] = _reliable(fad.compute())
            try:
                kad = KernelDistance(embedder.dim, reference=sample)
                kad.update(clips, sizes, pieces=compared.names)
                found[which] |= kad.compute()
            except PartitaError as error:
                missing = f"no KAD ({embedder.name}): {error}"
        made, beside = found["audio"], {"real": "real", "codec": "coded"}
        more = {"reference_clips": len(compared.others), "fingerprint": embedder.fingerprint}
        for name, figure in (("FAD", "frechet"), ("FAD∞", "limit"), ("KAD", "kad")):
            if figure in made:
                against = {column: found[which][figure] for column, which in beside.items() if figure in found[which]}
                row = _row(made, figure, "lower", embedder.label, len(compared.audio), **against, **more)
                rows[f"{name} ({embedder.name})"] = row
        if "limit" not in made:
            compared.say(f"no FAD∞ ({embedder.name}): {LIMIT_TAKES}")
        if "kad" not in made:
            compared.say(missing)
    return rows


LIMIT_TAKES = "a limit takes 8 clips of 2 pieces, and so many that halves of them show the same limit: generate more"
"""Why there is none."""


def _reliable(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was found, without a limit that the clips are too few to tell."""
    if abs(float(found["drift"])) <= 1:
        return found
    return {name: value for name, value in found.items() if not name.startswith("limit")}


def divergence(compared: Comparison) -> Rows:
    """How far what classifiers hear in clips is from what they hear in the pieces of the same captions.

    ``chance`` compares each clip with the piece of another caption. There is no ``real``: a caption has one piece.
    """
    rows = Rows()
    for text in compared.options.classifiers:
        embedder = compared.embedders[text]
        compared.say(f"KLD ({embedder.name})")
        made, real = compared.embedded(embedder, "audio"), compared.embedded(embedder, "real")
        sizes = torch.full((len(made),), made.shape[1])

        def against(target: Tensor, made: Tensor = made, sizes: Tensor = sizes) -> dict[str, Tensor]:
            metric = KLDivergence()
            metric.update(made.flatten(0, 1), target.flatten(0, 1), sizes, compared.names)
            return metric.compute()

        more: dict[str, Any] = {"fingerprint": embedder.fingerprint, "codec": _coded_divergence(compared, embedder)}
        if others := compared.strangers(range(len(made))):
            more["chance"] = against(real[others])["kld"]
        rows[f"KLD ({embedder.name})"] = _row(against(real), "kld", "lower", embedder.label, len(made), **more)
    return rows


def _coded_divergence(compared: Comparison, embedder: Embedder) -> Tensor:
    metric = KLDivergence()
    metric.update(compared.embedded(embedder, "coded").flatten(0, 1), compared.embedded(embedder, "real").flatten(0, 1))
    return metric.compute()["kld"]


def consistency(compared: Comparison) -> Rows:
    """How near clips are to their captions: the CLAP score, or MuLan's cycle consistency, as the conditioner is.

    ``chance`` is the mean over the clips and all other captions.
    """
    rows, texts = Rows(), {i: str(f["text"]) for i, f in enumerate(compared.fields) if f.get("text")}
    for text in compared.options.joint:
        if not texts:
            compared.say("no test piece has a text: how well clips and texts go together is not measured")
            break
        embedder, found = compared.embedders[text], {}
        compared.say(f"text–audio consistency ({embedder.name})")
        words, kept = embedder.of_texts(list(texts.values())), torch.tensor(list(texts))
        for which in ("audio", "real", "coded"):
            windows = compared.embedded(embedder, which)[kept]
            sizes = torch.full((len(windows),), windows.shape[1])
            metric = PairedCosine()
            metric.update(words, windows.flatten(0, 1), second_sizes=sizes, pieces=[compared.names[i] for i in texts])
            found[which] = metric.compute()
            if which == "audio":
                clips = clip_means(windows.flatten(0, 1), sizes)
        more: dict[str, Any] = {"fingerprint": embedder.fingerprint}
        more |= {column: found[which]["cosine"] for column, which in (("real", "real"), ("codec", "coded"))}
        strangers = torch.tensor([[one != other for other in texts.values()] for one in texts.values()])
        if strangers.any():
            more["chance"] = (F.normalize(words.double()) @ F.normalize(clips).T)[strangers].mean()
        name = f"text–audio consistency ({embedder.name})"
        rows[name] = _row(found["audio"], "cosine", "higher", embedder.label, len(kept), **more)
    return rows


def agreement(compared: Comparison) -> Rows:
    """Whether clips have the key, chords, tempo and beats of the pieces, where the system was told them.

    ``chance``: whether they have those of other pieces.
    """
    # captions tell key and tempo; nobody is expected to guess beats or chords
    wanted: list[tuple[Any, str, dict[str, set[str]]]] = [
        (KeyAgreement, "chroma", {"key": {"key", "text"}}),
        (ChordAgreement, "chroma", {"chord": {"chords"}}),
        (RhythmAgreement, "onset strength", {"tempo": {"tempo", "beats", "text"}, "beat": {"beats"}}),
    ]
    rows, known = Rows(), {name for fields in compared.fields for name, value in fields.items() if value is not None}
    for kind, features, labeled in wanted:
        heard = tuple(stem for stem, fields in labeled.items() if compared.told & fields)
        if not heard or not known & {"key", "chords", "tempo", "beats"}:
            continue
        if not (find_spec("mir_eval") and find_spec("librosa")):
            compared.say("key, chords and tempo are not measured: pip install 'partita[metrics]'")
            break
        compared.say(f"agreement with the pieces: {', '.join(heard)}")

        def against(clips: Tensor, others: Sequence[Sequence[int]], kind: Any = kind) -> dict[str, Tensor]:
            metric = kind(compared.spec.sample_rate)
            for which in others:
                metric.update(clips, [compared.fields[i] for i in which], pieces=compared.names)
            return metric.compute()

        everything = list(range(len(compared.pieces)))
        own, real = against(compared.audio, [everything]), against(compared.real, [everything])
        strangers = [compared.strangers(everything, shift) for shift in range(1, 1 + CHANCES)]
        chance = against(compared.audio, [which for which in strangers if which]) if any(strangers) else {}
        for name in kind.names:
            if name.startswith(heard) and not math.isnan(own[name]):
                more = {"real": real[name]}
                if name in chance and not math.isnan(chance[name]):
                    more["chance"] = chance[name]
                labels = int(own[f"{name}_clips"])
                rows[NAMES[name]] = _row(own, name, "higher", features, labels, **more)
    return rows


def melody(compared: Comparison) -> Rows:
    """How well clips keep the melody of the pieces, where the system was told it; ``chance``: of other pieces."""
    having = [i for i, fields in enumerate(compared.fields) if fields.get("melody")]
    if "melody" not in compared.told or not having:
        return {}
    compared.say("melody")

    def against(pieces: Tensor) -> dict[str, Tensor]:
        metric = MelodySimilarity(compared.spec.sample_rate)
        names = iter([compared.names[i] for i in having])
        for made, piece in zip(batches(compared.audio[having]), batches(pieces), strict=True):
            metric.update(made, piece, pieces=[next(names) for _ in made])
        return metric.compute()

    real = compared.real[having]
    strangers = compared.strangers(having)
    more = {"chance": against(compared.real[strangers])["chroma_cosine"]} if strangers else {}
    return {NAMES["chroma_cosine"]: _row(against(real), "chroma_cosine", "higher", "chroma", len(having), **more)}


def codec(compared: Comparison) -> Rows:
    """How far the codec that makes the system's audio is from the pieces; ``chance`` is a sound that never changes.

    The best one that does not, that is, of other real clips. What stages generate can hardly be nearer to real audio.
    """
    compared.say("codec")
    rate = compared.spec.sample_rate
    constant = ConstantSpectrum(rate)
    for batch in batches([other.audio for other in compared.others]):
        constant.fit(batch)
    distances = []
    for after, before in zip(compared.coded, compared.real, strict=True):
        distance = MelDistance(rate)
        distance.update(after[None], before[None])
        distances.append(distance.compute())
        constant.update(before[None])
    mean = mean_over_pieces(
        torch.stack(distances), torch.ones(len(distances)), piece_numbers(compared.names, len(distances))
    )
    found = {"distance": mean["value"], "distance_low": mean["low"], "distance_high": mean["high"]} | mean
    output = compared.system.output
    name = (output.codec if isinstance(output, LatentView) else output).registered_name
    more = {"chance": constant.compute(), "reference_clips": len(compared.others)}
    label = f"log-mel spectrum, {name}"
    return {"codec distance": _row(found, "distance", "lower", label, len(distances), **more)}


def memorization(compared: Comparison) -> Rows:
    """How often the system goes on with training clips as they go on; ``chance``: as other training clips go on."""
    if not compared.options.memorization:
        return {}
    compared.say("memorization")
    options, way = compared.options, Continuations.of(compared.system)
    folder = compared.folder / "memorization"
    continued = way.tokens(folder, options.clips, options.batch_size, options.seed, compared.progress)
    try:
        found, chance, more = way.measure(continued)
    except PartitaError as error:
        compared.say(f"memorization is not measured: {error}")
        return {}
    label, clips = more.pop("embedding"), int(found["clips"])
    return {
        f"memorized {how}": _row(found, figure, "lower", label, clips, chance=chance[figure], **more)
        for how, figure in (("exactly", "exact"), ("approximately", "approximate"))
    }


CHANCES = 4
"""Other pieces whose labels each clip is compared with to tell what chance is."""

SCORES: tuple[Callable[[Comparison], Rows], ...] = (
    distances,
    divergence,
    consistency,
    agreement,
    melody,
    codec,
    memorization,
)
"""Every score there is, in the order of their rows."""


def score(compared: Comparison) -> Rows:
    """The rows of all scores that can be measured, by name."""
    rows = Rows()
    for kind in SCORES:
        of = "system" if compared.system.stages and kind is not codec else "codec"
        of = "memory" if kind is memorization else of
        for name, row in kind(compared).items():
            rows[name] = row | {"about": about(name), "of": of}
            if of != "memory" and "chance" in row:
                # without an interval, a value that is no better than chance is known not to beat it, and no more
                low, high = (row.get(bound, row["value"]) for bound in ("low", "high"))
                best = low > row["chance"] if row["better"] == "higher" else high < row["chance"]
                if not best or "low" in row:
                    rows[name]["beats_chance"] = best
    return rows


def _row(
    found: Mapping[str, Tensor], figure: str, better: str, embedding: str, clips: int, **more: Any
) -> dict[str, Any]:
    """A row from what a metric found, with its bounds where they are known."""
    row: dict[str, Any] = {"value": float(found[figure])}
    for bound in ("low", "high"):
        value = float(found.get(f"{figure}_{bound}", math.nan))
        if not math.isnan(value):
            row[bound] = value
    if (pieces := found.get(f"{figure}_pieces", found.get("pieces"))) is not None:
        row["pieces"] = int(pieces)
    row |= {name: float(value) if isinstance(value, Tensor) else value for name, value in more.items()}
    return row | {"better": better, "clips": clips, "embedding": embedding}
