"""A trained head is exported, and can be loaded only on the backbone and classes that it belongs to."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.cli import main
from finetune.errors import UserError
from tests.runs import train_tiny

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def exported(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose head and backbone have been exported."""
    from tests.conftest import TINY_RESNET10T

    words = [
        "data=folder",
        f"data.root={pets}",
        *TINY_RESNET10T,
        "schedule=frozen",
        "schedule.phases.0.epochs=2",
        "head=mlp",
    ]
    run_dir = train_tiny(words, tmp_path_factory.mktemp("exported") / "run").run_dir
    assert main(["export", str(run_dir), "--format", "head", "--output", str(run_dir / "head.safetensors")]) == 0
    assert (
        main(["export", str(run_dir), "--format", "backbone", "--output", str(run_dir / "backbone.safetensors")]) == 0
    )
    return run_dir


SHORT = ("schedule=frozen", "schedule.phases.0.epochs=1")


def test_an_exported_head_goes_back_onto_the_exported_backbone(exported: Path, words: Words, tmp_path: Path) -> None:
    more = [
        f"backbone.weights={exported / 'backbone.safetensors'}",
        f"head.weights={exported / 'head.safetensors'}",
        "seed=5",
    ]
    run = train_tiny(words("backbone.name=resnet10t", *SHORT, *more), tmp_path / "run")
    start = load_file(run.run_dir / "phases/0-head/start.safetensors")
    trained = load_file(exported / "final.safetensors")
    assert set(start) == set(trained)
    assert all(torch.equal(start[name], trained[name]) for name in trained)


def test_a_head_is_refused_on_another_backbone(exported: Path, words: Words, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"head.weights='.*head.safetensors': trained on another backbone"):
        train_tiny(
            words("backbone.name=resnet10t", *SHORT, f"head.weights={exported / 'head.safetensors'}", "seed=7"),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_head_is_refused_for_another_class_list(exported: Path, pets: Path, words: Words, tmp_path: Path) -> None:
    renamed = tmp_path / "pets"
    shutil.copytree(pets, renamed)
    (renamed / "2 dog").rename(renamed / "2 fox")
    with pytest.raises(UserError, match=r"trained for another class list.*'2 dog' instead of '2 fox'"):
        train_tiny(
            words(
                "backbone.name=resnet10t",
                *SHORT,
                f"head.weights={exported / 'head.safetensors'}",
                f"data.root={renamed}",
            ),
            tmp_path / "run",
        )


def test_swapping_the_head_leaves_the_backbone_as_it_was(words: Words, tmp_path: Path) -> None:
    states = []
    for number, head in enumerate(("linear", "mlp", "cosine")):
        run = train_tiny(
            words("backbone.name=resnet10t", *SHORT, f"head={head}", "head.drop_rate=0.1"), tmp_path / str(number)
        )
        final = load_file(run.run_dir / "final.safetensors")
        states.append({name: tensor for name, tensor in final.items() if name.startswith("backbone.")})
        assert len(final) > len(states[-1])
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(torch.equal(states[0][n], states[1][n]) and torch.equal(states[0][n], states[2][n]) for n in states[0])
