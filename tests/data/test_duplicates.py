import numpy as np
import torch
from PIL import Image

from finetune.data.duplicates import alike_across, identical
from finetune.data.perceptual_hash import looks


def scene(number):
    coarse = np.random.default_rng(number).integers(20, 236, (7, 9), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC))


def pairs_of(pictures, splits):
    return alike_across(
        looks=np.stack([looks(picture) for picture in pictures]),
        content=np.arange(2 * len(pictures), dtype=np.uint64).reshape(-1, 2),
        splits=np.array(splits, np.int8),
        ranges=np.array([int(picture.max()) - int(picture.min()) for picture in pictures], np.uint8),
        read=lambda row: torch.from_numpy(pictures[row].copy())[None],
    )


def test_groups_of_identical_contents_are_exact_and_in_order():
    content = np.array([[1, 1], [2, 0], [1, 1], [2, 1], [2, 0], [1, 1]], np.uint64)
    assert [group.tolist() for group in identical(content)] == [[0, 2, 5], [1, 4]]


def test_a_data_set_without_copies_has_no_groups():
    assert identical(np.arange(10, dtype=np.uint64).reshape(5, 2)) == []


def test_a_brighter_copy_in_another_split_is_found_and_one_in_the_same_split_is_not():
    pictures = [scene(1), scene(2), np.clip(scene(1) + 8.0, 0, 255).astype(np.uint8), scene(3)]
    assert pairs_of(pictures, [0, 0, 1, 2]) == [(0, 2)]
    assert pairs_of(pictures, [0, 0, 0, 2]) == []


def test_equal_hashes_of_different_pictures_accuse_nobody():
    # steeper and flatter ramps have the same differences everywhere
    y, x = np.mgrid[:48, :64]
    ramps = [(x * step + y * step).astype(np.uint8) for step in (1.0, 2.2)]
    assert (looks(ramps[0]) == looks(ramps[1])).all()
    assert pairs_of(ramps, [0, 1]) == []


def test_flat_pictures_have_no_shape_to_compare():
    flat = [np.full((48, 64), 100, np.uint8), np.full((48, 64), 101, np.uint8)]
    assert pairs_of(flat, [0, 1]) == []
