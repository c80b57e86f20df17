"""Fixtures: the two runs, trained once for all tests of the report."""

from pathlib import Path

import pytest

from tests.report.runs import one_label, several_labels


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single-label run."""
    return one_label(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-label run."""
    return several_labels(tmp_path_factory.mktemp("several"))
