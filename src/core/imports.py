"""Importing Python files that the user names, for custom parts. Nothing in a recipe can import a file."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from ..errors import PartitaError

_imported: dict[str, None] = {}


def import_file(path: str | Path) -> None:
    """Run a Python file once, so that the parts it registers can be used by name.

    The file becomes a module named after it. The processes of an ablation import the same files.

    Raises:
        PartitaError: The file does not exist, another module has its name, or it fails; the message says where.
    """
    file = Path(path).expanduser().resolve()
    if str(file) in _imported:
        return
    name = file.stem
    if file.suffix != ".py" or not file.is_file():
        raise PartitaError(
            f"{path} cannot be imported: {'it does not end in .py' if file.is_file() else 'no such file'}"
        )
    if not name.isidentifier() or _taken(name, file):
        raise PartitaError(
            f"{path} cannot be imported as a module {name!r}, which there is already or cannot be: rename it"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))  # for new processes, and for imports of the files beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        sys.path.remove(str(file.parent))
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
        where = f" line {line}" if line else ""
        raise PartitaError(f"{path}{where}: {type(error).__name__}: {error}") from None
    _imported[str(file)] = None


def import_files(paths: Iterable[str | Path]) -> None:
    """Import several files, in order."""
    for path in paths:
        import_file(path)


def imported() -> tuple[str, ...]:
    """The imported files in order, for processes that need the same parts."""
    return tuple(_imported)


def _taken(name: str, file: Path) -> bool:
    """Whether another module already has this name."""
    try:
        spec = importlib.util.find_spec(name)
    except (ValueError, ImportError):
        return True
    return spec is not None and (spec.origin is None or Path(spec.origin).resolve() != file)
