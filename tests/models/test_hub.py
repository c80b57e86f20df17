"""Files of the hub, from a server on this machine that answers as the hub does."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

from finetune.build.python_objects import PythonObjects
from finetune.config.schema import Config
from finetune.errors import UserError
from finetune.models.build import backbone_from_description
from finetune.models.hub import _CACHE_ALONE, UnavailableError, cache_alone, hub_file
from finetune.runners import resume

FILES = {"/someone/net/resolve/main/config.json": b"{}", "/someone/net/resolve/main/pytorch_model.bin": b"weights"}


class Hub(BaseHTTPRequestHandler):
    """The few answers that a download needs."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.asked.append(self.path)
        content = FILES.get(self.path)
        known = self.path.startswith("/someone/net/") or self.path == "/"
        self.send_response(200 if content is not None or self.path == "/" else 404)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_header("ETag", f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body and content is not None:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing: the requests are kept in ``asked``."""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that a local hub was asked for; it is the only one that the client knows."""
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Hub.asked
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once_and_then_comes_from_the_cache_without_a_request(asked: list[str]) -> None:
    path = hub_file("someone/net", ["model.safetensors", "pytorch_model.bin"])
    assert path.read_bytes() == b"weights"
    asked.clear()
    assert hub_file("someone/net@main", ["model.safetensors", "pytorch_model.bin"]) == path
    assert asked == []


def test_a_repository_without_the_file_and_one_that_does_not_exist_are_told_apart(asked: list[str]) -> None:
    with pytest.raises(UnavailableError, match=r"/someone/net, which has none of model\.safetensors"):
        hub_file("someone/net", ["model.safetensors"])
    with pytest.raises(UnavailableError, match=r"/someone/else \(.*Repository Not Found|/someone/else \(.*404"):
        hub_file("someone/else", ["model.safetensors"])


def test_a_name_that_no_repository_can_have_is_unavailable_and_not_a_traceback(asked: list[str]) -> None:
    with pytest.raises(UnavailableError, match="a//b"):
        hub_file("a//b", ["model.safetensors"])


def test_a_name_from_a_file_asks_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: object, **settings: object) -> None:
        raise AssertionError("a server was asked")

    monkeypatch.setattr("huggingface_hub.get_session", asked)
    with cache_alone(), pytest.raises(UnavailableError, match="no server, because a file names it and not you"):
        hub_file("someone/net", ["config.json"])
    # a description of a network whose fields are left to the hub
    description = {"source": "transformers", "name": "someone/net", "kwargs": {}, "input_spec": {}}
    with pytest.raises(UserError, match="no server, because a file names it and not you"):
        backbone_from_description(description)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_run_that_is_built_anew_asks_the_cache_alone_unless_it_is_trusted(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr("finetune.build.assemble", lambda *args, **settings: found.append(_CACHE_ALONE.get()))
    resume._assemble(
        tmp_path,
        None,
        Config(),
        trusted=trusted,
        tune_process=False,
        objects=PythonObjects(),  # type: ignore[arg-type]
    )
    assert found == [not trusted]
