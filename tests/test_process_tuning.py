"""The command line tunes its own process; the library leaves every process as it was."""

import gc
import os
import subprocess
import sys

from finetune.process_tuning import collect_garbage_as_usual, collect_garbage_rarely


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=environment)


def test_the_command_ends_with_its_status_its_output_and_its_exit_functions() -> None:
    done = run_python(
        "import atexit, sys\n"
        "atexit.register(lambda: print('at exit'))\n"
        "sys.argv = ['finetune', 'no-such-command']\n"
        "import finetune.cli\n"
        "finetune.cli.entry()\n"
    )
    assert done.returncode == 2
    assert "no such command" in done.stderr
    assert done.stdout == "at exit\n"


def test_garbage_collection_is_put_off_and_taken_up_again() -> None:
    before = gc.get_threshold()
    try:
        collect_garbage_rarely()
        assert gc.get_threshold() != before
        collect_garbage_as_usual()
        assert gc.get_threshold() == before
        frozen = gc.get_freeze_count()
        assert frozen > 0
        # a second call changes nothing
        collect_garbage_as_usual()
        assert gc.get_freeze_count() <= frozen
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_a_run_from_python_changes_neither_garbage_collection_nor_the_allocator() -> None:
    done = run_python(
        "import ctypes, gc, sys\n"
        "before = gc.get_threshold()\n"
        "import finetune\n"
        "import finetune.training.run, finetune.data.datamodule, finetune.bundle\n"
        "import finetune.runners.train, finetune.runners.resume\n"
        "assert gc.get_threshold() == before\n"
        "assert gc.get_freeze_count() == 0\n"
        "assert 'scipy.signal' not in sys.modules or hasattr(sys.modules['scipy.signal'], 'lfilter')\n"
    )
    assert done.returncode == 0, done.stderr


def test_large_blocks_are_retained_in_training_and_released_after_it() -> None:
    # resident memory, not page faults: a machine with huge pages needs hardly any of those
    done = run_python(
        "import resource\n"
        "from pathlib import Path\n"
        "from finetune.process_tuning import release_freed_blocks, retain_freed_blocks\n"
        "size = 80_000_000\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()\n"
        "def retained():\n"
        "    bytes([1]) * size\n"
        "    block = bytes([1]) * size\n"
        "    used = resident()\n"
        "    del block\n"
        "    return 1 - (used - resident()) / size\n"
        "assert retained() < 0.1\n"
        "retain_freed_blocks()\n"
        "assert retained() > 0.9\n"
        "release_freed_blocks()\n"
        "assert retained() < 0.1\n"
    )
    assert done.returncode == 0, done.stderr
