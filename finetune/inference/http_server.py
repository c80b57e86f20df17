"""uvicorn with two limits that it lacks: of the time that headers take to arrive, and of the time that stopping takes."""

import asyncio
import logging
import os
import threading
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which has a limit for idle connections, with one for headers on their way.

    The time runs from the opening of the connection, or from the first bytes after an answer, until the headers are there; bytes
    that trickle in do not prolong it. What is left of a body after its answer counts as such bytes.
    """

    header_seconds = 10.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the wait ends when they complete the headers of a request."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
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
    """The protocol for ``uvicorn.Config(http=...)``.

    Args:
        header_seconds: For the headers of a request to arrive.
    """
    return type("Connection", (Connection,), {"header_seconds": header_seconds})


class BoundedServer(uvicorn.Server):
    """It ends within a time of the first signal, whatever still runs.

    Args:
        config: Of uvicorn; its own grace must be shorter.
        grace_seconds: From the first signal to the end of the process.
    """

    def __init__(self, config: uvicorn.Config, *, grace_seconds: float) -> None:
        super().__init__(config)
        self.grace_seconds = grace_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if not self.should_exit:
            # uvicorn reports every request that it cuts off with a traceback
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            timer = threading.Timer(self.grace_seconds, end_now, ["stopped: the grace is over, not all was answered"])
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


def end_now(line: str) -> NoReturn:
    """End the process: a thread that computes cannot be stopped, and Python would wait for it."""
    print(line, flush=True)
    os._exit(0)
