"""Training a stage in shares: every process holds a share of its weights, gradients and optimizer state (FSDP2)."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, load, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ..core.part import Part
from ..errors import PartitaError
from ..storage.files import replacing_folder
from ..storage.shard_folder import file_checksum
from .checkpoints import Damaged, first_failure, read_values, saying_when_damaged

OTHERS = "others.ckpt"
"""File of a sharded checkpoint with everything but the shares: counters, buffers and the progress of the training."""

_STATES = ("state_dict", "current_model_state")


class FullySharded(ModelParallelStrategy):
    """Fully sharded data parallelism. A process gathers the weights of a block only while it computes with them.

    A checkpoint is a folder, to which each process writes its shares as safetensors.
    """

    def setup_environment(self) -> None:
        """Connect the processes, all of which are in one group."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Distribute the weights of the part, block by block, and then create the optimizer."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        part: Any = self.lightning_module
        try:
            for block in (*part.repeated_blocks, part):
                fully_shard(block, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        except ValueError as error:
            raise PartitaError(f"{part.registered_name} cannot be trained in shares: {error}; use ddp") from None
        for method in ("training_step", "validation_step"):
            register_fsdp_forward_method(part, method)
        self.model_to_device()
        self.barrier()
        self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state of the part, with the shares of this process."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Load the state of the part, with the shares of this process."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state of an optimizer by name of the parameter, with the shares of this process."""
        names = self._names
        state = {names[id(parameter)]: dict(values) for parameter, values in optimizer.state.items()}
        return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the shares of all processes, and the rest once. The folder appears complete or not at all."""
        shares: dict[str, Tensor] = {}
        others = checkpoint | {name: _divided(checkpoint[name], name, shares) for name in _STATES if name in checkpoint}
        others["optimizer_states"] = [
            one
            | {"state": {name: _divided(values, f"{number}.{name}", shares) for name, values in one["state"].items()}}
            for number, one in enumerate(checkpoint["optimizer_states"])
        ]
        with replacing_folder(Path(filepath)) if self.is_global_zero else nullcontext(Path()) as new:
            folder = Path(self.broadcast(str(new)))
            try:
                save(shares, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
            except CheckpointException as error:
                raise first_failure(error) from None
            checksums = self._checksums(folder, sorted(file.name for file in folder.iterdir()))
            if self.is_global_zero:
                with (folder / OTHERS).open("wb") as file:  # given a path, torch hides causes of errors
                    torch.save(others | {"checksums": checksums}, file)
            self.barrier()
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the shares of this process and the rest, without unpickling anything but tensors and plain values.

        Raises:
            PartitaError: The checkpoint is damaged.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        shares: dict[str, Tensor] = {}

        def whole(values: dict[str, Any], prefix: str, parameter: str | None = None) -> dict[str, Any]:
            for name, value in values.items():
                if value is None:  # a share
                    like = parameters[parameter or name].detach()
                    values[name] = shares[f"{prefix}.{name}"] = torch.empty_like(like)
            return values

        with saying_when_damaged(path):
            others = read_values(path / OTHERS, "cpu")
            expected = others.pop("checksums")
            found = self._checksums(path, sorted(expected))
            if wrong := [name for name, checksum in expected.items() if found[name] != checksum]:
                raise Damaged(wrong[0])  # shares that are missing would otherwise keep whatever is in the memory
            for kind in _STATES:
                if kind in others:
                    whole(others[kind], kind)
            for number, one in enumerate(others["optimizer_states"]):
                for name, values in one["state"].items():
                    whole(values, f"{number}.{name}", name)
            load(shares, storage_reader=HuggingFaceStorageReader(str(path)))
        for optimizer, one in zip(self.optimizers, others["optimizer_states"], strict=True):
            order = self._ordered(optimizer)
            state = {order.index(name): values for name, values in one["state"].items()}
            optimizer.load_state_dict({"state": state, "param_groups": one["param_groups"]})
        return others

    def _checksums(self, folder: Path, names: list[str]) -> dict[str, int | None]:
        """Checksums of files, of which each process reads some; ``None`` of those that cannot be read."""
        own: dict[str, int | None] = {}
        for name in self.broadcast(names)[self.global_rank :: self.world_size]:
            try:
                own[name] = file_checksum(folder / name)
            except OSError:
                own[name] = None
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, own)
        return {name: checksum for one in gathered for name, checksum in one.items()}

    @property
    def _names(self) -> dict[int, str]:
        assert self.lightning_module is not None
        return {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}

    def _ordered(self, optimizer: Any) -> list[str]:
        """Names of the parameters of an optimizer, in its order."""
        names = self._names
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def whole_state(part: Part) -> dict[str, Tensor]:
    """The state of a part that was trained in shares, gathered on the CPU of each process. All must call it."""
    state = {}
    for name, value in part.state_dict().items():
        state[name] = (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
    return state


def _divided(values: dict[str, Any], prefix: str, shares: dict[str, Tensor]) -> dict[str, Any]:
    """Move the shares of some values into ``shares``, and return the values with ``None`` in their place."""
    shares |= {f"{prefix}.{name}": value for name, value in values.items() if isinstance(value, DTensor)}
    return {name: None if isinstance(value, DTensor) else value for name, value in values.items()}
