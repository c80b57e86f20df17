"""The site: it is built strictly, its code blocks run and print what they show, and it agrees with the package."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import finetune
from finetune.config import compose
from finetune.config.settings import setting_texts

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def docs_blocks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_blocks", ROOT / "docs/blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules["docs_blocks"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the command that CONTRIBUTING names."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_is_in_the_navigation_and_links_lead_somewhere(site: Path, docs_blocks: ModuleType) -> None:
    # mkdocs' strict mode checks links, anchors and pages that the navigation leaves out
    names = {path.stem for path in docs_blocks.pages()} | {"settings"}
    assert {path.stem for path in site.glob("*.html")} == names | {"404"}
    assert len(names) == 14


def test_a_reader_needs_no_network(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text()
        assert not re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]*"', text), page.name
    assert not [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?https?:|@import", path.read_text())]


def test_the_page_of_the_api_has_the_public_names_and_no_others(site: Path) -> None:
    text = (site / "api.html").read_text()
    # a function that shares its name with a package is shown from the module that defines it
    headings = set(re.findall(r'<h3 id="finetune(?:\.\w+)*\.(\w+)"', text))
    assert headings == set(finetune.__all__)
    assert "seeds" in text.partition('id="finetune.api.steps.ladder"')[2].partition("<h3")[0]
    assert "precision" in text.partition('id="finetune.api.steps.export"')[2].partition("<h3")[0]
    assert "Train, test and write the bundle" in text
    assert not re.findall(r":(?:func|class|meth|mod):", text)


def test_the_page_of_settings_has_every_key(site: Path) -> None:
    text = (site / "settings.html").read_text()
    assert [one.key for one in setting_texts() if f"<code>{one.key}=" not in text] == []


@pytest.mark.slow
@pytest.mark.usefixtures("resized_in_two_parts")
def test_the_code_of_the_pages_runs_and_prints_what_they_show(
    docs_blocks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    missing, ran = [], 0
    shown_by = {
        block.page: docs_blocks.blocks(block.page) for page in docs_blocks.pages() for block in docs_blocks.blocks(page)
    }
    for block, printed in docs_blocks.run_pages(make_small=True):
        ran += 1
        for documented, output in docs_blocks.compared(block, printed, shown_by[block.page]):
            missing += [f"{block.place}: {line}" for line in docs_blocks.missing_lines(documented, output)]
    assert ran > 40
    assert not missing, "uv run python docs/blocks.py writes what the program prints now\n" + "\n".join(missing)


def test_every_block_runs_or_says_why_not(docs_blocks: ModuleType) -> None:
    for page in docs_blocks.pages():
        for block in docs_blocks.blocks(page):
            known = block.language in ("bash", "console", "python", "text") or block.title
            assert known, f"{block.place}: nothing runs blocks of {block.language!r}"
            assert block.notes.get("not run", "reason"), block.place


def test_the_scripts_for_schedulers_start_runs_that_go_on(docs_blocks: ModuleType) -> None:
    scripts = {block.title: block.code for block in docs_blocks.blocks(ROOT / "docs/scaling.md") if block.title}
    # the schema of Kubernetes is 100 MB: by hand, as the page says
    job = yaml.safe_load(scripts["my_run.yaml"])["spec"]
    pod = job["template"]["spec"]
    assert (pod["restartPolicy"], job["podFailurePolicy"]["rules"][0]["action"]) == ("Never", "Ignore")
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    *options, line = scripts["my_run.sbatch"].splitlines()
    batch = shlex.split(line)
    assert batch[:2] == ["srun", "finetune"]
    configs = [compose(["data=digits", *words[1:]]) for words in (container["command"][1:], batch[2:])]
    assert [(config.resume, config.run_dir) for config in configs] == [("auto", "/shared/my_run")] * 2
    trainer = configs[1].trainer
    asked = f"--nodes={trainer['num_nodes']} --ntasks-per-node={trainer['devices']} "
    assert asked in " ".join(options)


def test_the_citation_names_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
