"""Rows of Hugging Face data sets: by number, or from a stream in blocks. Nothing in a data set is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from ..errors import PartitaError, printable
from ..limits import LARGEST_AUDIO, TooMuch, beyond
from ..storage.download import check_id
from ..storage.files import kind
from ..storage.hub_errors import as_messages

BLOCK = 64
"""Number of rows of a stream that are kept in memory. Examples of a stream are drawn in random order within a block."""


class Rows(Protocol):
    """The rows of one split of a data set."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Mapping[str, Any]: ...


def require_datasets() -> Any:
    """Return the package ``datasets``.

    Raises:
        PartitaError: It is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise PartitaError("data sets of the Hub need datasets: pip install 'partita[hub]'") from None
    return datasets


def load_splits(
    path: str | None, repository: str | None, config: str | None, revision: str | None, streaming: bool
) -> dict[str, Any]:
    """Return the data sets of a folder, of Parquet files or of a repository, by split.

    Args:
        path: A folder that ``save_to_disk`` wrote, a folder of Parquet files, or one such file.
        repository: Hub id, if ``path`` is ``None``.
        config: Configuration of the repository.
        revision: Branch, tag or commit of the repository.
        streaming: Whether rows are fetched when they are needed.

    Raises:
        PartitaError: There is no such data set, or it cannot be read.
    """
    datasets = require_datasets()
    if path is not None:
        folder = expanded(path)
        try:
            with _quiet(datasets):
                if is_saved(folder):
                    found = datasets.load_from_disk(str(folder))
                else:
                    found = datasets.load_dataset("parquet", data_files=parquet_files(folder), streaming=streaming)
        except PartitaError:
            raise
        except Exception as error:  # pyarrow and fsspec raise errors of many kinds
            raise PartitaError(f"{folder} cannot be read as a data set: {first_line(error)}") from None
    else:
        assert repository is not None
        check_id(repository)
        if kind(repository):
            raise PartitaError(f"{repository} is also a folder here: set path to use it, or run elsewhere")
        with as_messages(repository, revision), _quiet(datasets):
            try:
                found = datasets.load_dataset(repository, config, revision=revision, streaming=streaming)
            except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError, RuntimeError) as error:
                raise PartitaError(f"{repository} cannot be loaded: {first_line(error)}") from None
    return dict(found) if isinstance(found, Mapping) else {str(found.split or "train"): found}


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Silence the progress bars and the log of ``datasets``, whose errors are raised, too."""
    shown, logger = not datasets.are_progress_bars_disabled(), datasets.utils.logging.get_logger()
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def is_saved(folder: Path) -> bool:
    """Return whether ``save_to_disk`` wrote a folder."""
    return any(kind(folder / name) == "file" for name in ("dataset_dict.json", "state.json"))


def parquet_files(path: Path) -> dict[str, list[str]]:
    """Return the Parquet files of a folder by split, which begins their names or names their folder.

    >>> [_split_of(Path(name)) for name in ("train-00000-of-00002.parquet", "data/test/0.parquet", "songs.parquet")]
    ['train', 'test', 'train']

    Raises:
        PartitaError: There are none.
    """
    files = [path] if kind(path) == "file" else sorted(path.rglob("*.parquet"))
    if not files:
        raise PartitaError(f"{path} is no data set: it contains neither .parquet files nor what save_to_disk writes")
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault("train" if file == path else _split_of(file.relative_to(path)), []).append(str(file))
    return found


def _split_of(file: Path) -> str:
    for text in (file.name, *reversed(file.parts[:-1])):
        if begun := re.match(r"(train|validation|valid|val|dev|test)(?![a-z])", text.lower()):
            return begun[1]
    return "train"


class Table:
    """Rows of a data set on this machine.

    Args:
        dataset: The data set of one split, with undecoded audio.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.columns = list(dataset.column_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return self.dataset[row]

    def known(self, column: str) -> int:
        """Return the number of rows with a value in a column."""
        return len(self) - self.dataset.with_format("arrow")[:][column].null_count if len(self) else 0


class Stream:
    """Rows of a data set that are fetched in order. A block is kept, so that its rows can be read in any order.

    Args:
        dataset: The data set of one split, with undecoded audio.
        rows: Number of rows.
    """

    def __init__(self, dataset: Any, rows: int) -> None:
        self.dataset, self.rows = dataset, rows
        self.columns = list(dataset.column_names or [])
        self._kept: dict[int, Mapping[str, Any]] = {}
        self._next = 0
        self._iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        if row in self._kept:
            return self._kept[row]
        if self._iterator is None or row < self._next or row - self._next > BLOCK:
            begin = row - row % BLOCK
            self._iterator, self._next, self._kept = iter(self.dataset.skip(begin)), begin, {}
        while self._next <= row:
            try:
                self._kept[self._next] = next(self._iterator)
            except StopIteration:
                self._iterator = None
                raise PartitaError(f"the stream ends after {self._next:,} of {self.rows:,} rows") from None
            self._next += 1
            self._kept.pop(self._next - 1 - 2 * BLOCK, None)
        return self._kept[row]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}, "_next": 0, "_iterator": None}


@contextmanager
def audio_path(value: Any, roots: Sequence[Path] | None) -> Iterator[Path]:
    """Yield the path of a row's audio, which is written to a temporary file if the row contains its bytes.

    Args:
        value: The undecoded audio: a mapping with ``bytes`` or ``path``, the bytes, or the path.
        roots: Folders that may contain the files that rows name. ``None`` allows any.

    Raises:
        PartitaError: The row has no audio, or names a file elsewhere.
    """
    match value:
        case {"bytes": bytes(content)} | bytes(content):
            name = value.get("path") if isinstance(value, Mapping) else None
        case {"path": str(name)} | str(name):
            if name.startswith("hf://"):
                content = _remote_bytes(name)
            else:
                path = Path(name)
                if roots is not None and not any(path.resolve().is_relative_to(root) for root in roots):
                    raise PartitaError("it names a file outside the data set: refused")
                yield path
                return
        case None | {"bytes": None, "path": None}:
            raise PartitaError("it has no audio")
        case _:
            found = f"a mapping of {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
            raise PartitaError(
                f"its audio is {printable(found):.80}, not an audio file: store the bytes or the path of a file, as "
                "columns of the type datasets.Audio do"
            )
    if beyond(len(content), LARGEST_AUDIO):
        raise TooMuch(f"its audio has {len(content):,} bytes, more than there can be ({LARGEST_AUDIO:,})")
    suffix = Path(name).suffix if isinstance(name, str) and re.fullmatch(r"\.\w{1,5}", Path(name).suffix) else ""
    with TemporaryDirectory(prefix="partita-audio-") as folder:
        path = Path(folder) / f"clip{suffix}"
        path.write_bytes(content)
        yield path


def _remote_bytes(url: str) -> bytes:
    from huggingface_hub import HfFileSystem

    try:
        with HfFileSystem().open(url, "rb") as file:
            return file.read(LARGEST_AUDIO + 1)
    except Exception as error:  # as of any client of a network
        raise PartitaError(f"{url} cannot be read: {first_line(error)}") from None


def expanded(path: str) -> Path:
    """Return a path with ``~`` expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__
