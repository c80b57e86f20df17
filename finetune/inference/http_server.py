"""uvicorn with two limits that it lacks: the time for headers to arrive, and the time for the server to stop."""

import asyncio
import logging
import os
import threading
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which limits idle connections, with a limit for incomplete headers as well.

    The time runs from the opening of the connection, or from the first bytes after a response, until the headers are complete;
    bytes that trickle in do not extend it. The rest of a body that arrives after its response counts as such bytes.
    """

    header_seconds = 10.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start waiting for headers."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Receive bytes; stop waiting once they complete the headers of a request."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def connection_with(header_seconds: float) -> type[Connection]:
    """Return the protocol class for ``uvicorn.Config(http=...)``.

    Args:
        header_seconds: Time limit for the headers of a request to arrive, in seconds.
    """
    return type("Connection", (Connection,), {"header_seconds": header_seconds})


class BoundedServer(uvicorn.Server):
    """A server that ends within a fixed time after the first signal, whatever is still running.

    Args:
        config: uvicorn's configuration; its own graceful-shutdown timeout must be shorter.
        grace_seconds: Time from the first signal to the end of the process, in seconds.
    """

    def __init__(self, config: uvicorn.Config, *, grace_seconds: float) -> None:
        super().__init__(config)
        self.grace_seconds = grace_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start stopping, on the first signal."""
        if not self.should_exit:
            # uvicorn logs a traceback for every request that it cuts off
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            timer = threading.Timer(
                self.grace_seconds, end_now, ["stopped: the grace period ended before all requests were answered"]
            )
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


def end_now(line: str) -> NoReturn:
    """End the process at once: a computing thread cannot be stopped, and Python would wait for it."""
    print(line, flush=True)
    os._exit(0)
