"""Run notebooks and keep their outputs in them: the one command that regenerates what is committed.

uv run python notebooks/execute.py            # all of them
uv run python notebooks/execute.py 05         # those whose name begins so
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(path: Path) -> Any:
    """Run a notebook from its first cell to its last, where it lies, and give it back with its outputs."""
    # as in the tests and for the figures in the text: results must not depend on how many cores there are
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    for cell in notebook.cells:
        # when each cell began and ended: other at each run, and of no use to a reader
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    return notebook


def joined(outputs: list[Any]) -> list[Any]:
    """Text that was printed in pieces as one piece; how it fell into pieces is chance."""
    found: list[Any] = []
    for output in outputs:
        if found and output.output_type == "stream" and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    for output in found:
        if output.output_type == "stream":
            output.text = plain(output.text)
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/"):
                output.data[kind] = plain(value)
    return found


def plain(text: str) -> str:
    r"""Printed text without colours, and without the names of this machine's folders.

    >>> plain("\x1b[1mrun\x1b[0m: /tmp/tmpa1_b/run")
    'run: /tmp/run'
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return re.sub(r"/tmp/tmp\w+", "/tmp", text.replace(str(HERE.parent), "."))


def main() -> None:
    """Run those that are named, or all."""
    names = sys.argv[1:] or [""]
    for path in sorted(HERE.glob("*.ipynb")):
        if path.name.startswith(tuple(names)):
            began = time.monotonic()
            nbformat.write(execute(path), path)
            print(f"{path.name}: {time.monotonic() - began:.0f} s, {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
