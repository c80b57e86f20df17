"""A sweep runs every combination with each launcher, reports on all its jobs, and stops on request."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from finetune.checksums import keep_checksum
from finetune.cli import main
from finetune.commands.sweep_table import conclude
from finetune.config import as_hydra_writes
from finetune.errors import RunError, UserError
from tests.test_file_lock import holder
from tests.training.ranks import SIGNAL, forked_ranks, recorded, said

Words = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]
SHORT = ("schedule=frozen", "schedule.phases.0.epochs=1")
PATIENCE_S = 240


def rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def results(sweep: Path, job: int) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((sweep / str(job) / "results.json").read_text())
    return loaded


def write_jobs(sweep: Path, *records: dict[str, Any]) -> None:
    (sweep / "jobs").mkdir(parents=True)
    for job, record in enumerate(records):
        full = {"job": job, "overrides": [f"seed={job}"], "run_dir": str(sweep / str(job)), "monitor": "val/acc"}
        (sweep / f"jobs/{job}.json").write_text(json.dumps(full | record))


def started(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start the program as a user does, in its own process group, as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", *words],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background makes them and their child processes ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_table_shows_what_differs_between_jobs_and_what_each_measured(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    assert main(["-m", *words(*SHORT, "seed=1,2", f"hydra.sweep.dir={sweep}")]) == 0
    found = rows(sweep)
    assert [list(row)[:3] for row in found] == [["job", "seed", "status"]] * 2
    assert [(row["job"], row["seed"], row["status"]) for row in found] == [
        ("0", "1", "finished"),
        ("1", "2", "finished"),
    ]
    for job, row in enumerate(found):
        measured = results(sweep, job)
        assert measured["seed"] == int(row["seed"])
        assert (row["val"], row["test"]) == tuple(f"{measured[split]['acc']:.4f}" for split in ("val", "test"))
    printed = capsys.readouterr().out
    assert "job 1: seed=2\n" in printed
    assert "best val/acc: job" in printed


def test_a_job_that_fails_is_told_of_and_the_others_run(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    assert main(["-m", *words(*SHORT, "schedule.lr=-1,1e-3", f"hydra.sweep.dir={sweep}")]) == 2
    assert [(row["schedule.lr"], row["status"]) for row in rows(sweep)] == [("-1", "failed"), ("0.001", "finished")]
    assert "job 0: schedule.lr=-1.0: must be above 0." in capsys.readouterr().err
    assert "ConfigError" in (sweep / "jobs/0.log").read_text()


def test_a_job_whose_process_was_killed_counts_as_failed(tmp_path: Path) -> None:
    write_jobs(tmp_path, {"status": "running"}, {"status": "finished", "val": 0.5, "monitored": 0.5})
    with pytest.raises(RunError, match=r"1 of 2 jobs failed.*\njob 0: its process exited before it reported a result"):
        conclude(tmp_path, ended=True)
    assert [row["status"] for row in rows(tmp_path)] == ["failed", "finished"]


def test_the_error_by_which_a_launcher_died_is_told_beside_what_its_jobs_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = {"status": "not started"}
    write_jobs(tmp_path / "running", {"status": "running"}, {"status": "finished"}, waiting, waiting)
    cause = ConnectionError("the cluster is down")
    with pytest.raises(RunError) as raised:
        conclude(tmp_path / "running", ended=True, cause=cause)
    assert str(raised.value).splitlines() == [
        f"1 of 4 jobs failed, 2 not started; see {tmp_path / 'running/jobs'}/<job>.log",
        "job 0: its process exited before it reported a result",
        "the sweep ended by: ConnectionError: the cluster is down",
    ]
    assert [row["status"] for row in rows(tmp_path / "running")] == ["failed", "finished", "not started", "not started"]
    # what jobs say themselves is more than what a sweeper makes of it
    write_jobs(tmp_path / "told", {"status": "failed", "message": "no memory"}, {"status": "finished"})
    with pytest.raises(RunError, match=r"^1 of 2 jobs failed; .*\njob 0: no memory$"):
        conclude(tmp_path / "told", ended=True, cause=cause)
    # one that the user stopped
    conclude(tmp_path / "running", ended=False, cause=KeyboardInterrupt())
    assert "failed" not in capsys.readouterr().out.splitlines()[-1]


def test_jobs_that_a_launcher_never_started_are_rows_of_the_table(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*_: Any, **__: Any) -> None:
        raise ConnectionError("the cluster is down")

    monkeypatch.setattr(
        "hydra.core.plugins.Plugins.instantiate_launcher", lambda *_, **__: SimpleNamespace(launch=dies)
    )
    sweep = tmp_path / "sweep"
    assert main(["-m", *words(*SHORT, "seed=1,2", "lr=1e-3,1e-2", f"hydra.sweep.dir={sweep}")]) == 1
    assert "No job of the sweep started. ConnectionError: the cluster is down" in capsys.readouterr().err
    found = [(row["job"], row["seed"], row["lr"], row["status"]) for row in rows(sweep)]
    asked = [(seed, rate) for seed in ("1", "2") for rate in ("0.001", "0.01")]
    assert found == [(str(job), *pair, "not started") for job, pair in enumerate(asked)]
    (sweep / "sweep.csv").unlink()
    assert main(["sweep-table", str(sweep)]) == 0
    assert [row["status"] for row in rows(sweep)] == ["not started"] * 4


def test_mistakes_of_the_users_are_told_from_failures_and_told_once(tmp_path: Path) -> None:
    mistake = {"status": "failed", "message": "data.root='x': not there.", "mistake": True}
    write_jobs(tmp_path / "all", mistake, mistake)
    with pytest.raises(UserError, match=r"\njob 0, 1: data.root='x': not there\.$"):
        conclude(tmp_path / "all", ended=True)
    write_jobs(tmp_path / "mixed", mistake, {"status": "failed", "message": "RuntimeError: x"})
    with pytest.raises(RunError, match="2 of 2 jobs failed"):
        conclude(tmp_path / "mixed", ended=True)


def test_a_sweep_without_a_job_has_failed(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    cause = FileNotFoundError("No such file or directory: 'sbatch'")
    with pytest.raises(
        RunError, match=r"No job of the sweep started\. FileNotFoundError: No such file or directory: 'sbatch'"
    ):
        conclude(tmp_path, ended=True, cause=cause)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-m", "sweep=jobblib"], "sweep='jobblib': not a choice. Choices: joblib,"),
        (
            ["-m", "sweep=ray"],
            "hydra/launcher=ray: its plugin is not installed. Install it: pip install hydra-ray-launcher",
        ),
        (["-m", "hydra/launcher=jobblib"], "hydra/launcher=jobblib: not known."),
        (["seed=1,2"], "seed=1,2: several values. Add -m"),
        (["-m", "seed=1,2", "run_dir=mine"], "run_dir=mine: the runs of a sweep cannot share a folder."),
        (["-m", "seed=1,2", "hydra.sweep.dir=old"], "already holds a sweep"),
        (["sweep=optuna", "monitor=val/loss"], "Set hydra.sweeper.direction=minimize."),
        (["sweep=null"], "sweep=null: not a choice. Leave it out"),
    ],
)
def test_mistakes_are_answered_before_a_job_begins(
    words: Words,
    more: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old/jobs").mkdir(parents=True)
    assert main([*words(*SHORT), *more]) == 2
    answer = capsys.readouterr().err
    assert message in answer
    problem, *corrected = answer.strip().splitlines()
    assert message in problem
    assert all(line.startswith("Use: finetune ") for line in corrected)
    assert not list(tmp_path.rglob("*.json"))


def test_presets_by_seeds_are_a_sweep_by_name(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    assert main(["plan", *words("sweep=strategies", "seed=0,1", f"hydra.sweep.dir={sweep}")]) == 0
    expected = [(schedule, seed) for schedule in ("frozen", "lp_ft", "gradual", "full") for seed in ("0", "1")]
    assert [(row["schedule"], row["seed"], row["status"]) for row in rows(sweep)] == [
        (*pair, "finished") for pair in expected
    ]


# Optuna 2.10 imports a name that SQLAlchemy has moved since
@pytest.mark.filterwarnings("ignore:The ``declarative_base")
def test_optuna_searches_by_the_figure_on_validation(words: Words, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    more = ["sweep=optuna", "hydra.sweeper.n_trials=3", f"hydra.sweep.dir={sweep}", "monitor=val/loss"]
    assert main(words(*SHORT, *more, "hydra.sweeper.direction=minimize")) == 0
    losses = [results(sweep, job)["val"]["loss"] for job in range(3)]
    assert len(set(losses)) == 3
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(losses)
    drawn = rows(sweep)[losses.index(min(losses))]["lr"]
    assert f"{best['best_params']['lr']:.4g}" == drawn
    assert all(1e-4 <= float(row["lr"]) <= 1e-2 for row in rows(sweep))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joblib", "submitit_local"])
def test_jobs_in_processes_of_their_own_are_told_of_like_any_other(words: Words, name: str, tmp_path: Path) -> None:
    swept = ("-m", f"sweep={name}", "schedule.lr=-1,0.002", "hydra.sweep.dir=sweep")
    process = started(words(*SHORT, *swept), tmp_path)
    said, wrong = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, (said, wrong)
    assert "job 0: schedule.lr=-1.0: must be above 0." in wrong
    sweep = tmp_path / "sweep"
    found = [(row["schedule.lr"], row["status"]) for row in rows(sweep)]
    assert found == [("-1", "failed"), ("0.002", "finished")]
    run = sweep / "1"
    assert json.loads((run / "run.json").read_text())["config"]["schedule"]["lr"] == 0.002
    assert (run / "model/model.safetensors").is_file()
    assert f"run: {run}" in (sweep / "jobs/1.log").read_text()


def test_a_job_that_submitit_watches_saves_its_step_before_it_is_requeued_whatever_the_signal(
    words: Words, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    asked = words(*SHORT, "schedule=full", "epochs=2", *recorded(tmp_path / "seen"))

    class Submitit:
        """What submitit installs in a job: it ignores SIGTERM, and loses the step on the signal that it knows."""

        def checkpoint_and_try_requeue(self, number: int, frame: object) -> None:
            raise SystemExit(number)

    def job() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.signal(signal.SIGUSR2, Submitit().checkpoint_and_try_requeue)
        os._exit(main(["-m", *asked, f"hydra.sweep.dir={sweep}"]))

    for number in (signal.SIGTERM, signal.SIGUSR2):
        assert forked_ranks(job, tmp_path / "out", world=1, environment={SIGNAL: f"0:7:{number}"}) == [number]
        assert json.loads((sweep / "jobs/0.json").read_text())["status"] == "stopped"
        assert "stopped at step 8 of 10" in said(tmp_path / "out", world=1)[0]
        sweep.rename(tmp_path / f"stopped by {number}")


@pytest.mark.slow
def test_ctrl_c_stops_every_job_and_says_how_to_go_on(words: Words, tmp_path: Path) -> None:
    long = ("schedule=full", "schedule.phases.0.epochs=500")
    process = started(words(*long, "sweep=joblib", "-m", "seed=1,2,3", "hydra.sweep.dir=sweep"), tmp_path)
    sweep = tmp_path / "sweep"
    limit = time.monotonic() + PATIENCE_S
    try:
        while len(list(sweep.glob("*/phases/*/last.ckpt"))) < 2 and time.monotonic() < limit:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        said, wrong = process.communicate(timeout=PATIENCE_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, (said, wrong)
    assert [row["status"] for row in rows(sweep)] == ["stopped", "stopped", "not started"]
    assert f"continue with: finetune resume {sweep / '1'}" in said
    assert "Traceback" not in said + wrong


@pytest.mark.parametrize("name", ["submitit_slurm", "ray"])
@pytest.mark.usefixtures("ray_launcher")
def test_the_examples_for_clusters_compose_with_what_their_launchers_take(name: str) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.types import RunMode

    from finetune.config import conf_dir, register_schema

    register_schema()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("train", overrides=[f"sweep={name}", "data=digits"], return_hydra_config=True)
    assert composed.hydra.mode == RunMode.MULTIRUN
    launcher = composed.hydra.launcher
    if name == "ray":
        assert launcher.ray.remote.num_gpus == 1
    else:
        assert launcher._target_.endswith("SlurmLauncher")
        assert (launcher.gpus_per_node, launcher.array_parallelism) == (1, 16)


def test_a_command_that_measures_nothing_cannot_be_searched_over(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words("sweep=optuna", f"hydra.sweep.dir={tmp_path / 'sweep'}")]) == 2
    assert "finetune plan: a sweeper cannot search over it" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_overrides_are_compared_as_hydra_writes_them() -> None:
    assert as_hydra_writes(["report=false", "name='a b'", "freeze=[stem]", "seed=1,2"]) == [
        "report=False",
        "name='a b'",
        "freeze=[stem]",
    ]


def test_the_table_is_written_again_from_what_the_jobs_and_their_runs_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher died: one job had finished, one was resumed by hand since, one runs, one stopped, one failed."""
    sweep = tmp_path / "sweep"
    states = ("finished", "stopped", "running", "running", "failed")
    write_jobs(sweep, *({"status": state, "message": "no memory" if state == "failed" else None} for state in states))
    results = {split: {"acc": acc} for split, acc in (("val", 0.75), ("test", 0.5))}
    for job in range(4):
        (sweep / str(job)).mkdir()
        (sweep / str(job) / "run.json").write_text("{}")
    for job in (0, 1):
        (sweep / str(job) / "results.json").write_text(json.dumps(results))
        keep_checksum(sweep / str(job) / "results.json")
    process = holder(sweep / "2")
    try:
        assert main(["sweep-table", str(sweep)]) == 0
    finally:
        process.kill()
        process.join(30)
    found = [(row["job"], row["status"], row["val"]) for row in rows(sweep)]
    wanted = ("finished", "finished", "running", "stopped", "failed")
    assert found == [(str(job), state, "0.7500" if job < 2 else "") for job, state in enumerate(wanted)]
    moved = sweep.rename(tmp_path / "moved")
    assert main(["sweep-table", str(moved)]) == 0
    printed = capsys.readouterr().out
    assert f"job 3 was stopped; continue with: finetune resume {moved / '3'}" in printed
    assert "1 of 5 jobs failed" in printed
    assert "job 4: no memory" in printed
    assert main(["sweep-table", str(tmp_path)]) == 2
    assert "not the folder of a sweep. It has no jobs/" in capsys.readouterr().err
