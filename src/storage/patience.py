"""Requests to the Hub that always end, even if the Hub hangs, and that Ctrl-C interrupts at once."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from .. import limits
from ..limits import TooMuch, beyond

Answer = TypeVar("Answer")

LONGEST_WAIT = 10
"""Longest time, in seconds, for which the client waits when a busy server asks it to repeat a request later."""

_one_at_a_time = threading.Lock()


class Silent(TooMuch):
    """The server sent and accepted nothing, or next to nothing, until the timeout."""


class Abandoned(Exception):
    """An abandoned conversation tried to send another request."""


def patiently(ask: Callable[[], Answer], most: int | None = None) -> Answer:
    """Run a function that talks to the Hub, and return its result, as long as data keeps flowing.

    The function runs in a thread of its own. The caller can therefore stop waiting at any moment, even while threads of
    the client hang in a server that does not answer. From then on, the function can send nothing more.

    Args:
        ask: Function that talks to the Hub through ``huggingface_hub``.
        most: Maximum size of all responses together, in bytes. ``None`` takes ``limits.LARGEST_RESULTS``.

    Raises:
        Silent: Less than ``limits.LEAST_PROGRESS`` bytes were sent and received in ``limits.LONGEST_SILENCE``
            seconds.
        TooMuch: The responses exceed ``most`` bytes, or there are more than ``limits.MOST_ANSWERS`` of them.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    with _one_at_a_time:
        before = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)  # there is no public getter
        if isinstance(owner := getattr(before, "__self__", None), _Talk):
            before = owner.make
        talk = _Talk(before)
        set_client_factory(talk.client)
        abandoned = False
        try:
            return talk.wait_for(ask, limits.LARGEST_RESULTS if most is None else most)
        except BaseException:
            abandoned = True
            with suppress(ImportError, AttributeError):  # transfers through xet use their own connections
                from huggingface_hub.utils._xet import abort_xet_session

                abort_xet_session()
            raise
        finally:
            talk.end()
            set_client_factory(talk.client_afterwards if abandoned and talk.hangs() else before)


class _Talk:
    """The open connections of one conversation, and the number of bytes sent and received.

    Args:
        make: Makes the HTTP client that all requests use.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self._threads_before = weakref.WeakSet(threading.enumerate())
        self._left: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._reading: list[Any] = []
        self._asking = self._asked = self._sent = self._read = 0
        self._changing = threading.Lock()
        self._over = False

    def client(self) -> Any:
        """A client whose requests are counted."""
        client = self.make()
        send, counted = client.send, _counted(sys.modules[type(client).__module__.partition(".")[0]].SyncByteStream)

        def send_counted(request: Any, *, stream: bool = False, **options: Any) -> Any:
            if self._over:
                raise Abandoned
            request.extensions = {**request.extensions, "trace": self._trace}
            request.stream = counted(request.stream, self._count_sent)
            with self._changing:
                self._asking, self._asked = self._asking + 1, self._asked + 1
            try:
                response = send(request, stream=True, **options)
                with self._changing:
                    self._reading.append(response)
            except Exception:
                if self._over:  # an error that the client does not retry
                    raise Abandoned from None
                raise
            finally:
                with self._changing:
                    self._asking -= 1
            if not stream or _asks_to_wait(response):
                response.read()
            if _asks_to_wait(response):
                from huggingface_hub.utils import hf_raise_for_status

                hf_raise_for_status(response)  # the client would sleep for as long as the server asks
            return response

        client.send = send_counted
        return client

    def client_afterwards(self) -> Any:
        """A client for later conversations. Remaining threads of this conversation cannot use it."""
        client = self.make()
        send = client.send

        def send_of_others(request: Any, **options: Any) -> Any:
            if threading.current_thread() not in self._threads_before and self.hangs():
                raise Abandoned
            return send(request, **options)

        client.send = send_of_others
        return client

    def wait_for(self, ask: Callable[[], Answer], most: int) -> Answer:
        """Wait for the function's result."""
        results: list[Answer] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(ask())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        threading.Thread(target=run, daemon=True).start()
        silent, moved, before = 0.0, 0, time.monotonic()
        while not done.wait(min(0.1, limits.LONGEST_SILENCE / 10)):
            received, now = self._received(), time.monotonic()
            if self._sent + received - moved >= limits.LEAST_PROGRESS:
                silent, moved = 0.0, self._sent + received
            if self._asking or self._reading:  # not while the client sleeps or does other work
                silent += now - before
            before = now
            if beyond(silent, limits.LONGEST_SILENCE):
                raise Silent(
                    f"the hub has sent or taken less than {limits.LEAST_PROGRESS:,} bytes in "
                    f"{limits.LONGEST_SILENCE:g} s: it is overloaded, or the connection is bad: try again later"
                )
            if beyond(received, most) or beyond(self._asked, limits.MOST_ANSWERS):
                raise TooMuch("the hub sends endless responses: rejected")
        if errors:
            raise errors[0]
        return results[0]

    def end(self) -> None:
        """Make every thread that still hangs in this conversation fail."""
        self._over = True
        self._left = [thread for thread in threading.enumerate() if thread not in self._threads_before]
        for open_socket in self._sockets:
            with suppress(OSError):
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    def hangs(self) -> bool:
        """Whether threads that were started in this conversation still run after its end."""
        return any(thread.is_alive() for thread in self._left)

    def _received(self) -> int:
        """Number of bytes of all responses so far."""
        with self._changing:
            self._read += sum(response.num_bytes_downloaded for response in self._reading if response.is_closed)
            self._reading = [response for response in self._reading if not response.is_closed]
            return self._read + sum(response.num_bytes_downloaded for response in self._reading)

    def _count_sent(self, size: int) -> None:
        with self._changing:
            self._sent += size

    def _trace(self, event: str, told: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")):
            found = told["return_value"].get_extra_info("socket")
            if isinstance(found, socket.socket):
                self._sockets.append(found)
        if self._over:
            raise Abandoned


def _counted(base: type) -> Callable[[Any, Callable[[int], None]], Any]:
    """A factory of request bodies, of the client's own type, that report how many of their bytes were sent."""

    class Counted(base):
        def __init__(self, body: Any, count: Callable[[int], None]) -> None:
            self._body, self._count = body, count

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._body:
                for start in range(0, len(chunk), 1 << 16):
                    yield chunk[start : start + (1 << 16)]
                    self._count(min(len(chunk) - start, 1 << 16))

        def close(self) -> None:
            self._body.close()

    return Counted


def _asks_to_wait(response: Any) -> bool:
    wait = seconds_to_wait(response) if response.status_code >= 400 else None
    return wait is not None and wait > LONGEST_WAIT


def seconds_to_wait(response: Any) -> float | None:
    """How long, in seconds, a busy server asks to wait; ``None`` if it does not say."""
    limited = re.search(r";\s*t\s*=\s*(\d{1,9})", response.headers.get("RateLimit", ""))  # '"api";r=0;t=55'
    if response.status_code == 429 and limited:
        return float(limited[1])
    said = str(response.headers.get("Retry-After", "")).strip()
    if said.isdecimal():
        return float(said[:9])
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
