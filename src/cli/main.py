"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.console import as_messages, err, out
from ..core.imports import import_files
from ..core.registry import UnknownName
from ..core.version import __version__
from ..errors import PartitaError, Stopped
from ..storage.files import FULL
from .ablate import ablate, task
from .evaluate import evaluate
from .generate import generate
from .list_parts import list_
from .listen import listen
from .share import pull, push
from .train import check, train

app = typer.Typer(
    help="Interchangeable, trainable parts for music generation, composed by recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("list")(list_)
app.command()(check)
app.command()(train)
app.command()(generate)
app.command()(evaluate)
app.command()(ablate)
app.add_typer(listen, name="listen")
app.command()(push)
app.command()(pull)
app.command(hidden=True)(task)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"partita {__version__}")
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
