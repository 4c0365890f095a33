"""The command that evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.console import bars, columns, out
from .options import Device, Model


def evaluate(
    model: Model,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA=VALUE]…", help="Other data, such as data=folder data.path=/music.", show_default=False
        ),
    ] = None,
    clips: Annotated[int, typer.Option(help="Clips to generate from the captions of test pieces.")] = 64,
    reference_clips: Annotated[int, typer.Option(help="Real clips that distributions are compared with.")] = 256,
    duration: Annotated[float | None, typer.Option("--duration", "-d", help="Seconds of each clip.")] = None,
    seed: Annotated[int, typer.Option(help="Of all clips.")] = 0,
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokenizer, or conditioner such as clap, in whose latents distributions are compared: a name, or a "
            "slot such as '{preset: encodec-24khz}'. Can be given more than once; log-mel-16khz unless given."
        ),
    ] = None,
    classifier: Annotated[
        list[str] | None,
        typer.Option(help="Tokenizer of logits, by which clips and the pieces of their captions are compared (KLD)."),
    ] = None,
    joint: Annotated[
        list[str] | None,
        typer.Option(help="Conditioner such as clap, by which clips and their captions are compared."),
    ] = None,
    memorization: Annotated[
        bool, typer.Option("--memorization", help="Continue training clips, too: are they known by heart?")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; MODEL/evaluation unless given.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Generate from the captions of test pieces, score, and write a page. Run the same command again to go on."""
    from ..evaluation.evaluate import RESULTS
    from ..evaluation.evaluate import evaluate as evaluate_system
    from ..evaluation.options import Evaluation
    from ..evaluation.score_texts import clips_text

    options = Evaluation(
        clips=clips,
        reference_clips=reference_clips,
        duration=duration,
        seed=seed,
        embeddings=tuple(embedding or Evaluation.embeddings),
        classifiers=tuple(classifier or ()),
        joint=tuple(joint or ()),
        memorization=memorization,
    )
    folder = output or Path(model) / "evaluation"
    with bars() as bar:
        results = evaluate_system(
            model,
            output,
            data=data or [],
            options=options,
            device=device,
            say=out.print,
            progress=bar.one("clips", clips),
        )
    numbers = ("generated", "95 %", "real clips", "coded", "chance")
    table = columns("metric", *numbers, "better", "clips", right=(*numbers, "clips"))
    before = None
    for name, row in results["metrics"].items():
        if before not in (None, row["of"]):  # those of the codec are apart from those of what is generated
            table.add_section()
            table.add_row(f"of the {row['of']}:")
        before = row["of"]
        interval = f"{row['low']:.3f} – {row['high']:.3f}" if "low" in row else ""
        beside = [f"{row[key]:.3f}" if key in row else "" for key in ("real", "codec", "chance")]
        beside[-1] += "" if row.get("beats_chance", True) else " (not beaten)"
        table.add_row(name, f"{row['value']:.3f}", interval, *beside, row["better"], clips_text(row))
    out.print(table)
    out.print(f"{folder / RESULTS}, {folder / 'evaluation.html'}")
