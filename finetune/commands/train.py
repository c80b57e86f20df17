"""``finetune train``: train through the phases, test, and write the bundle and the report."""

from collections.abc import Sequence
from pathlib import Path

from finetune.commands.hydra_job import ComposingArguments, run_composed
from finetune.commands.slurm import requeue_this_job
from finetune.config.schema import Config
from finetune.errors import Interrupted
from finetune.run_folder import RunFolder
from finetune.runners.train import train
from finetune.training.interruption import Interruption

ABOUT = """\
Train a classifier on a folder of images, phase by phase, then test it and write the bundle and the report.
Everything is written to one run folder: finetune resume, evaluate, predict and export take it.

Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP stop a run at its next step and save it; finetune resume continues from
there with an identical result. The exit status is 130, 143, 138, 140 and 129. A second Ctrl-C ends it at once.
run_dir=DIR resume=auto starts the run, or goes on with it where DIR holds it: the line for jobs that are preempted
and started again. A job of SLURM that is signalled then also requeues itself.

Several devices: trainer.devices=2. Several machines: on each of them, with N its number from 0,
  torchrun --nnodes 2 --node-rank N --nproc-per-node DEVICES --master-addr HOST_OF_NODE_0 --master-port 29500 \\
      -m finetune train key=value ... trainer.num_nodes=2 trainer.devices=DEVICES run_dir=DIR_THAT_ALL_SEE"""

_HINT = "if it named its run folder, continue with finetune resume; else start it again"


def run(argv: Sequence[str]) -> int:
    """Run ``finetune train`` and return the exit status."""
    return run_composed("train", ComposingArguments("train", ABOUT).parse(argv)[1], task)


def task(config: Config) -> int:
    """Train one configuration in a command-line process."""
    begun = "the same command goes on" if config.resume == "auto" else _HINT
    with Interruption(begun, where="outside training"):
        try:
            train(config, tune_process=True)
        except Interrupted as stopped:
            if config.resume == "auto":
                requeue_this_job(stopped, finished=RunFolder(Path(str(config.run_dir))).is_finished)
            raise
        from finetune.training.rank_monitor import end_other_ranks

        end_other_ranks()
    return 0
