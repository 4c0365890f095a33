"""The command that learns a pseudo-word from a recording."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import partita

from ..core.console import logged, out, showing_progress
from ..errors import PartitaError
from .options import Device, Model, grouped


@dataclass(frozen=True)
class InversionOptions:
    """How a pseudo-word is learned."""

    start: Annotated[str, typer.Option(help="Words whose vectors it starts from. It has as many as they have.")] = (
        "music"
    )
    steps: Annotated[int, typer.Option(help="Updates of the vectors.")] = 200
    batch_size: Annotated[int, typer.Option(help="Crops of the recording in an update.")] = 8
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.025
    seed: Annotated[int, typer.Option(help="Seed of the crops.")] = 0

    def checked(self) -> partita.Inversion:
        """The options of the training."""
        try:
            return partita.Inversion(self.start, self.steps, self.batch_size, self.lr, self.seed)
        except ValueError as error:
            raise PartitaError(str(error)) from None


@grouped
def invert(
    model: Model,
    recording: Annotated[
        Path, typer.Argument(metavar="RECORDING", help="Audio file with the music to learn.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")],
    options: InversionOptions,
    name: Annotated[
        str | None, typer.Option(help="What the pseudo-word is called. By default, the name of the folder.")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Prompt with which the loss is compared. Can be repeated."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Learn a word that stands for the music of a recording (textual inversion). The system stays as it is.

    Prompts can then have it: partita generate MODEL "a waltz like <song>" --word FOLDER
    """
    word, how = name or output.name, options.checked()
    with logged(out):
        system = partita.load(model, device=device)
        with showing_progress(True):
            losses = partita.invert(system, recording, word, output, prompts=prompts or (), options=how)
    for text, loss in losses.items():
        out.print(f"loss with “{text}”: {loss:.4f}", markup=False)
    out.print(f"word: {output} (in prompts as <{word}>)", markup=False)
