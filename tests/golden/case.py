"""A case: something the program does whose outcome must stay what it is."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.golden.digests import normalized
from tests.golden.processes import PATIENCE_S, Answer, command


@dataclass(frozen=True)
class Place:
    """Where a case works.

    Args:
        work: Holds the data of all cases (:mod:`tests.golden.images`) and what was trained for them; read only.
        folder: A new folder for this case, the working directory of its commands.
    """

    work: Path
    folder: Path

    @property
    def places(self) -> dict[str, str]:
        """Paths that differ between two runs of this script, with the names that replace them."""
        return {str(self.folder): "<case>", str(self.work): "<work>", str(self.work.resolve()): "<work>"}

    def run(self, *words: str, processes: int = 1) -> Answer:
        """Run a command; ``{work}`` in a word becomes the folder of the data. Times and places are taken out."""
        os.environ["FINETUNE_CACHE"] = str(self.folder / "cache")
        given = [word.replace("{work}", str(self.work)) for word in words]
        number = len(list((self.folder / "logs").glob("*.0.out"))) if (self.folder / "logs").exists() else 0
        answer = command(*given, cwd=self.folder, log=self.folder / "logs" / str(number), processes=processes)
        return Answer(answer.status, normalized(answer.out, self.places), normalized(answer.err, self.places))

    def run_afresh(self, *words: str) -> Answer:
        """Run a command as a user does, by ``python -m finetune`` in a new process."""
        os.environ["FINETUNE_CACHE"] = str(self.folder / "cache")
        given = [word.replace("{work}", str(self.work)) for word in words]
        line = [sys.executable, "-m", "finetune", *given]
        done = subprocess.run(line, cwd=self.folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        return Answer(done.returncode, normalized(done.stdout, self.places), normalized(done.stderr, self.places))

    def text(self, name: str) -> str:
        """A text file that a command wrote, without times and places."""
        return normalized((self.folder / name).read_text(encoding="utf-8"), self.places)

    def written(self) -> str:
        """Names of all files that the case left in its folder."""
        left_out = ("cache", "logs")
        files = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        names = sorted(str(path) for path in files if path.parts[0] not in left_out)
        return normalized("\n".join(names), self.places)


@dataclass(frozen=True)
class Case:
    """One outcome.

    Args:
        section: What ``--only`` selects by.
        name: Unique in its section.
        outcome: Does it, and returns texts and digests by name.
        quick: Whether it belongs to the quick tier.
        needs: Names of runs in :data:`tests.golden.trained.RUNS` that must be there before.
    """

    section: str
    name: str
    outcome: Callable[[Place], dict[str, str]]
    quick: bool = True
    needs: tuple[str, ...] = ()


def said(answer: Answer) -> dict[str, str]:
    """An answer as it is kept."""
    return {"status": str(answer.status), "stdout": answer.out, "stderr": answer.err}
