import gzip
import os
import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from finetune.build import assemble
from finetune.build.data import build_source
from finetune.config.schema import Config, DataConfig
from finetune.data.decode import DecodeOptions
from finetune.data.torchvision_datasets import _KEPT_OTHERWISE, _LISTED, torchvision_source
from finetune.errors import UserError
from finetune.split_settings import SplitSettings


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    """Any attempt to fetch something fails at once, as it does without a network."""
    import urllib.request

    def refuse(*args, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def write_mnist(root):
    """MNIST's own files with 60 and 20 images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(b""))


def test_a_data_set_of_arrays_is_kept_in_memory_with_its_own_test_split(tmp_path):
    write_mnist(tmp_path)
    source = torchvision_source(
        name="MNIST",
        root=str(tmp_path),
        split=SplitSettings(val_fraction=0.2),
        decode_options=DecodeOptions(channels=1),
    )
    assert source.in_memory
    counts = source.index.counts()
    assert counts["test"] == [2] * 10
    assert [train + val for train, val in zip(counts["train"], counts["val"], strict=True)] == [6] * 10
    assert source.index.classes[0] == "0 - zero"
    assert source.read(0).shape == (1, 28, 28)
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(5), source.read(5))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["tulip", "aster", "rose"], ("tulip", "aster", "rose")),
        # two classes of one name stay two, as ImageNet's cranes
        ([("crane",), "owl", ("crane",)], ("crane (0)", "owl", "crane (2)")),
    ],
)
def test_a_data_set_of_files_is_read_as_files_in_its_own_class_order(tmp_path, names, classes):
    base = tmp_path / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    generator = np.random.default_rng(0)
    labels, ids = np.arange(24) % 3 + 1, np.arange(1, 25)
    for number in ids:
        Image.fromarray(generator.integers(0, 256, (10, 12, 3), np.uint8)).save(base / "jpg" / f"image_{number:05}.jpg")
    scipy.io.savemat(base / "imagelabels.mat", {"labels": labels[None]})
    scipy.io.savemat(base / "setid.mat", {"trnid": ids[None, :12], "valid": ids[None, 12:18], "tstid": ids[None, 18:]})
    import torchvision.datasets as datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
        patch.setattr(datasets.Flowers102, "classes", names)
        source = torchvision_source(name="Flowers102", root=str(tmp_path))
    assert not source.in_memory
    assert source.index.classes == classes
    assert source.index.counts() == {"train": [4, 4, 4], "val": [2, 2, 2], "test": [2, 2, 2]}
    for row in range(24):
        number = int(source.index.path(row)[-9:-4])
        assert source.index.targets[row] == labels[number - 1] - 1
    assert source.read(0).shape == (3, 10, 12)


def write_caltech(root):
    folder = root / "caltech101" / "101_ObjectCategories"
    generator = np.random.default_rng(0)
    for name in ("BACKGROUND_Google", "anchor", "ant"):
        (folder / name).mkdir(parents=True)
        for number in range(1, 13):
            pixels = generator.integers(0, 256, (10, 10 + number, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"image_{number:04}.jpg")
    return folder


def test_files_that_torchvision_keeps_in_pieces_are_read_as_files(tmp_path):
    folder = write_caltech(tmp_path)
    source = torchvision_source(name="Caltech101", root=str(tmp_path))
    assert not source.in_memory
    assert source.index.classes == ("anchor", "ant")
    assert [sum(counts) for counts in zip(*source.index.counts().values(), strict=True)] == [12, 12]
    (folder / "ant" / "image_0003.jpg").unlink()
    os.mkfifo(folder / "ant" / "image_0003.jpg")
    with pytest.raises(UserError, match=r"ant/image_0003\.jpg"):
        torchvision_source(name="Caltech101", root=str(tmp_path))

    places = [tmp_path / f"omniglot-py/images_background/Greek/character{number:02}" for number in (1, 2)]
    for place in places:
        place.mkdir(parents=True)
        for number in range(12):
            Image.new("L", (9, 9 + number)).save(place / f"{number:04}_01.png")
    import torchvision.datasets as datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.Omniglot, "_check_integrity", lambda self: True)
        source = torchvision_source(name="Omniglot", root=str(tmp_path))
    assert (source.in_memory, len(source.index), source.index.targets.tolist()) == (False, 24, [0] * 12 + [1] * 12)
    assert set(source.index.paths) == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*_01.png")}


def test_torchvision_is_given_no_pipe_to_wait_for(tmp_path):
    (tmp_path / "food-101" / "images").mkdir(parents=True)
    (tmp_path / "food-101" / "meta").mkdir()
    os.mkfifo(tmp_path / "food-101" / "meta" / "train.json")
    with pytest.raises(UserError, match=r"meta/train\.json: must be a regular file. It is a named pipe"):
        torchvision_source(name="Food101", root=str(tmp_path))


def test_a_data_set_without_splits_files_or_array_is_read_through_torchvision(monkeypatch):
    import torchvision.datasets as datasets

    original = datasets.FakeData.__init__

    def small(self):
        original(self, size=60, image_size=(3, 8, 8), num_classes=4)

    monkeypatch.setattr(datasets.FakeData, "__init__", small)
    source = torchvision_source(name="FakeData")
    assert source.in_memory
    assert sum(map(sum, source.index.counts().values())) == 60
    assert all(sum(numbers) for numbers in source.index.counts().values())


def test_without_a_network_one_message_says_what_to_do(tmp_path):
    with pytest.raises(UserError) as caught:
        torchvision_source(name="OxfordIIITPet", root=str(tmp_path))
    assert str(caught.value).startswith(f"data.name='OxfordIIITPet': is not in data.root={str(tmp_path)!r}")
    assert "Network is unreachable. Download it on a machine with a network" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"), [("OxfordIIIPet", "Did you mean 'OxfordIIITPet'?"), ("nonsense", "All data sets")]
)
def test_an_unknown_data_set_is_answered_with_the_nearest(name, hint):
    with pytest.raises(UserError, match=f"data.name='{name}': not a data set of torchvision") as caught:
        torchvision_source(name=name)
    assert hint in str(caught.value)


def test_what_a_file_names_is_not_downloaded(tmp_path):
    config = Config(data=DataConfig(source="torchvision", name="MNIST", root=str(tmp_path / "data")))
    with pytest.raises(UserError, match=r"is downloaded only where you type its name. Get it with: finetune audit"):
        build_source(config)
    assert not (tmp_path / "data" / "MNIST" / "raw").exists()
    # a run of somebody else's, whose data is not here
    with pytest.raises(UserError, match="is downloaded only where you type its name"):
        assemble(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LSUN", "must be typed, because torchvision may unpickle, unpack or write files to open it"),
        # torchvision makes the folder of one and unpacks the archives of the other
        ("Caltech101", "is downloaded only where you type its name"),
        ("ImageNet", "is downloaded only where you type its name"),
    ],
)
def test_what_a_file_names_is_only_read(tmp_path, name, message):
    (tmp_path / "data").mkdir()
    for archive in ("ILSVRC2012_devkit_t12.tar.gz", "_cache_"):
        (tmp_path / "data" / archive).touch()
    config = Config(data=DataConfig(source="torchvision", name=name, root=str(tmp_path / "data")))
    with pytest.raises(UserError, match=message):
        build_source(config)
    assert len(list(tmp_path.rglob("*"))) == 3


def test_the_list_of_what_a_file_may_name_holds_data_sets_of_torchvision():
    import torchvision.datasets as datasets

    assert set(_LISTED) <= set(datasets.__all__)
    assert set(_KEPT_OTHERWISE) <= set(_LISTED)
