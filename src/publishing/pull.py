"""Copying a system from the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import PartitaError
from ..storage.download import check_id, fetch, matching_files
from ..storage.files import replacing_folder
from ..system.assembly import FILES
from ..system.system import load

SHOWN = ("README.md", "samples/*.flac", "samples/*.png")
"""Files of a system's repository that only serve its presentation."""


def pull(repo_id: str, output: str | Path | None = None, revision: str | None = None) -> Path:
    """Copy a system from the Hub into a local folder, with its model card and audio examples.

    Args:
        repo_id: ``user/name``.
        output: Folder to create, which must not exist. ``None`` uses the repository's name in the working folder.
        revision: A branch, a tag or a commit. ``None`` takes ``main``.

    Returns:
        The new folder.

    Raises:
        PartitaError: The folder exists, the repository cannot be downloaded, or it holds no complete system.
    """
    check_id(repo_id)
    folder = Path(repo_id.split("/")[-1] if output is None else output)
    if folder.exists():
        raise PartitaError(f"{folder} exists already: choose another folder with -o")
    wanted = [*FILES, *SHOWN]
    snapshot = fetch(repo_id, wanted, revision)
    load(snapshot)  # checks that it is complete
    names = matching_files(snapshot, wanted)
    with replacing_folder(folder) as new:
        for name in names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, new / name)
    return folder
