from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data.sources.manifest import manifest_source


def write_table(folder: Path, labels: list[str]) -> str:
    rows = ["path,label"]
    for number, label in enumerate(labels):
        Image.fromarray(np.full((9, 9), number, np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{label}")
    (folder / "t.csv").write_text("\n".join(rows))
    return str(folder / "t.csv")


def test_joined_labels_that_become_classes_of_their_own_are_warned_of(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["cat;dog", "cat", "dog", "dog;owl", "cat;owl", "owl"] * 6)
    (note,) = manifest_source(path=table).index.notes
    assert note.startswith("warning: 3 of 6 classes hold ';', such as 'cat;dog'")
    assert note.endswith("set data.label_separator=';'.")
    assert not manifest_source(path=table, label_separator=";").index.notes


def test_names_of_classes_with_blanks_and_commas_are_not_taken_for_joined_labels(tmp_path: Path) -> None:
    table = write_table(tmp_path, ["red fox", "wolf", '"tench, Tinca tinca"'] * 6)
    assert not manifest_source(path=table).index.notes
