"""The command that continues a run is one line everywhere, with ``--trust`` where the run cannot continue without it."""

import json
from pathlib import Path

import pytest

from finetune.build.run_dir import choose_run_dir
from finetune.bundle import find_bundle
from finetune.checksums import remedy
from finetune.config import Config
from finetune.errors import UserError
from finetune.report.run_files import check_run
from finetune.resume_command import resume_command, resume_command_near

OWN = {"head": {"name": "own", "_target_": "my.module.Head", "kwargs": {}}}


def write_unfinished_run(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": config}))
    (folder / "config.yaml").write_text("")
    return folder


@pytest.mark.parametrize(("config", "option"), [({}, ""), (OWN, " --trust")], ids=["listed", "own head"])
def test_every_message_about_an_unfinished_run_has_the_line_that_continues_it(
    tmp_path: Path, config: dict[str, object], option: str
) -> None:
    run = write_unfinished_run(tmp_path / "a run", config)
    line = f"finetune resume '{run}'{option}"
    assert resume_command(run) == line
    for check in (find_bundle, check_run, lambda run: choose_run_dir(Config(run_dir=str(run)))):
        with pytest.raises(UserError) as caught:
            check(run)
        assert str(caught.value).endswith(f": {line}")


def test_a_damaged_file_names_the_run_that_it_lies_in(tmp_path: Path) -> None:
    run = write_unfinished_run(tmp_path / "run", OWN)
    for place in ("results.json", "phases/0-head/last.ckpt"):
        assert remedy(run / place).endswith(f": finetune resume {run} --trust")
    assert resume_command_near(run / "model" / "model.json") == f"finetune resume {run} --trust"
    assert resume_command_near(tmp_path / "bundle" / "model.json") == "finetune resume RUN"


@pytest.mark.parametrize(
    "record", ["", "[]", '{"config": 3}', '{"config": {"trainer": 1, "head": [], "loss": null}}', "[" * 50_000]
)
def test_a_damaged_record_leaves_the_plain_line(tmp_path: Path, record: str) -> None:
    (tmp_path / "run.json").write_text(record)
    assert resume_command(tmp_path) == f"finetune resume {tmp_path}"
