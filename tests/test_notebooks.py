"""Every notebook runs from its first cell to its last, made small, and is committed with the outputs of a run at full size."""

import ast
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
# values in place of those of the cell that is tagged "parameters" (the convention of papermill)
SMALL: dict[str, dict[str, Any]] = {
    "01_quickstart": {"IMAGES": 200, "EPOCHS": 1},
    "02_frozen_or_staged": {"IMAGES": 20, "PER_CLASS": (3,), "EPOCHS": 1},
    "04_embeddings": {"IMAGES": 200},
    "05_residual_learning": {"STEPS": 8},
    "07_as_a_library": {"IMAGES": 400, "EPOCHS": 1},
}


def make_small(notebook: nbformat.NotebookNode, values: dict[str, Any]) -> None:
    """Set parameters after the notebook's own cell of them; each must be one that the cell sets."""
    place = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    set_there = {node.id for node in ast.walk(ast.parse(notebook.cells[place].source)) if isinstance(node, ast.Name)}
    assert set(values) <= set_there
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))


def test_notebooks_are_found() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs_and_is_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert path.stat().st_size < 1_000_000


@pytest.mark.slow
# Jupyter's own machinery warns of what it will change (event loops, paths); nothing of ours
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # the kernel starts where the notebook lies, as it does for a reader
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    if path.stem in SMALL:
        make_small(notebook, SMALL[path.stem])
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
