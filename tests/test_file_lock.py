"""A folder that one process writes is refused to others, until that process is gone."""

import json
import multiprocessing
import os
import re
import shlex
import socket
import time
from pathlib import Path
from threading import Timer

import pytest

from finetune.build.run_dir import choose_run_dir, make_run_dir
from finetune.config import check_overrides, compose
from finetune.errors import RunError, UserError
from finetune.file_lock import LOCK, FolderLock, is_held, remove_left_lock

FORK = multiprocessing.get_context("fork")


def holder(folder: Path, *, with_worker: bool = False) -> multiprocessing.process.BaseProcess:
    """A process that has the folder; it ends when it is killed."""
    ready = FORK.Event()

    def hold() -> None:
        lock = FolderLock(folder, name="RUN='r'")
        if with_worker and os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        ready.set()
        time.sleep(60)
        lock.release()

    process = FORK.Process(target=hold)
    process.start()
    assert ready.wait(30)
    return process


def test_a_folder_in_use_is_refused_with_its_process_named_until_that_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(UserError, match=rf"RUN='r': in use\. process {process.pid} on {socket.gethostname()} "):
        FolderLock(tmp_path, name="RUN='r'")
    process.kill()
    process.join(30)
    FolderLock(tmp_path, name="RUN='r'").release()


def test_a_process_that_is_waited_for_is_named_once_and_for_so_long_as_was_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="finetune")
    process = holder(tmp_path)
    named = (
        rf"RUN='r': still in use after 0\.2 s\. process {process.pid} on {socket.gethostname()} .* or delete .*\.lock"
    )
    with pytest.raises(RunError, match=named):
        FolderLock(tmp_path, name="RUN='r'", wait_s=0.2)
    caplog.clear()
    Timer(1.2, process.kill).start()
    FolderLock(tmp_path, name="RUN='r'", wait_s=60).release()
    process.join(30)
    assert [record.getMessage().partition(" on ")[0] for record in caplog.records] == [
        f"RUN='r': in use. process {process.pid}"
    ]


def test_a_run_that_may_go_on_by_itself_waits_for_the_folder_that_another_process_still_prepares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.runners.train import train

    monkeypatch.setattr("finetune.runners.train.assemble", lambda *_, **__: pytest.fail("assembled"))
    monkeypatch.setattr("finetune.runners.resume.resume", lambda folder, **_: f"went on with {folder.name}")
    config = compose(["data=digits", f"run_dir={tmp_path}", "resume=auto", "trainer.timeout_s=60"])
    process = holder(tmp_path)

    def begins() -> None:
        (tmp_path / "run.json").touch()
        process.kill()

    Timer(0.7, begins).start()
    assert train(config) == f"went on with {tmp_path.name}"
    process.join(30)
    # one that began it later still is no mistake of the user's either
    with pytest.raises(RunError, match="another process has begun this run"), make_run_dir(config, tmp_path):
        pass


def test_a_worker_that_outlives_its_process_does_not_keep_the_folder(tmp_path: Path) -> None:
    process = holder(tmp_path, with_worker=True)
    process.kill()
    # with a time limit it would wait for the pipe that the worker has inherited
    process.join()
    FolderLock(tmp_path, name="RUN='r'").release()


def test_where_a_file_system_has_no_locks_the_process_written_in_the_file_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder(tmp_path)

    def no_locks(*arguments: object, **settings: object) -> bool:
        raise OSError("no locks available")

    monkeypatch.setattr("finetune.file_lock.lock_byte", no_locks)
    with pytest.raises(UserError, match=f"process {process.pid} on"):
        FolderLock(tmp_path, name="RUN='r'")
    process.kill()
    process.join(30)
    FolderLock(tmp_path, name="RUN='r'").release()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RUN='r': \.lock cannot be written in it, it no longer exists\."):
        FolderLock(tmp_path / "gone", name="RUN='r'")


def made_by_six(given: str, tmp_path: Path) -> list[str]:
    """What six processes get that want the same folder at the same time."""
    barrier, answers = FORK.Barrier(6), FORK.Queue()
    config = compose(["data=digits", *([f"run_dir={given}"] if given else [])])
    folder = choose_run_dir(config) if given else tmp_path / "runs" / "now"

    def make() -> None:
        barrier.wait(30)
        try:
            with make_run_dir(config, folder) as made:
                (made / "config.yaml").write_text("")
                answers.put(made.name)
                # all of them hold what they have got until the last has asked
                barrier.wait(30)
        except UserError as error:
            answers.put(str(error))
            barrier.wait(30)

    processes = [FORK.Process(target=make) for _ in range(6)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    return sorted(found)


def test_six_runs_of_the_same_second_get_six_folders(tmp_path: Path) -> None:
    assert made_by_six("", tmp_path) == ["now", "now-2", "now-3", "now-4", "now-5", "now-6"]


def test_of_six_runs_with_one_run_dir_one_gets_it(tmp_path: Path) -> None:
    found = made_by_six(str(tmp_path / "run"), tmp_path)
    assert found[0] == "run"
    assert all("in use. process" in answer for answer in found[1:])
    # and when it has ended, what it left is not written over
    with pytest.raises(UserError, match="must be new or empty"):
        choose_run_dir(compose(["data=digits", f"run_dir={tmp_path / 'run'}"]))


def test_the_folder_of_a_run_bears_the_name_of_its_data(tmp_path: Path) -> None:
    (tmp_path / "my pets").mkdir()
    (tmp_path / "v1.2").mkdir()
    (tmp_path / "plates.csv").touch()
    lines = {
        f"data=folder 'data.root={tmp_path}/my pets/'": "my-pets",
        f"data=folder data.root=[{tmp_path}/v1.2,{tmp_path}/other]": "v1.2+other",
        f"data=manifest data.path={tmp_path}/plates.csv": "plates",
        "data=digits": "digits",
    }
    for line, name in lines.items():
        folder = choose_run_dir(compose(check_overrides(shlex.split(line))))
        assert re.sub(r"^[\d-]+_[\d-]{8}-", "", folder.name) == f"{name}-resnet18-gradual"


def test_a_run_that_was_killed_before_it_wrote_anything_leaves_its_folder_free(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.join(30)
    config = compose(["data=digits", f"run_dir={tmp_path}"])
    with make_run_dir(config, choose_run_dir(config)) as made:
        assert made == tmp_path


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    with FolderLock(tmp_path, name="RUN='r'"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_of_many_processes_that_take_turns_one_has_the_folder_at_a_time(tmp_path: Path) -> None:
    inside, answers = FORK.Value("i", 0), FORK.Queue()

    def work() -> None:
        most = 0
        for _ in range(60):
            try:
                with FolderLock(tmp_path, name="RUN='r'"):
                    with inside.get_lock():
                        inside.value += 1
                        most = max(most, inside.value)
                    with inside.get_lock():
                        inside.value -= 1
            except UserError:
                continue
        answers.put(most)

    processes = [FORK.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert max(found) == 1


def test_a_lock_that_a_killed_process_left_is_removed_and_one_that_is_held_is_not(tmp_path: Path) -> None:
    process = holder(tmp_path)
    remove_left_lock(tmp_path)
    assert (tmp_path / LOCK).is_file()
    process.kill()
    process.join()
    assert (tmp_path / LOCK).is_file()
    remove_left_lock(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_whether_a_folder_is_held_is_asked_without_touching_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_held(tmp_path)
    assert not (tmp_path / LOCK).exists()
    process = holder(tmp_path)
    before = (tmp_path / LOCK).read_bytes()
    assert is_held(tmp_path)
    process.kill()
    process.join()
    assert not is_held(tmp_path)
    assert (tmp_path / LOCK).read_bytes() == before

    def no_locks(*arguments: object, **settings: object) -> bool:
        raise OSError("no locks available")

    # a process of another machine cannot be asked, so it counts as living
    monkeypatch.setattr("finetune.file_lock.lock_byte", no_locks)
    assert not is_held(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps({"pid": process.pid, "host": "node7"}))
    assert is_held(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "node7"


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="no file system here that makes no folders")
def test_a_file_system_that_makes_no_folders_is_named_as_the_reason() -> None:
    config = compose(["data=digits", "run_dir=/proc/x"])
    with (
        pytest.raises(
            UserError,
            match=r"^run_dir='/proc/x': cannot be made, its file system takes no new folders\. Choose another place",
        ),
        make_run_dir(config, choose_run_dir(config)),
    ):
        pass
