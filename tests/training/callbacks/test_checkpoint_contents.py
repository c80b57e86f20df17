"""A checkpoint that is not of its phase is refused before anything of it is used."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from finetune.training.callbacks.checkpoint_contents import ContentsError, check_last, check_progress
from finetune.training.freezing import apply_phase, tensors_of
from finetune.training.param_groups import build_param_groups
from tests.training.building import phase_for, tiny_classifier

Change = Callable[[dict[str, Any]], object]


def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.fixture(scope="module", params=[torch.optim.AdamW, sgd])
def saved(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint holds after a step, and what it is compared with."""
    classifier = tiny_classifier()
    phase = phase_for(classifier, ["layer4", "head"])
    apply_phase(classifier, phase)
    groups = build_param_groups(classifier, rates=phase.rates(), weight_decay=0.01)
    optimizer = request.param(groups)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weights = {name: tensor.detach().clone() for name, tensor in tensors_of(classifier, phase.train).items()}
    row = {"phase": "test", "epoch": 0, "step": 1, "val/acc": 0.5}
    callbacks = {
        "PhaseCheckpoints": {"validation_due": False, "finished": True},
        "EpochLog": {"rows": [row], "sums": [[1.0, 2.0, 3]]},
        "GradientNorms": {"steps": 0, "sums": None},
    }
    progress = {"current": {"ready": 1, "completed": 1}, "is_last_batch": True}
    state = {
        "state_dict": weights,
        "finetune": {"phase": "test", "history": [[0.5, float("nan")]]},
        "epoch": 0,
        "global_step": 1,
        "pytorch-lightning_version": "2.6.6",
        "loops": {"fit_loop": {"epoch_loop.batch_progress": progress, "state_dict": {}}},
        "callbacks": callbacks,
        "lr_schedulers": [],
        "optimizer_states": [optimizer.state_dict()],
    }
    expected = {"phase": "test", "weights": weights, "averages": None, "groups": groups}
    return state, expected | {"make_optimizer": request.param}


def test_what_a_run_writes_passes(saved: tuple[dict[str, Any], dict[str, Any]]) -> None:
    state, expected = saved
    check_last(state, **expected)


def optimizer(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = state["optimizer_states"][0]
    return found


CHANGES: dict[str, tuple[Change, str]] = {
    "no weights": (lambda s: s["state_dict"].clear(), "state_dict does not hold the tensors"),
    "a text for weights": (lambda s: s.update(state_dict="x"), "state_dict is 'x', and must be a table"),
    "weights of another shape": (
        lambda s: s.update(state_dict={k: torch.zeros(7, 7).to(t.dtype) for k, t in s["state_dict"].items()}),
        "has shape",
    ),
    "weights of NaN": (
        lambda s: [t.fill_(float("nan")) for t in s["state_dict"].values() if t.is_floating_point()],
        "values that are not finite",
    ),
    "weights of whole numbers": (
        lambda s: s.update(state_dict={k: t.to(torch.int64) for k, t in s["state_dict"].items()}),
        "not a tensor of floating-point numbers",
    ),
    "sparse weights": (
        lambda s: s.update(state_dict={k: t.to_sparse() for k, t in s["state_dict"].items()}),
        "not a tensor of",
    ),
    "another phase": (lambda s: s["finetune"].update(phase="x" * 100), "Its phase is"),
    "no record": (lambda s: s.update(finetune=None), "finetune is None"),
    "a history of texts": (lambda s: s["finetune"].update(history=["ab"]), "history"),
    "rows of texts": (lambda s: s["callbacks"]["EpochLog"]["rows"][0].update(step="=cmd"), "rows"),
    "a row for no epoch": (lambda s: s["callbacks"]["EpochLog"].update(rows=[]), "does not have a row for each epoch"),
    "sums of two": (lambda s: s["callbacks"]["EpochLog"].update(sums=[[1.0, 2.0]]), "sums"),
    "no sums": (lambda s: s["callbacks"]["EpochLog"].update(sums=[]), "sums"),
    "gradients of a text": (
        lambda s: s["callbacks"].update(GradientNorms="x"),
        "GradientNorms is 'x', and must be a table",
    ),
    "a step of a text": (lambda s: s.update(global_step="x"), "global_step is 'x'"),
    "a step of -1": (lambda s: s.update(global_step=-1), "global_step is -1"),
    "an epoch of true": (lambda s: s.update(epoch=True), "epoch is True"),
    "a version of brackets": (lambda s: s.update({"pytorch-lightning_version": "(" * 1000}), "version of Lightning"),
    "loops of texts": (lambda s: s["loops"]["fit_loop"].update(state_dict="x"), "loops.fit_loop.state_dict is 'x'"),
    "schedulers of a text": (lambda s: s.update(lr_schedulers="x"), "schedulers"),
    "no optimizer": (lambda s: s.update(optimizer_states=[]), "one optimizer"),
    "an optimizer of a text": (lambda s: s.update(optimizer_states=["x"]), "optimizer state is 'x'"),
    "groups of texts": (lambda s: optimizer(s).update(param_groups=["x"]), "groups of its optimizer"),
    "a rate of a text": (lambda s: optimizer(s)["param_groups"][0].update(lr="x"), "groups of its optimizer"),
    "other parameters": (lambda s: optimizer(s)["param_groups"][0].update(params=[0] * 99), "groups of its optimizer"),
    "a parameter that is none": (lambda s: optimizer(s)["state"].update({999: {}}), "not a parameter of this phase"),
    "state without a key": (lambda s: optimizer(s)["state"][0].clear(), "lacks"),
    "state of another shape": (
        lambda s: optimizer(s)["state"].update({0: dict.fromkeys(optimizer(s)["state"][0], torch.zeros(5))}),
        "has the wrong type or shape",
    ),
    "state of texts": (
        lambda s: optimizer(s)["state"].update({0: dict.fromkeys(optimizer(s)["state"][0], "x")}),
        "has the wrong type or shape",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_run_writes_is_refused(saved: tuple[dict[str, Any], dict[str, Any]], name: str) -> None:
    change, message = CHANGES[name]
    state = copy.deepcopy(saved[0])
    change(state)
    with pytest.raises(ContentsError, match=message):
        check_last(state, **saved[1])


def test_averages_are_needed_where_the_phase_averages(saved: tuple[dict[str, Any], dict[str, Any]]) -> None:
    state, expected = saved
    with pytest.raises(ContentsError, match="averages is None"):
        check_last(state, **expected | {"averages": expected["weights"]})


def test_counters_of_other_loops_are_refused() -> None:
    own = {"epoch_progress": {"total": {"ready": 0}}, "state_dict": {}}
    check_progress({"epoch_progress": {"total": {"ready": 7}}, "state_dict": {"more": 1}}, own)
    with pytest.raises(ContentsError, match="loop counters do not match the Trainer"):
        check_progress({}, own)
    with pytest.raises(ContentsError, match="loop counters do not match the Trainer"):
        check_progress({"epoch_progress": {"total": 7}, "state_dict": {}}, own)
