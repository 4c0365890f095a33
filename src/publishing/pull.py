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
"""What of a system's repository is only there to be looked at."""


def pull(repo_id: str, output: str | Path | None = None, revision: str | None = None) -> Path:
    """Copy a system from the Hub into a folder of one's own, with its model card and audio examples.

    Args:
        repo_id: ``user/name``.
        output: The folder; the repository's name in the working folder where none is given. It must not exist.
        revision: A branch, a tag or a commit.

    Returns:
        The folder.

    Raises:
        PartitaError: It exists, the repository cannot be had, or it holds no complete system.
    """
    check_id(repo_id)
    folder = Path(repo_id.split("/")[-1] if output is None else output)
    if folder.exists():
        raise PartitaError(f"{folder} exists already: choose another folder with -o")
    wanted = [*FILES, *SHOWN]
    snapshot = fetch(repo_id, wanted, revision)
    load(snapshot)  # which checks it
    names = matching_files(snapshot, wanted)
    with replacing_folder(folder) as new:
        for name in names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, new / name)
    return folder
