"""The command line. It imports torch only when a command needs it."""

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
from .import_system import import_
from .invert import invert
from .list_parts import list_
from .listen import listen
from .share import pull, push
from .tokenize import tokenize
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
app.command()(tokenize)
app.command()(generate)
app.command()(evaluate)
app.command()(ablate)
app.add_typer(listen, name="listen")
app.command()(push)
app.command()(pull)
app.command("import")(import_)
app.command()(invert)
app.command(hidden=True)(task)


def _version(requested: bool) -> None:
    if requested:
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
            help="Python file to run first, so that recipes can name the parts it registers. It goes before the "
            "command: partita --import mypart.py train …. Can be repeated.",
        ),
    ] = None,
) -> None:
    """Interchangeable, trainable parts for music generation, composed by recipes."""
    import_files(imports or [])


PATH_ERRORS = {
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
"""Operating system errors that mean that a path cannot be used."""


def _stop(number: int, frame: Any) -> None:
    raise Stopped(number)


def _repeat_lost_signal(lost: sys.UnraisableHookArgs) -> None:
    """Send a signal again that arrived where Python cannot raise exceptions, such as in a destructor."""
    if isinstance(lost.exc_value, Stopped):
        threading.Timer(0.01, os.kill, (os.getpid(), lost.exc_value.signal)).start()
    else:
        sys.__unraisablehook__(lost)


def main() -> None:
    """Run the command line. Status 2 and one message mean a user error, status 1 and a traceback an internal error."""
    # OpenMP reads this when torch is imported. With a short spin count, waiting threads yield early: beside another
    # busy process, training on two cores then runs at half its speed instead of a tenth.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    before = signal.signal(signal.SIGINT, _stop)  # typer would exit without a message
    hook, sys.unraisablehook = sys.unraisablehook, _repeat_lost_signal
    try:
        with as_messages():
            app(standalone_mode=True)
    except (PartitaError, UnknownName) as error:
        err.print(f"error: {error}", style="red")
        sys.exit(2)
    except (KeyboardInterrupt, Stopped) as stop:
        err.print("stopped; run the same command again to resume")
        sys.exit(128 + getattr(stop, "signal", 2))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None and error.errno in PATH_ERRORS:
            err.print(f"error: {error.filename}: {error.strerror}", style="red")
            sys.exit(2)
        if (
            isinstance(error, OSError) and error.filename is None and error.errno in FULL
        ):  # writing to standard output failed
            err.print(f"error: the output cannot be written: {FULL[error.errno]}", style="red")
            sys.stdout = None  # prevents another attempt to flush it at exit
            sys.exit(2)
        err.print(traceback.format_exc())
        err.print("This is a bug in Partita. Please report it with the lines above.", style="red")
        sys.exit(1)
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, before)
