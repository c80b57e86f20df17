"""Batches do not depend on who loads them."""

from pathlib import Path

import pytest
import torch

from finetune.data.datamodule import Batch, ImageDataModule, default_workers
from finetune.data.sources import folder_source
from finetune.input_spec import InputSpec

SPEC = InputSpec(size=(16, 16))


def data(pets: Path, **settings: object) -> ImageDataModule:
    module = ImageDataModule(source=folder_source(root=str(pets)), spec=SPEC, **settings)  # type: ignore[arg-type]
    module.begin_phase(name="head", batch_size=8, augment="rand_augment")
    return module


def train_batches(module: ImageDataModule, epochs: int = 2) -> list[Batch]:
    loader = module.train_dataloader()
    return [batch for _ in range(epochs) for batch in loader]


def test_views_are_the_same_with_0_and_2_workers_and_whatever_was_drawn_before(pets: Path) -> None:
    torch.manual_seed(0)
    one = train_batches(data(pets, num_workers=0))
    torch.manual_seed(99)
    torch.rand(17)
    two = train_batches(data(pets, num_workers=2))
    assert len(one) == len(two) > 4
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.rows, b.rows)
        assert a.position == b.position


def test_an_epoch_has_views_of_its_own(pets: Path) -> None:
    batches = train_batches(data(pets, num_workers=0))
    by_epoch: list[dict[int, torch.Tensor]] = [{}, {}]
    for batch in batches:
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
            by_epoch[batch.position.epoch][row] = image
    assert set(by_epoch[0]) == set(by_epoch[1])
    assert sum(torch.equal(by_epoch[0][row], by_epoch[1][row]) for row in by_epoch[0]) < len(by_epoch[0]) // 4


def test_loading_leaves_the_generator_of_the_training_alone(pets: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dataset = data(pets, num_workers=0).train_dataloader().dataset
    sampler = iter(data(pets, num_workers=0).train_dataloader().batch_sampler)  # type: ignore[arg-type]
    dataset.__getitems__(next(sampler))  # type: ignore[attr-defined]
    assert torch.equal(torch.rand(3), expected)


def test_targets_belong_to_the_files(pets: Path) -> None:
    module = data(pets, num_workers=0)
    index = module.source.index
    for batch in train_batches(module, epochs=1):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, 16, 16)
        for row, target in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True):
            assert Path(index.path(row)).parent.name == index.classes[target]


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_every_image_of_a_split_once(split: str, pets: Path) -> None:
    module = data(pets, num_workers=0)
    rows = [row for batch in module.eval_dataloader(split) for row in batch.rows.tolist()]
    assert sorted(rows) == sorted(module.source.index.rows(split).tolist())
    assert rows


def test_data_in_memory_needs_no_workers() -> None:
    assert default_workers(in_memory=True) == 0
    assert default_workers(in_memory=False) >= 1
