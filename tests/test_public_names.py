"""``import finetune``: what Tab offers, and what it costs."""

import pickle
import subprocess
import sys
from importlib import metadata

import pytest

import finetune
from finetune.errors import UserError


def test_tab_offers_every_public_name_and_each_of_them_is_there() -> None:
    assert dir(finetune) == sorted([*finetune.__all__, "__version__"])
    assert all(getattr(finetune, name) is not None for name in dir(finetune))
    assert finetune.__version__ == metadata.version("stagewise-finetune")


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'laod'\. Did you mean 'load'\?"):
        finetune.laod  # noqa: B018  # the mistake under test


def test_the_names_are_listed_without_importing_torch() -> None:
    code = "import sys, finetune; dir(finetune), finetune.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages_whose_name_is_a_function_are_called_and_pickled_as_functions_are() -> None:
    import finetune.export.formats
    import finetune.ladder.strategies

    for package in (finetune.export, finetune.ladder):
        again = pickle.loads(pickle.dumps(package))
        for callable_ in (package, again):
            with pytest.raises(
                UserError, match=r"missing a required argument.* Call it as finetune\.(export|ladder)\("
            ):
                callable_()
