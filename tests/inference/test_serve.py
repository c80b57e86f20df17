"""The server over real HTTP on loopback: with a fake engine, and once as a process with a trained bundle."""

import asyncio
import contextlib
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from finetune.cli import main
from finetune.commands import predict
from finetune.errors import UserError
from finetune.inference.answers import Answers
from finetune.inference.batching import Batcher
from finetune.inference.http_server import connection_with
from finetune.inference.serve import Limits, Server
from finetune.inference.serve_pages import render_pages
from finetune.inference.torch_engine import TorchEngine
from tests.bundles import small_bundle
from tests.export.odd_files import write_files
from tests.report.browser import Browser, require_chromium

SMALL = Limits(upload_bytes=10_000, pixels=1000, images=8, upload_seconds=1.0, batch_size=4, top_k=2)


class Fake:
    """Predicts by the first byte of an upload; ``bad`` cannot be read, and ``x`` makes the network fail."""

    classes, multi_label, tells_unknown, identity = ("a", "b", "c"), False, True, {"model": "fake"}

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches, self.open = seconds, [], threading.Event()
        self.open.set()

    def read_bytes(self, data: bytes, name: str, *, max_pixels: int) -> int:
        if data.startswith(b"bad"):
            raise UserError(f"{name}: no image")
        return data[0]

    def classify(self, images: list[int]) -> Answers:
        assert self.open.wait(20)
        self.batches.append(len(images))
        if ord("x") in images:
            raise RuntimeError("the network broke")
        shares = np.array([[1 + first % 3 == k for k in range(3)] for first in images], np.float32)
        shares[:, 0] += 0.5
        return Answers(probabilities_NK=shares, unknown_N=np.array([first / 50 for first in images], np.float32))


class FakeOfSeveralLabels(Fake):
    """Predicts the classes whose probability is above their threshold."""

    multi_label, tells_unknown, thresholds = True, False, (0.2, 0.6, 0.5)

    def classify(self, images: list[int]) -> Answers:
        return Answers(probabilities_NK=np.array([[0.3, 0.55, 0.9]] * len(images), np.float32))


@contextmanager
def serving(engine: Any, limits: Limits = SMALL, **options: Any) -> Iterator[tuple[int, Server, list[dict[str, Any]]]]:
    """Run a server, and yield its port, the application and its log."""
    lines: list[dict[str, Any]] = []
    application = Server(engine, limits=limits, log=lambda line: lines.append(json.loads(line)), **options)
    config = uvicorn.Config(
        application,
        http=connection_with(1.0),
        log_level="critical",
        lifespan="on",
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1], application, lines
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def ask(port: int, body: bytes = b"", *, method: str = "POST", path: str = "/predict", kind: str = "image/png") -> Any:
    """Return status and JSON of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, body=body, headers={"Content-Type": kind})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text
    finally:
        connection.close()


def form(*files: tuple[str, bytes]) -> dict[str, Any]:
    parts = [
        b'--B\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in files
    ]
    return {"body": b"".join(parts) + b"--B--\r\n", "kind": "multipart/form-data; boundary=B"}


def test_the_share_of_images_like_the_training_images_is_a_metric() -> None:
    with serving(Fake()) as (port, _, _):
        assert "known_share" not in ask(port, path="/metrics", method="GET")[1]
        # the score is the first byte over 50: "1" is known, "d" is not
        for first in (b"1", b"d", b"1", b"1"):
            assert ask(port, first)[0] == 200
        metrics = ask(port, path="/metrics", method="GET")[1]
    assert "finetune_unknown_images_total 1\n" in metrics
    assert "finetune_known_share 0.750000\n" in metrics


def test_of_several_labels_those_above_their_thresholds_are_predicted() -> None:
    with serving(FakeOfSeveralLabels()) as (port, _, _):
        status, answer = ask(port, b"0")
    assert status == 200
    assert answer["predictions"][0]["predicted"] == ["a", "c"]
    assert [row["class"] for row in answer["predictions"][0]["top"]] == ["c", "b"]


def test_one_image_or_many_are_answered_with_their_names_and_top_classes() -> None:
    with serving(Fake()) as (port, _, lines):
        status, one = ask(port, b"0")
        assert (status, one["predictions"][0]["predicted"]) == (200, "b")
        assert [row["class"] for row in one["predictions"][0]["top"]] == ["b", "a"]
        status, many = ask(port, **form(("one.png", b"0"), ("two.png", b"bad"), ("three.png", b"1")))
    assert status == 200
    assert [row["name"] for row in many["predictions"]] == ["one.png", "two.png", "three.png"]
    assert [row.get("predicted") for row in many["predictions"]] == ["b", None, "c"]
    assert "no image" in many["predictions"][1]["error"]
    assert [(line["status"], line["images"], line["unreadable"]) for line in lines] == [(200, 1, 0), (200, 3, 1)]


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"body": b"bad"}, 422, "no image"),
        ({"body": b""}, 400, "The request holds no image"),
        ({"body": b"a" * 20_000}, 413, "larger than"),
        ({"body": b"not a form", "kind": "multipart/form-data; boundary=B"}, 400, "Invalid multipart data"),
        ({"body": b"x", "kind": "multipart/form-data"}, 400, "oundary"),
        (form(*((f"{n}.png", b"0") for n in range(9))), 400, "Too many files"),
        ({"body": b"", "kind": "Multipart/Form-Data; boundary=B; charset=undefined"}, 415, "charset 'undefined'"),
        ({"body": b"x", "kind": "multipart/form-data; boundary=B; charset=idna"}, 415, "charset 'idna'"),
        ({"path": "/nowhere"}, 404, "Not Found"),
        ({"method": "GET"}, 405, "Method Not Allowed: GET /predict. With curl: curl --data-binary @photo.jpg"),
        ({"body": b"bad"}, 422, "With curl: curl --data-binary @photo.jpg"),
    ],
)
def test_a_bad_request_is_told_why_and_the_next_one_is_answered(request_: Any, status: int, says: str) -> None:
    with serving(Fake()) as (port, _, _):
        found, answer = ask(port, **request_)
        assert found == status
        assert says in json.dumps(answer)
        assert ask(port, b"0")[0] == 200


def test_a_network_that_breaks_fails_the_request_and_not_the_server() -> None:
    with serving(Fake()) as (port, _, _):
        assert ask(port, b"x")[0] == 500
        assert ask(port, b"0")[0] == 200


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    with serving(Fake()) as (port, _, _), socket.create_connection(("127.0.0.1", port), timeout=300) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nhalf")
        assert b" 408 " in slow.recv(1000)
        assert ask(port, b"0")[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nX: 1",
        # the response comes before the body, which then never ends
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n",
    ],
    ids=["nothing", "half of the headers", "half of an unread body"],
)
def test_a_connection_that_trickles_is_closed(sent: bytes) -> None:
    with serving(Fake()) as (port, _, _), socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        slow.sendall(sent)
        slow.settimeout(0.2)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):  # a byte every fifth of a second; a server without a limit would accept all hundred
                slow.sendall(b"a")
                try:
                    if not slow.recv(1000):
                        break
                except TimeoutError:
                    continue
            else:
                pytest.fail("the connection is still open")
        assert ask(port, b"0")[0] == 200


def test_a_form_is_known_in_any_case_of_its_type() -> None:
    with serving(Fake()) as (port, _, _):
        upload = form(("one.png", b"0"))
        status, answer = ask(port, upload["body"], kind="Multipart/FORM-DATA; boundary=B; charset=UTF-8")
    assert (status, answer["predictions"][0]["name"]) == (200, "one.png")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:80", 200),
        ("LOCALHOST.", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("camera.lan:8000", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
    ],
)
def test_a_name_that_was_not_allowed_is_refused_against_rebinding(host: str, status: int) -> None:
    with serving(Fake(), allowed_hosts=["camera.lan"]) as (port, _, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/health", headers={"Host": host})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
    assert answer.status == status
    assert status == 200 or "--allowed-host" in text


def test_images_beyond_the_queue_are_sent_away_and_those_taken_are_answered() -> None:
    engine = Fake()
    engine.open.clear()
    with serving(engine) as (port, application, _), ThreadPoolExecutor(12) as clients:
        first = [clients.submit(ask, port, b"0") for _ in range(8)]
        while application.taken < 8:
            time.sleep(0.01)
        assert ask(port, b"0")[0] == 503
        assert ask(port, path="/health", method="GET") == (200, "ok\n")
        engine.open.set()
        assert [future.result()[0] for future in first] == [200] * 8
        assert ask(port, b"0")[0] == 200
        metrics = ask(port, path="/metrics", method="GET")[1]
    assert max(engine.batches) == 4
    assert 'finetune_requests_total{status="503"} 1' in metrics
    assert "finetune_predict_seconds_count 10" in metrics
    assert "finetune_waiting_images 0" in metrics


def test_a_stop_answers_what_was_taken() -> None:
    engine = Fake()
    engine.open.clear()
    with ThreadPoolExecutor(4) as clients:
        with serving(engine) as (port, application, _):
            taken = [clients.submit(ask, port, b"0") for _ in range(4)]
            while application.taken < 4:
                time.sleep(0.01)
            threading.Timer(0.3, engine.open.set).start()
        assert [future.result()[0] for future in taken] == [200] * 4


def test_those_who_wait_together_are_answered_together_each_with_its_own() -> None:
    sizes = []

    def classify(images: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        sizes.append(len(images))
        return np.array([[image] for image in images], np.float32)

    async def go() -> list[float]:
        batcher = Batcher(classify, batch_size=8, wait_seconds=0.2)
        batcher.start()
        found = await asyncio.gather(*(batcher.answer(number) for number in range(20)))
        await batcher.stop()
        return [float(shares[0]) for shares in found]

    assert asyncio.run(go()) == list(range(20))
    assert sizes == [8, 8, 4]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle"), size=(32, 32))


def test_the_command_answers_as_the_network_does_under_load_and_stops_when_it_is_told(
    bundle: Path, tmp_path: Path
) -> None:
    files = write_files(tmp_path, 12)
    bomb = io.BytesIO()
    Image.new("1", (4000, 4000)).save(bomb, "png")
    engine = TorchEngine(bundle)
    with torch.inference_mode():
        wanted = [engine.classifier(engine.read(file)[None]).softmax(1)[0].numpy() for file in files]
    words = ["serve", str(bundle), "--port", "0", "--max-upload-mb", "1", "--max-pixels", "1000000"]
    command = [sys.executable, "-m", "finetune", *words, "--log", str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/predict", server.stdout.readline())
            assert found
            port = int(found[1])

            def client(number: int) -> int:
                for turn in range(6):
                    at = (number + turn) % len(files)
                    status, answer = ask(port, Path(files[at]).read_bytes())
                    row = answer["predictions"][0]
                    assert status == 200
                    assert row["predicted"] == engine.classes[wanted[at].argmax()]
                    assert abs(row["probability"] - wanted[at].max()) < 1e-4
                    assert ask(port, b"garbage")[0] == 422
                    assert ask(port, bomb.getvalue())[0] == 422
                    assert ask(port, b"0" * 3_000_000)[0] == 413
                return number

            with ThreadPoolExecutor(6) as clients:
                assert list(clients.map(client, range(6))) == list(range(6))
            info = ask(port, path="/info", method="GET")[1]
            assert info["classes"] == list(engine.classes)
            server.send_signal(signal.SIGTERM)
            assert "all accepted requests were answered" in server.stdout.read()
            assert server.wait(20) == 0
        finally:
            server.kill()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(lines) == 6 * 6 * 4 + 1
    assert {line["status"] for line in lines} == {200, 413, 422}


def test_a_stop_ends_within_the_grace_although_a_connection_is_slow_and_answers_long_images(
    bundle: Path, tmp_path: Path
) -> None:
    long = io.BytesIO()
    Image.new("1", (1, 1_000_000)).save(long, "png")
    command = [sys.executable, "-m", "finetune", "serve", str(bundle), "--port", "0", "--grace", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:(\d+)/predict", server.stdout.readline())
            assert found
            port = int(found[1])
            assert ask(port, long.getvalue())[0] == 200
            with (
                socket.create_connection(("127.0.0.1", port)) as headers,
                socket.create_connection(("127.0.0.1", port)) as body,
            ):
                headers.sendall(b"POST /predict HTTP/1.1\r\n")
                body.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
                assert ask(port, path="/health", method="GET")[0] == 200
                server.send_signal(signal.SIGTERM)
                # an upload may take 30 seconds; a server that waits for it would exceed this timeout
                said, complaints = server.communicate(timeout=25)
        finally:
            server.kill()
    assert "stopped: 1 requests were not answered within --grace 2" in said
    assert (server.returncode, complaints) == (0, "")


def test_mistakes_are_told_before_the_model_is_loaded(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(bundle / "nowhere"), "--port", "0"]) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(bundle), "--port", str(port)]) == 2
    assert f"--port {port}: cannot listen there. Address already in use" in capsys.readouterr().err
    assert main(["serve", str(bundle), "--max-queue", "0"]) == 2
    assert "--max-queue 0: must be at least 1" in capsys.readouterr().err


def test_an_address_that_another_server_takes_while_the_model_is_loaded_is_one_message(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = predict.choose_engine
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]

        def load_slowly(*given: str, trust: bool) -> object:
            other.listen()
            return load(*given, trust=trust)

        monkeypatch.setattr(predict, "choose_engine", load_slowly)
        assert main(["serve", str(bundle), "--port", str(port)]) == 2
    assert f"--port {port}: cannot listen there. Address already in use" in capsys.readouterr().err


PAGES = render_pages(
    name="a <model>",
    classes=["a", "<b>", "c"],
    multi_label=False,
    upload_bytes=10_000,
    top_k=2,
    tells_unknown=True,
)


def test_the_page_for_callers_has_lines_to_copy_with_the_address() -> None:
    pages = render_pages(
        name="m", classes=["a"], multi_label=False, upload_bytes=9, top_k=1, address="http://127.0.0.1:8124"
    )
    page = pages["/docs"].content.decode()
    assert page.count("http://127.0.0.1:8124/predict") == 3
    assert "HOST" not in page


def test_the_pages_are_served_and_contact_nothing_but_the_server() -> None:
    with serving(Fake(), pages=PAGES) as (port, _, _):
        for path, page in PAGES.items():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, page.content), path
            assert response.headers["content-type"].startswith(page.media_type)
            connection.close()
            if path != "/openapi.json":
                addresses = re.findall(rb"(?:https?:)?//[a-z][\w.]+\.\w+", page.content)
                assert addresses == [], path
    for path in ("/", "/docs"):
        assert b"default-src 'none'" in PAGES[path].content
        assert b"<model>" not in PAGES[path].content
        for name in re.findall(rb'(?:href|src)="([^"#]+)"', PAGES[path].content):
            assert name == b"data:," or f"/{name.decode().removeprefix('./')}" in PAGES


def test_the_openapi_description_holds_every_route_and_the_fields_of_a_real_answer() -> None:
    described = json.loads(PAGES["/openapi.json"].content)
    assert described["openapi"] == "3.1.0"
    with serving(Fake(), pages=PAGES) as (port, application, _):
        routes = {route.path for route in application._app.routes}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/predict", b"a")
        row = json.loads(connection.getresponse().read())["predictions"][0]
        connection.request("POST", "/predict", b"bad")
        bad = json.loads(connection.getresponse().read())["predictions"][0]
        connection.close()
    assert routes - set(PAGES) == set(described["paths"])
    answers = described["paths"]["/predict"]["post"]["responses"]
    schema = answers["200"]["content"]["application/json"]["schema"]["properties"]["predictions"]["items"]
    assert set(row) | set(bad) == set(schema["properties"])
    assert row["predicted"] in schema["properties"]["predicted"]["enum"]
    assert len(row["top"]) == schema["properties"]["top"]["maxItems"]


def test_the_page_classifies_a_chosen_image_in_a_browser(tmp_path: Path) -> None:
    program = require_chromium()
    Image.new("RGB", (20, 20)).save(tmp_path / "black.png")
    (tmp_path / "bad.png").write_bytes(b"bad")
    with serving(Fake(), pages=PAGES) as (port, _, log), Browser(program) as browser:
        browser.open(f"http://127.0.0.1:{port}/", width=390)
        browser.wait_for("document.body.dataset.ready === 'yes'")
        browser.choose_files("#files", [str(tmp_path / "black.png"), str(tmp_path / "bad.png")])
        browser.wait_for("globalThis.answers.length === 2")
        answers = browser.evaluate("globalThis.answers")
    assert answers[0]["predicted"] in Fake.classes
    assert "refused" in answers[1]
    assert {line["path"] for line in log} <= {*PAGES, "/predict", "/health"}
