"""The code blocks of the pages: run from the first page to the last, in one folder, as a reader would.

    uv run python docs/blocks.py --in DIR        # runs them at full size and writes what they print into the pages

Languages: ``bash`` (commands whose output is not shown), ``console`` (a command after ``$``, then what it prints), ``python``
(one program a page; a ``text`` block after it shows what it prints), and any with ``title="PATH"``, a file that is written.

A comment above a block says what differs: ``<!-- not run: REASON -->``, perhaps with ``<!-- check: COMMAND -->``, which runs in
its place; ``<!-- exit: 2 -->``, the exit status that the last command must have; ``<!-- small: key=value ... -->``, what is added
in the tests, where it runs on few images; ``<!-- cut: REASON -->``: what it prints is shown in part, chosen by hand.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
# what makes a run small: few images of each class, one epoch per phase
SMALL = {"data.limit_per_class": "8", "epochs": "1", "logger": "none", "trainer.precision": "32-true"}
# the trial of precisions tells of the machine and its load: in the pages an ellipsis, which stands for any lines
_ELIDED = re.compile(r"^\s*precision:")
# lines that are shown, and differ between machines or between large and small runs in more than their figures
_NOT_COMPARED = re.compile(r"^\s*(time:|cache:|cached |like the training images: |data: .* loader processes|epochs=)")
_BLOCK = re.compile(r"((?:^ *<!--.*?-->\n)*)^( *)```(\w+)?([^\n]*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)


@dataclass(kw_only=True)
class Block:
    """A code block of a page.

    Args:
        page: File of the page.
        line: Line of the page, from 1.
        language: Word after the fence.
        code: Its lines.
        title: File that it is written to, or empty.
        notes: The comments above it, by their first word.
        start: Where its code begins in the text of the page.
    """

    page: Path
    line: int
    language: str
    code: str
    title: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    start: int = 0

    @property
    def place(self) -> str:
        """Page and line."""
        return f"docs/{self.page.name}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands, one a line, joined where a line ends with a backslash."""
        text = self.code.replace("\\\n", " ")
        if self.language == "console":
            return [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pages() -> list[Path]:
    """Return the pages in the order in which they are read."""
    lines = [
        line for line in (ROOT / "mkdocs.yml").read_text().splitlines() if not line.strip().startswith("- mkdocstr")
    ]
    names = re.findall(r"^ +- .*: (\w+\.md)$", "\n".join(lines), flags=re.MULTILINE)
    return [HERE / name for name in names if (HERE / name).is_file()]


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        notes = dict(re.findall(r"<!-- ([\w ]+): (.*?) -->", match[1]))
        title = re.search(r'title="([^"]+)"', match[4])
        code = re.sub(rf"^{match[2]}", "", match[5], flags=re.MULTILINE)
        found.append(
            Block(
                page=page,
                line=text.count("\n", 0, match.start(3) if match[3] else match.start()) + 1,
                language=match[3] or "",
                code=code,
                title=title[1] if title else "",
                notes=notes,
                start=match.start(5),
            )
        )
    return found


def small(words: Sequence[str], extra: str = "") -> list[str]:
    """Return the words of a command with what makes it small, unless it says so itself."""
    if not words or (words[0] in ("settings", "init", "--version") or "--cfg" in words):
        return list(words)
    from finetune.cli import COMMANDS

    # a command, or else the folder to train on
    if words[0] in COMMANDS and words[0] not in ("train", "plan", "lr-find", "ladder"):
        return list(words)
    added = dict(SMALL)
    if words[0] == "-m":
        added["report"] = "false"
    if words[0] == "ladder":
        # its own options say how long
        del added["epochs"], added["logger"]
    added |= dict(word.split("=", 1) for word in shlex.split(extra))
    keys = {word.split("=", 1)[0] for word in words}
    # a solved head has no epochs
    if "schedule=probe" in words or any(key.endswith("epochs") for key in keys):
        added.pop("epochs", None)
    return [*words, *(f"{key}={value}" for key, value in added.items() if key not in keys)]


@contextlib.contextmanager
def _small_python(make_small: bool) -> Iterator[None]:
    """Let ``finetune.fit`` train on few images, and plans forecast no time: that takes some seconds of trials."""
    if not make_small:
        yield
        return
    import finetune
    from finetune.training import forecast

    real_fit, real_forecast = finetune.fit, forecast.forecast

    def fit(data: Any, **arguments: Any) -> Any:
        if arguments.get("schedule", "gradual") == "gradual":
            arguments["epochs"] = 1
        words = [f"{key}={value}" for key, value in SMALL.items() if "." in key]
        if not isinstance(data, str):
            words.remove(f"data.limit_per_class={SMALL['data.limit_per_class']}")
        arguments["overrides"] = [*arguments.get("overrides", ()), *words, "report=false"]
        return real_fit(data, **{"loggers": "none", **arguments})

    def no_forecast(*, phases: Sequence[Any], **_: Any) -> list[forecast.Forecast]:
        return [forecast.Forecast(cache_s=1.0, train_s=1.0) for _ in phases]

    finetune.fit, forecast.forecast = fit, no_forecast  # type: ignore[assignment]
    try:
        yield
    finally:
        finetune.fit, forecast.forecast = real_fit, real_forecast


def run_command(command: str, *, make_small: bool, extra: str = "") -> tuple[int, str]:
    """Run a command of ``finetune`` in this process; return its exit status and what it prints."""
    from finetune.cli import main

    program, *words = shlex.split(command, comments=True)
    assert program == "finetune", command
    words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in words]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main(small(words, extra) if make_small else words)
    return status, output.getvalue()


def run_block(block: Block, variables: dict[str, Any], *, make_small: bool) -> list[str]:
    """Run a block; return what each command printed, or what the program printed.

    Raises:
        AssertionError: A command ended with another exit status than it should, or a program raised.
    """
    if block.title:
        file = Path(block.title)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.code)
        return []
    if "not run" in block.notes:
        check = block.notes.get("check")
        if check is None:
            return []
        status, output = run_command(check, make_small=False)
        assert status == 0, f"{block.place}: {check}\n{output}"
        return []
    if block.language == "python":
        output = io.StringIO()
        code = compile(block.code, block.place, "exec")
        try:
            with contextlib.redirect_stdout(output):
                exec(code, variables)
        except Exception as error:
            raise AssertionError(f"{block.place}\n{traceback.format_exc()}") from error
        return [output.getvalue()]
    assert block.language in ("bash", "console"), f"{block.place}: nothing runs blocks of {block.language!r}"
    answers = []
    commands = block.commands()
    # a refused line is shown with the line to write instead
    make_small = make_small and "exit" not in block.notes
    for command in commands:
        status, output = run_command(command, make_small=make_small, extra=block.notes.get("small", ""))
        expected = int(block.notes.get("exit", 0)) if command == commands[-1] else 0
        assert status == expected, f"{block.place}: {command}: exit status {status}\n{output}"
        answers.append(output)
    return answers


def as_shown(output: str) -> str:
    """Return output as the pages show it: without colours and the folder's name, machine-dependent lines as an ellipsis."""
    text = (
        re.sub(r"\x1b\[[0-9;]*m", "", output).replace(f"{os.getcwd()}/", "").replace(os.getcwd(), "/home/you").rstrip()
    )
    shown: list[str] = []
    elided = False
    for line in text.splitlines():
        # with the lines into which it is wrapped
        elided = _ELIDED.match(line) is not None or (elided and line.startswith("    "))
        line = "..." if elided else line.rstrip()
        if line != "..." or shown[-1:] != ["..."]:
            shown.append(line)
    return "\n".join(shown).strip("\n")


def shape(line: str) -> str:
    """Return a line without its figures, which differ between machines and between large and small runs.

    >>> shape("  epoch 2/3  val/loss 0.0994  about 2 min left"), shape("1 epoch, 7 steps") == shape("3 epochs, 21 steps")
    ('epoch # val/loss # #', True)
    """
    line = re.sub(r"\b(about )?[\d.,]+ ?(ms|s|min|h|MB|kB|KB|GB)\b( left)?", "#", line)
    line = re.sub(r"[-+]?\d[\d.,e/%x+-]*", "#", line)
    line = re.sub(r"(# )+#", "#", re.sub(r"[▁▂▃▄▅▆▇█]+", "#", re.sub(r"[-─═]{3,}", "-", line)))
    # one of a thing, and several
    return re.sub(r"(?<=# )(\w+?)s\b", r"\1", " ".join(line.split()))


def unwrapped(text: str) -> list[str]:
    r"""Return lines as they were before the program wrapped them: larger figures break them at other words.

    >>> unwrapped("weights: " + 70 * "x" + ";\n    licence: none\nrun: here")[1:]
    ['run: here']
    """
    lines: list[str] = []
    last, indent = "", 0
    for line in text.splitlines():
        begins = len(line) - len(line.lstrip())
        if lines and begins == indent + 4 and len(last) + 1 + len(line.split(" ", begins + 1)[begins]) > 80:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
            indent = begins
        last = line
    return lines


def missing_lines(documented: str, output: str) -> list[str]:
    """Return the documented lines whose like was not printed."""
    printed = {shape(line) for line in unwrapped(as_shown(output))}
    lines = [line for line in unwrapped(documented) if line.strip() and line.strip() != "..."]
    return [line for line in lines if shape(line) not in printed and not _NOT_COMPARED.match(line)]


def documented_answers(block: Block) -> list[str]:
    """Return what a console block says that each of its commands prints."""
    answers: list[list[str]] = []
    going_on = False
    for line in block.code.splitlines():
        if line.startswith("$ "):
            answers.append([])
            going_on = line.endswith("\\")
        elif going_on:
            going_on = line.endswith("\\")
        elif answers:
            answers[-1].append(line)
    return ["\n".join(lines).strip("\n") for lines in answers]


def compared(block: Block, printed: Sequence[str], page: Sequence[Block]) -> list[tuple[str, str]]:
    """Return what a block's page says is printed, each with what was printed."""
    if block.language == "console":
        return list(zip(documented_answers(block), printed, strict=True)) if printed else []
    place = [one.start for one in page].index(block.start)
    if block.language == "python" and page[place + 1 : place + 2] and page[place + 1].language == "text":
        return [(page[place + 1].code, printed[0])]
    return []


def run_pages(
    chosen: Sequence[Path] | None = None, *, make_small: bool, left_out: Sequence[str] = ("text",)
) -> Iterator[tuple[Block, list[str]]]:
    """Run blocks in the current folder, in order; give each with what it printed.

    Args:
        chosen: Pages; None runs all.
        make_small: Whether they train on few images, for one epoch per phase.
        left_out: Languages that do not run.
    """
    with _small_python(make_small):
        for page in pages() if chosen is None else chosen:
            variables: dict[str, Any] = {"__name__": "__main__"}
            for block in blocks(page):
                if block.language not in left_out or block.title:
                    yield block, run_block(block, variables, make_small=make_small)


def record(page: Path, answers: dict[int, list[str]]) -> None:
    """Write what the blocks of a page printed into it."""
    text = page.read_text()
    found = blocks(page)
    for number in reversed(range(len(found))):
        block = found[number]
        printed = answers.get(block.start)
        # cut: the lines are chosen by hand
        if not printed or "cut" in block.notes:
            continue
        if block.language == "console":
            new = ""
            lines = block.code.splitlines()
            starts = [n for n, line in enumerate(lines) if line.startswith("$ ")]
            for start, output in zip(starts, printed, strict=True):
                end = start
                while lines[end].endswith("\\"):
                    end += 1
                new += "\n".join(lines[start : end + 1]) + "\n" + (as_shown(output) + "\n" if output.strip() else "")
            text = text[: block.start] + new + text[block.start + len(block.code) :]
        elif block.language == "python" and number + 1 < len(found) and found[number + 1].language == "text":
            shown = found[number + 1]
            text = text[: shown.start] + as_shown(printed[0]) + "\n" + text[shown.start + len(shown.code) :]
    page.write_text(text)


def main() -> None:
    """Run the pages at full size, and write what they print into them."""
    parser = argparse.ArgumentParser(description="Run the code of the pages, and write what it prints into them.")
    parser.add_argument(
        "pages", nargs="*", help="names of pages; those before them must have run in the same folder (all)"
    )
    parser.add_argument(
        "--in", dest="folder", type=Path, help="folder to run in (default: a new one, deleted at the end)"
    )
    given = parser.parse_args()
    os.environ["COLUMNS"] = "100"
    sys.path.insert(0, str(ROOT))
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        os.environ["FINETUNE_CACHE"] = str(folder / "cache")
        for page in [page for page in pages() if not given.pages or page.stem in given.pages]:
            answers = {}
            # of bash no output is shown; the tests run it
            for block, printed in run_pages([page], make_small=False, left_out=("text", "bash")):
                print(block.place, flush=True)
                answers[block.start] = printed
            record(page, answers)


if __name__ == "__main__":
    main()
