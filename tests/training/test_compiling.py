"""``compile``: what trains is compiled, and nothing else is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.cli import main
from finetune.config import compose
from finetune.errors import ConfigError, UserError
from finetune.training.compiling import compiles
from tests.runs import train_tiny

Words = Callable[..., list[str]]


def test_auto_and_off_do_not_compile_and_on_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert not compiles("auto")
    # as YAML reads the bare word
    assert not compiles(False)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "clang++" else None)
    assert compiles(True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="needs a C"):
        compiles("on")


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"compile='onn'.*[Dd]id you mean 'on'"):
        compose(["data=digits", "compile=onn"])
    assert compose(["data=digits", "compile=off"]).compile in ("off", False)


@pytest.mark.parametrize(
    ("schedule", "compiled"), [("full", ["embed", "embed"]), ("gradual", ["Sequential", "Sequential", "embed"])]
)
def test_what_trains_is_compiled_in_each_phase(
    schedule: str, compiled: list[str], words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def remembered(trained: Any) -> Any:
        def call(images: torch.Tensor) -> torch.Tensor:
            asked.append((getattr(trained, "__name__", type(trained).__name__), torch.is_grad_enabled()))
            return trained(images)

        return call

    monkeypatch.setattr("torch.compile", remembered)
    more = [f"schedule={schedule}", "schedule.cache=off"]
    phases = {"full": 1, "gradual": 3}[schedule]
    more += [f"schedule.phases.{number}.epochs=1" for number in range(phases)]
    plain = train_tiny(words(*more), tmp_path / "plain")
    assert not asked
    assert plain.results.compiled is False
    run = train_tiny(words(*more, "compile=on"), tmp_path / "run")
    assert run.results.compiled is True
    # validation and the test run without a graph, as they are
    assert asked
    assert all(graph for _, graph in asked)
    # and the stand-in computes the same
    one, other = (load_file(each.run_dir / "final.safetensors") for each in (plain, run))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_a_compiled_run_learns_the_same(words: Words, tmp_path: Path) -> None:
    # of the last stage alone: the C++ compiler takes seconds for each kernel
    more = ["schedule=full", "schedule.phases.0.epochs=1", "schedule.phases.0.max_steps=2"]
    more += ["freeze=stem,layer1,layer2,layer3", "schedule.cache=off"]
    assert main(["train", *words(*more), f"run_dir={tmp_path / 'plain'}"]) == 0
    assert main(["train", *words(*more, "compile=on"), f"run_dir={tmp_path / 'compiled'}"]) == 0
    one, other = (load_file(tmp_path / name / "final.safetensors") for name in ("plain", "compiled"))
    assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)
