"""The commands of listening tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.console import logged, out
from ..errors import PartitaError

listen = typer.Typer(help="Blind listening tests: a page that asks which of two clips is better.", no_args_is_help=True)


@listen.command("make")
def make_listening_test(
    systems: Annotated[
        list[str],
        typer.Argument(
            help="Runs, exports, hub ids, or folders of audio with the same file names.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the test.", show_default=False)],
    prompts: Annotated[
        str, typer.Option(help="So many test pieces of the first system's data, or a file with a prompt on each line.")
    ] = "10",
    duration: Annotated[
        float | None, typer.Option("--duration", "-d", help="Seconds; the first system's window unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of clips, names and orders.")] = 0,
    question: Annotated[str, typer.Option(help="That listeners answer.")] = "Which one do you prefer?",
    trials: Annotated[
        int | None, typer.Option(help="Most pairs for one listener; every pair for every prompt unless given.")
    ] = None,
    catch: Annotated[int, typer.Option(help="Trials in which a clip meets a degraded copy of itself.")] = 0,
    loudness: Annotated[float, typer.Option(help="Of all clips, in LUFS.")] = -23.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
) -> None:
    """Write a page on which listeners compare systems without knowing which is which. It needs no server."""
    from ..evaluation.listen import KEY, check_numbers, gather, write_test

    if (output / KEY).exists():
        raise PartitaError(f"{output} holds a listening test already: choose another folder")
    check_numbers(len(systems), trials=trials, catch=catch, level=loudness)
    with logged(out):
        material = gather(systems, prompts=prompts, duration=duration, seed=seed, device=device)
    page, notes = write_test(material, output, question=question, trials=trials, catch=catch, level=loudness, seed=seed)
    for note in notes:
        out.print(note)
    out.print(f"{page}: give this file alone to listeners ({page.stat().st_size / 1e6:.1f} MB)")
    out.print(f"{output / KEY}: keep it, it says which clip is whose")


@listen.command("results")
def listening_results(
    test: Annotated[Path, typer.Argument(help="Folder of the test.", show_default=False)],
    answers: Annotated[list[Path], typer.Argument(help="Files that listeners saved.", show_default=False)],
    allowed: Annotated[int, typer.Option(help="Catch trials that a listener may fail.")] = 0,
) -> None:
    """From listeners' answers, wins, strengths with intervals and p-values: a page, Markdown and CSV in TEST."""
    from ..evaluation.listen_results import evaluate

    results = evaluate(test, answers, allowed=allowed)
    for name, reason in results.rejected:
        out.print(f"not counted: {name}, who {reason}")
    out.print((test / "results.md").read_text(encoding="utf-8"))
    out.print(f"results: {test / 'results.html'}")
