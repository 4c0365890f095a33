"""A pretrained text encoder of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.registry import register
from ...errors import PartitaError
from ...storage.pretrained import WEIGHTS, checkpoint_folder, read_config, read_safetensors
from ...storage.text_tokenizer import read_text_tokenizer, tokenized
from ..words import vocabulary_bytes
from .base import TextTower

ARCHITECTURES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "mpnet": "MPNet"}
"""What transformers calls an architecture in ``model_type``, and how the names of its classes begin."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_PLACES = {
    "width": "hidden_size",
    "feed_forward_width": "intermediate_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "vocabulary": "vocab_size",
    "num_positions": "max_position_embeddings",
    "num_types": "type_vocab_size",
    "epsilon": "layer_norm_eps",
}
"""The sizes, and what transformers calls them in a configuration."""
_NOT_COMPARED = ("num_types",)
"""Sizes that not every architecture has; a wrong one is found when the weights are loaded."""


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of a text encoder; the defaults are those of BERT-base, uncased.

    Args:
        width: Width of the embeddings.
        feed_forward_width: Width between the feed-forward projections.
        depth: Number of blocks.
        num_heads: Attention heads.
        vocabulary: Number of text tokens.
        num_positions: Number of positions; RoBERTa and its relatives have two more than tokens.
        num_types: Number of types of segments: 2 for BERT, 1 for RoBERTa.
        epsilon: Epsilon of the normalizations: 1e-12 for BERT, 1e-5 for RoBERTa.
        dropout: Dropout in training.
    """

    width: int = 768
    feed_forward_width: int = 3072
    depth: int = 12
    num_heads: int = 12
    vocabulary: int = 30522
    num_positions: int = 512
    num_types: int = 2
    epsilon: float = 1e-12
    dropout: float = 0.1


@register("text_tower", "pretrained-text")
class PretrainedText(TextTower):
    """A text encoder of transformers (BERT, RoBERTa, XLM-RoBERTa or MPNet) that is trained further.

    Training starts from the weights and the text tokenizer of ``source``. Both are saved with the part, which then
    needs no network. The checkpoint's own configuration is only compared with the sizes given here. It needs the extra
    ``t5``.

    Args:
        source: Folder or hub id of the checkpoint from which training starts.
        architecture: The ``model_type`` of its configuration.
        shape: Its sizes.
        max_length: Maximum number of text tokens; the rest is left out.
        pooling: The output at the ``first`` token, or the ``mean`` of all outputs.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        *,
        source: str = "google-bert/bert-base-uncased",
        architecture: Literal["bert", "roberta", "xlm-roberta", "mpnet"] = "bert",
        shape: EncoderShape = EncoderShape(),
        max_length: int = 512,
        pooling: Literal["first", "mean"] = "first",
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        most = shape.num_positions - (0 if architecture == "bert" else 2)
        if not 1 <= max_length <= most:
            raise ValueError(f"max_length must be at least 1 and at most {most}, not {max_length}")
        self.source, self.architecture, self.shape = source, architecture, shape
        self.max_length, self.pooling = max_length, pooling
        self.tokenizer: Any = None

    def build(self, dim: int) -> None:
        """Create the encoder and the projection.

        Raises:
            PartitaError: transformers is not installed.
        """
        super().build(dim)
        sizes = {theirs: getattr(self.shape, own) for own, theirs in _PLACES.items()}
        config = self._class("Config")(
            **sizes,
            hidden_dropout_prob=self.shape.dropout,
            attention_probs_dropout_prob=self.shape.dropout,
        )
        self.encoder = self._class("Model")(config, add_pooling_layer=False)
        self.output = nn.Linear(self.shape.width, dim)

    def begin(self) -> None:
        """Load the weights and the text tokenizer of ``source``, unless the part was loaded with a tokenizer.

        Raises:
            PartitaError: The checkpoint does not exist, has other sizes or another architecture, or no tokenizer.
        """
        if self.tokenizer is not None:
            return
        folder = checkpoint_folder(self.source, (*WEIGHTS, *TOKENIZER))
        self._check(read_config(folder))
        self._load(read_safetensors(folder, lambda name: True))
        self.tokenizer = self._read_tokenizer(folder)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Convert texts to text tokens ``[B, L]`` and their mask ``[B, L]``.

        Raises:
            PartitaError: There is no tokenizer, because the part is neither trained nor loaded.
        """
        if self.tokenizer is None:
            raise PartitaError(
                "pretrained-text has no text tokenizer yet: it comes with the weights of the conditioner, or from "
                f"{self.source} when training starts"
            )
        encoded = tokenized(self.tokenizer, texts, self.max_length, self.shape.vocabulary)
        return encoded["input_ids"], encoded["attention_mask"].bool()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed text tokens ``[B, L]`` as ``[B, dim]``."""
        attended = mask.clone()
        attended[:, 0] = True  # the softmax of a fully masked row would be NaN
        hidden = self.encoder(input_ids=tokens, attention_mask=attended.long()).last_hidden_state
        if self.pooling == "first":
            return self.output(hidden[:, 0])
        return self.output((hidden * attended[..., None]).sum(1) / attended.sum(1, keepdim=True))

    def vocabulary(self) -> bytes:
        """The words of the text tokenizer and their numbers."""
        return vocabulary_bytes(self.tokenizer)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the text tokenizer into the folder ``tokenizer`` of a saved part, if there is one."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / "tokenizer")

    def load_tokenizer(self, folder: Path) -> None:
        """Read the text tokenizer that :meth:`save_tokenizer` wrote, if there is one."""
        if (folder / "tokenizer").is_dir():
            self.tokenizer = self._read_tokenizer(folder / "tokenizer")

    def _class(self, kind: str) -> Any:
        try:
            import transformers
        except ImportError:
            raise PartitaError("the pretrained-text tower needs transformers: pip install 'partita[t5]'") from None
        return getattr(transformers, ARCHITECTURES[self.architecture] + kind)

    def _check(self, config: Mapping[str, Any]) -> None:
        """Check that a checkpoint is of the architecture and has the sizes given here."""
        own = {"model_type": self.architecture, "hidden_act": "gelu"}
        own |= {place: getattr(self.shape, name) for name, place in _PLACES.items() if name not in _NOT_COMPARED}
        usual = self._class("Config")()
        other = {name: config.get(name, getattr(usual, name, None)) for name in own}
        wrong = {name: value for name, value in other.items() if value != own[name]}
        if wrong:
            names = {place: f"shape.{name}" for name, place in _PLACES.items()} | {"model_type": "architecture"}
            told = "; ".join(
                f"{name} is {value!r:.40}, and {names.get(name, name)} here {own[name]!r}"
                for name, value in wrong.items()
            )
            raise PartitaError(f"{self.source} is another model than the text tower: {told}")

    def _load(self, state: Mapping[str, Tensor]) -> None:
        """Load a checkpoint's weights, without its heads and with or without the prefix of the encoder."""
        prefix = f"{self.encoder.base_model_prefix}."
        renamed = {
            name.removeprefix(prefix)
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias"): tensor
            for name, tensor in state.items()
        }
        own = self.encoder.state_dict()
        missing = [name for name in own if name not in renamed or renamed[name].shape != own[name].shape]
        if missing:
            raise PartitaError(
                f"{self.source}: {len(missing)} weights of the text encoder are missing or of another shape: "
                f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
            )
        with torch.no_grad():
            self.encoder.load_state_dict({name: renamed[name] for name in own})
        broken = [name for name, tensor in self.encoder.state_dict().items() if not tensor.isfinite().all()]
        if broken:
            raise PartitaError(f"{self.source}: weights are not finite numbers: {', '.join(broken[:5])}")

    def _read_tokenizer(self, folder: Path) -> Any:
        # Without this file transformers creates an empty tokenizer, to which every word is unknown.
        if not (folder / "tokenizer.json").is_file():
            raise PartitaError(f"{folder} holds no text tokenizer: there is no tokenizer.json in it")
        return read_text_tokenizer(folder, self._class("TokenizerFast"))
