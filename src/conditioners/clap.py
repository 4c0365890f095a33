"""Frozen CLAP, which embeds texts and audio in one space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.registry import register
from ..errors import PartitaError
from ..storage.pretrained import read_config
from ..storage.text_tokenizer import tokenized
from . import clap_checkpoint as checkpoint
from .joint import JointConditioner, check_embeddable, windows_of
from .words import vocabulary_bytes

SAMPLE_RATE = checkpoint.FRONT_END["sampling_rate"]
BANDS, WINDOW, HOP = (checkpoint.FRONT_END[name] for name in ("feature_size", "fft_window_size", "hop_length"))
SECONDS = 10
"""Seconds of audio that the audio tower processes at once; shorter audio is repeated."""
MAX_LENGTH = 77
"""Maximum number of text tokens, as in training; the rest is left out."""
AT_ONCE = 16
"""Number of windows that are embedded at once, which bounds the memory that a long clip takes."""


class _Size(NamedTuple):
    width: int
    depths: tuple[int, ...]


SIZES = {"tiny": _Size(96, (2, 2, 6, 2)), "base": _Size(128, (2, 2, 12, 2)), "large": _Size(256, (2, 2, 12, 2))}
"""Sizes of HTS-AT in LAION's configurations: width of the first of its four stages, and blocks of each stage."""


@dataclass(frozen=True)
class RobertaShape:
    """Sizes of the RoBERTa text encoder of CLAP.

    Args:
        width: Width of the embeddings.
        feed_forward_width: Width between the feed-forward projections.
        depth: Number of blocks.
        num_heads: Attention heads.
        vocabulary: Number of text tokens.
        epsilon: Epsilon of the normalizations: 1e-5 in RoBERTa and LAION's models; transformers' conversions have
            1e-12.
    """

    width: int = 768
    feed_forward_width: int = 3072
    depth: int = 12
    num_heads: int = 12
    vocabulary: int = 50265
    epsilon: float = 1e-5


@register("conditioner", "clap")
class CLAP(JointConditioner):
    """Frozen CLAP of LAION (arXiv 2211.06687): one 512-d embedding for a text, or for 10 s of 48 kHz audio.

    HTS-AT (arXiv 2202.00874) encodes the audio, RoBERTa encodes the texts, and two layers project each to the common
    space. As a condition, a text or a clip is its embedding. Only models without fusion are supported: each embedding
    belongs to one window.

    Weights are a file from LAION, local or on the Hub (``lukewys/laion_clap/music_audioset_epoch_15_esc_90.14.pt``), or
    a folder or hub id of transformers' ``ClapModel``. The text tokenizer comes with the latter; for a file it is taken
    from the same folder or is RoBERTa's (``FacebookAI/roberta-base``). It is saved with the weights. The model always
    computes in float32. It needs the extra ``t5``.

    Args:
        size: Size of HTS-AT: ``tiny``, ``base`` or ``large``.
        window: Seconds of audio per embedding, at most 10; shorter windows are repeated to fill 10 s.
        stride: Seconds between windows (audiocraft: 1).
        dim: Width of the embeddings.
        width: Width of the first stage of HTS-AT, a multiple of 4. ``None`` takes that of ``size``.
        depths: Number of blocks of each of the four stages. ``None`` takes those of ``size``.
        text: Sizes of RoBERTa.
        inputs: Names of the fields of text and audio that the conditioner reads. If a clip has both, the kind that is
            named first is embedded.

    Raises:
        ValueError: A value is out of range.
        PartitaError: transformers is not installed.
    """

    inputs: tuple[str, ...] = ("text",)
    trainable: ClassVar[bool] = False
    sample_rate: int = SAMPLE_RATE
    hann: Tensor
    filterbank: Tensor

    def __init__(
        self,
        *,
        size: Literal["tiny", "base", "large"] = "base",
        window: float = 10.0,
        stride: float = 1.0,
        dim: int = 512,
        width: int | None = None,
        depths: tuple[int, ...] | None = None,
        text: RobertaShape = RobertaShape(),
        inputs: tuple[str, ...] = ("text",),
    ) -> None:
        super().__init__(inputs)
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
        if not 0 < window <= SECONDS:
            raise ValueError(f"window must be above 0 and at most {SECONDS} seconds, not {window}")
        if not stride > 0:
            raise ValueError(f"stride must be above 0 seconds, not {stride}")
        width, depths = width or SIZES[size].width, depths or SIZES[size].depths
        if width % 4 or len(depths) != 4:
            raise ValueError(f"width must be a multiple of 4 and depths be four numbers, not {width} and {depths}")
        try:
            from transformers import (
                ClapAudioConfig,
                ClapAudioModelWithProjection,
                ClapTextConfig,
                ClapTextModelWithProjection,
            )
        except ImportError:
            raise PartitaError("the clap conditioner needs transformers: pip install 'partita[t5]'") from None
        audio = ClapAudioConfig(
            patch_embeds_hidden_size=width,
            depths=list(depths),
            num_attention_heads=[4, 8, 16, 32],
            hidden_size=8 * width,
            projection_dim=dim,
            num_mel_bins=BANDS,
        )
        words = ClapTextConfig(
            vocab_size=text.vocabulary,
            hidden_size=text.width,
            intermediate_size=text.feed_forward_width,
            num_hidden_layers=text.depth,
            num_attention_heads=text.num_heads,
            layer_norm_eps=text.epsilon,
            projection_dim=dim,
        )
        self.audio = ClapAudioModelWithProjection(audio)
        self.text = ClapTextModelWithProjection(words)
        self.dim = dim
        self.window, self.stride = (max(1, round(seconds * SAMPLE_RATE)) for seconds in (window, stride))
        self.tokenizer: Any = None
        self.register_buffer("hann", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filterbank", _filterbank(), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> CLAP:
        """Stay in evaluation mode, because the model is frozen."""
        return super().train(False)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Convert texts to ``tokens`` ``[B, L]`` int64 and their mask ``[B, L]`` bool, padded to the longest.

        Raises:
            PartitaError: There is no tokenizer, because no weights are loaded.
        """
        if self.tokenizer is None:
            raise PartitaError(
                "clap has no text tokenizer yet: it comes with the weights, so set `weights:` or load them"
            )
        encoded = tokenized(self.tokenizer, texts, MAX_LENGTH, self.text.config.vocab_size)
        return encoded["input_ids"], encoded["attention_mask"].bool()

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed tokens and mask ``[B, L]`` as ``[B, dim]`` float32 of unit length."""
        attended = mask.long()
        attended[:, 0] = 1  # the softmax of a fully masked row would be NaN
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(self.text(input_ids=tokens, attention_mask=attended).text_embeds.float(), dim=-1)

    @torch.no_grad()
    def embed_audio(self, audio: Tensor) -> Tensor:
        """Embed audio ``[B, 1, T]`` at 48 kHz as ``[B, N, dim]`` float32 of unit length, one embedding per window.

        A window begins every ``stride``. If the last one does not end with the clip, another one does, which audiocraft
        leaves out. A clip shorter than a window is a single one: it is repeated as often as it fits completely into 10
        s, and then padded with silence (as in the training of LAION's models, and ``repeatpad`` of transformers).

        Raises:
            PartitaError: The audio is empty, or has more than one channel.
        """
        check_embeddable("clap", audio)
        with torch.autocast(audio.device.type, enabled=False):
            windows = windows_of(audio[:, 0].float(), self.window, self.stride)
            embedded = [self._of_audio(some) for some in windows.flatten(0, 1).split(AT_ONCE)]
            return torch.cat(embedded).unflatten(0, windows.shape[:2])

    def log_mel(self, audio: Tensor) -> Tensor:
        """The power of audio ``[N, T]`` of at most 10 s in mel bands ``[N, 1001, 64]``, in dB of at least -100."""
        length = SECONDS * SAMPLE_RATE
        filled = audio.repeat(1, length // audio.shape[1])
        filled = F.pad(filled, (0, length - filled.shape[1]))
        spectrum = torch.stft(filled, WINDOW, HOP, window=self.hann, pad_mode="reflect", return_complex=True)
        return 10 * (spectrum.abs().square().mT @ self.filterbank).clamp(min=1e-10).log10()

    def exported_state(self) -> dict[str, Tensor]:
        """The weights, without constants that are derived from the sizes."""
        return {k: v for k, v in super().exported_state().items() if not k.endswith(checkpoint.CONSTANTS)}

    def load_weights(self, source: str | Path) -> None:
        """Load a folder that :meth:`save` wrote, a file from LAION, or any ``ClapModel`` with its tokenizer.

        Args:
            source: A folder, a ``.pt`` file, a hub id such as ``laion/clap-htsat-unfused``, or a file on the Hub, such
                as ``lukewys/laion_clap/music_audioset_epoch_15_esc_90.14.pt``.

        Raises:
            PartitaError: The weights do not exist, have fusion or no tokenizer, or have other sizes.
        """
        path = checkpoint.laion_file(source)
        if path is not None:
            self.load_exported_state(checkpoint.read_laion(path), source)
            self.tokenizer = checkpoint.read_tokenizer(checkpoint.tokenizer_beside(path))
            return
        folder = checkpoint.transformers_folder(source)
        if "family" in read_config(folder):
            super().load_weights(folder)
            return
        self.load_exported_state(checkpoint.read_transformers(folder), source)
        self.tokenizer = checkpoint.read_tokenizer(folder)

    def vocabulary(self) -> bytes:
        """The words of the text tokenizer and their numbers."""
        return vocabulary_bytes(self.tokenizer)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the text tokenizer into the folder ``tokenizer`` of a saved part."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / "tokenizer")

    def load_tokenizer(self, folder: Path) -> None:
        """Read the text tokenizer that :meth:`save_tokenizer` wrote."""
        if (folder / "tokenizer").is_dir():
            self.tokenizer = checkpoint.read_tokenizer(folder / "tokenizer")

    def _of_audio(self, audio: Tensor) -> Tensor:
        """The embeddings ``[N, dim]`` of windows ``[N, T]``."""
        return F.normalize(self.audio(input_features=self.log_mel(audio)[:, None]).audio_embeds.float(), dim=-1)


def _filterbank() -> Tensor:
    """Mel bands of equal area on Slaney's scale, ``[513, 64]``, which LAION's models without fusion are trained on."""
    from torchaudio.functional import melscale_fbanks

    low, high = (float(checkpoint.FRONT_END[name]) for name in ("frequency_min", "frequency_max"))
    with torch.device("cpu"):
        return melscale_fbanks(WINDOW // 2 + 1, low, high, BANDS, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
