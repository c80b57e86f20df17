"""What a run does to the weights, asserted on the weights themselves."""

import csv
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune.errors import UserError
from finetune.file_schema import EVALUATION
from finetune.results import EpochRow, PhaseResult
from finetune.runners.resume import resume
from finetune.training.eval_outputs import Validation
from finetune.training.evaluation import reusable_validation
from finetune.training.phase_result import passed_on
from tests.imaginary_results import imaginary_phase
from tests.runs import moved_stages, outcome, train_tiny

ALL = {"stem", "layer1", "layer2", "layer3", "layer4", "head"}
Words = Callable[..., list[str]]

# preset -> the stages that each of its phases moves
PRESETS = {
    "frozen": [{"head"}],
    "head_then_all": [{"head"}, ALL],
    "gradual": [{"head"}, {"layer4", "head"}, ALL],
    "full": [ALL],
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_each_phase_of_a_preset_moves_exactly_the_stages_it_names(
    preset: str, batch_norm: str, words: Words, tmp_path: Path
) -> None:
    run = train_tiny(
        words(f"schedule={preset}", "schedule.epochs=2", f"schedule.batch_norm={batch_norm}", *_short(preset)),
        tmp_path / "run",
    )
    starts = [*sorted(run.run_dir.glob("phases/*/start.safetensors")), run.run_dir / "final.safetensors"]
    moved = [moved_stages(before, after) for before, after in itertools.pairwise(starts)]
    assert moved == PRESETS[preset]


def _short(preset: str) -> list[str]:
    # the last epoch's weights: the best may be an earlier one, which is fine but moves less
    return ["schedule.restore=last"] + [f"schedule.phases.{n}.epochs=1" for n in range(len(PRESETS[preset]))]


def test_freeze_pins_stages_whatever_the_schedule_says(words: Words, tmp_path: Path) -> None:
    run = train_tiny(words("schedule=full", "schedule.phases.0.epochs=1", "freeze=[stem,layer2]"), tmp_path / "run")
    assert moved_stages(run.run_dir / "phases/0-all/start.safetensors", run.run_dir / "final.safetensors") == ALL - {
        "stem",
        "layer2",
    }


def test_one_phase_changes_from_the_command_line(words: Words, tmp_path: Path) -> None:
    more = ["schedule=gradual", "schedule.phases.1.train=[layer3,layer4,head]", "schedule.restore=last"]
    run = train_tiny(words(*more, *[f"schedule.phases.{n}.epochs=1" for n in range(3)]), tmp_path / "run")
    moved = moved_stages(run.run_dir / "phases/1-top/start.safetensors", run.run_dir / "phases/2-all/start.safetensors")
    assert moved == {"layer3", "layer4", "head"}


def test_two_runs_with_the_same_seed_are_equal_to_the_bit_with_and_without_workers(
    words: Words, tmp_path: Path
) -> None:
    more = ["schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=2", "head.drop_rate=0.2"]
    outcomes = [
        outcome(train_tiny(words(*more, f"data.num_workers={workers}", f"seed={seed}"), tmp_path / str(at)).run_dir)
        for at, (workers, seed) in enumerate([(0, 3), (0, 3), (2, 3), (0, 4)])
    ]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] == outcomes[2]
    assert outcomes[0]["files"]["final.safetensors"] != outcomes[3]["files"]["final.safetensors"]


def test_the_bundle_gives_the_probabilities_that_the_test_wrote(words: Words, pets: Path, tmp_path: Path) -> None:
    from finetune.data.decode import decode_image
    from finetune.data.transforms import eval_view

    run = train_tiny(words("schedule=frozen", "schedule.phases.0.epochs=1"), tmp_path / "run")
    model = finetune.load(run.bundle)
    with (run.run_dir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    counts = json.loads((run.run_dir / "results.json").read_text())["data"]["counts"]
    assert len(rows) == sum(counts["test"]) > 0
    assert model.classes == ("1 cat", "2 dog", "10 owl")
    images = torch.stack([eval_view(model.input_spec)(decode_image(row["path"], channels=3)) for row in rows])
    with torch.no_grad():
        best = model(images).softmax(1).max(1)
    for at, row in enumerate(rows):
        assert Path(row["path"]).is_relative_to(pets)
        assert row["target"] == Path(row["path"]).parent.name
        assert row["predicted"] == model.classes[int(best.indices[at])]
        assert float(row["probability"]) == pytest.approx(float(best.values[at]), abs=1e-6)


def test_the_best_epoch_is_what_is_handed_on(words: Words, tmp_path: Path) -> None:
    run = train_tiny(words("schedule=frozen", "schedule.phases.0.epochs=4", "schedule.lr=0.3"), tmp_path / "run")
    phase = json.loads((run.run_dir / "phases/0-head/result.json").read_text())
    accuracies = [row["val/acc"] for row in phase["rows"]]
    losses = [row["val/loss"] for row in phase["rows"]]
    expected = min(range(4), key=lambda epoch: (-accuracies[epoch], losses[epoch]))
    assert phase["best_epoch"] == expected
    best = torch.load(run.run_dir / "phases/0-head/best.ckpt", weights_only=True)["state_dict"]
    final = load_file(run.run_dir / "final.safetensors")
    assert {name.removeprefix("classifier.") for name in best} == {name for name in final if name.startswith("head.")}
    assert all(torch.equal(final[name.removeprefix("classifier.")], tensor) for name, tensor in best.items())
    # and what the run reports for validation is that epoch's value
    assert run.results.val.acc == pytest.approx(accuracies[expected])
    assert run.results.val.loss == pytest.approx(losses[expected], rel=1e-5)


@pytest.mark.parametrize("more", [(), ("schedule.phases.1.parameters=norms",), ("schedule.phases.1.ema_decay=0.5",)])
def test_a_phase_that_only_made_it_worse_passes_on_what_it_began_with(
    words: Words, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """A rate that ruins the network; the phase after it begins where the ruined one began, and so does a resumed run."""
    harmful = [
        "schedule=gradual",
        "schedule.epochs=1",
        "schedule.phases.1.epochs=2",
        "schedule.phases.1.lr=30",
        "schedule.phases.2.epochs=1",
        "schedule.phases.2.lr=1e-30",
        "schedule.phases.2.restore=last",
        *more,
    ]
    run = train_tiny(words(*harmful), tmp_path / "run")
    head, top, last = run.results.phases
    assert (head.restored, top.restored, last.restored) == ("best", "start", "last")
    assert next(iter(top.best.values())) < next(iter(head.best.values()))
    assert "not better than its start, which is kept" in top.in_words()
    begun, passed = (run.run_dir / f"phases/{name}/start.safetensors" for name in ("1-top", "2-all"))
    assert begun.read_bytes() == passed.read_bytes()
    # what is reported is what was kept
    assert run.results.val.acc == pytest.approx(next(iter(head.best.values())))
    (run.run_dir / "results.json").unlink()
    again = resume(run.run_dir)
    assert [phase.restored for phase in again.results.phases] == ["best", "start", "last"]


def test_metrics_of_a_part_of_the_validation_images_do_not_keep_a_start(words: Words, tmp_path: Path) -> None:
    more = ["schedule=lp_ft", "schedule.phases.1.epochs=1", "schedule.phases.1.lr=30", "+trainer.limit_val_batches=1"]
    run = train_tiny(words(*more, "data.batch_size=2"), tmp_path / "run")
    assert [phase.restored for phase in run.results.phases] == ["best", "best"]


def test_the_start_of_a_phase_is_what_the_phases_before_it_passed_on() -> None:
    def phase(restored: str, *values: float) -> PhaseResult:
        rows = tuple(EpochRow(phase="p", epoch=n, step=n, values={"val/acc": v}) for n, v in enumerate(values))
        return replace(imaginary_phase("p"), restored=restored, best_epoch=values.index(max(values)), rows=rows)

    assert passed_on([]) is None
    chain = [phase("best", 0.5, 0.8, 0.7), phase("start", 0.6, 0.7), phase("start", 0.1)]
    assert passed_on(chain) is chain[0].rows[1]  # type: ignore[index]  # given above
    chain.append(phase("last", 0.9, 0.2))
    assert passed_on(chain) is chain[-1].rows[1]  # type: ignore[index]


def test_metrics_csv_has_one_row_an_epoch_over_all_phases(words: Words, tmp_path: Path) -> None:
    run = train_tiny(
        words(
            "schedule=gradual",
            "schedule.phases.0.solver=gradient",
            *[f"schedule.phases.{n}.epochs={n + 1}" for n in range(3)],
        ),
        tmp_path / "run",
    )
    with (run.run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        ("head", "0"),
        ("top", "1"),
        ("top", "2"),
        ("all", "3"),
        ("all", "4"),
        ("all", "5"),
    ]
    steps = [int(row["step"]) for row in rows]
    assert steps == [steps[0] * n for n in range(1, 7)]


def test_from_python_the_same_path(pets: Path, tmp_path: Path) -> None:
    from tests.conftest import TINY

    run = finetune.fit(
        data=pets,
        schedule="frozen",
        weights="none",
        run_dir=tmp_path / "a b=c",
        overrides=[*TINY, "schedule.phases.0.epochs=1"],
    )
    model = finetune.load(run.bundle)
    assert run.run_dir == tmp_path / "a b=c"
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_moments_are_not_carried_into_another_optimizer(words: Words, tmp_path: Path) -> None:
    more = ["schedule=head_then_all", "schedule.phases.1.carry_optimizer=true", "schedule.phases.0.solver=gradient"]
    another = "schedule.phases.1.optimizer={_target_: torch.optim.SGD}"
    with pytest.raises(
        UserError, match=r"phases\[1\].carry_optimizer=True: the phase before trains by torch.optim.AdamW"
    ):
        train_tiny(words(*more, another), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_phase_without_a_parameter_of_its_kind_is_refused_before_the_run(words: Words, tmp_path: Path) -> None:
    # the stem of a vision transformer has no norms
    more = ["backbone.name=vit_tiny_patch16_224", "schedule=full", "schedule.phases.0.parameters=norms"]
    with pytest.raises(UserError, match=r"phases\[0\].train=\['stem'\]: .* no norms parameters"):
        train_tiny(words(*more, "schedule.phases.0.train=[stem]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_moments_are_carried_into_the_next_phase_only_when_asked(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_states: dict[bool, dict[str, float]] = {}
    for carry in (False, True):
        seen: list[dict[int, float]] = []
        real = torch.optim.AdamW.step

        def spying(optimizer: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
            seen.append({id(p): float(state["step"]) for p, state in optimizer.state.items()})  # noqa: B023 (used at once)
            return real(optimizer, *args, **kwargs)  # noqa: B023

        monkeypatch.setattr(torch.optim.AdamW, "step", spying)
        more = ["schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=1"]
        run = train_tiny(words(*more, f"schedule.phases.1.carry_optimizer={carry}"), tmp_path / str(carry))
        monkeypatch.setattr(torch.optim.AdamW, "step", real)
        steps = run.results.phases[0].steps
        # what the optimizer of the second phase held just before its first step: the head's two tensors or nothing
        first_states[carry] = {str(n): value for n, value in enumerate(seen[steps].values())}
    assert first_states[False] == {}
    assert list(first_states[True].values()) == [steps, steps]


def test_averaged_weights_are_validated_shipped_and_named_in_the_results(words: Words, tmp_path: Path) -> None:
    more = [
        "schedule=frozen",
        "schedule.phases.0.epochs=2",
        "schedule.restore=last",
        "schedule.ema_decay=0.5",
        "schedule.lr=0.05",
    ]
    run = train_tiny(words(*more), tmp_path / "run")
    last = torch.load(run.run_dir / "phases/0-head/last.ckpt", weights_only=True)
    final = load_file(run.run_dir / "final.safetensors")
    averages, raw = last["callbacks"]["StageEma"]["averages"], last["state_dict"]
    assert set(averages) == {name for name in final if name.startswith("head.")}
    assert all(torch.equal(final[name], tensor) for name, tensor in averages.items())
    assert not any(torch.equal(final[name], raw[f"classifier.{name}"]) for name in averages)
    assert run.results.phases[0].weights == "ema"
    assert run.results.val.loss == pytest.approx(last["callbacks"]["EpochLog"]["rows"][-1]["val/loss"], rel=1e-6)


def test_early_stopping_ends_a_phase_and_the_next_one_begins(words: Words, tmp_path: Path) -> None:
    # a rate of 1e-12 moves nothing that accuracy or loss would show in single precision for long
    more = [
        "schedule=head_then_all",
        "schedule.phases.0.epochs=30",
        "schedule.phases.0.patience=2",
        "schedule.phases.0.lr=1e-12",
    ]
    run = train_tiny(words(*more, "schedule.phases.1.epochs=1"), tmp_path / "run")
    epochs = [phase.epochs for phase in run.results.phases]
    assert epochs[0] < 10
    assert epochs[0] - 1 - run.results.phases[0].best_epoch == 2
    assert epochs[1] == 1


def test_a_phase_may_be_given_in_steps(words: Words, tmp_path: Path) -> None:
    run = train_tiny(
        words("schedule=frozen", "schedule.phases.0.epochs=5", "schedule.phases.0.max_steps=7"), tmp_path / "run"
    )
    assert run.results.phases[0].steps == 7
    assert run.results.phases[0].epochs == 2
    assert run.results.phases[0].best_epoch in (0, 1)


def test_class_weights_and_the_focal_loss_change_what_is_learned(words: Words, tmp_path: Path) -> None:
    outcomes = []
    for number, more in enumerate(([], ["loss.name=focal"], ["loss.class_weights=balanced"])):
        run = train_tiny(words("schedule=frozen", "schedule.phases.0.epochs=1", *more), tmp_path / str(number))
        outcomes.append(run.results.weights_hash)
    # the classes are equally large here, so that balanced weights are all one
    assert outcomes[0] == outcomes[2] != outcomes[1]


@pytest.mark.parametrize(
    "more",
    [
        ["schedule=frozen", "schedule.phases.0.epochs=4", "schedule.lr=0.3"],
        ["schedule=full", "schedule.phases.0.epochs=3", "schedule.restore=last", "schedule.ema_decay=0.5"],
        # frozen stages that are not cached, their BatchNorm folded
        [
            "schedule=frozen",
            "schedule.phases.0.train=[last,head]",
            "schedule.phases.0.epochs=1",
            "trainer.precision=bf16-mixed",
            "input.size=64",
        ],
    ],
)
def test_the_last_validation_of_the_weights_is_the_one_that_the_results_show(
    more: list[str], words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        kept.append(reusable_validation(*args, **kwargs))
        return kept[-1]

    monkeypatch.setattr("finetune.training.phase_runner.reusable_validation", counted)
    once = train_tiny(words(*more), tmp_path / "once").run_dir
    assert kept[-1] is not None
    # computed again, as after a resume
    monkeypatch.setattr("finetune.training.phase_runner.reusable_validation", lambda *args, **kwargs: None)
    again = train_tiny(words(*more), tmp_path / "again").run_dir
    for name in ("val", "test"):
        assert (
            json.loads((once / "results.json").read_text())[name]
            == json.loads((again / "results.json").read_text())[name]
        )
    first, second = load_file(once / EVALUATION), load_file(again / EVALUATION)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_validation_of_other_weights_or_of_a_part_is_not_taken_for_the_last() -> None:
    found = Validation(step=8, metrics={}, outputs={"rows": torch.arange(5)})
    assert reusable_validation(found, step=8, images=5) is found
    assert reusable_validation(found, step=4, images=5) is None
    assert reusable_validation(found, step=8, images=6) is None
    assert reusable_validation(None, step=8, images=5) is None


def test_validating_at_other_times_changes_no_result(words: Words, tmp_path: Path) -> None:
    more = ["schedule=full", "schedule.phases.0.epochs=1", "schedule.restore=last", "+trainer.limit_val_batches=1"]
    run = train_tiny(words(*more, "data.eval_batch_size=2"), tmp_path / "run")
    # though the fit saw two of them
    assert sum(map(sum, run.results.val.confusion)) == len(load_file(run.run_dir / EVALUATION)["val/rows"]) > 2
