import numpy as np
import pytest

from finetune.data.class_shortcuts import class_shortcuts
from finetune.data.scan import FACT_TYPE, KINDS


def facts(count=60):
    """Three classes of photographs of different sizes, all JPEG."""
    random = np.random.default_rng(0)
    table = np.zeros(count, FACT_TYPE)
    table["kind"] = KINDS.index("JPEG")
    table["width"], table["height"] = random.integers(300, 900, count), random.integers(300, 900, count)
    return np.arange(count) % 3, table


def test_classes_of_one_format_and_of_sizes_by_chance_are_not_told():
    targets, table = facts()
    assert class_shortcuts(targets, table) == {}
    table["kind"][::2] = KINDS.index("PNG")
    table["width"], table["height"] = 224, 224
    assert class_shortcuts(targets, table) == {}


@pytest.mark.parametrize(
    ("fact", "change"),
    [
        ("format", {"kind": 2}),
        ("mode", {"mode": 3}),
        ("size", {"width": 512, "height": 512}),
    ],
)
def test_a_class_that_its_files_alone_give_away_is_named_with_the_fact(fact, change):
    targets, table = facts()
    for column, value in change.items():
        table[column][targets == 1] = value
    assert class_shortcuts(targets, table) == {fact: [1]}


def test_a_class_of_larger_or_of_wider_pictures_is_told_and_a_handful_of_images_is_not():
    targets, table = facts()
    table["width"][targets == 2] += 5000
    assert class_shortcuts(targets, table) == {"size": [2]}
    targets, table = facts()
    tall = targets == 0
    table["height"][tall], table["width"][tall] = table["height"][tall] * 3, table["width"][tall] // 3
    assert class_shortcuts(targets, table) == {"shape": [0]}
    few = np.zeros(12, FACT_TYPE)
    few["kind"] = [1, 2] * 6
    assert class_shortcuts(np.arange(12) % 2, few) == {}
