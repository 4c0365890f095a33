"""The Hugging Face Hub: fetching folders, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import PartitaError


def fetch(repo_id: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The local folder of a repository's files that match ``patterns``; downloaded unless they are in the cache.

    Raises:
        PartitaError: No such repository, no access, or no network and nothing in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise PartitaError(f"{repo_id!r} is not a hub id (user/name): {error}") from None
    except GatedRepoError:
        raise PartitaError(
            f"{repo_id} is gated: accept its terms on its page, then log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise PartitaError(f"{repo_id} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise PartitaError(
            f"no {repo_id} on the hub, or it is private: check the name, or log in with `hf auth login`"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise PartitaError(
            f"{repo_id} is not in the local cache and the hub cannot be reached: check the network, "
            "or give the path of a folder instead"
        ) from None
