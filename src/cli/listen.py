"""The commands of listening tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import partita

from ..core.console import logged, out
from .options import Device, grouped

listen = typer.Typer(help="Blind listening tests: a page that asks which of two clips is better.", no_args_is_help=True)


@dataclass(frozen=True)
class TestOptions:
    """What listeners are asked, and how often."""

    question: Annotated[str, typer.Option(help="Question that listeners answer.")] = "Which one do you prefer?"
    trials: Annotated[
        int | None, typer.Option(help="Most pairs for one listener; every pair for every prompt unless given.")
    ] = None
    catch: Annotated[int, typer.Option(help="Trials in which a clip meets a degraded copy of itself.")] = 0
    loudness: Annotated[float, typer.Option(help="Loudness of all clips, in LUFS.")] = -23.0


@listen.command("make")
@grouped
def make_listening_test(
    systems: Annotated[
        list[str],
        typer.Argument(
            help="Runs, exports, hub ids, or folders of audio with the same file names.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the test.", show_default=False)],
    test: TestOptions,
    prompts: Annotated[
        str, typer.Option(help="So many test pieces of the first system's data, or a file with a prompt on each line.")
    ] = "10",
    duration: Annotated[
        float | None, typer.Option("--duration", "-d", help="Seconds; the first system's window unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of clips, names and orders.")] = 0,
    device: Device = "auto",
) -> None:
    """Write a page on which listeners compare systems without knowing which is which. It needs no server."""
    numbers: dict[str, Any] = {"trials": test.trials, "catch": test.catch, "level": test.loudness}
    partita.check_listening_test(output, len(systems), **numbers)
    with logged(out):
        material = partita.gather_clips(systems, prompts=prompts, duration=duration, seed=seed, device=device)
    page, notes = partita.write_listening_test(material, output, question=test.question, seed=seed, **numbers)
    for note in notes:
        out.print(note)
    out.print(f"{page}: give this file alone to listeners ({page.stat().st_size / 1e6:.1f} MB)")
    out.print(f"{output / 'key.json'}: keep it, it says which clip is whose")


@listen.command("results")
def listening_results(
    test: Annotated[Path, typer.Argument(help="Folder of the test.", show_default=False)],
    answers: Annotated[list[Path], typer.Argument(help="Files that listeners saved.", show_default=False)],
    allowed: Annotated[int, typer.Option(help="Catch trials that a listener may fail.")] = 0,
) -> None:
    """From listeners' answers, wins, strengths with intervals and p-values: a page, Markdown and CSV in TEST."""
    results = partita.listening_results(test, answers, allowed=allowed)
    for name, reason in results.rejected:
        out.print(f"not counted: {name}, who {reason}")
    out.print((test / "results.md").read_text(encoding="utf-8"))
    out.print(f"results: {test / 'results.html'}")
