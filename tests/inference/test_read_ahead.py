"""The next batch is read while the current one is processed, and an unreadable item carries its error."""

import threading
from pathlib import Path

from finetune.data.image_file import UnreadableImage
from finetune.errors import UserError
from finetune.inference.job_store import file_stamp
from finetune.inference.read_ahead import read_ahead


def test_batches_come_in_order_one_ahead_with_the_error_of_each_unreadable_item(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.txt") for number in range(8)]
    for path in paths[:6]:
        Path(path).write_text(f"text of {Path(path).name}")
    second = threading.Event()

    def read(path: str) -> str:
        if path == paths[5]:
            second.set()
        if path == paths[6]:
            raise UnreadableImage(path, "There is no such file.")
        if path == paths[7]:
            raise UserError("A mistake.")
        return Path(path).read_text()

    batches = read_ahead(iter(paths), read, batch_size=3, path_of=str)
    first = next(batches)
    assert second.wait(60), "the second batch is read before it is asked for"
    rows = [*first, *next(batches), *next(batches)]
    assert list(batches) == []
    assert [row.item for row in rows] == paths
    assert [row.value for row in rows] == [f"text of {number}.txt" for number in range(6)] + [None, None]
    assert [row.error for row in rows] == [""] * 6 + ["There is no such file.", "A mistake."]
    assert [row.stamp for row in rows] == [file_stamp(path) for path in paths]
