"""The smallest parts that fulfill the contracts; recipes in tests name them like any other."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from partita.conditioners.base import Conditioner
from partita.core.contracts import Clip, Condition, ConditionSpec, Example, Generated, Given, RepresentationSpec
from partita.core.registry import register
from partita.data.base import Source
from partita.generators.base import NO_DROPOUT, ConditionDropout, Generator
from partita.layers.chunks import Local
from partita.tokenizers.base import Tokenizer

TOY_RECIPE = """# the smallest system
tokenizers:
  acoustic: {name: toy-codec, fit: {steps: 6, batch_size: 2, crop: 0.5, checkpoint_every: 2}}
conditioners:
  text: toy-letters
stages:
  main:
    generator:
      name: toy-bigram
      condition_dropout: {together: 0.2}
      fit: {steps: 8, batch_size: 2, ema: 0.9, checkpoint_every: 3, validate_every: 4, validation_examples: 2}
    target: acoustic
    given: [text]
    window: 1.0
data: toy-sines
trainer: {logger: csv}  # to draw clips for TensorBoard would take most of the time
"""


def told(texts, field="text", seeds=None):
    """Clips of a second of which a field is known, or of none it is ``None``."""
    seeds = seeds or [None] * len(texts)
    return [Clip({field: text}, 1.0, seed=seed) for text, seed in zip(texts, seeds, strict=True)]


@register("data", "toy-sines")
class ToySines(Source):
    """Sines whose pitch the caption names."""

    fields = frozenset({"text", "id"})

    def __init__(self, *, pieces: int = 8):
        self.pieces = pieces

    def setup(self):
        pass

    def size(self, split):
        return self.pieces

    def read(self, split, index, *, seed, seconds, sample_rate, channels):
        phase = np.random.default_rng(seed).uniform(0, 2 * np.pi)
        time = np.arange(int((seconds or 1.0) * sample_rate)) / sample_rate
        audio = 0.5 * np.sin(2 * np.pi * 100 * (1 + index) * time + phase)
        return Example(
            torch.from_numpy(audio[None].astype(np.float32)).repeat(channels, 1),
            len(time),
            {"text": f"tone {index}", "id": str(index)},
        )


@register("data", "toy-songs")
class ToySongs(ToySines):
    """The same, with everything that is known of the structure of a song."""

    fields = ToySines.fields | {"key", "instruments", "chords", "beats", "downbeats", "tempo"}
    fields |= {"seconds_start", "seconds_total"}

    def read(self, split, index, **options):
        example = super().read(split, index, **options)
        example.fields |= {
            "key": "G minor",
            "instruments": ["flute"],
            "chords": [(0.0, 0.2, "G:min"), (0.2, 9.0, "D:7")],
        }
        example.fields |= {"beats": [0.1, 0.3], "downbeats": [0.1], "tempo": 300.0}
        example.fields |= {"seconds_start": 1.0, "seconds_total": 60.0}
        return example


@register("tokenizer", "toy-encoder")
class ToyEncoder(Tokenizer):
    """A linear layer over frames of samples, which learns to reconstruct them."""

    def __init__(self, *, dim: int = 3):
        super().__init__()
        self.down, self.up = nn.Linear(100, dim), nn.Linear(dim, 100)

    @property
    def spec(self):
        return RepresentationSpec(4000, 1, 40, dim=self.down.out_features)

    def encode(self, audio):
        frames = F.pad(audio[:, 0], (0, -audio.shape[-1] % 100)).unflatten(-1, (-1, 100))
        return self.down(frames).mT

    def decode(self, representation):
        return self.up(representation.mT).flatten(1)[:, None]

    def training_step(self, batch, batch_idx):
        loss = (self.decode(self.encode(batch["audio"])) - batch["audio"]).square().mean()
        self.log("train/loss", loss)
        return loss


@register("tokenizer", "toy-outer")
class ToyOuter(ToyEncoder):
    """An encoder of what another one reconstructs, whose optimizer gets all parameters."""

    def __init__(self, *, inner: Tokenizer, dim: int = 3):
        super().__init__(dim=dim)
        self.inner = inner

    def encode(self, audio):
        assert not self.inner.training
        return super().encode(self.inner.decode(self.inner.encode(audio)))


@register("tokenizer", "toy-codec")
class ToyCodec(Tokenizer):
    """Frames of samples, squeezed by a learned gain and rounded to levels.

    Args:
        hop: Samples per frame.
        cardinality: Levels.
    """

    def __init__(self, *, hop: int = 100, cardinality: int = 16):
        super().__init__()
        if hop < 1:
            raise ValueError(f"hop must be positive, not {hop}")
        self.hop, self.cardinality = hop, cardinality
        self.gain = nn.Parameter(torch.randn(()) * 0.01 + 0.5)

    @property
    def spec(self):
        return RepresentationSpec(4000, 1, 4000 / self.hop, 1, self.cardinality)

    def encode(self, audio):
        padded = F.pad(audio, (0, -audio.shape[-1] % self.hop))
        mean = padded.unflatten(-1, (-1, self.hop)).mean(-1) * self.gain
        return ((mean.clamp(-1, 1) + 1) / 2 * (self.cardinality - 1)).round().long()

    def decode(self, representation):
        return (representation / (self.cardinality - 1) * 2 - 1).repeat_interleave(self.hop, -1)

    def encoding_steps(self, latents=False):
        return [Local(self.encode, inputs=self.hop)]

    def decoding_steps(self, latents=False):
        return [Local(self.decode, outputs=self.hop)]

    def training_step(self, batch, batch_idx):
        noise = torch.randn_like(batch["audio"]) * 0.1
        loss = ((self.gain * (batch["audio"] + noise) - batch["audio"]) ** 2).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", ((self.gain * batch["audio"] - batch["audio"]) ** 2).mean())


@register("conditioner", "toy-letters")
class ToyLetters(Conditioner):
    """The mean of learned letter embeddings.

    Args:
        dim: Width.
    """

    inputs = ("text",)
    trained_with_stage = True

    def __init__(self, *, dim: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(256, dim)

    @property
    def spec(self):
        return ConditionSpec(dim=self.embedding.embedding_dim)

    def prepare(self, clips):
        texts = [clip.fields.get(self.inputs[0]) for clip in clips]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise TypeError("a prompt is text")
        letters = torch.zeros(len(texts), 16, dtype=torch.long)
        for row, text in zip(letters, texts, strict=True):
            encoded = (text or "").encode()[:16]
            row[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.long)
        return {"letters": letters}

    def forward(self, prepared):
        letters = prepared["letters"]
        mask = (letters > 0).any(1, keepdim=True)
        return Condition(self.embedding(letters).mean(1, keepdim=True) * mask[..., None], mask)


@register("conditioner", "toy-contrast")
class ToyContrast(ToyLetters):
    """Trained on its own to say how loud a clip is; it hears clips in training and reads texts."""

    inputs = ("audio", "text")
    sample_rate = 2000
    trained_with_stage = False

    def prepare(self, clips):
        level = [0.0 if clip.audio is None else float(clip.audio.square().mean()) for clip in clips]
        texts = told([clip.fields.get("text") for clip in clips], "audio")
        return super().prepare(texts) | {"level": torch.tensor(level)}

    def training_step(self, batch, batch_idx):
        said = self(batch).values.mean((1, 2))
        return ((said - batch["level"]) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx), batch_size=len(batch["level"]))


@dataclass(frozen=True)
class Greed:
    """How the toy draws: it takes the likeliest."""

    temperature: float = 0.0


@register("generator", "toy-bigram")
class ToyBigram(Generator):
    """Each code given the one before and the conditions.

    Args:
        width: Of the embedding.
    """

    discrete = True
    fusions = ("cross",)
    sampling = Greed()

    def __init__(
        self,
        target: RepresentationSpec,
        given: dict[str, Given],
        *,
        width: int = 16,
        condition_dropout: ConditionDropout = NO_DROPOUT,
    ):
        super().__init__(target, given, condition_dropout=condition_dropout)
        self.embedding = nn.Embedding(target.cardinality + 1, width)
        self.projections = nn.ModuleDict({name: nn.Linear(g.spec.dim, width) for name, g in given.items()})
        self.head = nn.Linear(width, target.cardinality)

    def logits(self, previous, conditions):
        hidden = self.embedding(previous)
        for name, condition in conditions.items():
            masked = condition.values * condition.mask[..., None]
            hidden = hidden + self.projections[name](masked).mean(1, keepdim=True)
        return self.head(hidden)

    def loss(self, target, mask, conditions):
        codes = target[:, 0]
        previous = F.pad(codes[:, :-1], (1, 0), value=self.target.cardinality)
        return {"loss": F.cross_entropy(self.logits(previous, conditions).mT, codes)}

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        kept = {name: condition for name, (condition, _) in conditions.items()}
        codes = torch.full((len(seeds), 1), self.target.cardinality)
        if prefix is not None:
            codes = torch.cat([codes, prefix[:, 0]], 1)
        while codes.shape[1] <= frames:
            codes = torch.cat([codes, self.logits(codes[:, -1:], kept)[:, -1].argmax(-1, keepdim=True)], 1)
        if progress is not None:
            progress(frames, frames)
        return Generated(codes[:, None, 1:])


@register("data", "toy-trained")
class ToyTrained(ToySines):
    """The same, all of it for training."""

    def size(self, split):
        return self.pieces if split == "train" else 0

    def read(self, split, index, **how):
        assert index < self.size(split)
        return super().read(split, index, **how)


@register("data", "toy-silent")
class ToySilent(ToySines):
    """The same without captions."""

    fields = frozenset({"id"})

    def read(self, *args, **kwargs):
        example = super().read(*args, **kwargs)
        example.fields.pop("text", None)
        return example


@register("generator", "toy-dice")
class ToyDice(Generator):
    """Codes at random, or whatever follows a prompt."""

    discrete = True
    fusions = ("cross",)
    sampling = Greed()

    def __init__(self, target: RepresentationSpec, given: dict[str, Given]):
        super().__init__(target, given)
        self.odds = nn.Parameter(torch.zeros(target.cardinality))

    def loss(self, target, mask, conditions):
        return {"loss": F.cross_entropy(self.odds.expand(target.numel(), -1), target.flatten())}

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (self.target.num_codebooks, frames)
        codes = torch.stack([torch.randint(self.target.cardinality, shape, generator=draw) for draw in draws])
        if prefix is not None:
            codes[..., : prefix.shape[-1]] = prefix
        return Generated(codes)


@register("generator", "toy-echo")
class ToyEcho(ToyDice):
    """The last codes it is given, at the rate of its target, whatever the prompt."""

    fusions = ("prepend",)

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        name = list(self.given)[-1]
        ratio = self.given[name].spec.frame_rate / self.target.frame_rate
        at = ((torch.arange(frames) + 0.5) * ratio).long()
        return Generated(conditions[name][0].values[:, :, at])
