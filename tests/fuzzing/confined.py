"""Bounds around foreign files: of time, of memory, and of what a process may do; Linux only where it must be."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 10.0
"""Of the processor, that one command may take."""
PATIENCE = 120.0
"""Seconds of the clock, in which a busy machine must have given it those; what waits for ever ends here."""
MEMORY = 2 << 30
"""Bytes that one command may take beyond what the process had."""

FOREIGN = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
    "subprocess.Popen",
}
FOREIGN |= {"pickle.find_class", "webbrowser.open", "os.startfile", "code.__new__"}
"""What nothing of this needs: other programs, and objects that a pickle names."""
CHANGING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "os.chown"}
CHANGING |= {"os.truncate", "os.utime", "shutil.rmtree", "shutil.copyfile", "shutil.move", "os.mkfifo"}
"""What is only allowed below the folder of the attack."""


class Hang(BaseException):
    """A command takes too long. No handler of exceptions keeps it."""


class _Watch:
    """What was done, while somebody watches."""

    root: Path | None = None
    notes: list[str] = []  # noqa: RUF012


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.root is None:
        return
    root, _Watch.root = _Watch.root, None  # what is done in here is not watched
    try:
        note = _forbidden(event, arguments, root)
        if note:
            _Watch.notes.append(note)
    finally:
        _Watch.root = root


def _forbidden(event: str, arguments: tuple[Any, ...], root: Path) -> str:
    if event in FOREIGN:
        return f"{event} {arguments!r:.200}"
    if event == "socket.connect" and str(arguments[1][0]) not in ("127.0.0.1", "localhost"):
        return f"{event} {arguments[1]!r}"
    if event in ("exec", "ctypes.dlopen"):
        file = getattr(arguments[0], "co_filename", arguments[0])
        return f"{event} {file}" if str(file).startswith(str(root)) else ""
    paths = arguments[1:2] if event == "os.symlink" else arguments[:2] if event in CHANGING else ()
    if event == "open" and (
        set(arguments[1] or "") & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        paths = arguments[:1]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike) and str(path) != "/dev/null":
            place = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))  # noqa: PTH100, PTH120
            if not f"{place}/".startswith(f"{root}/") and "__pycache__" not in place:
                return f"{event} {os.fsdecode(path)}"
    return ""


sys.addaudithook(_listen)  # cannot be taken away again, and does nothing unless asked


def _too_long(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {SECONDS:g} s" if number == signal.SIGPROF else f"it waits for more than {PATIENCE:g} s")


@contextmanager
def confined(root: Path) -> Iterator[list[str]]:
    """Bounds while this lasts; yields the list of what was done that is forbidden.

    Args:
        root: Only below it may anything be written.

    Raises:
        Hang: It lasts too long.
    """
    before = [signal.signal(number, _too_long) for number in (signal.SIGPROF, signal.SIGALRM)]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    _Watch.notes = notes = []
    try:
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY, hard))
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        _Watch.root = root
        yield notes
    finally:
        _Watch.root = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def peak() -> int:
    """Most bytes of memory that the process held since it was last confined; 0 where nobody knows."""
    return _status("VmHWM") if sys.platform == "linux" else 0


def resident() -> int:
    """Bytes of memory that the process holds; 0 where nobody knows."""
    return _status("VmRSS") if sys.platform == "linux" else 0


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
