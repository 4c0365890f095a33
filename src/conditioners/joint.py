"""The contract of conditioners that embed texts and audio in one space."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..core.contracts import Clip, Condition
from ..core.registry import lookup
from ..errors import PartitaError
from ..metrics.retrieval import recall
from .embedding import EmbeddingConditioner, Views
from .words import texts_of


class JointConditioner(EmbeddingConditioner):
    """A conditioner that embeds texts and audio in one space, such as CLAP or MuLan.

    Besides conditions it returns embeddings, which consistency scores and Fréchet distances compare. A condition is one
    embedding. If a clip has both audio and a text, the order of :attr:`inputs` decides which of them is embedded.
    """

    kinds: ClassVar[tuple[str, ...]] = ("audio", "text")

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Convert texts to tokens ``[B, L]`` int64 and their mask ``[B, L]`` bool, padded to the longest.

        Raises:
            PartitaError: There is no tokenizer yet.
        """

    @abstractmethod
    def embed_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed what :meth:`tokenize` returns as ``[B, D]`` float32 of unit length."""

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as ``[B, D]`` float32 of unit length.

        Raises:
            PartitaError: There is no tokenizer yet.
        """
        tokens, mask = self.tokenize(list(texts))
        device = next(self.parameters()).device
        return self.embed_tokens(tokens.to(device), mask.to(device))

    def embed_clips(self, audio: Tensor, samples: Tensor) -> Tensor:
        """Embed each clip as the normalized mean of the embeddings of its windows, ``[B, D]``.

        Args:
            audio: Audio ``[B, T]`` at :attr:`sample_rate`.
            samples: Number of samples of each clip, ``[B]``. The embedding of a clip without samples is zero.
        """
        embeddings = torch.zeros(len(audio), self.dim, device=audio.device)
        for length in samples.unique().tolist():
            if length:
                rows = samples == length
                embeddings[rows] = F.normalize(self.embed_audio(audio[rows, None, :length]).mean(1), dim=-1)
        return embeddings

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Convert clips to tensors.

        Fields of audio yield ``audio`` ``[B, T]`` float32, padded to the longest, and ``samples`` ``[B]`` int64, the
        length of each clip, which is 0 without audio. Fields of text yield ``tokens`` ``[B, L]`` int64 and ``mask``
        ``[B, L]`` bool, padded to the longest, and ``caption`` ``[B]`` int64, equal for equal texts. A clip without a
        text is fully masked.

        Raises:
            PartitaError: There is a text but no tokenizer, or audio has several channels.
        """
        prepared = {}
        heard, read = (self._inputs_of(kind) for kind in ("audio", "text"))
        if heard:
            audio = [self._audio_of(clip, heard) for clip in clips]
            prepared["audio"] = pad_sequence([*audio, torch.zeros(1)], batch_first=True)[:-1]
            prepared["samples"] = torch.tensor([len(one) for one in audio])
        if read:
            tokens, mask = self._tokens_of(texts_of(clips, read))
            rows = [row[known].tolist() for row, known in zip(tokens, mask, strict=True)]
            prepared |= {"tokens": tokens, "mask": mask, "caption": torch.tensor([_number(row) for row in rows])}
        return prepared

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Embeddings ``[B, 1, D]`` float32 of unit length, zero where masked."""
        embeddings, known = self.embed_prepared(prepared)
        return Condition(embeddings[:, None], known[:, None])

    def embed_prepared(self, prepared: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embed what :meth:`prepare` returns.

        Returns:
            The embeddings ``[B, D]``, zero where there is neither audio nor a text, and ``[B]`` bool, whether there is.
        """
        rows = next(iter(prepared.values()))
        known = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        embeddings = torch.zeros(len(rows), self.dim, device=rows.device)
        for kind in dict.fromkeys(lookup("field", name).kind for name in self.inputs):
            if kind == "audio":
                samples = prepared["samples"].masked_fill(known, 0)
                present = samples > 0
                found = self.embed_clips(prepared["audio"], samples)
            else:
                present = prepared["mask"].any(1) & ~known
                if not present.any():
                    continue
                found = self.embed_tokens(prepared["tokens"], prepared["mask"])
            embeddings = torch.where(present[:, None], found, embeddings)
            known = known | present
        return embeddings, known

    def views(self, prepared: dict[str, Tensor]) -> Views | None:
        """The embeddings of the audio and of the texts of the clips that have both."""
        if not {"samples", "tokens"} <= prepared.keys():
            return None
        paired = complete(prepared)
        audio = self.embed_clips(prepared["audio"][paired], prepared["samples"][paired])
        text = self.embed_tokens(prepared["tokens"], prepared["mask"])[paired]
        known = paired[paired, None]
        return Views(Condition(audio[:, None], known), Condition(text[:, None], known), prepared["caption"][paired])

    def recalls(self, first: Tensor, second: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """How often the audio of a clip finds its caption, and a caption its clip."""
        return recalls(first, second, keys)

    def _inputs_of(self, kind: str) -> list[str]:
        return [name for name in self.inputs if lookup("field", name).kind == kind]

    def _audio_of(self, clip: Clip, names: Sequence[str]) -> Tensor:
        """The first audio ``[T]`` that a clip has; empty if it has none."""
        found = (clip.audio if name == "audio" else clip.fields.get(name) for name in names)
        audio = next((one for one in found if one is not None), None)
        if audio is None:
            return torch.zeros(0)
        if len(audio) != 1:
            raise PartitaError(
                f"{self.registered_name} embeds audio of one channel, [1, T], not {list(audio.shape)}: mix it down "
                "first"
            )
        return audio[0].float()

    def _tokens_of(self, texts: list[str | None]) -> tuple[Tensor, Tensor]:
        if not any(texts):
            nothing = torch.zeros(len(texts), 1, dtype=torch.long)
            return nothing, nothing.bool()
        tokens, mask = self.tokenize([text or "" for text in texts])
        return tokens, mask & torch.tensor([text is not None for text in texts])[:, None]


def complete(prepared: dict[str, Tensor]) -> Tensor:
    """Which of the clips that :meth:`JointConditioner.prepare` converted have both audio and a text, ``[B]`` bool."""
    return (prepared["samples"] > 0) & prepared["mask"].any(1)


def recalls(audio: Tensor, text: Tensor, captions: Tensor) -> dict[str, Tensor]:
    """Recall of the captions of clips, and of the clips of captions, among the 1 and the 10 nearest.

    Args:
        audio: Embeddings of clips, ``[N, D]``.
        text: Embeddings of their captions, ``[N, D]``.
        captions: The ``caption`` of each clip, ``[N]``.
    """
    found = {}
    for number in (1, 10):
        found[f"audio_to_text_recall_at_{number}"] = recall(audio, text, number, captions)
        found[f"text_to_audio_recall_at_{number}"] = recall(text, audio, number, captions)
    return found


def windows_of(audio: Tensor, length: int, stride: int) -> Tensor:
    """Cut audio ``[B, T]`` into windows ``[B, N, length]``; audio no longer than a window stays ``[B, 1, T]``.

    A window begins every ``stride`` samples. If the last one does not end with the clip, another one does.
    """
    if audio.shape[1] <= length:
        return audio[:, None]
    windows = audio.unfold(1, length, stride)
    ends_with_clip = (audio.shape[1] - length) % stride == 0
    return windows if ends_with_clip else torch.cat([windows, audio[:, None, -length:]], 1)


def check_embeddable(name: str, audio: Tensor) -> None:
    """Check that audio has one channel and samples.

    Raises:
        PartitaError: It has none, or several channels.
    """
    if audio.shape[1] != 1 or not audio.shape[2]:
        raise PartitaError(f"{name} embeds audio of one channel, [B, 1, T], not {list(audio.shape)}: mix it down first")


def _number(tokens: list[int]) -> int:
    """A number below 2^63 that differs for other tokens."""
    return int.from_bytes(hashlib.blake2b(repr(tokens).encode(), digest_size=8).digest(), "big") >> 1
