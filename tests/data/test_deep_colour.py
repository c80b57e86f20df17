import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from finetune.data.decode import DecodeOptions, decode_bytes
from finetune.data.sources.folder import folder_source
from tests.data.raw_formats import png, png_chunk, tiff

# twelve bits in sixteen, as cameras of microscopes write them
NUMBERS = np.random.default_rng(0).integers(0, 4096, (9, 14, 4)).astype(np.uint16)
TWELVE = DecodeOptions(channels=3, integer_range=(0, 4095))


def levels(numbers):
    return np.floor(numbers.astype(np.float64) * 255 / 4095 + 0.5).clip(0, 255)


def by_tifffile(**options):
    file = io.BytesIO()
    colours = NUMBERS[..., :3]
    apart = options.get("planarconfig") == "separate"
    tifffile.imwrite(file, np.moveaxis(colours, 2, 0) if apart else colours, photometric="rgb", **options)
    return file.getvalue()


FILES = {
    "png": png(NUMBERS[..., :3]),
    "png, interlaced": png(NUMBERS[..., :3], interlaced=True),
    "tiff": tiff(NUMBERS[..., :3]),
    "tiff, big-endian": tiff(NUMBERS[..., :3], byte_order=">"),
    "tiff, compressed": by_tifffile(compression="zlib"),
    "tiff, big-endian and compressed": by_tifffile(compression="zlib", byteorder=">", rowsperstrip=4),
    "tiff, separate planes": by_tifffile(planarconfig="separate"),
}


@pytest.mark.parametrize("name", FILES)
def test_all_bits_of_deep_colour_are_read_where_the_set_has_fewer_than_sixteen(name):
    read = decode_bytes(bytearray(FILES[name]), TWELVE, path=name)
    assert np.array_equal(read, levels(NUMBERS[..., :3]))


def test_deep_colour_is_laid_over_white_by_its_opacity():
    numbers = NUMBERS.copy()
    numbers[..., 3] = 65535
    numbers[:3, :, 3] = 0
    for samples in (numbers, numbers[..., [0, 3]]):
        read = decode_bytes(bytearray(png(samples)), TWELVE, path="x.png")
        assert (read[:3] == 255).all()
        assert np.array_equal(read[3:], np.broadcast_to(levels(samples[3:, :, :-1]), (6, 14, 3)))
    clear = NUMBERS[0, 0, :3].tolist()
    read = decode_bytes(
        bytearray(png(NUMBERS[..., :3], png_chunk(b"tRNS", struct.pack(">HHH", *clear)))), TWELVE, path=""
    )
    assert (read[0, 0] == 255).all()
    assert np.array_equal(read[1:], levels(NUMBERS[1:, :, :3]))


@pytest.mark.parametrize("orientation", [3, 6])
def test_deep_colour_is_turned_upright_once(orientation):
    turned = np.rot90(levels(NUMBERS[..., :3]), {3: 2, 6: 3}[orientation])
    read = decode_bytes(bytearray(tiff(NUMBERS[..., :3], orientation=orientation)), TWELVE, path="x.tif")
    assert np.array_equal(read, turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    behind = png(NUMBERS[..., :3])[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + png_chunk(b"IEND", b"")
    assert np.array_equal(decode_bytes(bytearray(behind), TWELVE, path="x.png"), turned)


def test_the_range_of_a_set_of_deep_colour_is_measured_and_all_of_its_levels_are_used(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number, suffix in enumerate(("png", "tif", "png", "tif")):
            samples = np.random.default_rng([ord(name), number]).integers(0, 4000, (40, 40, 3)).astype(np.uint16)
            (tmp_path / name / f"{number}.{suffix}").write_bytes((png if suffix == "png" else tiff)(samples))
    source = folder_source(root=str(tmp_path))
    assert source.decode_options.integer_range == (0, 4095)
    assert len(np.unique(source.read(0))) > 200
    assert "4095 white (12 bits), measured over the data set" in " ".join(source.index.notes)


def test_sets_that_use_all_bits_are_read_as_before():
    whole = NUMBERS * 16
    plain = np.asarray(Image.open(io.BytesIO(png(whole[..., :3]))))
    for given in (None, (0, 65535)):
        options = DecodeOptions(channels=3, integer_range=given)
        assert np.array_equal(decode_bytes(bytearray(png(whole[..., :3])), options, path=""), plain)


def test_only_the_transparent_colour_itself_becomes_white_where_a_set_uses_all_bits():
    samples = np.array([[[0, 0, 0], [255, 255, 255], [0, 0, 1], [40000, 300, 9]]], np.uint16)
    plain = np.asarray(Image.open(io.BytesIO(png(samples))))
    clear = bytearray(png(samples, png_chunk(b"tRNS", struct.pack(">HHH", 0, 0, 0))))
    read = decode_bytes(clear, DecodeOptions(channels=3), path="x.png")
    assert (read[0, 0] == 255).all()
    assert np.abs(read[0, 1:].astype(int) - plain[0, 1:]).max() <= 1
    grey = decode_bytes(clear, DecodeOptions(channels=1), path="x.png")
    assert grey[0, 0, 0] == 255
    assert grey[0, 1:3].max() <= 1
