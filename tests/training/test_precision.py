"""Which precision ``auto`` becomes, and that load decides nothing for good."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.training import precision
from finetune.training.precision import PrecisionTrial, choose_precision
from tests.runs import train_tiny
from tests.training.building import tiny_classifier


@pytest.fixture
def bf16_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_has_bf16_instructions", lambda: True)
    monkeypatch.setattr(precision, "_SMALLEST_PX", 8)
    return tmp_path / "precision.json"


def trials(monkeypatch: pytest.MonkeyPatch, *results: PrecisionTrial) -> list[Any]:
    made: list[Any] = []

    def trial(classifier: Any) -> PrecisionTrial:
        made.append(classifier)
        return results[len(made) - 1]

    monkeypatch.setattr(precision, "_trial", trial)
    return made


def test_a_trial_under_load_is_made_again_and_one_without_is_kept(
    bf16_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = tiny_classifier()
    made = trials(monkeypatch, PrecisionTrial(gain=0.7, undisturbed=False), PrecisionTrial(gain=2.0, undisturbed=True))
    busy = choose_precision("auto", classifier, accelerator="cpu")
    assert busy.name == "32-true"
    assert "the next run tries again" in busy.why
    assert not bf16_machine.exists()
    for _ in range(2):
        idle = choose_precision("auto", classifier, accelerator="cpu")
        assert idle.name == "bf16-mixed"
        assert "again" not in idle.why
    assert len(made) == 2


def test_a_trial_computes_on_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, seen, before = tiny_classifier(), set(), torch.get_num_threads()
    classifier.register_forward_pre_hook(lambda module, args: seen.add(torch.get_num_threads()))
    monkeypatch.setattr(precision, "_TRIAL_S", 0.0)
    torch.set_num_threads(2)
    try:
        assert precision._trial(classifier).gain > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_a_pass_that_waited_for_the_processor_is_a_disturbed_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    classifier = tiny_classifier()
    classifier.register_forward_pre_hook(lambda module, args: now.__setitem__(0, now[0] + 1.0))
    monkeypatch.setattr(precision, "_TRIAL_S", 0.0)
    monkeypatch.setattr(precision.time, "process_time", lambda: now[0])
    for stolen, undisturbed in ((1.0, True), (1.5, False)):
        monkeypatch.setattr(precision.time, "perf_counter", lambda stolen=stolen: stolen * now[0])
        assert precision._trial(classifier) == PrecisionTrial(gain=1.0, undisturbed=undisturbed)


def test_mixed_images_train_in_whole_half_precision(words: Callable[..., list[str]], tmp_path: Path) -> None:
    more = ["schedule=full", "schedule.phases.0.epochs=1", "schedule.mixup=0.4", "trainer.precision=bf16-true"]
    run = train_tiny(words(*more), tmp_path / "run")
    assert run.results.precision == "bf16-true"
