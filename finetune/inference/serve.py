"""HTTP server for a trained model: takes image uploads and returns classes; a bad upload does not affect other requests.

``POST /predict`` takes one image as the body, or any number as a form (``multipart/form-data``); ``GET /info``, ``/health``
and ``/metrics`` report the model, whether the server is ready, and its counts; ``/`` is a page to try it. The server runs on
Starlette and uvicorn.

LitServe, which also uses both, was tried (0.2.19): when six requests with one bad image shared a batch, all six got the image's
422; SIGTERM ended the parent process but left its workers running; and its queue has no limit.
"""

import asyncio
import ipaddress
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from finetune.confidence.thresholds import labels_shown
from finetune.errors import UserError
from finetune.inference.answers import ImageAnswer, is_known
from finetune.inference.batching import Batcher
from finetune.inference.predict import Classifies
from finetune.inference.serve_metrics import Metrics
from finetune.inference.serve_pages import ServedPage
from finetune.plain import Json

PREDICT = "/predict"
# -d of curl would send the file as text
_HOW = f"With curl: curl --data-binary @photo.jpg ADDRESS{PREDICT}"
# the server reads an upload that is too large, up to this multiple of the limit, and discards it, so that the client can read
# the error response; if the connection were cut, the client would report a network error
_DRAINED = 8
# charsets accepted for a form; Python has a hundred more codecs, among them "undefined", which only raises
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1")


class ServingEngine(Classifies, Protocol):
    """A classifier that reads images from bytes instead of files."""

    def read_bytes(self, data: bytes, name: str, *, max_pixels: int) -> Any:
        """Read an image for :meth:`classify`; called from several threads.

        Raises:
            UserError: The image cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits and batch settings of the server.

    Args:
        upload_bytes: Largest body of one request, in bytes.
        pixels: Largest number of pixels in one image.
        images: Largest number of images accepted but not yet answered, over all requests; further ones get a 503.
        upload_seconds: Time limit for a body to arrive, in seconds.
        batch_size: Largest number of images per forward pass.
        wait_seconds: Time that the first image of a batch waits for others, in seconds.
        top_k: Number of classes in each answer.
    """

    upload_bytes: int = 20 * 2**20
    pixels: int = 50_000_000
    images: int = 256
    upload_seconds: float = 30.0
    batch_size: int = 32
    wait_seconds: float = 0.005
    top_k: int = 5


class Server:
    """The ASGI application.

    Args:
        engine: Model that reads and classifies images.
        limits: Limits on uploads, and batch settings.
        log: Function that is called with one line of JSON per request.
        allowed_hosts: Host names that requests may use besides loopback names and IP addresses; ``*`` allows any.
        pages: Files to serve, by their path; see :func:`finetune.inference.serve_pages.render_pages`.
    """

    def __init__(
        self,
        engine: ServingEngine,
        *,
        limits: Limits,
        log: Callable[[str], None],
        allowed_hosts: Sequence[str] = (),
        pages: Mapping[str, ServedPage] | None = None,
    ) -> None:
        self.engine, self.limits, self._log, self._allowed_hosts = engine, limits, log, tuple(allowed_hosts)
        self.metrics = Metrics()
        self.taken = 0
        self.reading = 0
        self.abandoned = 0
        self._batcher: Batcher[ImageAnswer] = Batcher(
            lambda images: engine.classify(images).each(),
            batch_size=limits.batch_size,
            wait_seconds=limits.wait_seconds,
        )
        self._readers = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="read")
        self.ready = False
        routes = [
            Route(PREDICT, self._predict, methods=["POST"]),
            Route("/info", self._info),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            *(Route(path, partial(_page, page)) for path, page in (pages or {}).items()),
        ]
        self._app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _refusal})

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._batcher.start()
        self.ready = True
        yield
        # uvicorn resumes here once every accepted request is answered, or the grace period is over
        self.ready = False
        await self._batcher.stop()
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection; every request is logged as one line."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, summary = time.perf_counter(), {"status": 500, "bytes_in": 0}
        scope["summary"] = summary

        async def counting() -> Message:
            message = await receive()
            summary["bytes_in"] += len(message.get("body", b""))
            return message

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                summary["status"] = message["status"]
            await send(message)

        try:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if is_allowed_host(host, self._allowed_hosts):
                await self._app(scope, counting, noting)
            else:
                await _misdirected(host)(scope, counting, noting)
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        finally:
            seconds = time.perf_counter() - began
            self.metrics.request(summary["status"], seconds, predict=scope["path"] == PREDICT)
            client = scope.get("client") or ("", 0)
            line = {"time": round(time.time(), 3), "client": client[0], "method": scope["method"]}
            line |= {"path": scope["path"], **summary, "ms": round(1000 * seconds, 1)}
            self._log(json.dumps(line))

    async def _predict(self, request: Request) -> Response:
        # requests that are still being uploaded also take memory
        if self.taken + self.reading >= self.limits.images:
            await self._discard(request)
            raise _busy()
        self.reading += 1
        try:
            uploads = await self._uploads(request)
        finally:
            self.reading -= 1
        if not uploads:
            raise HTTPException(
                400, "The request holds no image. Send one as the body, or several as files of a form. " + _HOW
            )
        if self.taken + len(uploads) > self.limits.images:
            raise _busy()
        self.taken += len(uploads)
        try:
            rows = await asyncio.gather(*(self._row(name, data) for name, data in uploads))
        finally:
            self.taken -= len(uploads)
        unreadable = sum("error" in row for row in rows)
        request.scope["summary"] |= {"images": len(rows), "unreadable": unreadable}
        self.metrics.images["classified"] += len(rows) - unreadable
        self.metrics.images["unreadable"] += unreadable
        return JSONResponse({"predictions": rows}, status_code=422 if unreadable == len(rows) else 200)

    async def _uploads(self, request: Request) -> list[tuple[str, bytes]]:
        """Read names and contents of the images in a request."""
        limit, declared = self.limits.upload_bytes, request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await self._discard(request)
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                body = await self._body(request)
        except TimeoutError:
            raise HTTPException(408, f"The upload took longer than {self.limits.upload_seconds:g} seconds.") from None
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data":
            return [("", body)] if body else []
        charset = options.get(b"charset", b"utf-8").decode("latin-1")
        if charset.lower() not in _CHARSETS:
            raise HTTPException(415, f"The form's charset {charset!r} is not supported. Send UTF-8.")
        whole = Request(request.scope, _once(body))
        try:
            async with whole.form(max_files=self.limits.images, max_fields=100) as form:
                files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
                return [(file.filename or "", await file.read()) for file in files]
        except HTTPException:  # Starlette refuses a malformed form with a 400
            raise
        except (ValueError, LookupError) as error:
            raise HTTPException(400, f"The form cannot be read: {error}") from None

    async def _body(self, request: Request) -> bytes:
        body, limit = bytearray(), self.limits.upload_bytes
        async for part in request.stream():
            body += part
            if len(body) > limit:
                await self._discard(request)
                raise _too_large(limit)
        return bytes(body)

    async def _discard(self, request: Request) -> None:
        """Read and discard the rest of a body, within limits on size and time."""
        count = 0
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                while count <= _DRAINED * self.limits.upload_bytes:
                    message = await request.receive()
                    count += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    async def _row(self, name: str, data: bytes) -> dict[str, Json]:
        """Return the answer for one image."""
        row: dict[str, Json] = {"name": name}
        loop = asyncio.get_running_loop()
        try:
            image = await loop.run_in_executor(self._readers, self._read, data, name)
        except UserError as error:
            hint = "" if name else f" {_HOW}"
            return row | {"error": getattr(error, "reason", str(error)) + hint}
        probabilities, unknown_score = await self._batcher.answer(image)
        best = [int(at) for at in np.argsort(-probabilities, kind="stable")[: self.limits.top_k]]
        classes = self.engine.classes
        row |= {"predicted": classes[best[0]], "probability": float(probabilities[best[0]])}
        if self.engine.multi_label:
            row["predicted"] = [classes[at] for at in labels_shown(probabilities, self.engine.thresholds)]
        if unknown_score is not None:
            known = bool(is_known(unknown_score))
            self.metrics.classified(known)
            row |= {"known": known, "unknown_score": unknown_score}
        return row | {"top": [{"class": classes[at], "probability": float(probabilities[at])} for at in best]}

    def _read(self, data: bytes, name: str) -> Any:
        return self.engine.read_bytes(data, name or "the upload", max_pixels=self.limits.pixels)

    async def _info(self, request: Request) -> Response:
        limits = {name: getattr(self.limits, name) for name in self.limits.__dataclass_fields__}
        return JSONResponse({**self.engine.identity, "limits": limits})

    async def _health(self, request: Request) -> Response:
        return PlainTextResponse("ok\n" if self.ready else "not ready\n", status_code=200 if self.ready else 503)

    async def _metrics(self, request: Request) -> Response:
        page = self.metrics.text(waiting=self.taken, batches=self._batcher.batches)
        return PlainTextResponse(page, media_type="text/plain; version=0.0.4")


async def _page(page: ServedPage, request: Request) -> Response:
    return Response(page.content, media_type=page.media_type)


def is_allowed_host(header: str, allowed: Sequence[str]) -> bool:
    """Tell whether a request's ``Host`` is an IP address, a loopback name or one of the allowed names.

    Another site can make its own host name resolve to this computer (DNS rebinding) and then talk to the server as if it were its
    own; the name in ``Host`` reveals that. An IP address cannot be redirected in this way.

    >>> [is_allowed_host(host, ["Camera.lan"]) for host in ("localhost:8000", "[::1]", "camera.lan:80", "evil.example", "")]
    [True, True, True, False, False]
    """
    if "*" in allowed:
        return True
    name = header.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.rpartition(":")[0] or name
    name = name.rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name in {host.lower() for host in allowed}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _misdirected(host: str) -> Response:
    message = f"This server does not answer for {host!r}. Start it with --allowed-host to allow a name."
    return JSONResponse({"error": message}, status_code=421, headers={"Connection": "close"})


def _once(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _busy() -> HTTPException:
    return HTTPException(503, "Too many images are waiting. Try again.", headers={"Retry-After": "1"})


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The upload is larger than {limit / 2**20:g} MiB.", headers={"Connection": "close"})


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code in (404, 405):
        detail = f"{detail}: {request.method} {request.scope['path']}. {_HOW}; /docs describes the rest."
    return JSONResponse({"error": detail}, status_code=error.status_code, headers=error.headers)
