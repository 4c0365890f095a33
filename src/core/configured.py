"""Remembering the arguments of a constructor, so that they can be saved and the object can be built again."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self

from .schema import plain


class Configured:
    """Base of parts and components, which records the arguments of the constructor.

    Attributes:
        arguments: Every constructor argument by name, defaults included.
    """

    family: ClassVar[str]
    registered_name: ClassVar[str]
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments, which are saved with the object."""
        made = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        arguments.pop("self", None)
        made.__dict__["arguments"] = arguments
        return made

    @property
    def config(self) -> dict[str, Any]:
        """Plain values from which :func:`~partita.core.schema.build` makes the object again, without its weights."""
        return {"family": self.family, "name": self.registered_name, "arguments": plain(self.arguments)}
