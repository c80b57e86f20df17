"""The pages of the API are built from the docstrings, and what is said about the project agrees with the package."""

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import finetune

ROOT = Path(__file__).parent.parent


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_of_the_package_is_on_the_list_but_the_program_itself() -> None:
    folder = ROOT / "finetune"
    parts = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert {name.removeprefix("finetune.") for name in builder().parts()} == parts - {"__init__", "__main__"}


def test_pages_have_every_public_name_and_ask_for_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = builder()
    # the whole takes a quarter of a minute
    monkeypatch.setattr(module, "parts", lambda: ["finetune.errors", "finetune.confidence.temperature"])
    module.build(tmp_path)
    page = (tmp_path / "finetune.html").read_text()
    assert all(f'id="{name}"' in page for name in finetune.__all__)
    assert "Train, test and write the bundle" in page
    texts = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert len(texts) >= 4
    assert not [text for text in texts if 'src="http' in text or 'rel="stylesheet" href="http' in text]


def test_the_citation_names_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
