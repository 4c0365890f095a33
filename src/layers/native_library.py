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
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

from ..storage.cache import default_cache_dir

SOURCES = ("numbers.h", "rounded.h", "linear.h", "decoder.c")
FLAGS = (
    *("-std=c11", "-O3", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-unswitch-loops"),
)
"""Flags of all compilers.

Copies of a loop, for masked and for other sequences, would round differently, so that the results of a sample would
depend on the samples beside it. ``-fno-unswitch-loops`` keeps the compiler from making them.
"""
CHOICES = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
)
"""Flags of which a compiler gets the first that it knows: for this processor, and for all of its cores."""
LONGEST = 120
"""Seconds after which a compiler counts as broken."""
FUNCTIONS = ("partita_step", "partita_linear", "partita_round", "partita_size")
"""Functions of the kernels."""


@cache
def native_library() -> ctypes.CDLL | None:
    """Return the kernels, or ``None`` with a warning where they cannot be compiled.

    They are compiled once for each processor and version, into the user's cache folder. ``PARTITA_NATIVE=0`` in the
    environment turns them off.
    """
    if os.environ.get("PARTITA_NATIVE") == "0" or sys.platform == "win32" or sys.byteorder != "little":
        return None
    folder = files(__package__) / "csrc"
    sources = {name: (folder / name).read_text() for name in SOURCES}
    kernels, name = default_cache_dir() / "kernels", f"decoder-{_fingerprint(sources)}"
    try:
        library = _load(kernels, name) or (_load(kernels, name) if _compile(sources, kernels, name) else None)
    except OSError as error:
        warnings.warn(
            f"generation takes longer without its kernels, which cannot be stored in {kernels} ({error}): set "
            "PARTITA_CACHE to another folder",
            stacklevel=2,
        )
        return None
    if library is None:
        warnings.warn("generation takes longer without its kernels: install a C compiler, such as gcc", stacklevel=2)
        return None
    return declared(library)


def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Return the kernels with the types of what their functions return."""
    for name in FUNCTIONS:
        getattr(library, name).restype = None
    library.partita_size.restype = ctypes.c_int64
    return library


def _fingerprint(sources: dict[str, str]) -> str:
    """Return a name for what the compiled kernels depend on: sources, flags and processor."""
    processor = [platform.machine(), platform.system()]
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = info.read_text(errors="replace").splitlines()
        processor += next(([line] for line in lines if line.startswith(("flags", "Features"))), [])
    return _digest("\n".join([*sources.values(), *FLAGS, *processor]).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _load(folder: Path, name: str) -> ctypes.CDLL | None:
    """Return compiled kernels, or ``None`` if there are none or they are damaged.

    Raises:
        OSError: Others could have written them, or they cannot be read.
    """
    for path in folder.glob(f"{name}-*.so"):
        for place in (folder, path):
            status = place.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise PermissionError(f"other users may write to {place}")
        # Their own names tell whether they are complete: a damaged library would end the process.
        if path.stem == f"{name}-{_digest(path.read_bytes())}":
            return ctypes.CDLL(str(path))
    return None


def _compile(sources: dict[str, str], kernels: Path, name: str) -> bool:
    """Compile the kernels into a folder, and return whether a compiler was able to.

    Raises:
        OSError: Nothing can be stored in the folder, or not used from there.
    """
    compilers = [os.environ.get("CC"), "cc", "gcc", "clang"]
    found = [place for name in compilers if name and (place := shutil.which(name))]
    if not found:
        return False
    kernels.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.statvfs(kernels).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise PermissionError("its file system allows no programs")
    with tempfile.TemporaryDirectory(dir=kernels, prefix=".build-") as folder:
        for file, text in sources.items():
            (Path(folder) / file).write_text(text)
        for number, compiler in enumerate(dict.fromkeys(found)):
            made = Path(folder) / f"{number}.so"
            if _compiles(compiler, made):
                made.chmod(0o700)
                made.replace(kernels / f"{name}-{_digest(made.read_bytes())}.so")
                return True
    return False


def _compiles(compiler: str, made: Path) -> bool:
    """Compile the sources beside ``made`` into it, and return whether the result can be used."""
    for choice in CHOICES:
        command = [compiler, *FLAGS, *choice, str(made.with_name(SOURCES[-1])), "-o", str(made), "-lm"]
        try:
            if _succeeds(command) and made.is_file():
                # What is called like a compiler may be none, and a damaged library would end this process.
                return _succeeds([sys.executable, "-I", "-S", "-c", _TRIAL, str(made)])
        except subprocess.TimeoutExpired:
            return False
        except OSError:
            continue
    return False


_TRIAL = f"import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); [getattr(library, name) for name in {FUNCTIONS}]"
"""A program that ends with an error if it cannot load a library."""


def _succeeds(command: list[str]) -> bool:
    """Run a program, and return whether it succeeds. If it takes too long, all of its processes are ended."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            return process.wait(LONGEST) == 0
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
