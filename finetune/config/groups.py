"""The configuration groups: the folders of ``conf/`` and their files."""

import re
from collections.abc import Sequence
from pathlib import Path


def conf_dir() -> Path:
    """Return the folder of packaged configurations: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent.parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def group_choices(extra_dirs: Sequence[Path] = ()) -> dict[str, list[str]]:
    """Return config groups and their choices, from the package and the user's folders, sorted.

    >>> group_choices()["head"]
    ['cosine', 'linear', 'mlp', 'own']
    """
    choices: dict[str, set[str]] = {}
    for folder in (conf_dir(), *extra_dirs):
        for path in folder.glob("*/*.yaml"):
            if path.parent.name != "hydra":
                choices.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(choices.items())}


def phase_names(schedule: str, extra_dirs: Sequence[Path] = ()) -> list[str]:
    """Return the names of the phases in a file of the group ``schedule``, in order; empty if there is no such file.

    >>> phase_names("gradual")
    ['head', 'top', 'all']
    """
    files = [folder / "schedule" / f"{schedule}.yaml" for folder in (*extra_dirs, conf_dir())]
    file = next((file for file in files if file.is_file()), None)
    return [] if file is None else re.findall(r"-\s*\{?\s*name:\s*(\w+)", file.read_text(encoding="utf-8"))
