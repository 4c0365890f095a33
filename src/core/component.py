"""What parts are made of, such as the backbone of a stage or the bottleneck of a codec, each chosen by one word."""

from __future__ import annotations

from torch import nn

from .configured import Configured


class Component(Configured, nn.Module):
    """A module that fills a slot of a part, trains with that part and is saved with it.

    A constructor only stores sizes and creates no weights. The part around the component calls the ``build`` method of
    the component's family once, with what only the part knows: widths, rates, what is attended to. So one component
    fits wherever its family does,
    in a recipe (``backbone: gru``) and in Python (``Autoregressive(…, backbone=GRU(depth=2))``).
    """

    def __init__(self) -> None:
        super().__init__()
        self._built = False

    def claim(self) -> None:
        """Record that a part is built with this component. ``build`` of each family calls this.

        Raises:
            ValueError: The component already belongs to a part, with which another one would share its weights.
        """
        if self._built:
            raise ValueError(f"this {self.registered_name} is in a part already: make one for each")
        self._built = True

    def extra_repr(self) -> str:
        """The arguments of the component, for its printed form."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
