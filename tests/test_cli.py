"""The command line as a user meets it: in a process of its own where it matters, else in this one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cli import COMMANDS, main

Words = Callable[..., list[str]]
HEAVY = ("torch", "lightning", "torchvision", "timm", "sklearn", "transformers")


def finetune_process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The installed program, from another folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "finetune", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_bare_finetune_prints_help_with_three_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert text.split("examples:")[1].count("  finetune ") == 3
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([command, "--help"])
    except SystemExit as left:  # argparse leaves by itself after printing its help
        status = int(left.code or 0)
    assert status == 0
    assert f"usage: finetune {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "finetune frobnicate: no such command"),
        (["trian", "data=digits"], "Did you mean 'train'?"),
        (["plan", "digits"], "digits: not understood. finetune plan takes key=value"),
        (["plan", "--quick"], "--quick: no such option"),
        (["data=digits", "bakbone=resnet18"], "Did you mean 'backbone'?"),
        (["data=digits", "backbone.wieghts=none"], "Did you mean 'backbone.weights'?"),
        (["data=digits", "schedule.phases.1.tran=[head]"], "Did you mean 'schedule.phases.1.train'?"),
        (["data=foldr"], "data='foldr': not a choice. Choices: digits, folder"),
        (["data=digits", "backbone=resnet19"], "Did you mean 'resnet18'?"),
        (["data=digits", "schedule=gradul"], "Did you mean 'gradual'?"),
        (["data=digits", "head=cosin"], "Did you mean 'cosine'?"),
        (["data=digits", "schedule.epochs=0"], "schedule.epochs=0: must be above 0."),
        (["data=digits", "schedule.phases.0.epochs=-3"], "schedule.phases[0].epochs=-3: must be above 0."),
        (["data=digits", "data.batch_size=many"], "data.batch_size"),
        (["data=digits", "schedule.phases.9.lr=1"], "schedule.phases.9.lr=1: there is no phase of that number."),
        (["data=digits", "schedule.phases=[]"], "schedule.phases=[]: a schedule needs at least one phase."),
        (["data=folder"], "data.root: must be given"),
        (["data=folder", "data.root=does/not/exist"], "data.root='does/not/exist': no such folder"),
        (["data=digits", "backbone.weights=none.pth"], "backbone.weights='none.pth': no such file or folder"),
        (["--config-dir", "nowhere", "data=digits"], "--config-dir nowhere: no such folder"),
        (["predict", "nowhere", "x.png", "--output", "y.csv"], "RUN='nowhere': no such folder."),
        (["predict", "nowhere"], "Use: finetune predict nowhere IMAGES --output predictions.csv"),
        (["report"], "finetune report: RUN must be given.\nUse: finetune report RUN\n"),
        (["predict", "nowhere", "x", "--output", "p.csv", "--runtime", "ONNX"], "Did you mean 'onnx'?"),
        (["serve", "nowhere", "--port", "0"], "RUN='nowhere': no such folder."),
        (["serve", "nowhere", "--port", "70000"], "--port 70000: must be from 0 to 65535"),
        (["export", "nowhere", "--format", "web"], "RUN='nowhere': no such folder."),
        (["resume"], "finetune resume: needs one RUN"),
        (["resume", "nowhere"], "RUN='nowhere': no such folder."),
        (["evaluate", "nowhere"], "RUN='nowhere': no such folder."),
        (["export", "nowhere", "--format", "head"], "RUN='nowhere': no such folder."),
        (["embed", "nowhere", "--output", "e.npz"], "RUN='nowhere': no such folder."),
        (["search", "nowhere.npz", "x.png"], "EMBEDDINGS='nowhere.npz': no such file."),
    ],
)
def test_a_mistake_gets_one_message_status_2_and_writes_nothing(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert "Error executing job" not in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_answered_without_importing_anything_heavy(tmp_path: Path) -> None:
    lines = [
        ["--help"],
        ["plan", "--help"],
        ["frobnicate"],
        ["data=digits", "sed=1"],
        ["plan", "data=folder", "data.root=."],
    ]
    lines += [["resume", "nowhere"], ["predict", "--help"], ["export", "--help"], ["evaluate", "--help"]]
    lines += [["embed", "nowhere", "--output", "e.npz"], ["embed", "backbone=resnet18", "no.png", "--output", "e.npz"]]
    lines += [["search", "no.npz", "x"], ["cluster", "no.npz"], ["classify", "no.npz"], ["embed", "--help"]]
    program = (
        "import sys\n"
        "from finetune.cli import main\n"
        f"for words in {lines!r}:\n"
        "    try:\n        main(words)\n"
        "    except SystemExit:\n        pass\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not loaded, (words, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_several_mistakes_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data=digits", "head=lineer", "sed=1", "schedule.phases.0.lrr=1"]) == 2
    *problems, line = capsys.readouterr().err.strip().splitlines()
    assert len(problems) == 3
    assert line == "Use: finetune data=digits head=linear seed=1 schedule.phases.0.lr=1"


def test_traceback_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data=digits", "sed=1", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_user_may_add_configurations_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine/schedule").mkdir(parents=True)
    (tmp_path / "mine/schedule/tops.yaml").write_text(
        "name: tops\nphases:\n  - {name: tops, train: [layer4, head], epochs: 2}\n"
    )
    words = ["plan", "data=digits", "backbone.weights=none", "input.size=32", "schedule=tops"]
    assert main([*words, "--config-dir", str(tmp_path / "mine")]) == 0
    assert "phase 1 of 1: tops (schedule.phases.0)\n  2 epochs" in capsys.readouterr().out
    assert main(words) == 2
    assert "schedule='tops': not a choice" in capsys.readouterr().err


def test_a_mistyped_key_in_a_users_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine/schedule").mkdir(parents=True)
    (tmp_path / "mine/schedule/tops.yaml").write_text(
        "name: tops\nphases:\n  - {name: tops, train: [head], epochz: 2}\n"
    )
    assert main(["plan", "data=digits", "schedule=tops", "--config-dir", str(tmp_path / "mine")]) == 2
    assert "epochz" in capsys.readouterr().err


def test_plan_shows_what_an_override_changes(words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["schedule.phases.1.train=[layer3,layer4,head]", "schedule.phases.1.stage_lr={layer3:0.25}", "freeze=[stem]"]
    assert main(["plan", *words(*more)]) == 0
    blocks = capsys.readouterr().out.split("phase ")
    rows = {line.split()[0]: line.split()[1:] for line in blocks[2].splitlines()[3:] if line.strip()}
    assert rows["layer3"][:2] == ["train", "0.25"]
    assert rows["layer4"][:2] == ["train", "0.00025"]
    assert [stage for stage, row in rows.items() if row[0] == "frozen"] == ["stem", "layer1", "layer2"]
    assert "  stem          frozen" in blocks[3]


def test_the_plan_names_phases_that_train_a_solved_head_again(
    words: Words, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words("schedule=lp_ft", "freeze=backbone")]) == 0
    said = capsys.readouterr()
    assert "all trains only the head, which probe has solved" in said.err + caplog.text
    # the head that is trained before it is solved is not trained again
    caplog.clear()
    head = "{name: head, train: [head], epochs: 1, lr: 0.01}"
    assert main(["plan", *words(f"schedule.phases=[{head},{{name: probe, train: [head], solver: lbfgs}}]")]) == 0
    said = capsys.readouterr()
    assert "has solved" not in said.err + caplog.text


def test_the_plan_names_what_the_crop_leaves_out() -> None:
    from types import SimpleNamespace

    import numpy as np

    from finetune.commands.plan import cut_off
    from finetune.input_spec import InputSpec

    def source(width: int, height: int, orientation: int = 1) -> SimpleNamespace:
        kinds = [("width", "i4"), ("height", "i4"), ("problem", "i4"), ("orientation", "i4")]
        table = np.array([(width, height, 0, orientation)] * 3, dtype=kinds)
        return SimpleNamespace(facts=SimpleNamespace(table=table))

    spec = InputSpec(size=(64, 64), crop_pct=1.0)
    assert "an image of 256 x 143 (the median)" in cut_off(spec, source(256, 143))
    assert "the middle 56% of its width" in cut_off(spec, source(256, 143))
    assert "of its height" in cut_off(spec, source(143, 256))
    assert "an image of 143 x 256 (the median)" in cut_off(spec, source(256, 143, orientation=6))
    assert cut_off(spec, source(256, 250)) == ""
    assert cut_off(InputSpec(size=(64, 64), crop_mode="squash"), source(256, 143)) == ""


def test_a_sweep_runs_every_combination(words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = words("schedule=frozen", "schedule.phases.0.epochs=1", "seed=1,2", "hydra.sweep.dir=sweep")
    assert main(["-m", *given]) == 0
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/results.json")) == ["0", "1"]


def test_the_program_ends_on_ctrl_c_with_the_way_to_go_on(words: Words, tmp_path: Path) -> None:
    import signal
    import time

    given = words("schedule=full", "schedule.phases.0.epochs=500", f"run_dir={tmp_path / 'run'}")
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a shell that starts the tests in the background makes them, and what they start, deaf to SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "run/phases/0-all/last.ckpt"
    limit = time.monotonic() + 240
    while not last.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert f"finetune resume {tmp_path / 'run'}" in said
    assert "Traceback" not in said
    from finetune.training.callbacks.checkpoints import read_checkpoint

    assert read_checkpoint(last)["finetune"]["phase"] == "all"
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 147456 bytes."),
    ],
)
def test_an_allocation_that_fails_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> int:
        raise error

    monkeypatch.setattr("finetune.cli._run", fail)
    assert main(["plan", "data=digits"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Out of memory")
    assert "--traceback" not in said


def test_a_network_for_which_there_is_no_memory_is_not_called_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 73728 bytes. Error code 12"
        )

    monkeypatch.setattr("timm.create_model", refuse)
    assert main(["plan", "data=digits", "backbone=resnet10t", "backbone.weights=none"]) == 1
    said = capsys.readouterr().err
    assert "Out of memory, at 73728 bytes more. Free memory, or" in said
    assert "Did you mean" not in said
