"""The two runs, trained once for all tests of the report."""

from pathlib import Path

import pytest

from tests.report.runs import one_label, several_labels


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of one label an image."""
    return one_label(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of several labels an image."""
    return several_labels(tmp_path_factory.mktemp("several"))
