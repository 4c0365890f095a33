"""Kernels in C for generation on CPUs, compiled on this machine when they are first used.

PyTorch's own operators are made for large matrices. A step of generation multiplies matrices with few rows, and takes
several times as long with them as reading the weights does. Without a C compiler, they are used all the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path

from ..storage.cache import default_cache_dir

SOURCES = ("numbers.h", "linear.h", "decoder.c")
FLAGS = ("-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC")
CHOICES = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
)
"""Flags of which a compiler gets the first that it knows: for this processor, and for all of its cores."""
LONGEST = 120
"""Seconds after which a compiler counts as broken."""


@cache
def native_library() -> ctypes.CDLL | None:
    """Return the kernels, or ``None`` where they cannot be compiled.

    They are compiled once for each processor and version, into the user's cache folder. ``PARTITA_NATIVE=0`` in the
    environment turns them off.
    """
    if os.environ.get("PARTITA_NATIVE") == "0" or sys.platform == "win32" or sys.byteorder != "little":
        return None
    folder = files(__package__) / "csrc"
    try:
        sources = {name: (folder / name).read_text() for name in SOURCES}
        path = default_cache_dir() / "kernels" / f"decoder-{_fingerprint(sources)}.so"
        if not path.is_file() and not _compile(sources, path):
            return None
        library = ctypes.CDLL(str(path))
    except OSError as error:
        warnings.warn(
            f"the kernels for generation cannot be used ({error}), and it takes longer: set PARTITA_CACHE to a folder "
            "for them",
            stacklevel=2,
        )
        return None
    for function in (library.partita_step, library.partita_linear):
        function.restype = None
    return library


def _fingerprint(sources: dict[str, str]) -> str:
    """Return a name for what the compiled kernels depend on: sources, flags and processor."""
    processor = [platform.machine(), platform.system()]
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = info.read_text(errors="replace").splitlines()
        processor += next(([line] for line in lines if line.startswith(("flags", "Features"))), [])
    return hashlib.sha256("\n".join([*sources.values(), *FLAGS, *processor]).encode()).hexdigest()[:16]


def _compile(sources: dict[str, str], path: Path) -> bool:
    """Compile the kernels into a file, and return whether a compiler was able to."""
    compilers = [os.environ.get("CC"), "cc", "gcc", "clang"]
    found = [place for name in compilers if name and (place := shutil.which(name))]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = path.with_suffix(f".{os.getpid()}.build")
    folder.mkdir(exist_ok=True)
    made = folder / path.name
    try:
        for name, text in sources.items():
            (folder / name).write_text(text)
        for compiler, choice in product(dict.fromkeys(found), CHOICES):
            command = [compiler, *FLAGS, *choice, str(folder / SOURCES[-1]), "-o", str(made), "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=LONGEST)
            except subprocess.SubprocessError:
                continue
            made.replace(path)
            return True
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return False
