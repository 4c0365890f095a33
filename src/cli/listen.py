"""Commands for listening tests."""

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
    """Options for the question and the trials of a listening test."""

    question: Annotated[str, typer.Option(help="Question that listeners answer.")] = "Which one do you prefer?"
    trials: Annotated[
        int | None,
        typer.Option(help="Maximum number of pairs per listener; by default, every pair of systems for every prompt."),
    ] = None
    catch: Annotated[
        int, typer.Option(help="Number of catch trials, in which a clip is compared to a degraded copy of itself.")
    ] = 0
    loudness: Annotated[float, typer.Option(help="Loudness of all clips, in LUFS.")] = -23.0


@listen.command("make")
@grouped
def make_listening_test(
    systems: Annotated[
        list[str],
        typer.Argument(help="Runs, exports, Hub ids, or folders of audio with equal file names.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the test.", show_default=False)],
    test: TestOptions,
    prompts: Annotated[
        str,
        typer.Option(help="Number of test pieces from the first system's data, or a file with a prompt on each line."),
    ] = "10",
    duration: Annotated[
        float | None,
        typer.Option("--duration", "-d", help="Length of each clip in seconds; by default, the first system's window."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the clips, the blinded names and the order of trials.")] = 0,
    device: Device = "auto",
) -> None:
    """Write a page for a blind comparison of systems by listeners. It needs no server."""
    numbers: dict[str, Any] = {"trials": test.trials, "catch": test.catch, "level": test.loudness}
    partita.check_listening_test(output, len(systems), **numbers)
    with logged(out):
        material = partita.gather_clips(systems, prompts=prompts, duration=duration, seed=seed, device=device)
    page, notes = partita.write_listening_test(material, output, question=test.question, seed=seed, **numbers)
    for note in notes:
        out.print(note)
    out.print(f"{page}: give only this file to listeners ({page.stat().st_size / 1e6:.1f} MB)")
    out.print(f"{output / 'key.json'}: keep this file; it maps clips to systems")


@listen.command("results")
def listening_results(
    test: Annotated[Path, typer.Argument(help="Folder of the test.", show_default=False)],
    answers: Annotated[list[Path], typer.Argument(help="Answer files that listeners saved.", show_default=False)],
    allowed: Annotated[int, typer.Option(help="Number of catch trials that a listener may fail.")] = 0,
) -> None:
    """Compute wins, strengths with intervals and p-values from answers. Write a page, Markdown and CSV to TEST."""
    results = partita.listening_results(test, answers, allowed=allowed)
    for name, reason in results.rejected:
        out.print(f"not counted: {name}, who {reason}")
    out.print((test / "results.md").read_text(encoding="utf-8"))
    out.print(f"results: {test / 'results.html'}")
