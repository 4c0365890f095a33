"""A minute MuLan, and tones with captions for it."""

import torch

from partita.conditioners.audio_towers.spectrogram_transformer import SpectrogramTransformer
from partita.conditioners.mulan import LogMel, MuLan
from partita.conditioners.text_towers.words_transformer import WordsTransformer
from partita.core.contracts import Clip

RATE = 8000
NAMES = ["flute", "harp", "organ", "brass", "choir", "cello", "oboe", "piano"]


def minute(**options):
    """A MuLan for windows of half a second, which begin every quarter."""
    torch.manual_seed(0)
    audio = SpectrogramTransformer(width=16, depth=1, num_heads=2, patch=(8, 8))
    text = WordsTransformer(width=16, depth=1, num_heads=2, num_embeddings=256)
    sizes = {"dim": 8, "window": 0.5, "stride": 0.25, "spectrum": LogMel(RATE, 32, 256, 200)}
    return MuLan(**{"audio_tower": audio, "text_tower": text} | sizes | options)


def tone(index, seconds=0.5, channels=1):
    time = torch.arange(round(seconds * RATE)) / RATE
    return (0.5 * torch.sin(2 * torch.pi * 200 * 1.4**index * time)).expand(channels, -1)


def clips(seconds=0.5, count=8):
    """Tones, each with a caption of its own."""
    return [Clip({"text": f"a slow {NAMES[i]}"}, seconds, tone(i, seconds), RATE) for i in range(count)]
