"""The base of every trainable part: built from plain arguments, trained, saved and loaded alone."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import lightning as L
import torch
from torch import Tensor

from ..errors import PartitaError
from ..storage.files import kind, replacing_folder
from ..storage.pretrained import checkpoint_folder, read_config
from ..storage.saved_format import check_format, numbered
from ..storage.tensor_file import read_tensors, write_tensors
from ..storage.untrusted import read_json
from .averaging import AverageWeights
from .checkpoint import Checkpoint, formats_for
from .configured import Configured
from .contracts import finite
from .fit import Fit
from .registry import did_you_mean, lookup
from .schema import build

OUTLINED = 64
"""Number of tokens, of a text or of codes, that estimates assume for a condition without a frame rate."""


class Part(Configured, L.LightningModule):
    """A LightningModule that remembers the arguments it was built from.

    An argument can be another part (annotated with the base class of its family). A recipe names it like any other
    part. Without weights, it is trained before the outer part. While that one is trained, it stays frozen, unless
    ``fit.trainable`` names its parameters; and it is saved with the outer part. What has no use of its own is a
    :class:`~partita.core.component.Component` instead.

    Building a part never reads a file or the network: pretrained weights come in through :meth:`load_weights`.

    Attributes:
        fit_options: Training options: the ``fit:`` block of its preset.
        training_input: Input of its ``training_step``: ``audio`` (a batch with audio ``[B, C, T]`` in its
            :attr:`audio_format`), ``clips`` (what its ``prepare`` makes of clips), or ``stage`` (a
            :class:`~partita.core.contracts.StageBatch`).
        trainable: Whether the part can be trained. A part that cannot be needs weights, unless it is weightless.
        weightless: Whether the part has nothing to train or to load; such a part is not trainable.
        training_only: Prefixes of the state that only training needs (discriminators, parts trained alongside);
            :meth:`save` leaves it out.
    """

    training_input: ClassVar[Literal["audio", "clips", "stage"]]
    trainable: ClassVar[bool] = True
    weightless: ClassVar[bool] = False
    training_only: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.fit_options = Fit()

    @property
    def audio_format(self) -> tuple[int, int] | None:
        """Sample rate in Hz and number of channels of the audio that its training reads; ``None`` if it reads none."""
        return None

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The modules that contain :attr:`repeated_blocks`."""
        return []

    @property
    def recomputes(self) -> bool:
        """Whether the networks recompute the activations of their blocks in the backward pass."""
        return False

    @property
    def repeated_blocks(self) -> list[torch.nn.Module]:
        """The modules with most of the weights, each of which gets the output of the one before as first argument."""
        return []

    @property
    def hidden_matrices(self) -> list[torch.nn.Parameter]:
        """The trained matrices between input and output layers, which Muon can update."""
        return []

    def configure_optimizers(self) -> Any:
        """Optimizer and schedule of the fit options, for all trainable parameters."""
        trained = self.fit_options.groups((n, p) for n, p in self.named_parameters() if p.requires_grad)
        optimizer = self.fit_options.make_optimizer(trained, self.hidden_matrices)
        scheduler = self.fit_options.make_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def outline_step(self, examples: int, seconds: float) -> Callable[[], Tensor]:
        """A function that computes the loss of a batch without values, to estimate what a training step takes.

        Args:
            examples: Examples of the batch.
            seconds: Length of the examples.

        Raises:
            NotImplementedError: The part has no such function.
        """
        raise NotImplementedError

    @property
    def num_parameters(self) -> int:
        """Number of parameters needed to use the part, without discriminators and parts trained alongside."""
        return self.num_own_parameters + sum(part.num_parameters for part in self._inner.values())

    @property
    def num_own_parameters(self) -> int:
        """:attr:`num_parameters` without those of the parts inside this one."""
        return sum(p.numel() for n, p in self.named_parameters() if not n.startswith(self._not_exported))

    def exported_state(self) -> dict[str, Tensor]:
        """The weights needed to use the part."""
        state = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith(self._not_exported)}
        for prefix, part in self._inner.items():
            state |= {prefix + k: v for k, v in part.exported_state().items()}
        return state

    @property
    def _inner(self) -> dict[str, Part]:
        """The parts inside this one, by the prefix of their state."""
        parts = {f"{name}.": child for name, child in self.named_children() if isinstance(child, Part)}
        return {prefix: part for prefix, part in parts.items() if not prefix.startswith(self.training_only)}

    @property
    def _not_exported(self) -> tuple[str, ...]:
        """Prefixes of the state that only training needs or that an inner part saves itself."""
        return (*self.training_only, *self._inner)

    def digest(self) -> hashlib.blake2b:
        """A digest of its family, name, arguments, exported weights and vocabulary, to which more can be added."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps(self.config, sort_keys=True, default=str).encode())
        self._add_weights(digest)
        digest.update(self.vocabulary())
        return digest

    def weights_fingerprint(self) -> str:
        """What tells these exported weights from others, whatever the arguments: 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        self._add_weights(digest)
        return digest.hexdigest()

    def _add_weights(self, digest: hashlib.blake2b) -> None:
        for name, tensor in sorted(self.exported_state().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)

    def fingerprint(self) -> str:
        """What tells this part from one of other arguments or weights: 32 hexadecimal digits."""
        return self.digest().hexdigest()

    def load_exported_state(self, state: dict[str, Tensor], source: str | Path) -> None:
        """Load the weights written by :meth:`save`. Every name and shape must match, and every value be finite.

        Raises:
            PartitaError: The weights do not match; the message lists the differences.
        """
        own = self.exported_state()
        missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        both = sorted(own.keys() & state.keys())
        other = [
            f"{k} {state[k].dtype} instead of {own[k].dtype}" for k in both if _numbers(own[k]) != _numbers(state[k])
        ]
        wrong = [
            f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}"
            for k in both
            if own[k].shape != state[k].shape
        ]
        if missing or surplus or wrong or other:
            lines = [
                f"{len(found)} {what}: {', '.join(found[:5])}{' …' if len(found) > 5 else ''}"
                for what, found in (
                    ("missing", missing),
                    ("not of this part", surplus),
                    ("of another shape", wrong),
                    ("of another type", other),
                )
                if found
            ]
            raise PartitaError(
                f"{source}: these weights are not of this {self.registered_name}\n  " + "\n  ".join(lines)
            )
        self.load_state_dict(state, strict=False)  # strict above; what is absent is training_only
        broken = [name for name, tensor in self.exported_state().items() if not finite(tensor)]
        if broken:
            raise PartitaError(
                f"{source}: {len(broken)} of these weights hold values that are not finite numbers (NaN or infinite): "
                f"{', '.join(broken[:5])}{' …' if len(broken) > 5 else ''}; download or train them again"
            )

    @property
    def saved_config(self) -> dict[str, Any]:
        """What ``config.json`` holds: :attr:`config`, and the number of the format."""
        return numbered(self.config)

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, replacing it whole or not at all."""
        with replacing_folder(Path(folder)) as new:
            (new / "config.json").write_text(json.dumps(self.saved_config, indent=2) + "\n", encoding="utf-8")
            write_tensors(self.exported_state(), new / "model.safetensors")
            self.save_tokenizer(new)

    def vocabulary(self) -> bytes:
        """The words of the text tokenizer, of this part or of one inside, and their numbers; most parts have none."""
        return b"".join(part.vocabulary() for part in self._inner.values())

    def save_tokenizer(self, folder: Path) -> None:
        """Write the files of the text tokenizer, of this part or of one inside, into the folder of the saved part."""
        for part in self._inner.values():
            part.save_tokenizer(folder)

    def load_tokenizer(self, folder: Path) -> None:
        """Read the files that :meth:`save_tokenizer` wrote, if there are any."""
        for part in self._inner.values():
            part.load_tokenizer(folder)

    def _converted(
        self, found: type[Checkpoint], path: Path, config: Mapping[str, Any], source: str | Path
    ) -> dict[str, Tensor]:
        """Convert a checkpoint, whose tensors can have shapes and types with which its format cannot compute."""
        try:
            return found.convert(self, path, config)
        except torch.OutOfMemoryError:
            raise
        except KeyError as error:
            raise PartitaError(
                f"{source}: these weights cannot be converted, because {error!s:.200} is missing: set the sizes of "
                f"{self.registered_name} to those of the checkpoint, or download it again"
            ) from None
        except (RuntimeError, IndexError) as error:
            raise PartitaError(
                f"{source}: these weights cannot be converted, because some have another shape or type than "
                f"{found.reads} ({str(error).strip().partition(chr(10))[0]:.200}): download them again"
            ) from None

    def load_weights(self, source: str | Path) -> None:
        """Load pretrained weights from a folder or file that :meth:`save` wrote, or a checkpoint in a known format.

        Args:
            source: A file or folder, or a hub id for parts that load checkpoints of other libraries.

        Raises:
            PartitaError: There are no weights at ``source``, or they do not fit this part.
        """
        path, formats = Path(source), formats_for(type(self))
        if kind(path) == "file" and (read := [format for format in formats if format.reads_file(path)]):
            self.load_exported_state(self._converted(read[0], path, {}, source), source)
            return
        if formats and kind(path) != "file":
            path = checkpoint_folder(source)
            config = read_config(path)
            if config and "family" not in config:
                fitting = next((format for format in formats if format.detect(config)), None)
                if fitting is None:
                    held = config.get("model_type") or "unknown"
                    readable = "; ".join(format.reads for format in formats)
                    raise PartitaError(
                        f"{source} holds a model of type {held}, which {self.registered_name} cannot take over: "
                        f"it reads what this library saved, and {readable}"
                    )
                self.load_exported_state(self._converted(fitting, path, config, source), source)
                return
        if kind(path) == "folder":
            if kind(path / "config.json") == "file" and "family" in (config := read_json(path / "config.json")):
                check_format(config.get("format"), path)
                own = json.loads(json.dumps(self.config["arguments"], default=str))
                if changed := _changed(config.get("arguments"), own):
                    listed = "; ".join(changed[:5])
                    warnings.warn(f"the weights in {path} were made with other arguments: {listed}", stacklevel=2)
            path = path / "model.safetensors"
        if kind(path) != "file":
            raise PartitaError(f"no weights at {source}: expected a folder with model.safetensors, or such a file")
        self.load_exported_state(read_tensors(path), path)
        self.load_tokenizer(path.parent)

    @classmethod
    def missing_weights(cls, source: str) -> str | None:
        """Why :meth:`load_weights` would find nothing at ``source``; ``None`` if it may succeed.

        Parts that load from the Hub accept any hub id here: only the Hub knows whether it exists.
        """
        path, foreign = Path(source), cls.load_weights is not Part.load_weights or bool(formats_for(cls))
        if kind(path) or (foreign and re.fullmatch(r"\w[\w.-]*(/[\w.-]+){1,2}", source)):
            return None
        return f"there is no file or folder {path.absolute()}" + (", and this is no hub id" if foreign else "")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Rebuild a part from the folder :meth:`save` wrote."""
        config = read_json(Path(folder) / "config.json")
        if not {"family", "name", "arguments"} <= config.keys():
            raise PartitaError(f"{folder} does not hold a saved part: its config.json does not say which")
        check_format(config.get("format"), folder)
        part: Self = build(lookup(config["family"], config["name"]), config["arguments"])
        if not isinstance(part, cls):
            raise PartitaError(f"{folder} holds a {config['family']} ({config['name']}), not a {cls.__name__}")
        part.load_weights(folder)
        return part.eval()

    def train_only(self, patterns: Sequence[str] | None) -> None:
        """Train only the parameters that match the patterns, and freeze the others.

        Args:
            patterns: Names of parameters, with the wildcards ``*`` and ``?``. ``None`` trains all.

        Raises:
            ValueError: A pattern matches no parameter.
        """
        self.check_names(patterns or ())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(patterns is None or any(fnmatch.fnmatchcase(name, p) for p in patterns))

    def check_names(self, patterns: Iterable[str]) -> None:
        """Check that each pattern matches the name of a parameter.

        Raises:
            ValueError: One matches none.
        """
        names = [name for name, _ in self.named_parameters()]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                blocks = dict.fromkeys(re.sub(r"[.]\d+(?=[.])", ".*", name) for name in names)
                groups = dict.fromkeys(re.sub(r"[.]\w+$", ".*", name) for name in blocks)
                raise ValueError(f"no parameter is called {pattern!r}{did_you_mean(pattern, groups)}")

    def doubt(self) -> str | None:
        """A warning, shown before training, why the options will give a poor result; ``None`` if they look fine."""
        return None

    def configure_callbacks(self) -> list[L.Callback]:
        """The callback that averages the weights, if the fit options ask for it."""
        options = self.fit_options
        return [] if options.ema is None else [AverageWeights(options.ema, options.ema_every)]

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Log a value as Lightning does. Values of training and validation are averaged over all processes."""
        if name.startswith("train/"):
            options = {"sync_dist": True} | options
        if name.startswith("val/"):
            options = {"sync_dist": True} | options
            if options.get("batch_size"):  # Lightning would average the numbers of examples over processes as integers
                options["batch_size"] *= self.trainer.world_size
        super().log(name, value, *args, **options)


def _numbers(tensor: Tensor) -> str:
    """The kind of numbers of a tensor. Loading converts their precision, but not their kind."""
    if tensor.is_complex() or tensor.is_floating_point():
        return "complex" if tensor.is_complex() else "floating point"
    return "truth" if tensor.dtype == torch.bool else "whole"


_FREE = frozenset({"sampling", "num_codebooks", "inputs", "checkpointing", "condition_dropout", "dropout"})
"""Arguments that can be chosen anew for trained weights."""


def _changed(old: Any, new: Any, at: str = "") -> list[str]:
    """Return a clause for each argument that differs between two configurations and that weights depend on."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [name for name in old if name in new and name not in _FREE]
        return [clause for n in names for clause in _changed(old[n], new[n], f"{at}.{n}".removeprefix("."))]
    key = at.replace(".arguments", "")
    return [] if old == new else [f"{key} was {old!r:.80} and is {new!r:.80}"]
