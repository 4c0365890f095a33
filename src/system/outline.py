"""Building a system on the meta device with bounded memory and work, whatever its recipe contains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torchaudio  # noqa: F401  (importing it inside the block would create its constants on the meta device)
from torch import Tensor
from torch.nn.modules import module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..limits import MOST_LAYERS, MOST_OUTLINED, TooMuch, beyond

Built = TypeVar("Built")


@contextmanager
def outlining() -> Iterator[None]:
    """Create tensors on the meta device inside the block, and count modules and the tensors that still take memory.

    Raises:
        TooMuch: Constructors create more modules or take more memory than the limits allow.
    """
    built = 0

    def count(*registered: Any) -> None:
        nonlocal built
        built += 1
        if beyond(built, MOST_LAYERS):
            raise TooMuch(f"more than {MOST_LAYERS:,} layers and weights, far more than any system: refused")

    hooks = [
        module.register_module_module_registration_hook(count),
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    ]
    try:
        with torch.device("meta"), _MemoryMeter():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def construct(make: Callable[[], Built]) -> Built:
    """Return what a function builds, also inside :func:`outlining` if its constructors read values of their constants.

    The meta device has no values. Then, only uninitialized tensors, such as weights, are on the meta device at first.
    """
    try:
        return make()
    except RuntimeError as error:
        if "meta tensor" not in str(error):
            raise
    with torch.device("cpu"), _UninitializedOnMeta():
        built = make()
    return built.to("meta") if isinstance(built, torch.nn.Module) else built


class _UninitializedOnMeta(TorchFunctionMode):
    """Creates uninitialized tensors on the meta device unless they name another one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = torch.device("meta")
        return function(*args, **kwargs)


class _MemoryMeter(TorchDispatchMode):
    """Adds up the memory of operation results and raises an error before the limit is exceeded.

    The size of a result is found by running the operation on the meta device first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not operation.is_view:
            self.taken += _result_bytes(operation, args, kwargs)
            if beyond(self.taken, MOST_OUTLINED):
                raise TooMuch(f"its constants take more than {MOST_OUTLINED:,} bytes: refused")
        return operation(*args, **kwargs)


def _result_bytes(operation: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Return the size of an operation's results in bytes; 0 if they take no memory or if the size is unpredictable."""
    device = kwargs.get("device")
    if (device is not None and device.type == "meta") or (args and isinstance(args[0], Tensor) and args[0].is_meta):
        return 0
    makes = any(argument.name == "device" for argument in operation._schema.arguments)
    args, kwargs = tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), (args, kwargs))
    try:
        made = operation(*args, **{**kwargs, **({"device": torch.device("meta")} if makes else {})})
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return 0
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
