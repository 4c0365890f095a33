"""The command that imports systems of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import partita

from ..core.console import logged, out


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Hub id, such as facebook/musicgen-small, or a folder with the files of such a repository.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to create.", show_default=False)],
) -> None:
    """Turn a published checkpoint of another library into a system. `partita list published` names known ones."""
    with logged(out):
        folder = partita.import_system(source, output)
    out.print(f"imported: {folder}")
