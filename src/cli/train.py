"""Commands that check and train recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import partita

from ..core.console import out, showing_progress
from ..errors import PartitaError
from .options import Overrides, Recipe


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option("--data", help="Also decode all audio, and list damaged files.")] = False,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, help="Estimate the training on this number of devices.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="Estimate the training with ddp or fsdp2.", metavar="NAME")
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            "--hardware", help="Estimate the training on a100, h100, l4, 4090 or cpu (this one).", metavar="NAME"
        ),
    ] = None,
) -> None:
    """Compose and validate a recipe, print its parts, rates and shapes, and estimate its training.

    Nothing is built: memory, operations and seconds per step follow from the sizes.
    """
    if strategy not in (None, "ddp", "fsdp2"):
        raise PartitaError(f"--strategy must be ddp or fsdp2, not {strategy!r}")
    system = partita.System.checked(recipe, overrides or [])
    out.print(system.overview())
    out.print(system.forecast(devices=devices, strategy=strategy, hardware=hardware))
    if not data:
        return
    with showing_progress():
        lines, damaged = partita.check_data(system)
    for line in lines:
        out.print(f"data: {line}")
    for line in damaged:
        out.print(f"  {line}")
    if damaged:
        raise PartitaError(f"damaged files or rows: {len(damaged)}; training skips what it cannot read of them")
    system.check_fields()
    out.print("data: nothing is damaged")


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; by default, runs/RECIPE.")] = None,
    report: Annotated[bool, typer.Option(help="Write report.html after training.")] = True,
) -> None:
    """Train every untrained part of a system, in order. Run the same command again to resume."""
    partita.train(recipe, output, overrides or [], report=report)
