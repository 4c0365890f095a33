"""Neural codecs of the transformers library, frozen: Mimi, DAC, EnCodec, X-Codec, X-Codec 2 and Higgs Audio's."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contracts import RepresentationSpec
from ..core.registry import register
from ..errors import PartitaError
from ..layers.convolution import pad_to_multiple
from ..storage.pretrained import checkpoint_folder, read_config, read_safetensors
from ..storage.tensor_file import read_tensors
from .base import Tokenizer
from .encoding_windows import WINDOWS, Windows

ModelType = Literal["mimi", "dac", "encodec", "xcodec", "xcodec2", "higgs_audio_v2_tokenizer"]


class _Codec(NamedTuple):
    """What a codec of transformers is called there, and where its configuration says what.

    ``inner`` holds the configurations of the models inside it, with the types that they can have.
    """

    name: str
    sample_rate: str = "sampling_rate"
    hop: str = "hop_length"
    num_codebooks: str = "num_quantizers"
    inner: Mapping[str, tuple[str, ...]] = {}


_ACOUSTIC = {"acoustic_model_config": ("dac",)}
_CODECS = {
    "mimi": _Codec("Mimi", hop="frame_size"),
    "dac": _Codec("Dac", num_codebooks="n_codebooks"),
    "encodec": _Codec("Encodec"),
    "xcodec": _Codec("Xcodec", "sample_rate", inner={"semantic_model_config": ("hubert", "wavlm"), **_ACOUSTIC}),
    "xcodec2": _Codec("Xcodec2", inner={"semantic_model_config": ("wav2vec2-bert",)}),
    "higgs_audio_v2_tokenizer": _Codec(
        "HiggsAudioV2Tokenizer", "sample_rate", inner={"semantic_model_config": ("hubert",), **_ACOUSTIC}
    ),
}
_CLASSES = {"hubert": "Hubert", "wavlm": "WavLM", "wav2vec2-bert": "Wav2Vec2Bert", "dac": "Dac"}

_TRAINING_ONLY = re.compile(
    r"dropout|layerdrop|mask|initializer|loss|cache|streaming|^tie_|token_id|^ctc_|codevector|negatives|diversity"
    r"|classifier|weighted|vocab_size|^[tx](dnn|vector)|num_labels|max_position_embeddings"
)
"""Fields of a configuration on which codes and audio do not depend."""

_FLAT = {
    r"^encoder\.layers\.": "encoder.encoder_seanet.layers.",
    r"^decoder\.layers\.": "decoder.decoder_seanet.layers.",
    r"^(encoder_transformer|downsample)\.": r"encoder.\1.",
    r"^(decoder_transformer|upsample)\.": r"decoder.\1.",
}
"""Names of Mimi's weights in its checkpoints, and those in a model that consists of two halves."""

_BANDS, _STEP = 80, 160
"""Mel bands of the frames that X-Codec 2 also reads, and the step between them in samples."""


@register("tokenizer", "transformers-codec")
class TransformersCodec(Tokenizer):
    """A pretrained neural codec of transformers, frozen.

    The codecs are Mimi (arXiv 2410.00037), DAC (2306.06546), EnCodec (2210.13438), X-Codec (2408.17175), X-Codec 2
    (2502.04128) and that of Higgs Audio v2. The network is built from the configuration class of the installed
    transformers and from ``config``, never from the code of a repository. Sample rate, frame rate, codebooks and
    cardinality follow from it.

    The last frame is padded with silence. X-Codec, X-Codec 2 and Higgs Audio's codec contain a speech or audio model
    whose attention sees the whole clip, so longer clips are encoded in ``windows``.

    EnCodec at 48 kHz stores the loudness of segments beside the codes: use the preset ``encodec-48khz`` instead.
    NeuCodec, with another sample rate in its output than in its input, is not supported.

    :meth:`load_weights` takes a hub id, or a folder with safetensors, in one file or in several. It needs the extra
    ``t5``.

    Args:
        model_type: Name of the codec in transformers.
        config: Fields of the codec's configuration class that differ from their defaults, and of the classes of the
            models inside it (``acoustic_model_config``, ``semantic_model_config``).
        num_codebooks: Codebooks in use. ``None`` takes all.
        windows: The windows in which codecs with a semantic model encode long clips.

    Raises:
        ValueError: The codec has no such field, or a value is out of range.
        PartitaError: transformers is not installed, or has no such codec.
    """

    trainable = False

    def __init__(
        self,
        *,
        model_type: ModelType = "mimi",
        config: dict[str, Any] | None = None,
        num_codebooks: int | None = None,
        windows: Windows = WINDOWS,
    ) -> None:
        super().__init__()
        if model_type not in get_args(ModelType):
            raise ValueError(f"model_type must be one of {', '.join(get_args(ModelType))}, not {model_type!r}")
        self.codec, self.windows = _CODECS[model_type], windows
        configuration = _configuration(model_type, config or {})
        try:
            self.network = _from_transformers(f"{self.codec.name}Model")(configuration)
        except (ValueError, TypeError, AttributeError, RuntimeError, ZeroDivisionError, KeyError) as error:
            raise ValueError(f"config does not describe a {model_type}: {error}") from None
        self.hop = int(getattr(configuration, self.codec.hop))
        self.sample_rate = int(getattr(configuration, self.codec.sample_rate))
        self.channels = int(getattr(configuration, "audio_channels", 1))
        self.most = self.num_codebooks = int(getattr(configuration, self.codec.num_codebooks, 1))
        self.least = int(getattr(configuration, "num_semantic_quantizers", 1))
        levels = getattr(configuration, "quantization_levels", None)
        self.cardinality = math.prod(levels) if levels else int(configuration.codebook_size)
        if min(self.hop, self.sample_rate, self.channels, self.most, self.cardinality) < 1:
            raise ValueError(f"config does not describe a {model_type}: a rate or a size is below 1")
        if not self.codec.inner and (model_type != "mimi" or hasattr(self.network.encoder, "downsample")):
            self.latent_dim = int(configuration.hidden_size)
        if self.codec.inner and self.hop != _semantic_hop(configuration, self.sample_rate):
            raise ValueError("config gives the acoustic model another frame rate than the semantic model")
        if num_codebooks is not None:
            self.set_num_codebooks(num_codebooks)
        self.requires_grad_(False)
        self.eval()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of codes, at the number of codebooks in use."""
        return RepresentationSpec(
            sample_rate=self.sample_rate,
            channels=self.channels,
            frame_rate=self.sample_rate / self.hop,
            num_codebooks=self.num_codebooks,
            cardinality=self.cardinality,
        )

    def set_num_codebooks(self, num_codebooks: int) -> None:
        """Use only the first ``num_codebooks`` codebooks from now on.

        Raises:
            ValueError: The codec has fewer codebooks, or cannot decode so few.
        """
        if not self.least <= num_codebooks <= self.most:
            raise ValueError(
                f"num_codebooks must be {self.least} to {self.most}, the codebooks of this codec, not {num_codebooks}"
            )
        self.num_codebooks = num_codebooks

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, because the network is frozen."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to codes ``[B, K, ceil(T / hop)]``."""
        with torch.autocast(audio.device.type, enabled=False):
            padded = pad_to_multiple(self._checked(audio), self.hop)
            if not self.codec.inner:
                return self._codes(padded)
            return self.windows.encode(self._codes, padded, self.hop, self.spec.rate)

    @torch.no_grad()
    def decode(self, representation: Tensor) -> Tensor:
        """Codes ``[B, K, S]``, of the codebooks in use or fewer, to audio ``[B, C, S · hop]``."""
        with torch.autocast(representation.device.type, enabled=False):
            if self.codec.name == "Encodec":
                audio = self.network.decode(representation[None], [None], return_dict=True).audio_values
            elif self.codec.name == "Dac":
                audio = self.network.decode(audio_codes=representation, return_dict=True).audio_values
            else:
                audio = self.network.decode(representation, return_dict=True).audio_values
            return self._whole(audio, representation.shape[-1])

    @torch.no_grad()
    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` to latents ``[B, D, ceil(T / hop)]``, for Mimi, DAC and EnCodec."""
        if self.latent_dim is None:
            return super().encode_latents(audio)
        with torch.autocast(audio.device.type, enabled=False):
            latents = self.network.encoder(pad_to_multiple(self._checked(audio), self.hop))
            return latents.latents if self.codec.name == "Mimi" else latents

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents ``[B, D, S]`` to audio ``[B, C, S · hop]``, for Mimi, DAC and EnCodec."""
        if self.latent_dim is None:
            return super().decode_latents(latents)
        with torch.autocast(latents.device.type, enabled=False):
            audio = self.network.decoder(latents)
            return self._whole(audio.audio_values if self.codec.name == "Mimi" else audio, latents.shape[-1])

    def load_weights(self, source: str | Path) -> None:
        """Load weights in the format of transformers, or that :meth:`save` wrote.

        Args:
            source: A folder with safetensors, in one file or in several with an index, a ``.safetensors`` file, or a
                hub id.

        Raises:
            PartitaError: ``source`` has no weights, cannot be reached, needs code of its own, or holds another model.
        """
        path = Path(source)
        folder = path.parent if path.is_file() else checkpoint_folder(source)
        config = read_config(folder)
        if "family" in config:
            super().load_weights(source)
            return
        if "auto_map" in config or (not path.is_file() and any(folder.glob("*.py"))):
            raise PartitaError(
                f"{source} holds a model that runs code of its own, which is never executed here: give a checkpoint in "
                "the format of transformers"
            )
        if different := self._differences(config):
            raise PartitaError(f"{source} holds another codec than this one:\n  " + "\n  ".join(different))
        state = read_tensors(path) if path.is_file() else read_safetensors(folder, lambda _: True)
        own = self.exported_state().keys()
        named = {_own_name(name, own): tensor for name, tensor in state.items()}
        self.load_exported_state({k: v for k, v in named.items() if not k.endswith(".masked_spec_embed")}, source)
        self._forget_entries()

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the tensors."""
        applied = super()._apply(function, recurse)
        self._forget_entries()
        return applied

    def _forget_entries(self) -> None:
        """Let Mimi's codebooks compute their entries again, which they keep outside their buffers."""
        for module in self.network.modules():
            if getattr(module, "_embed", None) is not None:
                module._embed = None

    def _differences(self, config: Mapping[str, Any]) -> list[str]:
        """A line for each field of a stranger's configuration that differs. It is compared, and used for nothing."""
        own = self.network.config
        if config and config.get("model_type") != own.model_type:
            return [f"its model_type is {config.get('model_type')!r:.60}, not {own.model_type!r}"]
        theta = (getattr(own, "rope_parameters", None) or {}).get("rope_theta")
        if theta is not None and config.get("rope_theta", theta) != theta:  # where older versions stored it
            return [f"rope_theta must be {config['rope_theta']!s:.60}, not {theta}"]
        return _differing(own, config)

    def _checked(self, audio: Tensor) -> Tensor:
        if audio.shape[1] != self.channels:
            raise PartitaError(f"this {self.registered_name} takes {self.channels} channels, not {audio.shape[1]}")
        return audio.float()

    def _codes(self, audio: Tensor) -> Tensor:
        """Codes ``[B, K, S]`` of audio ``[B, C, S · hop]``."""
        network, books = self.network, self.num_codebooks
        if not audio.shape[-1]:
            return torch.zeros(len(audio), books, 0, dtype=torch.long, device=audio.device)
        match self.codec.name:
            case "Mimi":
                codes = network.encode(audio, num_quantizers=books, return_dict=True).audio_codes
            case "Dac":
                codes = network.encode(audio, n_quantizers=books, return_dict=True).audio_codes
            case "Encodec":
                codes = network.encode(audio, bandwidth=network.config.target_bandwidths[-1], return_dict=True)
                codes = codes.audio_codes[0]
            case "Xcodec2":
                codes = network.encode(audio, _stacked_mel(audio, self.sample_rate), return_dict=True).audio_codes
            case _:
                codes = network.encode(audio, return_dict=True).audio_codes
        return codes[:, :books].long()

    def _whole(self, audio: Tensor, frames: int) -> Tensor:
        """Audio of whole frames ``[B, C, S · hop]``: transposed convolutions with odd strides return a little less."""
        audio = audio[:, None] if audio.dim() == 2 else audio
        return F.pad(audio, (0, frames * self.hop - audio.shape[-1]))


def _from_transformers(name: str) -> Any:
    """A class of transformers.

    Raises:
        PartitaError: transformers is not installed, or has no such class.
    """
    try:
        import transformers

        return getattr(transformers, name)
    except ImportError:
        raise PartitaError("the transformers-codec tokenizer needs transformers: pip install 'partita[t5]'") from None
    except AttributeError:
        raise PartitaError(f"the installed transformers has no {name}: pip install -U transformers") from None


def _configuration(model_type: str, values: Mapping[str, Any]) -> Any:
    """The configuration of a codec, from fields that its class has.

    Raises:
        ValueError: There is no such field, or a value is out of range.
    """
    codec = _CODECS[model_type]
    cls = _from_transformers(f"{codec.name}Config")
    chosen = _known(cls, values, f"config of {model_type}")
    for place, types in codec.inner.items():
        given = chosen.get(place) or {}
        if not isinstance(given, Mapping) or given.get("model_type", types[0]) not in types:
            raise ValueError(f"{place} must be a mapping whose model_type is {' or '.join(types)}, not {given!r:.60}")
        given = {"model_type": types[0], **given}
        inner = _from_transformers(f"{_CLASSES[given['model_type']]}Config")
        chosen[place] = _known(inner, given, place, ["model_type", *cls.sub_configs_defaults[place].init_kwargs])
        if place == "semantic_model_config":  # masks are drawn only in training
            chosen[place] |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    try:
        made = cls(**chosen)
    except Exception as error:  # of the validation in transformers, whose classes of errors vary with its version
        raise ValueError(f"config does not describe a {model_type}: {' '.join(str(error).split())}") from None
    if getattr(made, "normalize", False) or getattr(made, "chunk_length_s", None) is not None:
        raise ValueError(
            "codecs that normalize segments are not supported here: EnCodec at 48 kHz is the preset encodec-48khz"
        )
    return made


def _semantic_hop(configuration: Any, sample_rate: int) -> float:
    """Samples per frame of the semantic model in a codec."""
    if configuration.model_type == "xcodec2":
        return 2 * _STEP
    strides = [*configuration.semantic_model_config.conv_stride, *configuration.strides]
    skipped = getattr(configuration, "semantic_downsample_factor", 1)
    return math.prod(strides) * skipped * sample_rate / getattr(configuration, "semantic_sample_rate", sample_rate)


def _known(cls: Any, values: Mapping[str, Any], place: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """Values of a configuration class, all of them plain and of fields that the class itself declares."""
    fields = {*_fields(cls), *also}
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"{place} has no field {name!r:.60}; it has {', '.join(sorted(fields))}")
        if not name.endswith("_model_config") and not _plain(value):
            raise ValueError(f"{place}.{name} must be a number, a word, or a list of them, not {value!r:.60}")
    return dict(values)


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(not isinstance(one, list | tuple | Mapping) and _plain(one) for one in value)
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z][\w-]{0,40}", value) is not None
    return value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _differing(own: Any, config: Mapping[str, Any], place: str = "") -> list[str]:
    """A line for each field of two configurations in which they differ and on which the codec depends."""
    lines = []
    for name in _fields(type(own)):
        ours, theirs = getattr(own, name, None), config.get(name)
        if theirs is None or _TRAINING_ONLY.search(name):
            continue
        if name.endswith("_model_config"):
            lines += _differing(ours, theirs if isinstance(theirs, Mapping) else {}, f"{place}{name}.")
        elif (list(ours) if isinstance(ours, tuple) else ours) != theirs:
            lines.append(f"{place}{name} must be {theirs!s:.60}, not {ours!s:.60}")
    return lines


def _fields(cls: Any) -> list[str]:
    """The fields that a class of configurations declares itself.

    Those that it inherits say where a model comes from and how attention is computed, which could name code.
    """
    return sorted(name for name in inspect.get_annotations(cls) if not name.startswith("_"))


def _own_name(name: str, own: Any) -> str:
    """The name that a weight of a checkpoint has here."""
    if name in own:
        return name
    found = f"network.{name}"
    for length, number in (("g", 0), ("v", 1)):
        if name.endswith(f".weight_{length}"):
            found = f"{found.removesuffix(f'weight_{length}')}parametrizations.weight.original{number}"
    if found in own:
        return found
    for flat, halves in _FLAT.items():
        if (renamed := "network." + re.sub(flat, halves, name)) in own:
            return renamed
    return found


def _stacked_mel(audio: Tensor, sample_rate: int) -> Tensor:
    """Normalized log-mel frames ``[B, S, 160]`` of audio ``[B, 1, S · hop]``, two of them stacked for each frame."""
    from torchaudio.compliance.kaldi import fbank

    padded = F.pad(audio, (_STEP, _STEP)) * 2**15  # Kaldi's audio is 16-bit integers
    options = {"sample_frequency": sample_rate, "num_mel_bins": _BANDS}
    mel = torch.stack([fbank(clip, **options) for clip in padded])
    variance, mean = torch.var_mean(mel, 1, keepdim=True)
    return ((mel - mean) / (variance + 1e-7).sqrt()).unflatten(1, (-1, 2)).flatten(2)
