"""The web page in a real browser: it predicts what Python predicts, and contacts no other server."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.cli import main
from finetune.confidence.thresholds import labels_shown
from finetune.export.formats.web import page
from finetune.inference.torch_engine import TorchEngine
from tests.bundles import small_bundle
from tests.data.raw_formats import png_chunk, png_header
from tests.export.pictures import picture
from tests.export.trained import settled_classifier, tell_unknown
from tests.report.browser import Browser, require_chromium

pytestmark = pytest.mark.usefixtures("resized_in_two_parts")

# folder for screenshots that a person can check
PICTURES = os.environ.get("FINETUNE_PICTURES")


def colour(number: int, height: int, width: int) -> Image.Image:
    generator = torch.Generator().manual_seed(number)
    pixels = picture(number % 5, channels=3, size=(height, width), generator=generator)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def mixed_files(folder: Path) -> list[str]:
    """Write ten kinds of files, of ten sizes."""
    folder.mkdir()
    clear = colour(1, 90, 61).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    deep = np.asarray(colour(4, 75, 130).convert("L")).astype(np.uint16) * 251
    turned = Image.Exif()
    turned[0x0112] = 6
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "colour.jpg": (colour(0, 120, 85), {"quality": 92}),
        "clear.png": (clear, {}),
        "grey.jpg": (colour(2, 40, 200).convert("L"), {"quality": 88}),
        "palette.png": (colour(3, 64, 64).convert("P"), {"transparency": 3}),
        "deep.png": (Image.fromarray(deep), {}),
        "turned.jpg": (colour(0, 77, 140), {"exif": turned, "quality": 95}),
        "turned.png": (colour(1, 50, 95).convert("L"), {"exif": turned}),
        "bilevel.png": (colour(2, 101, 53).convert("1"), {}),
        "lossy.webp": (colour(3, 33, 48), {"quality": 90}),
        "moving.gif": (colour(4, 150, 99).convert("P"), {}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return [str(folder / name) for name in files]


@pytest.fixture(scope="module", params=[3, 1])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("web")
    model = settled_classifier(name="resnet10t", size=(48, 48), channels=request.param)
    with torch.no_grad():
        model.head.fc.weight.mul_(0.25)
    tell_unknown(model)
    if request.param == 1:
        # several labels an image
        model.multi_label, model.thresholds = True, (0.5, 0.31, 0.07, 0.62, 0.4)
    run = small_bundle(folder / "run", model)
    with (run / "README.md").open("a") as card:
        card.write("\n## Test\n\n| a | b |\n|---|---|\n| 1 | <script>x</script> |\n\n```python\nimport finetune\n```\n")
    assert main(["export", str(run), "--format", "web", "--check", "4"]) == 0
    return run, run / "exports" / "web"


@pytest.fixture
def served(exported: tuple[Path, Path]) -> Iterator[str]:
    """Serve the folder as ``python -m http.server`` does, and yield its address."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(exported[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
            assert found
            yield found[0]
        finally:
            server.kill()


def test_the_page_answers_as_python_does_and_asks_nobody_else(
    exported: tuple[Path, Path], served: str, tmp_path: Path
) -> None:
    run, _ = exported
    engine = TorchEngine(run)
    files = mixed_files(tmp_path / "images")
    (tmp_path / "images" / "not.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    colour(0, 30, 30).convert("CMYK").save(tmp_path / "images" / "print.jpg")
    colour(2, 420, 610).save(tmp_path / "images" / "large.jpg")
    # resized without regard to the crop, the first would take gigabytes; the other claims one pixel and holds a hundred million
    Image.new("L", (1, 1_000_000), 90).save(tmp_path / "images" / "long.png")
    pixel = png_header(1, 1, 8, 0) + png_chunk(b"IDAT", zlib.compress(bytes(100_000_000))) + png_chunk(b"IEND", b"")
    (tmp_path / "images" / "bomb.png").write_bytes(pixel)
    odd = ("not.png", "print.jpg", "large.jpg", "long.png", "bomb.png")
    others = [str(tmp_path / "images" / name) for name in odd]
    with Browser(require_chromium()) as browser:
        browser.open(served, width=360)
        browser.wait_for("document.body?.dataset.ready === 'yes'")
        browser.choose_files("#files", [*files, *others])
        browser.wait_for("globalThis.answers.length === 15")
        answers = browser.evaluate("globalThis.answers")
        shown = browser.evaluate("document.querySelectorAll('#results > li').length")
        first = browser.evaluate("document.querySelector('#results li.first span').textContent")
        scripts = browser.evaluate("document.querySelectorAll('article script').length")
        widest = browser.evaluate("document.documentElement.scrollWidth")
        complaints, requests = browser.complaints(), browser.requests()
        if PICTURES:
            browser.evaluate("document.querySelector('details').open = true")
            for width in (360, 1280):
                for dark in (False, True):
                    name = f"web-{engine.classifier.input_spec.channels}-{width}-{'dark' if dark else 'light'}.png"
                    browser.look(width=width, dark=dark)
                    browser.screenshot(Path(PICTURES) / name)
    assert complaints == []
    assert all(url.startswith((served, f"blob:{served}")) for url in requests), requests
    assert any(url.endswith("model.onnx") for url in requests)
    assert shown == 15
    predicted = answers[0]["predicted"]
    assert first in predicted if engine.multi_label else first == predicted
    assert scripts == 0
    assert widest == 360
    tops = [max(answer["shares"]) for answer in answers[:10]]
    assert sum(top < 0.99 for top in tops) > 4, "answers that are sure of everything would prove little"
    for path, answer in [*zip(files, answers, strict=False), *zip(others[3:], answers[13:], strict=True)]:
        with torch.inference_mode():
            logits = engine.classifier(engine.read(path)[None])
        wanted = engine.classifier.probabilities(logits)[0].numpy()
        assert "refused" not in answer, answer
        if engine.multi_label:
            shown = [engine.classes[at] for at in labels_shown(wanted, engine.thresholds)]
            assert answer["predicted"] == shown, path
        else:
            assert answer["predicted"] == engine.classes[wanted.argmax()], path
        assert np.abs(np.array(answer["shares"]) - wanted).max() < 1e-3, (path, answer, wanted)
        score = float(engine.classify([engine.read(path)]).unknown_N[0])
        assert answer["unknownScore"] == pytest.approx(score, rel=1e-2), path
        assert answer["known"] == (score <= 1), path
        if os.environ.get("FINETUNE_VERBOSE"):
            print(Path(path).name, np.abs(np.array(answer["shares"]) - wanted).max())
    assert "damaged" in answers[10]["refused"]
    assert "CMYK" in answers[11]["refused"]
    assert "reduced scale" in answers[12]["notes"][0]
    assert all(answer["notes"] == [] for answer in answers[:10])


def test_the_folder_holds_all_that_the_page_needs_checked_by_hash(exported: tuple[Path, Path]) -> None:
    _, folder = exported
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    vendored = json.loads((folder / "vendor" / "vendored.json").read_text())
    assert names == {
        *("index.html", "style.css", "page.mjs", "model.mjs", "pixels.mjs", "model.onnx", "model.json", "parity.json"),
        *(f"vendor/{name}" for name in (*vendored["files"], "LICENSE", "vendored.json")),
    }
    for name, digest in vendored["files"].items():
        assert hashlib.sha256((folder / "vendor" / name).read_bytes()).hexdigest() == digest
    assert json.loads((folder / "parity.json").read_text())["passed"]


def test_what_a_card_or_a_class_name_says_is_shown_and_not_obeyed() -> None:
    model = settled_classifier(name="resnet10t", size=(32, 32), classes=["<img src=x onerror=alert(1)>", "b"])
    html = page(model, "# T\n\n<script>alert(1)</script>\n\n[x](javascript:alert(1)) ![y](http://elsewhere/z.png)\n")
    assert html.count("<script") == 1  # the page's own
    assert "<img" not in html
    assert 'href="javascript' not in html
