"""The command that stores tokens."""

from __future__ import annotations

from typing import Annotated

import typer

import partita

from ..recipe.token_options import TokenOptions
from .options import Device, Overrides


def tokenize(
    recipe: Annotated[
        str,
        typer.Argument(help="Run folder with trained parts, or a recipe whose parts have weights.", show_default=False),
    ],
    overrides: Overrides = None,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="Folder or URL (s3://…, gs://…, r2://…) of the shards.", show_default=False
        ),
    ] = "",
    versions: Annotated[
        int | None,
        typer.Option(help="Readings of each training piece; by default, 4 of random data such as the corpus, else 1."),
    ] = None,
    longest: Annotated[
        float | None, typer.Option(help="Seconds of the longest excerpt of a piece; by default, 120.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read and decode audio.")] = 0,
    device: Device = "auto",
    node_rank: Annotated[
        int | None, typer.Option(help="Number of this node, from 0; by default, from Slurm or torchrun.")
    ] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Number of nodes that share the work.")] = None,
) -> None:
    """Store the tokens that the stages of a recipe are trained on. Run the same command again to resume."""
    if not output:
        raise partita.PartitaError("no --output: name the folder or the URL of the shards")
    if (node_rank is None) != (num_nodes is None):
        raise partita.PartitaError("--node-rank and --num-nodes belong together: set both, or neither")
    given = {name: value for name, value in (("versions", versions), ("longest", longest)) if value is not None}
    try:
        options = TokenOptions(**given) if given else None
    except ValueError as error:
        raise partita.PartitaError(str(error)) from None
    node = None if node_rank is None or num_nodes is None else (node_rank, num_nodes)
    if workers < 0:
        raise partita.PartitaError(f"--workers must be 0 or more, not {workers}")
    partita.tokenize(recipe, output, overrides or [], options=options, workers=workers, device=device, node=node)
