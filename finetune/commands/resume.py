"""``finetune resume``: go on where a run stopped, to the same bits as if it had not."""

import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.config import from_yaml, to_plain
from finetune.config.schema import Config
from finetune.config.trust import require_trust
from finetune.errors import UserError, shortened
from finetune.files import REPORT
from finetune.process_tuning import release_freed_blocks

USAGE = """\
usage: finetune resume RUN [--anyway] [--trust]

Go on where a run stopped. Weights, metrics and predictions come out as those of the uninterrupted run.
A run whose configuration, data or program version has changed since is refused, with the difference named;
--anyway goes on with other versions of the program or its libraries, and the result may then differ.

A run folder is data: of what its configuration names, optimizers, local loggers and callbacks of torch, timm and Lightning
are built. A run that names other classes, contacts an address or holds links out of its folder is refused with a list of
them; --trust shows the list and goes on."""


def run(argv: Sequence[str]) -> int:
    """The command."""
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    words = [word for word in argv if word not in ("--anyway", "--trust")]
    if len(words) != 1 or words[0].startswith("-"):
        raise UserError(
            f"finetune resume: needs one RUN. Given: {' '.join(argv) or 'nothing'}.\n{USAGE.splitlines()[0]}"
        )
    resume(Path(words[0]).expanduser(), anyway="--anyway" in argv, trust="--trust" in argv, tune_process=True)
    if "finetune.training.companions" in sys.modules:
        from finetune.training.companions import end_companions

        end_companions()
    return 0


def resume(
    run_dir: Path,
    *,
    anyway: bool = False,
    trust: bool = False,
    typed: Config | None = None,
    tune_process: bool = False,
) -> None:
    """Resume a run.

    Args:
        run_dir: A run folder.
        anyway: Go on with other versions of the program or its libraries.
        trust: Build whatever its configuration names; see :mod:`finetune.config.trust`.
        typed: A configuration that the user typed on this command line. A run of the same may name what that one names.
        tune_process: Change this process's garbage collection and allocator for speed; only the command line does.

    Raises:
        UserError: The folder is no run, something that its result depends on has changed, or it names what only the user
            may name.
    """
    from finetune.commands.train import execute, say
    from finetune.run_folder import CONFIG, differences, read_run_record

    record = read_run_record(run_dir)
    config = from_yaml(run_dir / CONFIG)
    if (run_dir / "results.json").is_file():
        say(f"This run is finished; nothing is left to do. Its results: {run_dir / 'results.json'}")
        if config.report and not (run_dir / REPORT).is_file():
            from finetune.commands.report import write_from_files

            say(f"report: {write_from_files(run_dir, config)}")
        return
    _refuse(
        run_dir, f"{CONFIG} has been edited", differences(_comparable(record["config"]), _comparable(to_plain(config)))
    )

    ours = typed is not None and _comparable(to_plain(typed)) == _comparable(to_plain(config))
    for line in require_trust(run_dir, config, trust=trust, typed=ours):
        say(f"trusted: {line}")

    from finetune.versions import versions

    changed = differences(record["versions"], versions())
    if changed and not anyway:
        _refuse(run_dir, "begun with other versions (--anyway goes on, and the result may differ)", changed)

    from finetune.build import assemble

    # killed before the weights at the start were kept: they come from where they came from the first time
    begun = any(run_dir.glob("phases/0-*/start.safetensors"))
    parts = assemble(
        config,
        say,
        description=record["model"] if begun else None,
        worker_init=release_freed_blocks if tune_process else None,
    )
    index = parts.source.index
    now = {"fingerprint": index.fingerprint(), "classes": list(index.classes), "counts": index.counts()}
    if now != record["data"]:
        detail = differences(
            {k: v for k, v in record["data"].items() if k != "fingerprint"}, now | {"fingerprint": None}
        )
        detail = [line for line in detail if not line.startswith("fingerprint")]
        _refuse(run_dir, "the data has changed", detail or ["files were renamed, or their contents are others"])

    import torch

    if torch.get_num_threads() != record["threads"]:
        say(
            f"This run was begun with {record['threads']} threads and goes on with {torch.get_num_threads()}: sums are "
            "taken in another order, so the result cannot be exact to the bit. OMP_NUM_THREADS sets the number."
        )
    say(f"resuming: {run_dir}")
    execute(config, parts, run_dir, trusted=trust or ours, tune_process=tune_process)


def _comparable(config: dict[str, object]) -> dict[str, object]:
    """A configuration without where the run lies: a run folder may be moved."""
    return {key: value for key, value in config.items() if key != "run_dir"}


def _refuse(run_dir: Path, what: str, found: list[str]) -> None:
    if found:
        raise UserError(f"RUN='{run_dir}': {what}, so it cannot go on as it began. {shortened(found)}.")
