"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.console import as_messages, bars, columns, device_name, err, out
from ..core.imports import import_files
from ..core.registry import UnknownName
from ..errors import PartitaError, Stopped
from ..storage.files import FULL
from .ablate import ablate, task
from .generate import generate
from .listen import listen

if TYPE_CHECKING:
    from ..system.system import System

app = typer.Typer(
    help="Interchangeable, trainable parts for music generation, composed by recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(ablate)
app.command()(generate)
app.command(hidden=True)(task)
app.add_typer(listen, name="listen")

Recipe = Annotated[
    str, typer.Argument(help="Name of a packaged recipe, or the path of a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]…", help="Changes, such as tokenizers.acoustic=soundstream-tiny seed=1.", show_default=False
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        out.print(f"partita {version('partita')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    imports: Annotated[
        list[Path] | None,
        typer.Option(
            "--import",
            metavar="FILE.py",
            help="Run this file of Python first, so that recipes can name the parts it registers. Before the command: "
            "partita --import mypart.py train …; can be given more than once.",
        ),
    ] = None,
) -> None:
    """Interchangeable, trainable parts for music generation, composed by recipes."""
    import_files(imports or [])


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[FAMILY[/NAME]]",
            help="A family, a part or preset, a recipe, or fit (how parts are trained).",
        ),
    ] = None,
) -> None:
    """What there is: recipes, parts and presets; or the arguments of one part."""
    from .list_parts import show

    show(what, out)


@app.command()
def check(
    recipe: Recipe,
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option("--data", help="Decode all audio once, and list what is damaged.")] = False,
) -> None:
    """Compose and validate a recipe, and print the system: parts, rates, shapes, parameters."""
    from ..system.summary import overview
    from ..system.system import System

    system = System.checked(recipe, overrides or [])
    out.print(overview(system))
    if data:
        _check_data(system)


def _check_data(system: System) -> None:
    """Print what there is, and what of it is damaged.

    Raises:
        PartitaError: Something is.
    """
    from ..data.overview import damage, gaps, overview

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what was skipped is listed below
        system.source.setup()
    for line in (*overview(system.source), *gaps(system.source, system.reads)):
        out.print(f"data: {line}")
    with bars() as shown:
        damaged = damage(system.source, shown.one("decoding"))
    for line in damaged:
        out.print(f"  {line}")
    if damaged:
        raise PartitaError(f"{len(damaged)} damaged; training would leave out what cannot be read of them")
    system.check_fields()
    out.print("data: nothing is damaged")


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; runs/RECIPE unless given.")] = None,
    report: Annotated[bool, typer.Option(help="Write report.html at the end.")] = True,
) -> None:
    """Train every untrained part of a system, in order. Run the same command again to resume."""
    from ..training.runs import train as train_run

    train_run(recipe, output, overrides or [], report=report)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A run folder, an export folder, or a hub id (user/name).", show_default=False)
    ],
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
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
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
            device=device_name(device),
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


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="A run folder, or an export.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="On the Hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    branch: Annotated[str | None, typer.Option(help="To commit to; made if it is not there.")] = None,
    tag: Annotated[str | None, typer.Option("--revision-tag", help="Name to give this version, such as v1.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    license: Annotated[str | None, typer.Option("--license", help="Of the weights, such as apache-2.0.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Clips to generate for the model card.")] = 3,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Upload report.html too. It holds audio of test pieces: publish it only if you may publish them.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write what would be uploaded to a folder.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of a dry run; NAME-dry-run unless given.")
    ] = None,
) -> None:
    """Publish a finished system on the Hugging Face Hub: weights, recipe, model card, audio examples, evaluation.json.

    Paths of this machine and names of its user are taken out of all of it. --dry-run shows what would be uploaded.
    """
    from ..publishing.push import push as push_system
    from ..publishing.push import write_out
    from ..storage.download import check_id

    if not dry_run:
        if output is not None:
            raise PartitaError("--output says where a dry run goes: there is no --dry-run")
        address = push_system(
            run,
            repo_id,
            private=private,
            branch=branch,
            tag=tag,
            message=message,
            license=license,
            examples=examples,
            report=report,
        )
        out.print(f"pushed: {address}")
        return
    from ..publishing.card import collect

    check_id(repo_id)
    folder = output or Path(f"{repo_id.split('/')[-1]}-dry-run")
    files = collect(run, repo_id, license=license, examples=examples, report=report)
    write_out(files, folder)
    for name in sorted(files):
        out.print(f"{(folder / name).stat().st_size:>15,}  {name}")
    out.print(f"not uploaded: {len(files)} files in {folder}")


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="On the Hub.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; NAME unless given.")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
) -> None:
    """Copy a system from the Hugging Face Hub into a folder."""
    from ..publishing.pull import pull as pull_system

    out.print(f"pulled: {pull_system(repo_id, output, revision)}")


PATHS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.ENAMETOOLONG,
}
"""What the file system says to a path that cannot be used."""


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)


def _unheard(lost: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that comes while Python tidies up, where nothing can be raised, comes once more a moment later."""
    if isinstance(lost.exc_value, Stopped):
        threading.Timer(0.01, os.kill, (os.getpid(), lost.exc_value.signal)).start()
    else:
        sys.__unraisablehook__(lost)


def main() -> None:
    """Run the command line: status 2 and one message for the user's mistakes, status 1 and a traceback for ours."""
    # Read when torch is loaded: threads that wait for each other give way soon. Beside another busy process, training
    # on two cores then goes on at half its speed instead of a tenth.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    before = signal.signal(signal.SIGINT, _stop)  # typer would end without a word
    hook, sys.unraisablehook = sys.unraisablehook, _unheard
    try:
        with as_messages():
            app(standalone_mode=True)
    except (PartitaError, UnknownName) as error:
        err.print(f"error: {error}", style="red")
        sys.exit(2)
    except (KeyboardInterrupt, Stopped) as stop:
        err.print("stopped; run the same command again to go on")
        sys.exit(128 + getattr(stop, "signal", 2))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None and error.errno in PATHS:
            err.print(f"error: {error.filename}: {error.strerror}", style="red")
            sys.exit(2)
        if isinstance(error, OSError) and error.filename is None and error.errno in FULL:  # said by the output itself
            err.print(f"error: the output cannot be written: {FULL[error.errno]}", style="red")
            sys.stdout = None  # its rest would be tried again at the end
            sys.exit(2)
        err.print(traceback.format_exc())
        err.print(
            "This is a fault in Partita, not in what you did. Please report it with the lines above.", style="red"
        )
        sys.exit(1)
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, before)
