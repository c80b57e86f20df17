"""Image files with two, four, five or more channels, read as they are stored."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import finetune
from finetune.cli import main
from finetune.config import compose
from finetune.data.decode import DecodeOptions, decode_bytes, decode_file, decode_to_show
from finetune.data.image_file import UnreadableImage
from finetune.data.image_folder import list_folders
from finetune.data.scan import FACT_TYPE, MODES, facts_of_bytes
from finetune.data.scan_cache import cached_facts
from finetune.errors import UserError
from finetune.runners.train import train
from tests.conftest import TINY_RESNET10T
from tests.data.raw_formats import png

SIZE = (24, 30)


def values(channels: int, kind: str = "uint8", seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    if kind.startswith("float"):
        return draw.random((*SIZE, channels)).astype(kind)
    return draw.integers(0, np.iinfo(kind).max + 1, (*SIZE, channels)).astype(kind)


def as_tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    if options.get("planarconfig") == "separate":
        array = np.moveaxis(array, -1, 0)
    tifffile.imwrite(file, array, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return file.getvalue()


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def in_bytes(array: np.ndarray) -> np.ndarray:
    """The 8-bit values by the rule: the whole range of an unsigned integer, 0 to 1 of floating point."""
    top = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    return np.floor(array.astype(np.float64) * 255 / top + 0.5).astype(np.uint8)


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_bands_of_a_tiff_are_read_as_they_are_stored(
    channels: int, kind: str, planes: str, compression: str | None
) -> None:
    array = values(channels, kind)
    data = as_tiff(array, planarconfig=planes, compression=compression)
    pixels = decode_bytes(data, DecodeOptions(channels=channels), path="x.tif")
    assert np.array_equal(pixels, in_bytes(array))


def test_the_transparency_of_colour_is_a_fourth_channel_and_is_not_multiplied_in() -> None:
    array, grey = values(4), values(2)
    wide = values(4, "uint16")
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    options = DecodeOptions(channels=4)
    for data, expected in (
        (file.getvalue(), array),
        (png(wide), in_bytes(wide)),
        (as_tiff(array, photometric="rgb", extrasamples=["unassalpha"]), array),
        (as_tiff(array, photometric="rgb", extrasamples=["assocalpha"]), array),
        (as_tiff(array, photometric="rgb", extrasamples=["unspecified"]), array),
        (as_tiff(wide, photometric="rgb", extrasamples=["unspecified"]), in_bytes(wide)),
    ):
        assert np.array_equal(decode_bytes(data, options, path="x"), expected)
    file = io.BytesIO()
    Image.fromarray(grey, "LA").save(file, "PNG")
    assert np.array_equal(decode_bytes(file.getvalue(), DecodeOptions(channels=2), path="x"), grey)
    deep = values(2, "uint16")
    assert np.array_equal(decode_bytes(png(deep), DecodeOptions(channels=2), path="x"), in_bytes(deep))


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_three_channels_of_a_tiff_that_calls_them_grey_are_colours(kind: str) -> None:
    """As GDAL writes them."""
    array = values(3, kind)
    shown = decode_bytes(as_tiff(array), DecodeOptions(channels=3), path="x.tif")
    assert (shown == decode_bytes(as_npy(array), DecodeOptions(channels=3), path="x.npy")).all()
    row = np.zeros(1, FACT_TYPE)
    facts_of_bytes(bytearray(as_tiff(array)), row, path="x.tif", max_pixels=10**6)
    assert row["channels"][0] == 3


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64", ">u2"])
def test_npy_files_hold_channels_last_or_first(kind: str) -> None:
    array = values(5, "uint16" if kind == ">u2" else kind)
    expected, options = in_bytes(array), DecodeOptions(channels=5)
    array = array.astype(kind)
    for stored in (array, np.moveaxis(array, -1, 0), np.asfortranarray(array)):
        assert np.array_equal(decode_bytes(as_npy(stored), options, path="x.npy"), expected)


def test_npy_files_of_one_and_three_channels_are_grey_and_colour() -> None:
    grey, colour = values(1), values(3)
    for stored in (grey[..., 0], grey, grey[None, ..., 0]):
        assert np.array_equal(decode_bytes(as_npy(stored), DecodeOptions(channels=1), path="x"), grey)
    assert np.array_equal(decode_bytes(as_npy(colour), DecodeOptions(channels=3), path="x"), colour)
    mask = grey[..., 0] > 127
    assert np.array_equal(decode_bytes(as_npy(mask), DecodeOptions(channels=1), path="x")[..., 0], mask * 255)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (as_npy(np.array([{"a": 1}], dtype=object)), "of object and shape"),
        (as_npy(np.zeros((2, 2, 2, 2))), r"shape \(2, 2, 2, 2\)"),
        (as_npy(np.zeros(SIZE, "complex64")), "of complex64"),
        (as_npy(np.zeros((0, 4))), r"shape \(0, 4\)"),
        (as_npy(values(5))[:-1], "its header says 3,600"),
        (as_npy(values(5)).replace(b"(24, 30, 5)", b"(9" + b"9" * 9 + b")"), "It is damaged|of uint8 and shape"),
        (b"\x93NUMPY\1\0" + bytes(60), "damaged or cut short"),
        (b"\x93NUMPY\3\0\x10\0\0\0" + b" " * 16, "version 3.0"),
    ],
)
def test_an_npy_file_that_is_no_image_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode_bytes(data, DecodeOptions(channels=1), path="x.npy")


def test_a_file_of_other_channels_is_refused_by_its_name() -> None:
    five, colour = as_tiff(values(5)), as_npy(values(3))
    for data, channels, reason in (
        (five, 3, "It has 5 channels that are no colours, and 3 are wanted"),
        (five, 1, "It has 5 channels that are no colours, and 1 are wanted"),
        (five, 4, "It has 5 channels, and 4 are wanted"),
        (colour, 5, "It has 3 channels, and 5 are wanted"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            decode_bytes(data, DecodeOptions(channels=channels), path="x.tif")


def write_tiles(root: Path, *, channels: int = 5, count: int = 12, suffix: str = "tif", kind: str = "uint16") -> Path:
    """Two classes, told apart by the last band alone."""
    for number in range(count):
        for name, level in (("bright", 3), ("dark", 1)):
            array = values(channels, kind, seed=number) // 8
            array[..., -1] = array[..., -1] // 8 + level * (np.iinfo(kind).max // 32)
            (root / name).mkdir(parents=True, exist_ok=True)
            data = as_tiff(array) if suffix == "tif" else as_npy(array)
            (root / name / f"{number}.{suffix}").write_bytes(data)
    return root


WORDS = (
    *TINY_RESNET10T,
    "schedule=probe",
    "input=multispectral",
    "logger=none",
    "report=false",
    "data.num_workers=0",
)


def test_a_scan_counts_channels_and_measures_the_range_of_bands(tmp_path: Path) -> None:
    root = write_tiles(tmp_path / "tiles", count=2)
    listing = list_folders(str(root))
    facts = cached_facts(listing.root, listing.paths)
    assert facts.table["channels"].tolist() == [5] * 4
    assert facts.bands().all()
    assert {MODES[mode] for mode in facts.table["mode"]} == {"bands;16"}
    arrays = [tifffile.imread(root / listing.paths[row]) for row in range(4)]
    assert facts.table["low"].tolist() == [array.min() for array in arrays]
    assert facts.table["high"].tolist() == [array.max() for array in arrays]


def test_a_run_on_five_bands_learns_from_the_last_and_goes_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tiles(tmp_path / "tiles", count=20)
    words = [f"data.root={root}", "data=folder", *WORDS, "input.channels=5", f"run_dir={tmp_path / 'run'}"]
    results = train(compose(words)).results
    assert results.test.acc == 1.0
    assert "channels: bands of 16 bits 40" in capsys.readouterr().out
    table = tmp_path / "predictions.csv"
    assert main(["predict", str(tmp_path / "run"), str(root), "--output", str(table)]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [Path(row["path"]).parent.name for row in rows]
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), "--format", "onnx"]) == 0
    exported = str(tmp_path / "run" / "exports" / "model.onnx")
    assert main(["predict", exported, str(root), "--output", str(tmp_path / "exported.csv")]) == 0
    with (tmp_path / "exported.csv").open() as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == [row["predicted"] for row in rows]
    assert main(["embed", str(tmp_path / "run"), "--output", str(tmp_path / "emb.npz")]) == 0
    # another kind of file is refused for each image, by name
    Image.fromarray(values(3)).save(tmp_path / "photo.png")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "photo.png"), "--output", str(table)]) != 0
    assert "It has 3 channels, and 5 are wanted" in table.read_text()


def test_bands_are_shown_by_their_first_three(tmp_path: Path) -> None:
    root = write_tiles(tmp_path / "tiles", count=20)
    # a copy of another size, which the audit compares by its pixels
    array = tifffile.imread(root / "bright" / "0.tif")
    (root / "dark" / "copy.tif").write_bytes(as_tiff(array.repeat(2, axis=0).repeat(2, axis=1)))
    given = [*WORDS, "report=true", "input.channels=5"]
    assert main([str(root), *given, f"run_dir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert main(
        ["audit", str(root), "input=multispectral", "input.channels=5", "--output", str(tmp_path / "audit")]
    ) in (0, 1)
    finetune.top_losses(tmp_path / "run")
    finetune.show_batch(root, channels=5, size=32)
    decoded = decode_to_show(str(root / "bright" / "0.tif"), DecodeOptions())
    assert decoded.shape == (*SIZE, 5)


def test_many_channels_count_against_the_limit_of_pixels() -> None:
    data = as_tiff(np.zeros((100, 100, 400), np.uint8), compression="zlib")
    with pytest.raises(UnreadableImage, match="100 x 100 pixels of 400 channels, more than data"):
        decode_bytes(data, DecodeOptions(channels=400, max_pixels=20_000), path="x.tif")


def test_a_table_names_npy_files(tmp_path: Path) -> None:
    root = write_tiles(tmp_path / "tiles", channels=4, suffix="npy", kind="uint8")
    lines = ["path,label", *(f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.npy")))]
    (root / "tiles.csv").write_text("\n".join(lines) + "\n")
    words = [
        f"data.path={root / 'tiles.csv'}",
        "data=manifest",
        *WORDS,
        "input.channels=4",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert train(compose(words)).results.test.acc == 1.0


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ("auto", r"input\.channels=auto: 24 of 24 images have other channels\. .*\.tif has 5 that are no colours\. "
                 r"Use input=multispectral input\.channels=5\."),
        ("3", r"input\.channels=3: 24 of 24 images"),
        ("4", r"input\.channels=4: 24 of 24 images have other channels\. .* has 5\. Files are read as they are stored"),
    ],
)  # fmt: skip
def test_other_channels_than_the_configuration_says_are_told_before_anything_trains(
    tmp_path: Path, channels: str, message: str
) -> None:
    root = write_tiles(tmp_path / "tiles")
    adapt = ["input.adapt=tile"] if channels == "4" else []
    words = [f"data.root={root}", "data=folder", *TINY_RESNET10T, f"input.channels={channels}", *adapt]
    with pytest.raises(UserError, match=message):
        train(compose([*words, f"run_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_one_file_of_other_channels_among_many_is_named(tmp_path: Path) -> None:
    root = write_tiles(tmp_path / "tiles")
    (root / "dark" / "3.tif").write_bytes(as_tiff(values(3), photometric="rgb"))
    words = [f"data.root={root}", "data=folder", *WORDS, "input.channels=5", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"1 of 24 images have other channels\. .*dark/3\.tif has 3"):
        train(compose(words))


def test_a_range_of_a_file_is_read_with_the_scale_of_the_data(tmp_path: Path) -> None:
    """Reflectance of 12 bits in 16: all files share the range that the data set uses."""
    array = (values(5, "uint16") // 16).astype(np.uint16)
    (tmp_path / "x.tif").write_bytes(as_tiff(array))
    options = DecodeOptions(channels=5, integer_range=(0.0, 4095.0))
    expected = np.floor(array.astype(np.float64) * 255 / 4095 + 0.5).astype(np.uint8)
    assert np.array_equal(decode_file(str(tmp_path / "x.tif"), options), expected)
