"""The cache and the solver for a million images are planned by the room that there is for them, which is pretended here."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.activation_cache import policy
from finetune.activation_cache.policy import CachePolicy, plan_caches, policies_from_plain, with_solvers
from finetune.activation_cache.solver_memory import SolverMemory, solver_memory
from finetune.data.datamodule import ImageDataModule
from finetune.data.image_source import ArraySource
from finetune.data.index import Index
from finetune.data.path_table import PathTableBuilder
from finetune.errors import UserError
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.training.plan import build_plan, plan_table
from finetune.training.precision import Precision
from tests.training.building import CLASSES, fit, phase_for, tiny_classifier

GB = 10**9
MILLION = 1_000_000


@pytest.fixture(scope="module")
def million() -> ArraySource:
    """A million rows of sixteen pictures, nine of which validate."""
    rows = np.arange(MILLION)
    paths = PathTableBuilder()
    paths.add_folder("rows", [str(row) for row in rows])
    index = Index(
        classes=CLASSES,
        root="",
        paths=paths.build(),
        targets=rows % 3,
        splits=(rows < 9).astype(np.int8),
        content=np.stack([rows, rows], 1).astype(np.uint64),
    )
    pictures = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    return ArraySource(index=index, images=pictures, channels=3, rows=rows % 16)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return tiny_classifier()


def planned(
    classifier: Classifier,
    source: ArraySource,
    phase: ResolvedPhase,
    monkeypatch: pytest.MonkeyPatch,
    *,
    disk: float = 1000 * GB,
    memory: float = 1000 * GB,
    max_gb: float = 20.0,
) -> CachePolicy:
    """The policy of a phase, with the features of a ResNet-50 and so much room."""
    monkeypatch.setattr(policy, "_example_activation", lambda *given: torch.empty(1, 2048, device="meta"))
    monkeypatch.setattr(policy, "free_bytes", lambda: disk)
    precision = Precision(name="32-true", why="")
    (found,) = plan_caches(
        classifier,
        [phase],
        source.index,
        max_gb=max_gb,
        weights_dtype=precision.weights_dtype,
        autocast=precision.autocast,
        memory=SolverMemory(bytes=memory, where="this machine"),
    )
    return found


def test_a_cache_beyond_its_limit_is_planned_and_trained_without(
    classifier: Classifier, million: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = phase_for(classifier, ["head"], solver="auto", epochs=2)
    found = planned(classifier, million, phase, monkeypatch, max_gb=8)
    assert found.why == "8.2 GB of activations are more than cache.max_gb=8"
    assert found.cached_stage is None
    (phase,) = with_solvers([phase], [found])
    data = ImageDataModule(source=million, spec=classifier.input_spec, num_workers=0)
    (plan,) = build_plan(classifier, [phase], data, cache_policies=[found])
    assert (plan.steps, plan.images) == (2 * 124_999, 2 * 999_991)
    assert "cache: none, 8.2 GB of activations are more than cache.max_gb=8\n" in plan_table([plan])
    before = classifier.head.fc.weight.detach().clone()
    fit(classifier, replace(phase, epochs=1), million, max_steps=2)
    assert not torch.equal(classifier.head.fc.weight, before)


def test_a_cache_beyond_half_of_the_free_disk_is_not_begun(
    classifier: Classifier, million: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = phase_for(classifier, ["head"], solver="auto")
    found = planned(classifier, million, phase, monkeypatch, disk=16 * GB)
    assert found.why == "8.2 GB of activations are more than half of the 16.0 GB free"


def test_a_head_that_does_not_fit_the_memory_is_trained_on_the_cache_step_by_step(
    classifier: Classifier, million: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = phase_for(classifier, ["head"], solver="auto")
    small = planned(classifier, million, phase, monkeypatch, memory=16 * GB)
    large = planned(classifier, million, phase, monkeypatch, memory=32 * GB)
    assert [one.cached_stage for one in (small, large)] == [classifier.backbone.stages[-1]] * 2
    assert [one.solver for one in with_solvers([phase, phase], [small, large])] == ["gradient", "lbfgs"]
    why = "trained step by step, because solving the head takes 16.6 GB of memory, more than 70% of the 16.0 GB of this machine"
    assert small.why.endswith(f"; {why}")
    assert "solving" not in large.why
    # what was decided holds on the machine that resumes the run
    assert policies_from_plain([small.to_plain(), large.to_plain()], [phase, phase]) == [small, large]
    # with four views of each image it takes four times as much
    views = replace(phase, cache=4, epochs=4, augment="standard")
    assert not planned(classifier, million, views, monkeypatch, memory=32 * GB, max_gb=100).head_fits


def test_a_head_that_must_be_solved_and_does_not_fit_is_refused_before_anything_is_computed(
    classifier: Classifier, million: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = phase_for(classifier, ["head"], solver="lbfgs")
    message = r"schedule\.phases\[0\]\.solver='lbfgs': must fit the memory\. Solving the head takes 16\.6 GB .* solver=gradient"
    with pytest.raises(UserError, match=message):
        planned(classifier, million, phase, monkeypatch, memory=16 * GB)
    assert planned(classifier, million, replace(phase, solver="gradient"), monkeypatch, memory=16 * GB).head_fits


def test_processes_share_the_memory_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.activation_cache.solver_memory.memory_bytes", lambda: 32 * GB)
    assert solver_memory("cpu") == SolverMemory(bytes=32 * GB, where="this machine")
    shared = solver_memory("cpu", processes=4)
    assert shared == SolverMemory(bytes=8 * GB, where="this machine, for each of 4 processes")


def test_a_gpu_solves_in_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8, name="GPU"))
    assert solver_memory("auto", processes=4) == SolverMemory(bytes=8, where="GPU")
    assert solver_memory("cpu").where == "this machine"
