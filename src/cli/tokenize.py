"""The command that stores tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

import partita

from ..recipe.token_options import TokenOptions
from .options import Overrides, grouped


@dataclass(frozen=True)
class Work:
    """How the tokens are made."""

    workers: Annotated[int, typer.Option(help="Processes that read and decode audio.")] = 0
    device: Annotated[str, typer.Option(help="Device that encodes: cpu, cuda, cuda:1, mps, or auto.")] = "auto"
    node_rank: Annotated[
        int | None, typer.Option(help="Number of this node, from 0; by default, from Slurm or torchrun.")
    ] = None
    num_nodes: Annotated[int | None, typer.Option(help="Number of nodes that share the work.")] = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise partita.PartitaError(f"--workers must be 0 or more, not {self.workers}")
        if (self.node_rank is None) != (self.num_nodes is None):
            raise partita.PartitaError("--node-rank and --num-nodes belong together: set both, or neither")
        if self.num_nodes is not None and self.num_nodes < 1:
            raise partita.PartitaError(f"--num-nodes must be at least 1, not {self.num_nodes}")

    @property
    def node(self) -> tuple[int, int] | None:
        """Number of this node and number of nodes; ``None`` to read them from the environment."""
        return None if self.node_rank is None or self.num_nodes is None else (self.node_rank, self.num_nodes)


@grouped
def tokenize(
    recipe: Annotated[
        str,
        typer.Argument(help="Run folder with trained parts, or a recipe whose parts have weights.", show_default=False),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="Folder or URL (s3://…, gs://…, r2://…) of the shards.", show_default=False
        ),
    ],
    work: Work,
    overrides: Overrides = None,
    versions: Annotated[
        int | None,
        typer.Option(help="Readings of each training piece; by default, 4 of random data such as the corpus, else 1."),
    ] = None,
    longest: Annotated[
        float | None, typer.Option(help="Seconds of the longest excerpt of a piece; by default, 120.")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Seconds of a random clip of each reading, instead of whole pieces.")
    ] = None,
) -> None:
    """Store the tokens that the stages of a recipe are trained on. Run the same command again to resume."""
    asked = {"versions": versions, "longest": longest, "clip": clip}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    try:
        options = TokenOptions(**given) if given else None
    except ValueError as error:
        raise partita.PartitaError(str(error)) from None
    how: dict[str, Any] = {"workers": work.workers, "device": work.device, "node": work.node}
    partita.tokenize(recipe, output, overrides or [], options=options, **how)
