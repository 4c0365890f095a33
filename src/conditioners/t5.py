"""Frozen T5 text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..core.contracts import Clip, Condition, ConditionSpec
from ..core.registry import register
from ..errors import PartitaError
from ..storage.pretrained import WEIGHTS, checkpoint_folder, read_config, read_safetensors
from ..storage.text_tokenizer import read_text_tokenizer, tokenized
from .base import Conditioner
from .pseudo_words import PseudoWords
from .words import check_word_dropout, texts_of, vocabulary_bytes

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "*.model")


class _Shape(NamedTuple):
    width: int
    feed_forward_width: int
    depth: int
    num_heads: int


SHAPES = {
    ("small", "relu"): _Shape(512, 2048, 6, 8),
    ("base", "relu"): _Shape(768, 3072, 12, 12),
    ("large", "relu"): _Shape(1024, 4096, 24, 16),
    ("small", "gated-gelu"): _Shape(512, 1024, 8, 6),
    ("base", "gated-gelu"): _Shape(768, 2048, 12, 12),
    ("large", "gated-gelu"): _Shape(1024, 2816, 24, 16),
}
"""Sizes of T5 (relu) and of T5 1.1, Flan-T5 and mT5 (gated-gelu)."""


@dataclass(frozen=True)
class T5Shape:
    """Individual dimensions of a T5 that override those of its size.

    Args:
        width: Width of the embeddings.
        feed_forward_width: Width between the feed-forward projections.
        depth: Number of blocks.
        num_heads: Attention heads.
        head_width: Width of each head.
        vocabulary: Number of text tokens: 32128, or 250112 for mT5.
    """

    width: int | None = None
    feed_forward_width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    head_width: int = 64
    vocabulary: int = 32128


@register("conditioner", "t5")
class T5(Conditioner):
    """Frozen T5 text encoder of transformers (arXiv 1910.10683): T5, T5 1.1, Flan-T5, mT5.

    Weights and text tokenizer come together, from a hub id or a folder, and are saved together. The model always
    computes in float32, because mixed precision overflows. It needs the extra ``t5``.

    Args:
        size: ``small``, ``base`` or ``large``.
        feed_forward: ``relu`` for T5; ``gated-gelu`` for T5 1.1, Flan-T5 and mT5.
        shape: Individual dimensions that override those of ``size``.
        max_length: Maximum number of text tokens; the rest is left out.
        word_dropout: Probability that a word of a training text is left out (MusicGen: 0.3).
        inputs: Names of the text fields that the conditioner reads.

    Raises:
        ValueError: A value is out of range.
        PartitaError: transformers is not installed.
    """

    inputs: tuple[str, ...] = ("text",)
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    trainable: ClassVar[bool] = False
    training_only = ("pseudo_words.",)

    def __init__(
        self,
        *,
        size: Literal["small", "base", "large"] = "base",
        feed_forward: Literal["relu", "gated-gelu"] = "relu",
        shape: T5Shape = T5Shape(),
        max_length: int = 512,
        word_dropout: float = 0.3,
        inputs: tuple[str, ...] = ("text",),
    ) -> None:
        super().__init__(inputs)
        check_word_dropout(word_dropout)
        if (size, feed_forward) not in SHAPES:
            raise ValueError(f"no T5 of size {size!r} with feed_forward {feed_forward!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        usual = SHAPES[size, feed_forward]
        try:
            from transformers import T5Config, T5EncoderModel
        except ImportError:
            raise PartitaError("the t5 conditioner needs transformers: pip install 'partita[t5]'") from None
        config = T5Config(
            vocab_size=shape.vocabulary,
            d_model=shape.width or usual.width,
            d_ff=shape.feed_forward_width or usual.feed_forward_width,
            d_kv=shape.head_width,
            num_layers=shape.depth or usual.depth,
            num_heads=shape.num_heads or usual.num_heads,
            feed_forward_proj=feed_forward,
            dropout_rate=0.0,
        )
        # Only the stack: the whole model shares its token embeddings, and safetensors cannot store shared tensors.
        self.encoder = T5EncoderModel(config).encoder.requires_grad_(False)
        self.pseudo_words = PseudoWords()
        self.max_length = max_length
        self.word_dropout = word_dropout
        self.tokenizer: Any = None

    @property
    def spec(self) -> ConditionSpec:
        """One embedding per text token."""
        return ConditionSpec(dim=self.encoder.config.d_model)

    @property
    def draws(self) -> bool:
        """Whether words are left out at random."""
        return self.word_dropout > 0

    def prepare(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Convert texts to ``tokens`` ``[B, L]`` int64 and ``mask`` ``[B, L]`` bool, padded to the longest of the
        batch.

        A clip without a text is fully masked.

        Raises:
            PartitaError: There is a text but no tokenizer, because no weights are loaded.
        """
        texts = texts_of(clips, self.inputs, self.word_dropout)
        if not any(texts):
            nothing = torch.zeros(len(texts), 1, dtype=torch.long)
            return {"tokens": nothing, "mask": nothing.bool()}
        if self.tokenizer is None:
            raise PartitaError(
                "t5 has no text tokenizer yet: it comes with the weights, so set `weights:` or load them"
            )
        known = self.encoder.embed_tokens.num_embeddings
        marked = [self._marked(text or "") for text in texts]
        encoded = tokenized(self.tokenizer, [text for text, _ in marked], self.max_length, known)
        given = torch.tensor([text is not None for text in texts])
        tokens, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        for row, present, (_, pseudo) in zip(tokens, mask, marked, strict=True):
            places = torch.where(present & (row == self.tokenizer.pad_token_id))[0] if pseudo else row[:0]
            row[places] = known + torch.tensor(pseudo[: len(places)], dtype=row.dtype)
        return {"tokens": tokens, "mask": mask & given[:, None]}

    def forward(self, prepared: dict[str, Tensor]) -> Condition:
        """Embeddings ``[B, L, width]`` float32, zero where masked."""
        tokens, mask = prepared["tokens"], prepared["mask"]
        known = self.encoder.embed_tokens.num_embeddings
        learning = torch.is_grad_enabled() and bool(self.pseudo_words)
        with torch.autocast(tokens.device.type, enabled=False), torch.set_grad_enabled(learning):
            words = self.encoder.embed_tokens(tokens.clamp(max=known - 1))
            embedded = self.pseudo_words.embedded(tokens, words, known)
            values = self.encoder(inputs_embeds=embedded, attention_mask=mask.long()).last_hidden_state
        return Condition(values.float() * mask[..., None], mask)

    def word_vectors(self, text: str) -> Tensor:
        """Embeddings ``[n, width]`` of the text tokens of a text, from which pseudo-words can start."""
        tokens = self.prepare([Clip({self.inputs[0]: text}, 1.0)])["tokens"][0, :-1]  # without the end
        return self.encoder.embed_tokens(tokens.to(self.encoder.embed_tokens.weight.device))

    def _marked(self, text: str) -> tuple[str, list[int]]:
        """A text in which padding tokens stand for the vectors of pseudo-words, and the numbers of these."""
        if not self.pseudo_words:
            return text, []
        pad, numbers, marked = self.tokenizer.pad_token, [], ""
        for plain, pseudo in self.pseudo_words.pieces(text.replace(pad, " ")):
            marked += plain + pad * len(pseudo)
            numbers += pseudo
        return marked, numbers

    def vocabulary(self) -> bytes:
        """The words of the text tokenizer and their numbers."""
        return vocabulary_bytes(self.tokenizer)

    def load_weights(self, source: str | Path) -> None:
        """Load a folder that :meth:`save` wrote, or any T5 of transformers with its tokenizer.

        Args:
            source: A folder, or a hub id such as ``google-t5/t5-base``.

        Raises:
            PartitaError: The weights do not exist, have no tokenizer, or have other sizes.
        """
        folder = checkpoint_folder(source, (*WEIGHTS, *TOKENIZER))
        if "family" in read_config(folder):
            super().load_weights(folder)
            return
        self.load_exported_state(_encoder_state(read_safetensors(folder, _of_encoder)), source)
        self.tokenizer = _read_tokenizer(folder)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the text tokenizer into the folder ``tokenizer`` of a saved part."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / "tokenizer")

    def load_tokenizer(self, folder: Path) -> None:
        """Read the text tokenizer that :meth:`save_tokenizer` wrote."""
        if (folder / "tokenizer").is_dir():
            self.tokenizer = _read_tokenizer(folder / "tokenizer")


def _of_encoder(name: str) -> bool:
    return name.startswith("encoder.") or name == "shared.weight"


def _encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's state, with the token embeddings under the encoder's name: checkpoints use one of two, or both."""
    state = dict(state)
    shared = state.pop("shared.weight", None)
    if shared is not None:
        state["encoder.embed_tokens.weight"] = shared
    return state


def _read_tokenizer(folder: Path) -> Any:
    # Without these files transformers creates an empty tokenizer, to which every word is unknown.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise PartitaError(f"{folder} holds no text tokenizer: there is no tokenizer.json or spiece.model in it")
    return read_text_tokenizer(folder)
