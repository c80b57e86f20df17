"""Batches do not depend on who loads them."""

import shutil
from pathlib import Path

import pytest
import torch

from finetune.data.datamodule import FEW_CORES, ImageDataModule, default_workers
from finetune.data.image_file import UnreadableImage
from finetune.data.loading import Batch, views_of_rows
from finetune.data.sources.digits import digits_source
from finetune.data.sources.folder import folder_source
from finetune.data.transforms import train_view
from finetune.errors import UserError
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


def test_loader_processes_are_for_files_where_threads_do_not_serve(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, digits = folder_source(root=str(pets)), digits_source()
    cores, threads = {0}, [FEW_CORES]
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores, raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads[0])
    assert default_workers(digits, on_cpu=False) == 0
    assert default_workers(files, on_cpu=False) == 1
    assert default_workers(files, on_cpu=True) == 0
    cores.update(range(FEW_CORES))
    assert default_workers(files, on_cpu=True) == 0
    # a core is left over
    threads[0] = FEW_CORES - 1
    assert default_workers(files, on_cpu=True) == FEW_CORES - 1
    threads[0] = 99
    cores.add(FEW_CORES)
    assert default_workers(files, on_cpu=True) == FEW_CORES
    files.many_threads = False
    cores.intersection_update({0})
    assert default_workers(files, on_cpu=True) == 1
    assert data(pets, num_workers=3).num_workers == 3


def test_more_loader_processes_than_the_machine_holds_are_refused(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert data(pets, num_workers=32).num_workers == 32
    with pytest.raises(
        UserError, match=r"data\.num_workers=33: at most 32 processes on this machine, 16 for each of its 2"
    ):
        data(pets, num_workers=33)


@pytest.mark.parametrize("augment", ["none", "standard", "trivial_augment"])
def test_views_are_the_same_whatever_the_number_of_threads(augment: str, pets: Path) -> None:
    source = folder_source(root=str(pets))
    rows = source.index.rows("train").tolist()
    view = train_view(InputSpec(size=(32, 32)), augment=augment)
    seeds = None if augment == "none" else [7 * row for row in rows]
    state = torch.get_rng_state()
    one, four = (views_of_rows(source, view, rows, seeds=seeds, threads=threads) for threads in (1, 4))
    assert torch.equal(torch.stack(one), torch.stack(four))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_damaged_file_is_named_by_a_thread_too(pets: Path, tmp_path: Path) -> None:
    source = folder_source(root=str(shutil.copytree(pets, tmp_path / "pets")))
    rows = source.index.rows("train").tolist()
    damaged = Path(source.index.path(rows[3]))
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(UnreadableImage, match=damaged.name):
        views_of_rows(source, train_view(InputSpec(), augment="standard"), rows, seeds=rows, threads=3)
