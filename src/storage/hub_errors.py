"""Messages for the errors of the Hub and of its client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from ..errors import PartitaError
from .patience import seconds_to_wait

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def as_messages(repo_id: str, revision: str | None, away: str = "") -> Iterator[None]:
    """Turn errors of the Hub and of its client into messages, inside the block.

    Args:
        repo_id: The repository that is requested.
        revision: The revision that is requested.
        away: Text that is added if the Hub cannot be reached or does not answer as expected.

    Raises:
        PartitaError: An error occurred.
    """
    from huggingface_hub import constants, errors

    _check_token()
    try:
        yield
    except PartitaError:
        raise
    except errors.HFValidationError as error:
        raise PartitaError(f"{repo_id!r} is not a hub id (user/name): {error}") from None
    except errors.LocalTokenNotFoundError:
        raise PartitaError(f"the hub does not know who you are: {LOGIN}") from None
    except errors.GatedRepoError:
        raise PartitaError(
            f"{repo_id} is gated: accept its terms on its page, then log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise PartitaError(
            f"{repo_id} has no revision {revision or 'main'!r}: give a branch, a tag or a commit"
        ) from None
    except errors.RepositoryNotFoundError:
        raise PartitaError(_unknown(repo_id, away)) from None
    except Exception as error:
        causes = list(_causes(error))  # the client reports some refusals as failures of the network
        refused = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
        if refused is not None and isinstance(error, ValueError) and not isinstance(error, OSError):
            said = refused.server_message or str(error)
            raise PartitaError(f"the hub refuses the model card: {' '.join(said.split())}") from None
        if refused is not None:
            raise PartitaError(_answer(repo_id, refused, away)) from None
        inner = (isinstance(error, RuntimeError) and error.__cause__) or error  # of an upload in a thread
        if isinstance(inner, ValueError | LookupError | TypeError | AttributeError | AssertionError):
            if not _is_of_the_client(inner):
                raise
            raise PartitaError(
                f"{constants.ENDPOINT} does not answer as the hub does{away}: check HF_ENDPOINT, and whether a proxy "
                "wants you to log in"
            ) from None
        if "Consistency check failed" in str(inner):
            raise PartitaError(
                f"{repo_id}: a file came with another size than the hub lists: a proxy or a broken connection. It was "
                "not kept: run the same command again"
            ) from None
        network = isinstance(inner, ConnectionError | TimeoutError | errors.LocalEntryNotFoundError)
        if isinstance(inner, OSError) and inner.errno is not None and not network:  # such as a full disk
            raise PartitaError(f"{repo_id}: {inner}") from None
        if not (isinstance(inner, OSError) or type(inner).__module__.startswith("http")):  # httpx, or httpx2
            raise
        if any("Timeout" in type(cause).__name__ for cause in causes):
            raise PartitaError(
                f"{repo_id}: the hub did not answer within {constants.HF_HUB_DOWNLOAD_TIMEOUT} s{away}: try again "
                "later, or wait longer with HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT (in seconds)"
            ) from None
        raise PartitaError(
            f"{repo_id}: the hub cannot be reached{away}: check {'the name, ' if away else ''}the network, "
            "HF_HUB_OFFLINE and HF_ENDPOINT"
        ) from None


def _check_token() -> None:
    """Check that the token contains only characters that are allowed in an HTTP header.

    Raises:
        PartitaError: It contains other characters, such as a typographic quote.
    """
    from huggingface_hub import get_token

    wrong = sorted({letter for letter in get_token() or "" if not "!" <= letter <= "~"})
    if wrong:
        raise PartitaError(
            f"the token for the hub holds {', '.join(map(repr, wrong))}, which cannot be part of a token: copy it "
            "again into HF_TOKEN, or log in with `hf auth login`"
        )


def _is_of_the_client(error: BaseException) -> bool:
    """Whether an error arose in the client, which means that it could not interpret a response."""
    modules = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    ours = max((i for i, name in enumerate(modules) if name == __name__.partition(".")[0]), default=-1)
    return "huggingface_hub" in modules[ours + 1 :]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown(repo_id: str, away: str) -> str:
    here = "; there is no such folder here either" if away else ""  # uploads never mean a local folder
    return f"no {repo_id} on the hub, or it is private: check the name, or {LOGIN}{here}"


def _answer(repo_id: str, error: Any, away: str) -> str:
    """The message for an error response of the server."""
    status, said = error.response.status_code, error.server_message or str(error).strip().splitlines()[0]
    said = " ".join(said.split())[:500]
    if status == 401 and ("credentials" in said or "token" in str(error)):
        return f"the hub does not accept your token (it may have expired): {LOGIN}"
    if status == 401:
        return _unknown(repo_id, away)
    if status == 403:
        return f"the hub refuses access to {repo_id}: use a name of your own, or a token that may write there ({said})"
    if status in (409, 412):
        return f"{repo_id} changed at the same time: run the same command again ({said})"
    if status == 429 or status >= 500:
        wait = seconds_to_wait(error.response)
        when = "later" if wait is None else f"in {wait:.0f} s, as it asks"
        what = "is busy and takes no more requests" if status == 429 else "has an internal error"
        return f"{repo_id}: the hub {what} (status {status}){away}: try again {when}; nothing was changed ({said})"
    return f"the hub refuses: {said}"
