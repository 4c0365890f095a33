"""Shared options, and dataclasses as groups of options of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

Recipe = Annotated[
    str,
    typer.Argument(
        help="Name of a packaged recipe, path of a YAML file, or folder of a run or export, to start from its recipe.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]…",
        help="Overrides, such as tokenizers.acoustic=soundstream-tiny seed=1.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Argument(help="Run folder, export folder, or Hub id (user/name).", show_default=False)]
Device = Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, mps, or auto.")]
InferencePrecisionName = Annotated[
    str,
    typer.Option(
        help="Precision of the weights: fp32, or bf16 or int8, which are faster and less exact. auto takes the fastest "
        "that the device has instructions for."
    ),
]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each dataclass parameter of a command by one option for each field of the dataclass.

    The fields are annotated like options of typer (``Annotated[int, typer.Option(…)]``) and have defaults.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        of_fields = get_type_hints(groups[parameter.name], include_extras=True)
        parameters += [_parameter(f, of_fields[f.name]) for f in fields(groups[parameter.name])]

    @wraps(command)
    def flat(**values: Any) -> None:
        built = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**values, **built)

    # Keyword-only parameters may have defaults in any order; typer passes all of them by name.
    flat.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del flat.__wrapped__  # its signature would take precedence
    return flat


def _parameter(of: Field[Any], hint: Any) -> inspect.Parameter:
    default = of.default if of.default is not MISSING else inspect.Parameter.empty
    return inspect.Parameter(of.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
