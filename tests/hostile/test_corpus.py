"""Nothing foreign runs and nothing damaged passes: the lean part of the corpus, and that no command is missing from it.

All of it: ``python -m tests.hostile``.
"""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

from finetune.cli import COMMANDS
from tests.hostile.campaign import Campaign, cases, lean
from tests.hostile.targets import OPEN_NO_FILE, TARGETS

ROOT = Path(__file__).parent.parent.parent


def test_every_command_is_in_the_corpus():
    missing = set(COMMANDS) - OPEN_NO_FILE - {target.command for target in TARGETS}
    assert missing == set(), "add the files that the command opens to TARGETS, with the words that make it open them"


def test_the_corpus_holds_hundreds_of_files_and_the_lean_part_every_command():
    files = {(case.target.file, case.kind.name) for case in cases()}
    assert len(files) >= 250
    assert {case.target.command for case in lean()} == set(COMMANDS) - OPEN_NO_FILE
    assert {case.target.form for case in lean()} == {target.form for target in TARGETS if not target.own_cpu_s}


def test_whoever_contacts_an_address_is_found_out(tmp_path):
    def contact() -> int:
        for address in (("127.0.0.1", 9), ("example.invalid", 80)):
            with contextlib.suppress(OSError):
                socket.create_connection(address, timeout=1)
        return 0

    contacted = tmp_path / "CONTACTED"
    status, *_ = Campaign(tmp_path)._forked(contact, cwd=tmp_path, limit_s=30, contacted=contacted)
    assert (status, contacted.read_text()) == (0, "('127.0.0.1', 9)\nexample.invalid\n")


def test_no_file_of_the_lean_part_runs_code_or_passes(tmp_path):
    words = [sys.executable, "-m", "tests.hostile", "--lean", "--root", str(tmp_path / "hostile")]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert " 0 not as they must be" in done.stdout
