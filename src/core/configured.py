"""Remembering the arguments something was built from, so that a file can hold them and it can be built again."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self

from .schema import plain


class Configured:
    """Notes the arguments of its constructor; the base of parts and of the components that parts are made of.

    Attributes:
        arguments: Every constructor argument by name, defaults included.
    """

    family: ClassVar[str]
    registered_name: ClassVar[str]
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments; they are saved with what is built."""
        made = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        arguments.pop("self", None)
        made.__dict__["arguments"] = arguments
        return made

    @property
    def config(self) -> dict[str, Any]:
        """Plain values from which :func:`~partita.core.schema.build` makes it again, without its weights."""
        return {"family": self.family, "name": self.registered_name, "arguments": plain(self.arguments)}
