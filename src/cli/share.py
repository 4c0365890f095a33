"""Commands that share systems on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import partita

from ..core.console import out
from ..errors import PartitaError
from .options import grouped


@dataclass(frozen=True)
class CommitOptions:
    """Options of the commit that publishes a system."""

    private: Annotated[bool, typer.Option("--private", help="Create a new repository as private.")] = False
    branch: Annotated[str | None, typer.Option(help="Branch to commit to; it is created if it does not exist.")] = None
    tag: Annotated[str | None, typer.Option("--revision-tag", help="Tag for this version, such as v1.")] = None
    message: Annotated[str | None, typer.Option("--message", "-m", help="Commit message.")] = None


@grouped
def push(
    run: Annotated[Path, typer.Argument(help="Run folder or export folder.", show_default=False)],
    repo_id: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="Name of the repository on the Hub.", show_default=False)
    ],
    commit: CommitOptions,
    license: Annotated[
        str | None, typer.Option("--license", help="License of the weights, such as apache-2.0.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Number of clips to generate for the model card.")] = 3,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Also upload report.html. It contains audio of test pieces: publish it only if you may publish them.",
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME", help="System on the Hub that adapters belong to, if they were trained for a local one."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write what would be uploaded to a folder.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of a dry run; by default, NAME-dry-run.")
    ] = None,
) -> None:
    """Publish a trained system on the Hugging Face Hub: weights, recipe, model card, audio examples, evaluation.json.

    Local paths and user names are removed from all files. --dry-run shows what would be uploaded.
    """
    if output is not None and not dry_run:
        raise PartitaError("--output requires --dry-run: it is the folder of a dry run")
    if not dry_run:
        where = partita.Commit(commit.private, commit.branch, commit.tag, commit.message)
        address = partita.push(run, repo_id, license=license, examples=examples, report=report, commit=where, base=base)
        out.print(f"pushed: {address}")
        return
    folder = output or Path(f"{repo_id.split('/')[-1]}-dry-run")
    files = partita.preview_push(run, repo_id, folder, license=license, examples=examples, report=report, base=base)
    for name in files:
        out.print(f"{(folder / name).stat().st_size:>15,}  {name}")
    out.print(f"not uploaded: {len(files)} files in {folder}")


def pull(
    repo_id: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="Name of the repository on the Hub.", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output folder; by default, NAME.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Copy a system from the Hugging Face Hub into a folder."""
    out.print(f"pulled: {partita.pull(repo_id, output, revision)}")
