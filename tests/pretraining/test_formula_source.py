import pickle

import numpy as np
import pytest
import torch

from finetune.errors import UserError
from finetune.pretraining.formula_source import fractals_source
from finetune.split_settings import SplitSettings


def test_a_row_reads_the_image_of_its_key_also_in_another_process_s_copy() -> None:
    source = fractals_source(
        recipe="strokes", classes=6, images_per_class=5, image_size=24, split=SplitSettings(seed=4)
    )
    copy = pickle.loads(pickle.dumps(source))
    for row in (0, 17, 29):
        assert torch.equal(source.read(row), copy.read(row))
    assert source.read(0).shape == (3, 24, 24)
    assert source.read(0).dtype == torch.uint8


def test_every_class_is_in_every_split_equally_often() -> None:
    source = fractals_source(classes=10, images_per_class=20, split=SplitSettings(val_fraction=0.1, test_fraction=0.2))
    assert source.index.counts() == {"train": [14] * 10, "val": [2] * 10, "test": [4] * 10}
    assert len(source.index) == 200


def test_contents_and_names_are_unique_and_depend_on_the_settings() -> None:
    first, second, again = (
        fractals_source(classes=6, images_per_class=4, split=SplitSettings(seed=seed)).index for seed in (0, 1, 0)
    )
    assert len(np.unique(first.content, axis=0)) == 24
    assert len({first.path(row) for row in range(24)}) == 24
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == again.fingerprint()


def test_one_channel_is_the_mean_of_the_three() -> None:
    colour = fractals_source(classes=6, images_per_class=4)
    grey = fractals_source(classes=6, images_per_class=4, channels=1)
    expected = colour.read(3).float().mean(0, keepdim=True)
    assert (grey.read(3).float() - expected).abs().max() <= 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_class": 2}, r"data\.images_per_class=2: must leave something to train on"),
        ({"channels": 4}, r"input\.channels=4"),
        ({"image_size": 4}, r"data\.image_size=4"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fractals_source(classes=6, **settings)
