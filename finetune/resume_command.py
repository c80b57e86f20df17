"""The command that continues a run, as messages show it."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from finetune.errors import RunError, UserError
from finetune.listed_classes import unlisted_in
from finetune.run_names import RECORD
from finetune.safe_files import read_json


def resume_command(run_dir: str | Path, *, trust: bool | None = None) -> str:
    """Return the command that continues a run, with ``--trust`` if the run cannot continue without it.

    A run that was given objects from Python is continued by a call in Python, with the same objects.

    Args:
        run_dir: Run folder, as the message names it.
        trust: Whether to add ``--trust``; None adds it if the run names classes that only the user may name.

    >>> resume_command("runs/my pets")
    "finetune resume 'runs/my pets'"
    >>> resume_in_python("runs/pets", ["data", "head"])
    "finetune.resume('runs/pets', data=..., head=...)"
    """
    if objects := _objects(Path(run_dir).expanduser()):
        return f"{resume_in_python(run_dir, objects)} in Python"
    needed = _names_unlisted_classes(Path(run_dir).expanduser()) if trust is None else trust
    return f"finetune resume {shlex.quote(str(run_dir))}{' --trust' if needed else ''}"


def resume_in_python(run_dir: str | Path, objects: Iterable[str]) -> str:
    """Return the call that continues a run that was given objects from Python.

    Args:
        run_dir: Run folder, as the message names it.
        objects: Arguments that took the objects.
    """
    return f"finetune.resume({', '.join([repr(str(run_dir)), *(f'{key}=...' for key in objects)])})"


def resume_command_near(path: Path) -> str:
    """Return the command that continues the run that a file lies in; it names ``RUN`` if the file lies in none."""
    run_dir = next((folder for folder in path.parents[:4] if (folder / RECORD).is_file()), None)
    return "finetune resume RUN" if run_dir is None else resume_command(run_dir)


def _objects(run_dir: Path) -> list[str]:
    try:
        decided = read_json(run_dir / RECORD, dict).get("decided")
        given = [decided.get(key) for key in ("objects", "beside")] if isinstance(decided, Mapping) else []
        return [str(name) for objects in given if isinstance(objects, Mapping) for name in objects]
    except (UserError, RunError, OSError, RecursionError):
        return []


def _names_unlisted_classes(run_dir: Path) -> bool:
    try:
        config = read_json(run_dir / RECORD, dict).get("config")
        return isinstance(config, Mapping) and bool(unlisted_in(config))
    except (UserError, RunError, OSError, RecursionError):
        # the command itself reports a record that is missing or damaged
        return False
