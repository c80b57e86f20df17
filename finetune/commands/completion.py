"""Shell completion: completes the command word itself and leaves the rest to Hydra."""

import os
import sys
from collections.abc import Sequence


def run(argv: Sequence[str]) -> int:
    """Answer ``finetune -sc install=bash`` and the shell's ``finetune -sc query=bash``."""
    from finetune.cli import COMMANDS
    from finetune.config import conf_dir, register_schema

    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    open_word = "" if line.endswith(" ") or len(words) < 2 else words[-1]
    if "query" in "".join(argv) and (len(words) <= 1 or (len(words) == 2 and open_word)):
        starts = [name for name in COMMANDS if name.startswith(open_word)]
        if starts:
            print("\n".join(starts))
            return 0
    if len(words) > 1 and words[1] in COMMANDS:
        # Hydra knows the overrides, but not the command word before them
        cut = line.replace(f" {words[1]}", "", 1)
        os.environ["COMP_POINT"] = str(max(int(os.environ.get("COMP_POINT", len(line))) - len(line) + len(cut), 0))
        os.environ["COMP_LINE"] = cut
    import hydra

    register_schema()
    sys.argv = [sys.argv[0], *argv]
    hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(lambda config: None)()
    return 0
