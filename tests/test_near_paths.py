"""A missing path is answered with the name beside it that was meant."""

from pathlib import Path

from finetune.near_paths import did_you_mean_path


def test_the_hint_has_the_folder_as_it_was_typed(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "list.csv").touch()
    assert did_you_mean_path(tmp_path / "petz") == f" Did you mean '{tmp_path}/pets'?"
    assert did_you_mean_path(tmp_path / "petz", folders=True) == f" Did you mean '{tmp_path}/pets'?"
    assert did_you_mean_path(tmp_path / "list.csw", folders=True) == ""
    assert did_you_mean_path(tmp_path / "list.csw") == f" Did you mean '{tmp_path}/list.csv'?"


def test_there_is_no_hint_where_nothing_is_like_it_or_the_folder_is_missing_too(tmp_path: Path) -> None:
    assert did_you_mean_path(tmp_path / "pets") == ""
    assert did_you_mean_path(tmp_path / "no" / "pets") == ""
