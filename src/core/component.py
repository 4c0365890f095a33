"""What parts are made of: the backbone of a stage, the bottleneck of a codec, each chosen by one word."""

from __future__ import annotations

from torch import nn

from .configured import Configured


class Component(Configured, nn.Module):
    """A module that fills a slot of a part, trains with that part and is saved with it.

    A constructor only notes sizes and makes no weights. The part around it calls the ``build`` of its family, once,
    with what only the part knows: widths, rates, what is attended to. So one component fits wherever its family does,
    in a recipe (``backbone: gru``) and in Python (``Autoregressive(…, backbone=GRU(depth=2))``).
    """

    def __init__(self) -> None:
        super().__init__()
        self._built = False

    def claim(self) -> None:
        """Note that a part is built with it; for the ``build`` of a family.

        Raises:
            ValueError: It is in a part already, whose weights another one would share.
        """
        if self._built:
            raise ValueError(f"this {self.registered_name} is in a part already: make one for each")
        self._built = True

    def extra_repr(self) -> str:
        """Its arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
