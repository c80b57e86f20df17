"""``finetune serve``: serve a trained run or an exported ONNX file over HTTP."""

import argparse
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import TRUST, Arguments, numeric
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.inference.onnx_engine import OnnxEngine
    from finetune.inference.torch_engine import TorchEngine

ABOUT = """\
Serve a trained model over HTTP.
  POST /predict   one image as the body, or any number as files of a form; a JSON row for each, bad ones with the reason
  GET  /          a page to try it;  /docs  how to call it;  /openapi.json  the same for programs
  GET  /info      the classes, the model's hash and the limits;  /health  whether it is ready;  /metrics  for Prometheus
  curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
  curl -F a=@one.jpg -F b=@two.png http://127.0.0.1:8000/predict
Ctrl-C or SIGTERM stops it once all accepted requests are answered. Each request writes a JSON line to standard output.
There is no login and no encryption: put it behind a proxy that has them before you let others reach it.
RUN may be a file of finetune export --format onnx: it runs on ONNX Runtime."""
_NEEDS = ("starlette", "uvicorn", "python_multipart")


def run(argv: Sequence[str]) -> int:
    """Run ``finetune serve`` and return the exit status."""
    parser = Arguments("serve", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--host", default="127.0.0.1", help="127.0.0.1; 0.0.0.0 accepts connections from other computers"
    )
    parser.add_argument("--port", type=numeric(int), default=8000, metavar="N", help="8000; 0 takes a free one")
    parser.add_argument("--runtime", choices=["torch", "onnx"], help="default: by RUN")
    parser.add_argument(
        "--batch-size", type=numeric(int, least=1), default=32, metavar="N", help="images in one forward pass (32)"
    )
    parser.add_argument(
        "--wait-ms", type=numeric(float, least=0), default=5.0, metavar="MS", help="wait for others to join a batch (5)"
    )
    parser.add_argument(
        "--top-k", type=numeric(int, least=1), default=5, metavar="K", help="classes in each answer (5)"
    )
    parser.add_argument(
        "--max-upload-mb", type=numeric(float, least=1e-3), default=20.0, metavar="MB", help="of one request (20)"
    )
    parser.add_argument(
        "--max-pixels", type=numeric(int, least=1), default=50_000_000, metavar="N", help="of one image (50000000)"
    )
    parser.add_argument(
        "--max-queue", type=numeric(int, least=1), default=256, metavar="N", help="images waiting for an answer (256)"
    )
    parser.add_argument(
        "--upload-seconds",
        type=numeric(float, least=1e-3),
        default=30.0,
        metavar="S",
        help="for a request to arrive (30)",
    )
    parser.add_argument(
        "--header-seconds", type=numeric(float, least=1e-3), default=10.0, metavar="S", help="for its headers (10)"
    )
    parser.add_argument(
        "--grace",
        type=numeric(int, least=1),
        default=30,
        metavar="S",
        help="to finish accepted requests when stopping (30)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that requests may be addressed to, beside localhost, --host and addresses in numbers; '*' for any",
    )
    parser.add_argument("--log", metavar="FILE", help="append the lines to FILE, not to standard output")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    given = parser.read(argv)
    if not 0 <= given.port <= 65535:
        parser.error(f"--port {given.port}: must be from 0 to 65535")
    if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"finetune serve: needs {', '.join(missing)}. Install with: pip install 'stagewise-finetune[serve]'"
        )

    from finetune.commands.predict import choose_engine

    with _listen(given.host, given.port) as listening:
        return _serve(given, choose_engine(given.run, given.runtime, trust=given.trust), listening)


def _serve(given: argparse.Namespace, engine: "TorchEngine | OnnxEngine", listening: socket.socket) -> int:
    import logging

    import uvicorn

    # the client gets an error response for a malformed form, and our log gets a line
    logging.getLogger("python_multipart").setLevel(logging.ERROR)

    from finetune.inference.http_server import BoundedServer, connection_with, end_now
    from finetune.inference.serve import Limits, Server
    from finetune.inference.serve_pages import render_pages

    limits = Limits(
        upload_bytes=int(given.max_upload_mb * 2**20),
        pixels=min(given.max_pixels, engine.options.max_pixels),
        images=given.max_queue,
        upload_seconds=given.upload_seconds,
        batch_size=given.batch_size,
        wait_seconds=given.wait_ms / 1000,
        top_k=min(given.top_k, len(engine.classes)),
    )
    try:
        listening.listen(2048)  # uvicorn's own value; from here on clients wait instead of being refused
    except OSError as error:  # another server that was bound to the address too began to listen first
        raise _cannot_listen(given.host, given.port, error) from None
    host, port = listening.getsockname()[:2]
    print(f"serving {given.run} at http://{host}:{port}/predict (a page to try it: http://{host}:{port}/)", flush=True)
    pages = render_pages(
        name=Path(given.run).resolve().name,
        classes=engine.classes,
        multi_label=engine.multi_label,
        upload_bytes=limits.upload_bytes,
        top_k=limits.top_k,
        tells_unknown=engine.tells_unknown,
        # an address of all interfaces is none to call
        address=f"http://{'HOST' if host in ('0.0.0.0', '::') else f'[{host}]' if ':' in host else host}:{port}",
    )
    application = Server(
        engine, limits=limits, log=_log(given.log), allowed_hosts=[*given.allowed_host, given.host], pages=pages
    )
    config = uvicorn.Config(
        application,
        http=connection_with(given.header_seconds),
        log_level="warning",
        access_log=False,
        # leaves time to stop the application and print the last line; asyncio, which gets the value, accepts fractions
        timeout_graceful_shutdown=0.8 * given.grace,
        timeout_keep_alive=30,
        server_header=False,
        lifespan="on",
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        # after a clean stop uvicorn sends itself the signal again; that must not end this process as if the stop had failed
        signal.signal(number, lambda *_: None)
    BoundedServer(config, grace_seconds=given.grace).run(sockets=[listening])
    if application.abandoned:
        end_now(f"stopped: {application.abandoned} requests were not answered within --grace {given.grace}")
    print("stopped: all accepted requests were answered", flush=True)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Bind a socket to the address before the model is loaded.

    Raises:
        UserError: The address is invalid, in use, or not allowed.
    """
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise _cannot_listen(host, port, error) from None
    return listening


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    return UserError(
        f"--host {host} --port {port}: cannot listen there. {error.strerror}. Give another; --port 0 takes a free one."
    )


def _log(path: str | None) -> Callable[[str], None]:
    if path is None:
        return lambda line: print(line, flush=True)
    target = Path(path).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # unbuffered and appending: each line is one write, so lines stay whole even if two servers share the file
        descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--log {path}: cannot be written. {error.strerror}.") from None
    return lambda line: _write(descriptor, line)


def _write(descriptor: int, line: str) -> None:
    try:
        os.write(descriptor, line.encode() + b"\n")
    except OSError as error:  # a full disk must not stop the server from answering
        print(f"--log: {error.strerror}", file=sys.stderr)
