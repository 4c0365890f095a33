"""Copying a system from the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import PartitaError
from ..storage.download import check_id, fetch, matching_files
from ..storage.files import replacing_folder
from ..system.assembly import FILES
from ..system.system import load

CARD_FILES = ("README.md", "samples/*.flac", "samples/*.png")
"""Files of a repository that belong to the model card, not to the system."""


def pull(repo_id: str, output: str | Path | None = None, revision: str | None = None) -> Path:
    """Copy a system from the Hub into a local folder, with its model card and audio examples.

    Args:
        repo_id: Hub id ``user/name``.
        output: Folder to create, which must not exist. ``None`` takes the name of the repository in the current folder.
        revision: Branch, tag or commit. ``None`` takes ``main``.

    Returns:
        Path of the new folder.

    Raises:
        PartitaError: The folder exists, the repository cannot be downloaded, or it holds no complete system.
    """
    check_id(repo_id)
    folder = Path(repo_id.split("/")[-1] if output is None else output)
    if folder.exists():
        raise PartitaError(f"{folder} exists already: choose another folder with -o")
    wanted = [*FILES, *CARD_FILES]
    snapshot = fetch(repo_id, wanted, revision)
    load(snapshot)  # checks that the system is complete
    names = matching_files(snapshot, wanted)
    with replacing_folder(folder) as new:
        for name in names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, new / name)
    return folder
