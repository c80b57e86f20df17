"""``finetune resume``: continue a stopped run, with a result bitwise identical to that of an uninterrupted one."""

import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.commands.options import Arguments
from finetune.config.overrides import moved_data
from finetune.runners.resume import resume
from finetune.training.interruption import Interruption

ABOUT = """\
Continue a stopped run. Weights, metrics and predictions are those of the uninterrupted run.
A run whose configuration, data or program version has changed since is refused, and the difference is named;
--anyway continues with other versions of the program or its libraries, and the result may then differ.

A run folder is data: of the classes that its configuration names, only optimizers, local loggers and callbacks of torch,
timm and Lightning are built. A run that names other classes, contacts an address or holds links out of its folder is
refused with a list of these; --trust shows the list and continues.

Settings that the result does not depend on can be changed, and stay changed:
  data.root=DIR, data.path=PATH      where the data is now
  data.num_workers=4                 the result stays bitwise identical
  trainer.devices=2, trainer.num_nodes=2, trainer.accelerator=gpu, trainer.strategy=ddp
                                     the same except for rounding, dropout and mixup"""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune resume`` and return the exit status."""
    parser = Arguments("resume", ABOUT, ending="RUN is a run folder.")
    parser.add_argument(
        "words", metavar="RUN [DIR] [key=value ...]", nargs="*", help="a run folder, and settings that may change"
    )
    parser.add_argument(
        "--anyway", action="store_true", help="continue with other versions of the program or its libraries"
    )
    parser.add_argument("--trust", action="store_true", help="build every class that the run's configuration names")
    given = parser.read(argv)
    overrides = list(map(moved_data, given.words[1:]))
    if not given.words:
        raise parser.wrong("needs one RUN. Given: nothing")
    with Interruption("the same command goes on", where="outside training"):
        resume(
            Path(given.words[0]).expanduser(),
            anyway=given.anyway,
            trust=given.trust,
            overrides=overrides,
            tune_process=True,
        )
        if "finetune.training.rank_monitor" in sys.modules:
            from finetune.training.rank_monitor import end_other_ranks

            end_other_ranks()
    return 0
