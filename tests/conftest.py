"""Data made for the tests: small image folders, and trained runs that several tests look at."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.training.forecast import Forecast

# Autograd starts its threads at the first backward pass of a process, one for each kind of device known by then (exporters
# make more known), and refuses to work in a fork of a process that has started any. Tests that fork must not depend on order.
torch.zeros(1, requires_grad=True).sum().backward()
# small tensors gain nothing from a second thread, and lose much where the machine is shared
torch.set_num_threads(1)

TINY = (
    "backbone=timm",
    # the stages of any ResNet with a tenth of the weights of resnet10t: most of a small run is reading and writing them
    "backbone.name=test_resnet",
    "backbone.weights=none",
    "input.size=32",
    "data.num_workers=0",
    "data.batch_size=8",
    "logger=none",
    # the same on every machine that runs the tests
    "trainer.precision=32-true",
    # seconds that only the tests of the report need
    "report=false",
    # tests look at the weights between phases
    "keep=all",
)

# for tests that need what a larger network learns, or what it weighs beside the other files of a run
TINY_RESNET10T = tuple("backbone.name=resnet10t" if word.startswith("backbone.name=") else word for word in TINY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold slow tests: begun last, one of them would leave the other process without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Leave what the imported libraries hold out of garbage collection: runs collect between phases, 0.4 s each with it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give it back: libraries written in C++ print lists of what an interpreter does not take apart at its end."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def own_features_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> Iterator[None]:
    """Sync no file: a run does so some eighty times. What a power cut leaves is tested in processes of their own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def no_trials_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecast a second for each phase of a plan instead of timing it for seconds, as tests/training/test_forecast.py does."""
    monkeypatch.setattr(
        "finetune.training.forecast.forecast",
        lambda *, phases, **_: [Forecast(cache_s=1.0, train_s=1.0) for _ in phases],
    )


def write_images(folder: Path, *, count: int, hue: tuple[int, int, int], seed: int, size: int = 24) -> None:
    """PNG files of noise around a colour."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.normal(hue, 40, (size, size + number % 5, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def make_pets(root: Path, *, count: int = 16) -> Path:
    """Three classes whose natural order differs from the alphabetical one."""
    for number, (name, hue) in enumerate(
        {"1 cat": (90, 60, 60), "2 dog": (60, 90, 60), "10 owl": (60, 60, 90)}.items()
    ):
        write_images(root / name, count=count, hue=hue, seed=number)
    return root


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``DIR/<class>/*`` with 3 x 16 images."""
    return make_pets(tmp_path_factory.mktemp("pets"))


@pytest.fixture
def words(pets: Path) -> Callable[..., list[str]]:
    """Overrides of a tiny run on the pets folder."""

    def make(*more: str) -> list[str]:
        return ["data=folder", f"data.root={pets}", *TINY, *more]

    return make


@pytest.fixture(scope="module")
def resized_in_two_parts() -> Iterator[None]:
    """Let a graph resize in two parts instead of eight: each part is traced and exported, which takes most of an export.

    ``tests/export/test_matrix.py`` exports the eight.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("finetune.data.pillow_resize._PARTS", 2)
        yield


@pytest.fixture
def ray_launcher() -> Iterator[None]:
    """What hydra-ray-launcher 1.2.2 makes known to Hydra; the package asks for Ray itself, which is too large for here."""
    from hydra.core.config_store import ConfigStore

    node = {
        "_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
        "ray": {"init": {"address": None}, "remote": {}},
    }
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="ray", node=node)
    yield
    del store.repo["hydra"]["launcher"]["ray.yaml"]
