"""The optimizers of training: Adam in one fused kernel, and Muon for hidden matrices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, overload

import torch
from torch import nn
from torch.optim import Adam, AdamW, Muon, Optimizer

FUSED_DEVICES = ("cpu", "cuda", "xpu", "mps")
"""Devices on which Adam runs as one kernel. On two cores, a step of 100 million parameters takes 0.06 s instead of
0.4 s."""


Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
"""Parameters, or groups of them as torch takes them: mappings with ``params`` and their own options, such as ``lr``."""


def _as_groups(parameters: Parameters) -> list[dict[str, Any]]:
    given: list[Any] = list(parameters)
    return given if given and isinstance(given[0], dict) else [{"params": given}]


def make_adam(kind: type[Adam], parameters: Parameters, **options: Any) -> Adam:
    """Adam or AdamW over parameters, fused where the device supports it.

    Args:
        kind: ``torch.optim.Adam`` or ``torch.optim.AdamW``.
        parameters: The parameters, or groups of them.
        options: Arguments of the optimizer.
    """
    groups = _as_groups(parameters)
    chosen = [parameter for group in groups for parameter in group["params"]]
    devices = {parameter.device.type for parameter in chosen}
    fused = devices <= {*FUSED_DEVICES} and all(parameter.is_floating_point() for parameter in chosen)
    optimizer = kind(groups, fused=fused or None, **options)
    # Gradients in half precision are clipped, so they must be unscaled before the step rather than in the kernel.
    optimizer._step_supports_amp_scaling = False
    return optimizer


class MuonWithAdamW(Optimizer):
    """Muon for hidden matrices and AdamW for all other parameters, as one optimizer.

    Muon (Jordan et al. 2024, `kellerjordan.github.io/posts/muon`) orthogonalizes the momentum of a matrix. It is scaled
    as in "Muon is scalable for LLM training" (arXiv 2502.16982), so that its updates are as large as AdamW's: both take
    the same learning rate and weight decay.

    Args:
        parameters: All parameters, or groups of them.
        hidden: Those among them that Muon updates; each has two dimensions.
        options: Arguments of AdamW. Its learning rate and weight decay are also Muon's.
    """

    def __init__(self, parameters: Parameters, hidden: Collection[nn.Parameter], **options: Any) -> None:
        matrices = {id(parameter) for parameter in hidden}
        mine: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in _as_groups(parameters):
            for kept, is_hidden in ((mine, True), (others, False)):
                if members := [p for p in group["params"] if (id(p) in matrices) == is_hidden]:
                    kept.append(group | {"params": members})
        shared = {name: options[name] for name in ("lr", "weight_decay") if name in options}
        inner: list[Optimizer] = []
        if mine:
            inner.append(Muon(mine, adjust_lr_fn="match_rms_adamw", **shared))
        if others:
            inner.append(make_adam(AdamW, others, **options))
        groups = [{**group, "inner": index} for index, one in enumerate(inner) for group in one.param_groups]
        super().__init__(groups, {})
        self._inner = inner

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, inner in enumerate(self._inner):  # loading a checkpoint replaces groups and state
            inner.param_groups = [group for group in self.param_groups if group["inner"] == index]
            inner.state = self.state
            inner.step()
        return loss


def hidden_matrices(module: nn.Module, left_out: tuple[str, ...]) -> list[nn.Parameter]:
    """The trainable weights of linear layers, except those whose name starts with one of some prefixes.

    Args:
        module: The module.
        left_out: Prefixes of the layers that read inputs or compute outputs.
    """
    linear = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return [
        parameter
        for name, parameter in module.named_parameters()
        if name in linear and parameter.requires_grad and not name.startswith(left_out)
    ]
