"""Toy parts that evaluations measure, and options of small evaluations."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import toys
from partita.conditioners.joint import JointConditioner
from partita.core.contracts import Example, Generated, RepresentationSpec
from partita.core.registry import register
from partita.evaluation.evaluation_options import Evaluation
from partita.layers.guidance import classifier_free
from partita.tokenizers.base import Tokenizer

FEW = Evaluation(clips=5, reference_clips=6, duration=1.0, batch_size=2, scores={"fad": False})
LOG_MEL = replace(FEW, scores={})
EMBEDDED = []
CODEC_ROWS = {
    "codec distance",
    "mel distance",
    "STFT distance",
    "SI-SDR",
    "codebook usage",
    "codebook perplexity",
    "bitrate",
    "encoding speed",
    "decoding speed",
}
"""What is measured of a codec with codes."""
"""Batches that the toy classifier has seen."""
JOINT = "toy-joint weights=joint"
"""The name of the joint conditioner in rows."""


def timeless(results):
    """The results of an evaluation without how fast the codec was, which is never the same."""
    rows = {name: row for name, row in results["metrics"].items() if not name.endswith(" speed")}
    return results | {"metrics": rows}


def scored(options=FEW, **scores):
    """Options with other scores beside their own."""
    return replace(options, scores=options.scores | scores)


@register("tokenizer", "toy-listener")
class ToyListener(Tokenizer):
    """Logits of how many times a quarter of a second crosses zero: the pitch of a sine, in eight labels.

    Args:
        labels: How many.
    """

    weightless = True
    trainable = False
    logits = True

    def __init__(self, *, labels: int = 8):
        super().__init__()
        self.labels = labels

    @property
    def spec(self):
        return RepresentationSpec(4000, 1, 4.0, dim=self.labels)

    def encode(self, audio):
        EMBEDDED.append(len(audio))
        parts = F.pad(audio[:, 0], (0, -audio.shape[-1] % 1000)).unflatten(-1, (-1, 1000))
        crossings = (parts[..., 1:].sign() != parts[..., :-1].sign()).float().sum(-1)  # 50 for each 100 Hz
        return -((crossings[:, None] / 50 - 1 - torch.arange(self.labels)[:, None]) ** 2) * 4


@register("conditioner", "toy-joint")
class ToyJoint(JointConditioner):
    """Texts "tone 3" beside audio of that pitch, as the listener hears it.

    Args:
        gain: Changes what audio is like.
    """

    inputs = ("text",)
    sample_rate = 4000
    dim = 8

    def __init__(self, *, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.full((), gain))
        self.listener = ToyListener()

    def tokenize(self, texts):
        tokens = torch.tensor([[int((text or "0").split()[-1])] for text in texts])
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def embed_tokens(self, tokens, mask):
        return F.one_hot(tokens[:, 0], self.dim).float()

    def embed_audio(self, audio):
        return F.normalize(self.listener.encode(audio * self.gain).mT.softmax(-1) + 0.01, dim=-1)


@register("generator", "toy-singer")
class ToySinger(toys.ToyDice):
    """The sine that a caption "tone 3" is of, in the codes of a codec of one gain and any hop."""

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        tone = conditions["text"][0].values[:, 0].argmax(-1, keepdim=True) + 1
        time = torch.arange(frames) / self.target.frame_rate
        sine = torch.sin(2 * torch.pi * 100 * tone * time + 0.1)
        return Generated(((sine + 1) / 2 * (self.target.cardinality - 1)).round().long()[:, None])


@register("data", "toy-loops")
class ToyLoops(toys.ToySines):
    """Half a second at random, again and again; and a tune that nobody hears.

    Args:
        pieces: How many.
        pauses: So many of them are silent.
    """

    fields = frozenset({"text", "id", "melody"})

    def __init__(self, *, pieces: int = 5, pauses: int = 0):
        super().__init__(pieces=pieces)
        self.pauses = pauses

    def read(self, split, index, *, seed, seconds, sample_rate, channels):
        levels = np.random.default_rng((index, split == "train")).uniform(-0.9, 0.9, 20).astype(np.float32)
        half = levels.repeat(sample_rate // 40) * (index >= self.pauses)
        audio = np.resize(half, (1, round(seconds * sample_rate)))
        fields = {"text": f"loop {index}", "id": str(index), "melody": [(0.0, 1.0, 60)]}
        return Example(torch.from_numpy(audio), audio.shape[1], fields)


@register("generator", "toy-loop")
class ToyLoop(toys.ToyDice):
    """The prompt, again and again; dice where there is none."""

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        if prefix is None:
            return super().generate(conditions, frames, seeds=seeds)
        return Generated(prefix.repeat(1, 1, -(-frames // prefix.shape[-1]))[..., :frames])


@dataclass(frozen=True)
class Guided:
    """How the next toy draws.

    Args:
        guidance: Scale.
        temperature: Unused.
    """

    guidance: float = 3.0
    temperature: float = 1.0


@register("generator", "toy-misled")
class ToyMisled(ToyLoop):
    """The prompt, again and again, unless guidance leads away from it."""

    sampling = Guided()

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        guided = len(guidance or classifier_free(sampling.guidance)) > 1
        return super().generate(conditions, frames, seeds=seeds, prefix=None if guided else prefix)


@register("generator", "toy-mute")
class ToyMute(toys.ToyDice):
    """Silence, after the prompt if any."""

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        codes = torch.full((len(seeds), 1, frames), self.target.cardinality // 2)
        if prefix is not None:
            codes[..., : prefix.shape[-1]] = prefix
        return Generated(codes)


@register("conditioner", "toy-tune")
class ToyTune(toys.ToyLetters):
    """A melody, unheard.

    Args:
        dim: Width.
    """

    inputs = ("melody",)

    def prepare(self, clips):
        return super().prepare([replace(clip, fields={"melody": "a"}) for clip in clips])
