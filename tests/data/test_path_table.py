import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.path_table import PathTableBuilder, path_table

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
PATHS = st.lists(st.tuples(st.sampled_from(["", "a", "b/c"]), NAMES).map(lambda pair: "/".join(filter(None, pair))))


@given(paths=PATHS)
def test_a_table_gives_back_the_paths_it_was_made_of(paths):
    table = path_table(paths)
    assert list(table) == paths
    assert list(pickle.loads(pickle.dumps(table))) == paths


@given(paths=PATHS, data=st.data())
def test_taking_rows_takes_those_paths(paths, data):
    rows = data.draw(st.lists(st.integers(0, len(paths) - 1))) if paths else []
    assert list(path_table(paths).take(np.array(rows, np.int64))) == [paths[row] for row in rows]


@given(folders=st.lists(st.lists(NAMES, max_size=5), max_size=4))
def test_a_table_built_folder_by_folder_keeps_their_order(folders):
    builder = PathTableBuilder()
    for number, names in enumerate(folders):
        builder.add_folder(str(number), names)
    assert list(builder.build()) == [f"{number}/{name}" for number, names in enumerate(folders) for name in names]


def test_rows_count_from_the_end_too_and_stop_there():
    table = path_table(["x/1", "y/2"])
    assert table[-1] == "y/2"
    with pytest.raises(IndexError):
        table[2]


def test_a_path_costs_its_name_and_eight_bytes():
    builder = PathTableBuilder()
    builder.add_folder("folder", [f"{number:08}.jpg" for number in range(10_000)])
    assert builder.build().nbytes == 10_000 * (12 + 8)
