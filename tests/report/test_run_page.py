"""The report of a run: its contents, that it leaves the run unchanged, and its appearance in a real browser."""

import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune.checksums import keep_checksum
from finetune.cli import main
from finetune.runners.resume import resume
from finetune.wilson import wilson
from tests.report.browser import Browser, require_chromium
from tests.report.runs import NAMES
from tests.runs import train_tiny


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(require_chromium()) as opened:
        yield opened


@pytest.fixture
def copy(one: Path, tmp_path: Path) -> Path:
    """A copy of a run that a test may change."""
    return Path(shutil.copytree(one, tmp_path / "copy"))


def page_of(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("kind", ["one", "several"])
def test_it_opens_in_chromium_whole_and_alone(
    kind: str, width: int, browser: Browser, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(kind) / "report.html"
    browser.open(page, width=width)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    pictures = browser.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(pictures) > 8
    assert all(pictures)
    drawn = browser.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height > 100)")
    assert len(drawn) >= 8
    assert all(drawn)
    # class names are text: none of them has become an element
    assert browser.evaluate("document.querySelectorAll('script, [onerror], img[src=x]').length") == 0
    assert NAMES[0] in browser.evaluate("document.body.innerText")


def test_its_colours_follow_the_theme_and_its_wide_parts_scroll_by_themselves(one: Path, browser: Browser) -> None:
    colours = {}
    for dark in (False, True):
        browser.open(one / "report.html", width=1440, dark=dark)
        style = "getComputedStyle(document.querySelector('svg text')).fill + getComputedStyle(document.body).backgroundColor"
        colours[dark] = browser.evaluate(style)
    assert colours[False] != colours[True]
    browser.open(one / "report.html", width=360)
    tables = "[...document.querySelectorAll('table')].map(t => t.closest('.scroll') !== null)"
    assert all(browser.evaluate(tables))


def test_every_part_is_there_with_the_figures_of_the_run(one: Path) -> None:
    page = page_of(one)
    results = json.loads((one / "results.json").read_text())
    assert f"<b>{100 * results['test']['acc']:.1f}%</b>" in page
    assert f"<b>{100 * results['test']['f1_macro']:.1f}%</b>" in page
    # the interval of the list of runs
    low, high = wilson(results["test"]["acc"], sum(results["data"]["counts"]["test"]))
    assert f"95% interval {100 * low:.1f}% to {100 * high:.1f}%" in page
    pictures = (
        "plan",
        "moved",
        "loss",
        "metric",
        "rates",
        "gradients",
        "confusion",
        "calibration",
        "trust",
        "map-pca",
        "map-t-sne",
    )
    told = re.findall(r'<svg [^>]*aria-label="([^"]+)"', page)
    assert len(told) == len(pictures)
    for heading in (
        "Most frequent mistakes",
        "Each class",
        "Mistakes it was surest of",
        "Correct answers it was least",
        "Where it looked",
    ):
        assert heading in page
    # the frozen stage did not move by a bit, and the page says so
    assert "Never moved: stem." in page
    assert "96 images in 4 classes" in page
    assert "seed: 0" in page
    assert len(page.encode()) < 5_000_000


def test_a_perfect_score_gets_a_bound_and_no_interval_without_width(copy: Path) -> None:
    results = json.loads((copy / "results.json").read_text())
    results["test"] |= {"acc": 1.0, "f1_macro": 1.0, "confusion": [[7 * (i == j) for j in range(4)] for i in range(4)]}
    (copy / "results.json").write_text(json.dumps(results))
    keep_checksum(copy / "results.json")
    assert main(["report", str(copy)]) == 0
    assert "at least 89.3%" in page_of(copy)
    assert "95% interval" not in page_of(copy)


def test_a_phase_that_was_solved_has_no_rate_and_says_so(words: Callable[..., list[str]], tmp_path: Path) -> None:
    run_dir = train_tiny(words("schedule=probe", "report=true"), tmp_path / "run").run_dir
    page = page_of(run_dir)
    assert ">solved<" in page
    assert "learning rate, end of epoch" not in page


def test_what_does_not_apply_to_several_labels_is_left_out_and_said(several: Path) -> None:
    page = page_of(several)
    assert "mean average precision" in page
    assert "there is no confusion matrix" in page
    assert "Confusion matrix" not in page
    assert "95% interval" in page
    assert "Can the probabilities be believed?" in page
    assert "--format onnx" in page


@pytest.mark.parametrize("kind", ["one", "several"])
def test_its_python_runs(
    kind: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = re.findall(r'<code class="python">(.*?)</code>', page_of(request.getfixturevalue(kind)), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), (90, 90, 110)).save("photo.jpg")
    # discards the run's own output, if this test is the first to use the fixture
    capsys.readouterr()
    exec(compile(html.unescape(code), "report.html", "exec"), {})
    printed = capsys.readouterr().out
    if "temperature" in code or "logits" in code:
        assert any(printed.startswith(name) for name in NAMES) if kind == "one" else printed.startswith("[")
    else:
        assert "photo.jpg" in printed
        assert "predicted" in printed


def test_its_command_lines_run(one: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    lines = [html.unescape(line) for line in re.findall(r"<pre><code>(finetune .*?)</code>", page_of(one))]
    assert [line.split()[1] for line in lines] == ["predict", "evaluate", "export"]
    data = str(one.parent / "data")
    for line in lines[:2]:
        words = [word.replace("IMAGES", data).replace("DIR", data) for word in shlex.split(line)[1:]]
        assert main(words) == 0
    assert (tmp_path / "predictions.csv").is_file()


def test_it_can_be_written_again_to_the_same_page(one: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = page_of(copy)
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0
    assert f"report: {copy / 'report.html'}" in capsys.readouterr().out
    # the folder differs, and appears in the title and in the commands
    again = page_of(copy).replace(str(copy), str(one)).replace(">copy<", ">run<").replace(">copy:", ">run:")
    assert again == before


def test_without_its_images_it_is_written_and_says_so(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(copy), "data.root=/nowhere/at/all"]) == 0
    assert "No images are shown. data.root='/nowhere/at/all'" in capsys.readouterr().out
    page = page_of(copy)
    assert "No images are shown" in page
    assert "<img" not in page
    assert "Mistakes it was surest of" in page


def test_images_of_changed_data_are_not_shown_beside_the_answers(copy: Path, one: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(one.parent / "data", tmp_path / "data"))
    next((other / NAMES[2]).iterdir()).unlink()
    assert main(["report", str(copy), f"data.root={other}"]) == 0
    assert "The data has changed since the run" in page_of(copy)
    assert "<img" not in page_of(copy)


def test_an_image_that_has_gone_since_leaves_the_others(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.data.image_file import UnreadableImage
    from finetune.data.image_source import FileSource

    whole = page_of(copy).count("<img")
    read, gone = FileSource.read, {}

    def sometimes(self: FileSource, row: int, **settings: object) -> object:
        if row == gone.setdefault("row", row):
            raise UnreadableImage(str(row), "gone")
        return read(self, row, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(FileSource, "read", sometimes)
    assert main(["report", str(copy)]) == 0
    # the first row that is read is a mistake with a heat map, which accounts for three images
    assert page_of(copy).count("<img") == whole - 3


def test_what_is_missing_in_the_run_s_folder_is_left_out_and_said(copy: Path) -> None:
    shutil.rmtree(copy / "phases")
    (copy / "evaluation.safetensors").unlink()
    assert main(["report", str(copy)]) == 0
    page = page_of(copy)
    assert "files in phases/ have been removed" in page
    assert "has kept no evaluation.safetensors" in page
    assert "Confusion matrix" in page


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("test/embeddings", (3, 3), "The tensors of test belong to different images."),
        ("val/probabilities", (2,), "The tensors of val belong to different images."),
        ("test/rows", (), "The tensors of test belong to different images."),
    ],
)
def test_outputs_of_another_shape_are_damaged(
    name: str, shape: tuple[int, ...], message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "evaluation.safetensors"
    save_file({**load_file(path), name: torch.ones(shape)}, path)
    keep_checksum(path)
    assert main(["report", str(copy)]) == 2
    assert f"{path}: damaged. {message}" in capsys.readouterr().err


def test_an_error_in_the_report_leaves_the_run_good(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr("finetune.report.run_page.run_page", fail)
    short = ["schedule=frozen", "schedule.phases.0.epochs=1", "report=true"]
    run_dir = train_tiny(words(*short), tmp_path / "run").run_dir
    printed = capsys.readouterr().out
    told = "report: could not be written (ZeroDivisionError: no such thing). The run itself is complete."
    assert told in " ".join(printed.split())
    assert (run_dir / "model/model.json").is_file()
    assert not (run_dir / "report.html").exists()
    monkeypatch.undo()
    # resume restores what is missing from a finished run
    resume(run_dir)
    assert (run_dir / "report.html").is_file()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "no such folder"),
        ("bundle", "a bundle, which does not record how it was trained"),
        ("begun", "this run has not finished"),
        ("empty", "not a run folder"),
    ],
)
def test_folders_that_are_no_finished_run_are_refused(
    path: str, message: str, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    shutil.copy(one / "config.yaml", tmp_path / "begun")
    (tmp_path / "bundle").symlink_to(one / "model")
    assert main(["report", str(tmp_path / path)]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_file_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "plan.json").write_text("{")
    assert main(["report", str(copy)]) == 2
    assert "plan.json: damaged" in capsys.readouterr().err
