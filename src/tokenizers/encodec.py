"""EnCodec, with Meta's pretrained weights."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from ..errors import PartitaError
from ..layers.chunks import Local, Step, steps_of
from ..layers.convolution import pad_to_multiple
from ..storage.pretrained import checkpoint_folder, fold_weight_norm, read_weights
from .base import Tokenizer
from .encodec_network import arrange, layers_of


class _Model(NamedTuple):
    sample_rate: int
    channels: int
    num_codebooks: int
    cardinality: int
    network: dict[str, Any]


# 2210.13438 for 24 and 48 kHz, MusicGen's (2306.05284) for 32 kHz
_MODELS = {
    "24khz": _Model(24000, 1, 32, 1024, {"ratios": [8, 5, 4, 2], "causal": True, "norm": "none"}),
    "32khz": _Model(32000, 1, 4, 2048, {"ratios": [8, 5, 4, 4], "n_filters": 64, "true_skip": True, "norm": "none"}),
    "48khz": _Model(48000, 2, 16, 1024, {"ratios": [8, 5, 4, 2], "norm": "time_group_norm"}),
}


@register("tokenizer", "encodec")
class EnCodec(Tokenizer):
    """Pretrained neural codec at 24, 32 (MusicGen's) or 48 kHz (EnCodec, 2210.13438).

    The 48 kHz model was trained on segments of one second, each normalized to unit loudness, with the loudness stored
    beside the codes. Here there are only codes, so a clip is normalized as one segment (which preserves its dynamics),
    and decoding scales it to the loudness ``level``.

    :meth:`load_weights` takes a Hub id such as ``facebook/encodec_24khz``, a folder or a file: safetensors, or the
    ``.th`` files of the original release.

    Args:
        model: Sample rate of the model.
        num_codebooks: Codebooks in use; ``None`` takes all (32, 4 and 16). At 75 and 150 frames per second, one is
            0.75 and 1.5 kbit/s for the 24 and 48 kHz models; at 50 frames per second it is 0.55 kbit/s for the 32 kHz
            model.
        level: Root mean square of the decoded audio of the 48 kHz model, relative to full scale. The others keep the
            level.
    """

    trainable = False

    def __init__(
        self,
        *,
        model: Literal["24khz", "32khz", "48khz"] = "24khz",
        num_codebooks: int | None = None,
        level: float = 0.1,
    ) -> None:
        super().__init__()
        from encodec.modules import SEANetDecoder, SEANetEncoder
        from encodec.quantization import ResidualVectorQuantizer

        if model not in _MODELS:
            raise ValueError(f"model must be one of {', '.join(_MODELS)}, not {model!r}")
        if not 0 < level <= 1:
            raise ValueError(f"level must be above 0 and at most 1, not {level}")
        self.model = _MODELS[model]
        self.normalize = model == "48khz"
        self.level = level
        # Weight normalization is folded into the weights on loading, because nothing is trained here.
        self.encoder = SEANetEncoder(channels=self.model.channels, **self.model.network)
        self.decoder = SEANetDecoder(channels=self.model.channels, **self.model.network)
        self.quantizer = ResidualVectorQuantizer(
            dimension=128, n_q=self.model.num_codebooks, bins=self.model.cardinality, kmeans_init=False
        )
        self.num_codebooks = self.model.num_codebooks
        if num_codebooks is not None:
            self.set_num_codebooks(num_codebooks)
        self.hop = math.prod(self.model.network["ratios"])
        self.requires_grad_(False)
        arrange(self)
        self.eval()

    latent_dim = 128

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of codes, at the number of codebooks in use."""
        return RepresentationSpec(
            sample_rate=self.model.sample_rate,
            channels=self.model.channels,
            frame_rate=self.model.sample_rate / self.hop,
            num_codebooks=self.num_codebooks,
            cardinality=self.model.cardinality,
        )

    def set_num_codebooks(self, num_codebooks: int) -> None:
        """Use only the first ``num_codebooks`` codebooks from now on.

        Raises:
            ValueError: The model has fewer codebooks.
        """
        if not 1 <= num_codebooks <= self.model.num_codebooks:
            raise ValueError(f"num_codebooks must be 1 to {self.model.num_codebooks}, not {num_codebooks}")
        self.num_codebooks = num_codebooks

    def train(self, mode: bool = True) -> EnCodec:
        """Stay in evaluation mode: in training mode, the library would update its codebooks."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to codes ``[B, K, ceil(T / hop)]``."""
        return self._nearest(self.encode_latents(audio))

    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of the codebooks in use or fewer, to audio ``[B, C, S · hop]``."""
        return self.decode_latents(self._entries(representation))

    @torch.no_grad()
    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to latents ``[B, 128, ceil(T / hop)]``."""
        if self.normalize:
            audio = audio / (audio.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt() + 1e-8)
        return _run(self.encoder, pad_to_multiple(audio, self.hop))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents ``[B, 128, S]`` to audio ``[B, C, S · hop]``."""
        audio = _run(self.decoder, latents)
        return audio * self.level if self.normalize else audio

    def encoding_steps(self, latents: bool = False) -> list[Step] | None:
        """Convolutions, recurrent layers and the codebooks; ``None`` for the 48 kHz model, which normalizes clips."""
        if self.normalize:
            return None
        steps = steps_of(layers_of(self.encoder), mirrored=True)
        return steps if latents else [*steps, Local(self._nearest)]

    def decoding_steps(self, latents: bool = False) -> list[Step] | None:
        """The codebooks, convolutions and recurrent layers; ``None`` for the 48 kHz model, which normalizes clips."""
        if self.normalize:
            return None
        steps = steps_of(layers_of(self.decoder), mirrored=True)
        return steps if latents else [Local(self._entries), *steps]

    def _nearest(self, latents: Tensor) -> Tensor:
        """Codes ``[B, K, S]`` of latents ``[B, 128, S]``: in each codebook, the entry nearest to what remains."""
        residual, codes = latents.mT.flatten(0, 1), []
        for entries in self._codebooks(self.num_codebooks):
            distances = torch.addmm(entries.square().sum(1), residual, entries.T, alpha=-2)  # but for a constant
            codes.append(distances.argmin(1))
            residual = residual - F.embedding(codes[-1], entries)
        return torch.stack(codes).unflatten(1, (len(latents), -1)).transpose(0, 1)

    def _entries(self, codes: Tensor) -> Tensor:
        """Latents ``[B, 128, S]`` of codes ``[B, K, S]``: the sum of their entries."""
        books = self._codebooks(codes.shape[1])
        return sum(F.embedding(own, entries) for own, entries in zip(codes.unbind(1), books, strict=True)).mT  # type: ignore[union-attr]

    def _codebooks(self, number: int) -> list[Tensor]:
        """The first codebooks, ``[cardinality, 128]`` each."""
        layers: Any = self.quantizer.vq.layers
        return [layer._codebook.embed for layer in layers[:number]]

    def load_weights(self, source: str | Path) -> None:
        """Load weights of EnCodec from the Hub or the encodec package, or that :meth:`save` wrote.

        Args:
            source: A folder with ``model.safetensors``, a ``.safetensors`` or ``.th`` file, or a Hub id.

        Raises:
            PartitaError: ``source`` has no weights, cannot be reached, or holds those of another model.
        """
        path = _find(source)
        state = read_weights(path)
        own = self.exported_state()
        renamed = {_own_name(name, own): tensor for name, tensor in fold_weight_norm(state).items()}
        self.load_exported_state({k: v for k, v in renamed.items() if not k.endswith(_TRAINING_STATE)}, source)

    def exported_state(self) -> dict[str, Tensor]:
        """The weights needed to use the model; only the entries of a codebook."""
        return {k: v for k, v in super().exported_state().items() if not k.endswith(_TRAINING_STATE)}


def _run(network: Any, x: Tensor) -> Tensor:
    for layer in layers_of(network):
        x = layer(x)
    return x


_TRAINING_STATE = ("inited", "cluster_size", "embed_avg")


def _find(source: str | Path) -> Path:
    path = Path(source)
    if not path.is_file():
        path = checkpoint_folder(source, ["model.safetensors"]) / "model.safetensors"
    if not path.is_file():
        raise PartitaError(f"no weights at {source}: give a folder with model.safetensors, a file, or a hub id")
    return path


def _own_name(name: str, own: Collection[str]) -> str:
    """The name used here for a weight of transformers' ``EncodecModel``; other names are returned unchanged."""
    name = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
    renamed = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
    if renamed == name:
        return name
    for kind in ("conv", "convtr"):
        candidate = re.sub(r"\.conv\.", f".{kind}.{kind}.", renamed)
        candidate = re.sub(r"\.norm\.", f".{kind}.norm.", candidate)
        if candidate in own:
            return candidate
    return name
