"""An embedding of the melody, whatever the instruments, the tempo and the key."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.dependent_clips import group_of
from ..core.processes import of_all, per_example
from ..core.registry import register
from ..errors import PartitaError
from ..layers.mel import MelSpectrum
from ..layers.octave_bands import OctaveSpectrum, shifted_bands
from ..layers.triplet import semi_hard_triplet_loss
from ..limits import LONGEST_WINDOW, TooMuch, beyond
from ..metrics.retrieval import EmbeddedPairs, recall_of
from .audio_towers.base import AudioTower
from .embedding import EmbeddingConditioner, Views, mean_embedding
from .joint import check_embeddable
from .mulan import AT_ONCE, LogMel

FLOOR = 1e-3
"""Magnitude, relative to the largest of a window, below which a spectrum is as good as silent: -60 dB."""
QUIETEST = 1e-5
"""Largest magnitude of a window that counts as silent."""
MOST_UNPAIRED = 50
"""Number of batches in a row without any pair of clip and cover at which training ends."""
MOST_CENTS = 100.0
"""Largest detuning: a semitone, which is another key."""
SILENT = 1e-4
"""Peak below which a recording is silent, and has no melody: -80 dB."""
PAUSE = 10**-2.5
"""Peak of a window, relative to that of the recording, below which the melody pauses: -50 dB."""


@dataclass(frozen=True)
class MelodySpectrum(LogMel):
    """The spectra that an audio tower reads, in mel bands or in bands of equal width in octaves.

    Args:
        sample_rate: Sample rate of the audio, in Hz.
        bands: Number of bands.
        window: Samples per frame.
        hop: Samples between frames.
        f_min: Lower edge of the lowest mel band, or center of the lowest of the bands in octaves, in Hz.
        per_octave: Bands per octave. ``None`` takes mel bands.

    Raises:
        ValueError: A number is out of range.
    """

    per_octave: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_octave is not None and not (self.per_octave >= 1 and self.f_min >= 1):
            raise ValueError(
                f"bands in octaves need per_octave and f_min of at least 1, not {self.per_octave} and {self.f_min:g}"
            )

    def make(self) -> MelSpectrum:
        """The module that computes them."""
        rate, window, hop, bands, f_min = self.sample_rate, self.window, self.hop, self.bands, self.f_min
        if self.per_octave is None:
            return MelSpectrum(rate, window, hop=hop, bands=bands, f_min=f_min)
        return OctaveSpectrum(rate, window, hop=hop, bands=bands, f_min=f_min, per_octave=self.per_octave)


@dataclass(frozen=True)
class MelodyLoss:
    """The loss of pairs of embeddings.

    Args:
        kind: ``triplet``, with semi-hard negatives, or ``softmax``, the cross-entropy of finding the partner in the
            batch, in both directions (InfoNCE, arXiv 1807.03748).
        margin: Margin of the triplet loss, in squared distances, which are at most 4.
        temperature: Temperature of the softmax.

    Raises:
        ValueError: A value is out of range.
    """

    kind: Literal["triplet", "softmax"] = "triplet"
    margin: float = 0.2
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.kind not in ("triplet", "softmax"):
            raise ValueError(f"kind of loss must be triplet or softmax, not {self.kind!r}")
        for name in ("margin", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    def __call__(
        self, first: Tensor, second: Tensor, pieces: Tensor, similarity: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The loss of embeddings ``[N, dim]`` and those of their partners.

        Args:
            first: The embeddings.
            second: Those of their partners.
            pieces: The pieces ``[N]``, equal for equal ones.
            similarity: Returns the similarities ``[M, N]`` of embeddings ``[M, dim]`` to others, ``[N, dim]``.
        """
        negatives = pieces[:, None] != pieces
        if self.kind == "triplet":
            both = torch.cat([first, second])
            return semi_hard_triplet_loss(similarity(both, both), negatives, self.margin)
        partners = torch.arange(len(first), device=first.device)
        own = partners[:, None] == partners
        logits = (similarity(first, second) / self.temperature).masked_fill(~(negatives | own), -torch.inf)
        return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


@register("conditioner", "melody-embedding")
class MelodyEmbedding(EmbeddingConditioner):
    """One embedding of the melody per window of audio (MusicLM, arXiv 2301.11325, appendix C).

    It is trained on pairs of a clip and its cover, the same passage on other instruments, in another tempo and key:
    the two get similar embeddings, and clips of other pieces, of all devices, other ones. So instruments, tempo and key
    make little difference, and a stage that is given the embeddings takes the melody from a recording, sung, hummed or
    played, but not its sound. The data must supply the field ``cover``, as the corpus does with ``covers: true``. An
    audio tower that keeps the key lets the stage take the key, too: clips are then compared in the best of all keys.
    In training, a random window of a longer clip is used, and the one of the cover that begins after the same fraction.

    A condition is the embeddings of the windows of a clip, in order. They have no frame rate, because the melody may be
    played at any tempo, unless they are ``aligned``. Spectra are relative to the loudest magnitude of their window, so
    the level does not matter. A silent recording has no melody: it counts as a missing one.

    Args:
        audio_tower: The network that embeds the spectrum of a window.
        dim: Width of the embeddings.
        window: Seconds of audio per embedding.
        stride: Seconds between the starts of two windows. The last window is padded with silence.
        seconds: Seconds of a clip, from its start, that a condition covers; ``None`` covers all of it.
        aligned: Whether the condition is aligned in time: a frame for each stride, with the window around its middle. A
            stage then follows the melody at its own tempo, and must be trained on the melody of the clip itself.
        loss: The loss of pairs.
        spectrum: The spectra that the tower reads.
        detune: Largest random shift of the pitch of a window in training, up or down, in cents, because people hum out
            of tune. Only for bands in octaves.
        inputs: Names of the fields of audio that the conditioner reads. If a clip has several, the one that is named
            first is its condition. Training compares the first two.

    Raises:
        ValueError: A value is out of range.
    """

    inputs: tuple[str, ...] = ("audio", "cover")
    kinds: ClassVar[tuple[str, ...]] = ("audio",)

    def __init__(
        self,
        *,
        audio_tower: AudioTower,
        dim: int = 192,
        window: float = 4.0,
        stride: float = 3.0,
        seconds: float | None = 10.0,
        aligned: bool = False,
        loss: MelodyLoss = MelodyLoss(),
        spectrum: MelodySpectrum = MelodySpectrum(),
        detune: float = 0.0,
        inputs: tuple[str, ...] = ("audio", "cover"),
    ) -> None:
        super().__init__(inputs)
        if "stems" in self.inputs:
            raise ValueError("inputs: melody-embedding embeds one recording, but stems holds several")
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        for name, value in (("window", window), ("stride", stride), ("seconds", seconds)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 seconds, not {value}")
        if beyond(window, LONGEST_WINDOW):
            raise TooMuch(f"a window of {window:g} s exceeds the limit of {LONGEST_WINDOW:g} s: refused")
        if round(stride * spectrum.sample_rate) < spectrum.hop:
            raise ValueError(
                f"stride must be at least the hop of the spectrum, {spectrum.hop} samples, not {stride:g} s"
            )
        if aligned and stride > window:
            raise ValueError(
                f"aligned windows of {window:g} s leave gaps at a stride of {stride:g} s: lower the stride"
            )
        if audio_tower.per_octave not in (None, spectrum.per_octave):
            raise ValueError(
                f"the {audio_tower.registered_name} tower needs {audio_tower.per_octave} bands per octave, and "
                f"spectrum.per_octave is {spectrum.per_octave}: set both alike"
            )
        if not 0 <= detune <= MOST_CENTS:
            raise ValueError(f"detune must be from 0 to {MOST_CENTS:g} cents, not {detune}")
        if detune and spectrum.per_octave is None:
            raise ValueError("detune needs bands in octaves: set spectrum.per_octave, or detune to 0")
        self.detune = detune / 1200 * (spectrum.per_octave or 0)  # in bands
        self.dim, self.sample_rate, self.loss, self.longest_audio = dim, spectrum.sample_rate, loss, seconds
        self.window, self.stride = (max(1, round(value * spectrum.sample_rate)) for value in (window, stride))
        self.longest = None if seconds is None else max(1, round(seconds * spectrum.sample_rate))
        self.aligned = aligned
        self.spectrum = spectrum.make()
        self.audio_tower = audio_tower
        audio_tower.build(self.window // spectrum.hop + 1, spectrum.bands, dim)
        self.pairs = EmbeddedPairs()
        self._unpaired = 0

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The two fields that are compared."""
        return self.inputs[:2]

    @property
    def spec(self) -> ConditionSpec:
        """Embeddings, with a frame rate if they are aligned in time."""
        return ConditionSpec(self.dim, float(self.sample_rate / self.stride) if self.aligned else None)

    def windows(self, samples: Tensor) -> Tensor:
        """The number of windows of clips of so many samples, int64; none if a clip has no samples."""
        if self.aligned:
            return (samples + self.stride - 1) // self.stride
        more = (samples - self.window).clamp(min=0)
        return torch.where(samples > 0, 1 + (more + self.stride - 1) // self.stride, 0)

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Convert clips to tensors.

        Each field yields, under its name, its audio ``[B, T]`` float32, padded to the longest, and as
        ``…_samples`` the lengths ``[B]`` int64, which are 0 for clips without it, and for silent ones. ``piece``
        ``[B]`` int64 is equal for clips of the same piece. ``frames`` ``[B]`` int64 is the length of an aligned
        condition of each clip, and otherwise 1.
        """
        prepared = {}
        for name in self.inputs:
            values = [clip.audio if name == "audio" else clip.fields.get(name) for clip in clips]
            audio = [_heard(value) for value in values]
            prepared[name] = pad_sequence(audio, batch_first=True)
            prepared[f"{name}_samples"] = torch.tensor([len(one) for one in audio])
        frames = [self.positions(clip.seconds) if self.aligned else 1 for clip in clips]
        return prepared | {"piece": torch.tensor([_piece(clip) for clip in clips]), "frames": torch.tensor(frames)}

    @torch.no_grad()
    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Embeddings ``[B, L, dim]`` of the windows, zero where masked."""
        condition = self._embedded(prepared, self.inputs[0])
        for name in self.inputs[1:]:
            other = self._embedded(prepared, name)
            longest = max(condition.mask.shape[1], other.mask.shape[1])
            condition = condition.lasting(longest).where(condition.mask.any(1), other.lasting(longest))
        return condition.lasting(max(condition.mask.shape[1], int(prepared["frames"].max())))

    @torch.no_grad()
    def embed_audio(self, audio: Tensor) -> Tensor:
        """Embed audio ``[B, 1, T]`` at :attr:`sample_rate` as ``[B, N, dim]`` float32 of unit length.

        There is one embedding per window, of the whole audio.

        Raises:
            PartitaError: The audio is empty, or has more than one channel.
        """
        check_embeddable("melody-embedding", audio)
        return self._of_clips(
            audio[:, 0], torch.full((len(audio),), audio.shape[2], device=audio.device), pauses=True
        ).values

    def setup(self, stage: str) -> None:
        """Check that there are two fields to compare.

        Raises:
            PartitaError: The conditioner reads a single field.
        """
        if stage == "fit" and len(self.inputs) < 2:
            raise PartitaError(
                f"melody-embedding is trained on pairs of a clip and its cover, but its inputs are {self.inputs[0]}: "
                f"add {'audio' if self.inputs[0] == 'cover' else 'cover'}"
            )

    def training_step(self, prepared: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, over the pairs of all processes.

        Raises:
            PartitaError: Too many batches in a row have no clip with a cover.
        """
        paired = of_all(self._paired(prepared))
        self._unpaired = 0 if paired.any() else self._unpaired + 1
        if self._unpaired == MOST_UNPAIRED:
            raise PartitaError(
                f"{MOST_UNPAIRED} batches in a row have no clip with both {' and '.join(self.inputs[:2])}, which "
                "melody-embedding compares: set `covers: true` for the corpus, or name more files in the column "
                "`cover` of a manifest"
            )
        device = paired.device
        fraction = per_example(lambda count: torch.rand(count, device=device), len(prepared["piece"]), device)
        first, second = (
            self._of_windows(
                self._window_at(prepared[name], prepared[f"{name}_samples"], fraction),
                self.detune * per_example(lambda count: 2 * torch.rand(count, device=device) - 1, len(fraction), device)
                if self.detune
                else None,
            )
            for name in self.inputs[:2]
        )
        with torch.autocast(device.type, enabled=False):
            first, second, pieces = (of_all(values)[paired] for values in (first, second, prepared["piece"]))
            # a sum of nothing, on which the gradients still depend
            loss = self.loss(first, second, pieces, self.similarity) if len(first) else (first.sum() + second.sum())
        self.log("train/loss", loss, prog_bar=True, batch_size=len(prepared["piece"]))
        return loss

    def validation_step(self, prepared: dict[str, Tensor], batch_idx: int) -> None:
        """Collect the embeddings of clips and covers, each the normalized mean of all windows."""
        if (views := self.views(prepared)) is not None:
            self.pairs.update(mean_embedding(views.first), mean_embedding(views.second), views.keys)

    def on_validation_epoch_end(self) -> None:
        """Log the loss, and how often a clip finds its cover among those of all validation clips."""
        first, second, pieces = self.pairs.collected()
        self.pairs.reset()
        if not len(first):
            return
        self.log("val/loss", self.loss(first, second, pieces, self.similarity), prog_bar=True)
        found = self.recalls(first, second, pieces)
        self.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=True)

    def outline_step(self, examples: int, seconds: float) -> Callable[[], Tensor]:
        """The loss of a batch of windows and of those of their covers."""

        def loss() -> Tensor:
            first, second = (self._of_windows(torch.zeros(examples, self.window)) for _ in range(2))
            return self.loss(first, second, torch.arange(examples), self.similarity)

        return loss

    @torch.no_grad()
    def views(self, prepared: dict[str, Tensor]) -> Views | None:
        """The embeddings of all windows of the first two fields, for the clips that have both."""
        if len(self.inputs) < 2:
            return None
        paired = self._paired(prepared)
        first, second = (
            self._of_clips(prepared[name][paired], prepared[f"{name}_samples"][paired]) for name in self.inputs[:2]
        )
        return Views(first, second, prepared["piece"][paired])

    def recalls(self, first: Tensor, second: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """How often a clip finds its cover; those of other clips of its tune do not count."""
        similarity = self.similarity(first.float(), second.float())
        alone = torch.eye(len(keys), dtype=torch.bool, device=keys.device)
        similarity = similarity.masked_fill((keys[:, None] == keys) & ~alone, -torch.inf)
        return {f"recall_at_{number}": recall_of(similarity, number) for number in (1, 10)}

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """The cosine similarities ``[M, N]`` of embeddings ``[M, dim]`` and ``[N, dim]``, in the best key."""
        keys = self.audio_tower.key_blocks
        turned = (first.unflatten(1, (keys, -1)).roll(key, 1).flatten(1) for key in range(keys))
        return torch.stack([one @ second.T for one in turned]).amax(0)

    def _paired(self, prepared: dict[str, Tensor]) -> Tensor:
        """Which clips have both of the first two fields, ``[B]`` bool."""
        first, second = (prepared[f"{name}_samples"] > 0 for name in self.inputs[:2])
        return first & second

    def _embedded(self, prepared: dict[str, Tensor], name: str) -> Condition:
        audio, samples = prepared[name], prepared[f"{name}_samples"]
        if self.longest is not None:
            audio, samples = audio[:, : self.longest], samples.clamp(max=self.longest)
        return self._of_clips(audio, samples)

    def _of_clips(self, audio: Tensor, samples: Tensor, pauses: bool = False) -> Condition:
        """The embeddings of all windows of clips ``[B, T]``, at least one position, masked for clips without audio.

        Windows in which the melody pauses are masked, too, unless ``pauses`` are wanted.
        """
        counts = self.windows(samples)
        number = max(1, int(counts.max()) if len(counts) else 1)
        mask = torch.arange(number, device=audio.device) < counts[:, None]
        before = (self.window - self.stride) // 2 if self.aligned else 0  # of the middle of a frame and of its window
        length = (number - 1) * self.stride + self.window
        padded = F.pad(audio, (before, max(0, length - before - audio.shape[1])))[:, :length]
        windows = padded.unfold(1, self.window, self.stride)
        if not pauses:
            peaks = torch.maximum(windows.amax(2), -windows.amin(2))
            mask &= peaks >= (PAUSE * peaks.amax(1, keepdim=True)).clamp(min=SILENT)
        known = windows[mask]
        values = torch.zeros(len(audio), number, self.dim, device=audio.device)
        if len(known):
            values[mask] = torch.cat([self._of_windows(some) for some in known.split(AT_ONCE)])
        return Condition(values, mask)

    def _window_at(self, audio: Tensor, samples: Tensor, fraction: Tensor) -> Tensor:
        """The window of each of the clips ``[B, T]`` that begins after a fraction of what it can skip."""
        starts = ((samples - self.window).clamp(min=0) * fraction).long()
        padded = F.pad(audio, (0, max(0, self.window - audio.shape[1])))
        return padded.gather(1, starts[:, None] + torch.arange(self.window, device=audio.device))

    def _of_windows(self, audio: Tensor, shifts: Tensor | None = None) -> Tensor:
        """The embeddings ``[N, dim]`` of windows ``[N, window]``, float32 of unit length.

        Args:
            audio: The windows.
            shifts: Bands by which the spectrum of each is shifted upwards, ``[N]``.
        """
        magnitude = self.spectrum(audio[:, None])[:, 0]
        loudest = magnitude.amax((1, 2), keepdim=True).clamp(min=QUIETEST)
        levels = (magnitude / loudest + FLOOR).log() / math.log(FLOOR)  # from 1 for silence to 0
        if shifts is not None:
            levels = shifted_bands(levels, shifts, silence=1.0)
        embeddings = self.audio_tower(1 - 2 * levels)
        with torch.autocast(audio.device.type, enabled=False):
            return F.normalize(embeddings.float(), dim=-1)


def _heard(audio: Tensor | None) -> Tensor:
    """The samples ``[T]`` of a recording ``[1, T]``; none if it is missing or silent."""
    if audio is None or not (audio.abs() >= SILENT).any():
        return torch.zeros(0)
    return audio[0].float()


def _piece(clip: Clip) -> int:
    """A number below 2^63 that differs for other tunes; a clip whose piece is not known has one of its own."""
    name = group_of(clip.fields)
    audio = clip.fields.get("cover") if clip.audio is None else clip.audio
    own = b"" if audio is None else audio.numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(own if name is None else name.encode(), digest_size=8).digest()) >> 1
