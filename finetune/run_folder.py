"""The run folder: its files by name, and the record of how the run was started, which a resumed run reads."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.atomic_files import PART, make_folder, write_text
from finetune.checksums import CHECKSUMS, verify, write_checked_json
from finetune.data.index import Index
from finetune.data.manifest import write_manifest, write_skipped
from finetune.distributed import is_rank_zero
from finetune.errors import RunError, UserError
from finetune.file_lock import LOCK, FolderLock
from finetune.file_schema import EVALUATION, REPORT
from finetune.near_paths import did_you_mean_path
from finetune.plain import Json, from_plain, to_plain
from finetune.run_names import CONFIG, RECORD, SPLIT
from finetune.safe_files import check_regular, inside, read_json
from finetune.terminal import printable
from finetune.versions import versions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# 2: includes the decisions for `auto`; 3: checksums of the run's files are kept
FORMAT = 3
_REMEDY = "Restore it from a backup, if you have one; else train again."
PLAN = "plan.json"
_SKIPPED = "skipped.csv"
# folder below that of a sweep, with the records and logs of its jobs
JOBS = "jobs"


@dataclass(frozen=True, kw_only=True)
class RecordedData:
    """The data of a run, as its record holds it.

    Args:
        fingerprint: Digest of classes, paths, targets, splits and contents.
        classes: Class names in the order of the logits.
        counts: Images of each class, by split.
    """

    fingerprint: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, index: Index) -> "RecordedData":
        """Describe an index."""
        counts = {split: tuple(numbers) for split, numbers in index.counts().items()}
        return cls(fingerprint=index.fingerprint(), classes=tuple(index.classes), counts=counts)


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What was decided for settings that are ``auto``; a resumed run uses the same.

    Args:
        precision: Precision such as ``32-true``, unchecked.
        caches: Cache policy of each phase; :func:`finetune.activation_cache.policy.policies_from_plain` reads them.
        objects: Classes of the objects that were given to the run from Python, by argument; None for none.
        beside: Classes of the callbacks and loggers that were given from Python, by argument: a resumed run asks for them, but
            does not need them.
    """

    precision: Json = None
    caches: tuple[Json, ...]
    objects: Mapping[str, str] | None = None
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The contents of ``run.json``: how a run was started.

    Args:
        format: Version of the run folder.
        config: Whole configuration.
        model: Description of the network, from which it is rebuilt without downloads.
        data: The data.
        decided: Decisions for settings that are ``auto``.
        versions: Versions of Python, of finetune and of the libraries that a result depends on.
        threads: Threads that torch computed with.
    """

    format: int
    config: Mapping[str, Json]
    model: Mapping[str, Json]
    data: RecordedData
    decided: Decisions
    versions: Mapping[str, Json]
    threads: int


@dataclass(frozen=True)
class PhaseFolder:
    """The files of one phase, in ``phases/<number>-<name>``.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def start(self) -> Path:
        """All weights before the first step."""
        return self.path / "start.safetensors"

    @property
    def last(self) -> Path:
        """Checkpoint of the latest epoch or step."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch by the monitored metric."""
        return self.path / "best.ckpt"

    @property
    def trials(self) -> Path:
        """Heads trained at several rates, while the phase runs."""
        return self.path / "trials.ckpt"

    @property
    def result(self) -> Path:
        """Result of the phase; its presence means that the phase is finished."""
        return self.path / "result.json"


@dataclass(frozen=True)
class RunFolder:
    """The files of a run; :mod:`finetune.file_schema` documents what they hold.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration, to read and to resume from."""
        return self.path / CONFIG

    @property
    def record(self) -> Path:
        """How the run was started."""
        return self.path / RECORD

    @property
    def plan(self) -> Path:
        """The phases as ``finetune plan`` shows them."""
        return self.path / PLAN

    @property
    def metrics(self) -> Path:
        """Metrics, one row per epoch."""
        return self.path / "metrics.csv"

    @property
    def predictions(self) -> Path:
        """Predictions, one row per test image."""
        return self.path / "predictions.csv"

    @property
    def evaluation(self) -> Path:
        """Probabilities of validation and test images, for the report."""
        return self.path / EVALUATION

    @property
    def results(self) -> Path:
        """Metrics of the run; its presence means that the run is finished."""
        return self.path / "results.json"

    @property
    def final_weights(self) -> Path:
        """All weights after the last phase."""
        return self.path / "final.safetensors"

    @property
    def bundle(self) -> Path:
        """The trained model."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / REPORT

    @property
    def logger_ids(self) -> Path:
        """Ids of the run in the stores of its loggers, so that a resumed run continues there."""
        return self.path / "loggers.json"

    @property
    def error_log(self) -> Path:
        """Traceback of the latest unexpected error."""
        return self.path / "error.log"

    def phase(self, number: int, name: str) -> PhaseFolder:
        """Return the folder of a phase.

        Args:
            number: Position in the schedule, from 0.
            name: Name of the phase.
        """
        return PhaseFolder(self.path / "phases" / f"{number}-{name}")

    def spare_files(self) -> list[Path]:
        """Return the checkpoints and weights between phases of a finished run, which no command needs; empty for other runs.

        ``movement.json`` keeps what the report shows of them. The weights after the last phase are kept, so that the bundle can
        be written again from them.

        Raises:
            UserError: The folder of a phase is a link out of the run, through which another run's files would be deleted.
        """
        if not self.is_finished or not self.movement.is_file() or not self.final_weights.is_file():
            return []
        names = ("last.ckpt", "best.ckpt", "trials.ckpt", "start.safetensors")
        found = [file for name in names for file in sorted(self.path.glob(f"phases/*/{name}")) if not file.is_symlink()]
        for phase in dict.fromkeys(file.parent for file in found):
            inside(self.path, phase.relative_to(self.path))
        return found

    def delete_spare_files(self) -> None:
        """Delete what :meth:`spare_files` lists."""
        for file in self.spare_files():
            file.unlink(missing_ok=True)

    @property
    def split(self) -> Path:
        """The split of every image, as a table."""
        return self.path / SPLIT

    @property
    def movement(self) -> Path:
        """How far each stage moved in each phase, for the report; written before the weights between phases are deleted."""
        return self.path / "movement.json"

    @property
    def is_finished(self) -> bool:
        """Tell whether the results have been written.

        Raises:
            UserError: Something else lies in their place, such as a broken link.
        """
        return os.path.lexists(self.results) and check_regular(self.results) == self.results


def create_run_folder(
    run_dir: Path,
    *,
    config: Mapping[str, Json],
    config_yaml: str,
    model: Mapping[str, Json],
    index: Index,
    plan: "Sequence[DataclassInstance]",
    decided: Decisions,
) -> None:
    """Create the run folder. ``run.json`` is written last: once it exists, the run can be resumed.

    Args:
        run_dir: New or empty folder.
        config: Whole configuration as plain values.
        config_yaml: The same configuration as readable YAML.
        model: Description of the network, from which it is rebuilt without downloads.
        index: Index of the images.
        plan: One entry per phase.
        decided: Decisions for settings that are ``auto``; a resumed run uses the same.
    """
    import torch  # imported here, so that reading a record does not have to wait for torch

    make_folder(run_dir)
    write_text(run_dir / CONFIG, config_yaml)
    write_checked_json(run_dir / PLAN, [to_plain(phase) for phase in plan])
    # the split of every image; data=manifest data.path=RUN/split.csv gives the same splits again
    write_manifest(index, run_dir / SPLIT)
    if index.skipped:
        write_skipped(index, run_dir / _SKIPPED)
    write_checked_json(
        run_dir / RECORD,
        to_plain(
            RunRecord(
                format=FORMAT,
                config=config,
                model=model,
                data=RecordedData.of(index),
                decided=decided,
                versions=versions(),
                threads=torch.get_num_threads(),
            )
        ),
    )


def remove_half_created(run_dir: Path, *, wait_s: float) -> None:
    """Remove what a process left that was killed in :func:`create_run_folder`; leave a folder that holds anything else.

    Args:
        run_dir: The folder; it need not exist.
        wait_s: Seconds to wait for another process that holds it.

    Raises:
        RunError: Another process holds the folder.
    """
    names = {CONFIG, PLAN, SPLIT, _SKIPPED, CHECKSUMS}
    parts = tuple(f".{name}." for name in (*names, RECORD))

    def is_ours(file: Path) -> bool:
        return file.name in (*names, LOCK) or (file.name.startswith(parts) and file.name.endswith(PART))

    if not run_dir.is_dir() or not all(map(is_ours, run_dir.iterdir())):
        return
    with FolderLock(run_dir, name=f"run_dir='{run_dir}'", wait_s=wait_s):
        # the process that held it may have begun a run there
        if all(map(is_ours, run_dir.iterdir())):
            for file in run_dir.iterdir():
                if file.name != LOCK:
                    file.unlink()


def wait_for_run_record(run_dir: Path, *, patience_s: float, first: str) -> RunRecord:
    """Return the record once the first process of the run has written it.

    Args:
        run_dir: Run folder.
        patience_s: Seconds to wait for it.
        first: Name of that process, with its host.

    Raises:
        RunError: The record does not appear in time.
        UserError: It cannot be read.
    """
    deadline = time.monotonic() + patience_s
    while not (run_dir / RECORD).is_file() and not is_rank_zero():
        if time.monotonic() > deadline:
            raise RunError(
                f"{run_dir / RECORD}: {first} has not written it for {patience_s:g} s. It has ended, never came, or sees another "
                "disk. trainer.timeout_s sets the time."
            )
        time.sleep(0.05)
    return read_run_record(run_dir)


def read_run_record(run_dir: Path) -> RunRecord:
    """Read the record of a run.

    Raises:
        UserError: The folder is not a run, its creation was not completed, or its format is newer.
    """
    if not run_dir.is_dir():
        raise UserError(f"RUN='{run_dir}': no such folder.{did_you_mean_path(run_dir, folders=True)}")
    path = run_dir / RECORD
    if not os.path.lexists(path):
        if (run_dir / CONFIG).is_file():
            raise UserError(
                f"RUN='{run_dir}': stopped before its first phase, so there is nothing to resume. "
                "Start it again; its configuration is in config.yaml."
            )
        raise UserError(f"RUN='{run_dir}': not a run folder. It has no {RECORD}.")
    record = read_json(inside(run_dir, RECORD), dict, remedy=_REMEDY)
    if record.get("format") != FORMAT:
        stored_format = printable(str(record.get("format", "no format")))[:40]
        raise UserError(f"{path}: written in format {stored_format}. This version reads {FORMAT}.")
    read = from_plain(RunRecord, record, name=str(path), remedy=_REMEDY)
    verify(path)
    return read


def files_read_back(run_dir: Path) -> list[Path]:
    """Return the files of a run, apart from checkpoints, that a resumed run reads; each has a checksum."""
    patterns = (RECORD, PLAN, "results.json", "final.safetensors", "phases/*/result.json", "phases/*/start.safetensors")
    return [path for pattern in patterns for path in sorted(run_dir.glob(pattern))]


def differences(then: object, now: object, path: str = "") -> list[str]:
    """Return the differences of two nested values, as ``key: then -> now``.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 -> 3']
    """
    if isinstance(then, dict) and isinstance(now, dict):
        lines = []
        for key in dict.fromkeys([*then, *now]):
            at = f"{path}.{key}" if path else str(key)
            if key not in now or key not in then:
                lines.append(f"{at}: {'gone' if key not in now else 'new'}")
            else:
                lines += differences(then[key], now[key], at)
        return lines
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [
            line for i, pair in enumerate(zip(then, now, strict=True)) for line in differences(*pair, f"{path}[{i}]")
        ]
    return [] if then == now else [f"{path}: {then!r} -> {now!r}"]
