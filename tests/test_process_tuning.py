"""How a process of the command line begins and ends."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from finetune.process_tuning import collect_garbage_as_usual, collect_garbage_rarely


def ended(program: str) -> subprocess.CompletedProcess[str]:
    """A process that imports torch, or says that it did, and leaves."""
    start = "import atexit, sys, threading, time\nfrom finetune.process_tuning import leave\n"
    # with buffers that are full of what was said
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", start + program], capture_output=True, text=True, timeout=60, env=environment
    )


@pytest.mark.parametrize("heavy", [True, False])
def test_what_was_promised_for_the_end_is_done(heavy: bool) -> None:
    program = "sys.modules['torch'] = sys\n" if heavy else ""
    program += (
        "atexit.register(lambda: print('at exit'))\n"
        "def late():\n    time.sleep(0.3)\n    print('late')\n"
        "class Module:\n    def __del__(self):\n        print('taken apart')\n"
        "kept = Module()\n"
        "{thread}"
        "print('said')\n"
        "print('wrong', file=sys.stderr)\n"
        "leave(3)\n"
    )
    done = ended(program.format(thread=""))
    assert (done.returncode, done.stderr) == (3, "wrong\n")
    assert done.stdout == ("said\nat exit\n" if heavy else "said\nat exit\ntaken apart\n")
    # another thread has something to say: Python waits for it
    done = ended(program.format(thread="threading.Thread(target=late).start()\n"))
    assert (done.returncode, done.stdout.splitlines()[:3]) == (3, ["said", "late", "at exit"])


def test_a_full_disk_under_standard_output_is_not_hidden() -> None:
    done = ended(
        "import os\nsys.modules['torch'] = sys\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nprint('x')\nleave(0)\n"
    )
    assert done.returncode == 120
    assert "No space left" in done.stderr


def test_the_search_for_garbage_is_put_off_and_taken_up_again() -> None:
    before = gc.get_threshold()
    try:
        collect_garbage_rarely()
        assert gc.get_threshold() != before
        collect_garbage_as_usual()
        assert gc.get_threshold() == before
        frozen = gc.get_freeze_count()
        assert frozen > 0
        # once
        collect_garbage_as_usual()
        assert gc.get_freeze_count() <= frozen
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_between_phases_a_circle_of_references_goes() -> None:
    done = ended(
        "import gc, weakref\n"
        "from finetune.process_tuning import collect_garbage_as_usual, collect_garbage_rarely, collect_garbage\n"
        "collect_garbage_rarely()\n"
        "heavy = [[number] for number in range(200_000)]\n"
        "collect_garbage_as_usual()\n"
        "gc.disable()\n"
        "class Trainer:\n    pass\n"
        "trainer = Trainer()\n"
        "trainer.loop, alive = trainer, weakref.ref(trainer)\n"
        "del trainer\n"
        "assert alive() is not None\n"
        "collect_garbage()\n"
        "assert alive() is None\n"
    )
    assert done.returncode == 0, done.stderr


def test_torchmetrics_comes_without_the_package_that_it_does_not_use() -> None:
    done = ended(
        "from finetune.process_tuning import import_torchmetrics\n"
        "import_torchmetrics()\n"
        "assert 'torchmetrics' in sys.modules\n"
        "assert 'scipy.signal' not in sys.modules\n"
        "import scipy.signal\n"
        "from scipy.signal import lfilter\n"
        "assert scipy.signal.windows.hamming(3)[1] == 1.0\n"
        "from torchmetrics.classification import MulticlassF1Score\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's allocator")
def test_blocks_of_a_training_process_are_not_cleared_at_every_use() -> None:
    # resident memory and no count of page faults: a machine with huge pages at hand needs hardly any of those
    done = ended(
        "import gc, resource\n"
        "from pathlib import Path\n"
        "from finetune.process_tuning import collect_garbage_as_usual, collect_garbage_rarely\n"
        "from finetune.process_tuning import release_freed_blocks, retain_freed_blocks\n"
        "size = 80_000_000\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()\n"
        "def kept():\n"
        "    bytes([1]) * size\n"
        "    block = bytes([1]) * size\n"
        "    used = resident()\n"
        "    del block\n"
        "    return 1 - (used - resident()) / size\n"
        "assert kept() < 0.1\n"
        "collect_garbage_rarely()\n"
        "heavy = [[number] for number in range(200_000)]\n"
        "retain_freed_blocks('cpu')\n"
        "assert kept() < 0.1, 'not a process of the command line yet'\n"
        "collect_garbage_as_usual()\n"
        "retain_freed_blocks('cuda')\n"
        "assert kept() < 0.1, 'not on a GPU'\n"
        "retain_freed_blocks('cpu')\n"
        "assert kept() > 0.9\n"
        "release_freed_blocks()\n"
        "assert kept() < 0.1, 'a loader process'\n"
    )
    assert done.returncode == 0, done.stderr
