import io
import os
import pickle
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from finetune.data import color, decode
from finetune.data.decode import DecodeOptions, decode_bytes, decode_file, decode_image, to_tensor
from finetune.data.image_file import UnreadableImage
from tests.data.deep_tiffs import damaged_tiffs, deep_tiffs
from tests.data.odd_images import odd_images, picture, saved, stored_for
from tests.data.raw_formats import exif, icc_profile, png, tiff

# Pillow remarks on damaged metadata by UserWarnings; decode.py silences them, but pytest resets the filters
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CORPUS = [*odd_images(), *deep_tiffs(), *damaged_tiffs()]
READABLE = [file for file in CORPUS if file.expected is not None]
UNREADABLE = [file for file in CORPUS if file.expected is None]


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return str(path)


def bind(path):
    with socket.socket(socket.AF_UNIX) as made:
        # the path of a socket may have a hundred letters only
        made.bind(os.path.relpath(path))


def sparse(path, start, size=100 * 2**30):
    path.write_bytes(start)
    os.truncate(path, size)


def photo(width, height):
    y, x = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(x / 37 + c) + 50 * np.cos(y / 23 * (c + 1)) for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def assert_close(found, expected, tolerance):
    difference = np.abs(found.astype(np.float64) - expected)
    assert difference.mean() <= tolerance
    assert difference.max() <= 10 * tolerance


def test_the_corpus_is_as_large_as_promised():
    assert len(READABLE) >= 60
    assert len({file.name for file in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("file", READABLE, ids=lambda file: file.name)
def test_an_odd_file_gives_the_colours_a_person_sees(tmp_path, file):
    image = decode_image(write(tmp_path, file.name, file.data), channels=3)
    assert image.dtype == torch.uint8
    assert_close(image.permute(1, 2, 0).numpy(), file.expected, file.tolerance)


@pytest.mark.parametrize("file", READABLE, ids=lambda file: file.name)
def test_an_odd_file_gives_the_luma_of_its_colours(tmp_path, file):
    image = decode_image(write(tmp_path, file.name, file.data), channels=1)
    luma = file.expected @ np.array([0.299, 0.587, 0.114])
    # up to half a level is rounding; halved colours and alpha are rounded once more on the way
    assert_close(image[0].numpy(), luma, file.tolerance + 0.7)
    assert image.shape == (1, *file.expected.shape[:2])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("file", UNREADABLE, ids=lambda file: file.name)
def test_a_file_that_is_no_image_is_refused_by_path_and_reason(tmp_path, file, channels):
    path = write(tmp_path, file.name, file.data)
    with pytest.raises(UnreadableImage) as caught:
        decode_image(path, channels=channels)
    assert path in str(caught.value)
    assert file.reason in caught.value.reason
    assert caught.value.reason.endswith(".")
    with pytest.raises(UnreadableImage) as again:
        decode_bytes(file.data, DecodeOptions(channels=channels), path=path)
    assert again.value.reason == caught.value.reason


@pytest.mark.parametrize("min_side", [None, 12])
def test_a_damaged_file_is_refused_also_where_it_is_decoded_smaller(min_side):
    damaged = [file for file in UNREADABLE if file.name.startswith("jpeg")]
    assert len(damaged) > 20
    for file in damaged:
        with pytest.raises(UnreadableImage):
            decode_bytes(file.data, DecodeOptions(channels=1), path=file.name, min_side=min_side)


def test_without_tifffile_a_tiff_is_right_or_refused_with_the_way_to_read_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    reasons = []
    for file in deep_tiffs():
        try:
            pixels = decode_bytes(file.data, DecodeOptions(), path=file.name)
        except UnreadableImage as error:
            reasons.append(error.reason)
        else:
            assert_close(pixels, file.expected, file.tolerance)
    assert 0 < len(reasons) < len(deep_tiffs())
    assert all("pip install 'stagewise-finetune[tiff]'" in reason for reason in reasons)


def test_a_tiff_of_a_compression_that_pillow_lacks_needs_tifffile(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    data = tiff(np.zeros((4, 5, 3), np.uint8))
    none, other = (struct.pack("<HHIHH", 259, 3, 1, compression, 0) for compression in (1, 65000))
    assert data.count(none) == 1
    with pytest.raises(UnreadableImage, match=r"TIFF of a kind \(RGB, 3 x 8 bits\) that needs tifffile"):
        decode_bytes(data.replace(none, other), DecodeOptions(), path="x.tiff")


def test_a_tiff_that_needs_imagecodecs_says_so(tmp_path):
    names = ("tiff_12_packed.tif", "tiff_uint16_big_lzw_miniswhite.tif")
    for file in deep_tiffs():
        if file.name in names:
            write(tmp_path, file.name, file.data)
    code = f"""if True:
        import sys
        sys.modules["imagecodecs"] = None
        from finetune.data.decode import DecodeOptions, decode_file
        for name in {names}:
            try:
                decode_file(name, DecodeOptions())
            except ValueError as error:
                print(error)
    """
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(answer) == 2
    assert all("needs imagecodecs. Install it with: pip install 'stagewise-finetune[tiff]'" in line for line in answer)


@pytest.mark.parametrize(
    ("kind", "stored", "other", "words"),
    [
        ("JPEG", b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c", "a JPEG of 12 bits"),
        ("BMP", b"\x01\0\x08\0\0", b"\x01\0\x08\0\x05", "a BMP of the compression 5"),
    ],
)
def test_a_kind_that_is_not_supported_is_not_called_damaged(kind, stored, other, words):
    data = saved(picture()[..., 0], kind)
    assert data.count(stored) == 1
    with pytest.raises(UnreadableImage, match=rf"It is {words}, which is not supported\. Convert it to PNG or JPEG"):
        decode_bytes(data.replace(stored, other), DecodeOptions(), path="x")


def test_without_pillow_heif_the_way_to_read_heic_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    file = next(file for file in READABLE if file.name == "heic.heic")
    with pytest.raises(UnreadableImage, match=r"pip install 'stagewise-finetune\[heif\]'.* or convert the file"):
        decode_bytes(file.data, DecodeOptions(), path=file.name)


def test_no_cut_of_a_file_crashes_and_no_cut_is_silent(tmp_path):
    whole = {kind: saved(photo(48, 40), kind) for kind in ("JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF")}
    for kind, data in whole.items():
        for cut in range(0, len(data) - 24, max(1, len(data) // 40)):
            path = write(tmp_path, f"{kind}_{cut}", data[:cut])
            with pytest.raises(UnreadableImage):
                decode_image(path, channels=3)


def test_flipped_bytes_never_raise_anything_but_unreadable_image(tmp_path):
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF"):
        data = np.frombuffer(saved(photo(48, 40), kind), np.uint8)
        for attempt in range(40):
            damaged = data.copy()
            places = generator.integers(0, min(len(data), 600), 3)
            damaged[places] = generator.integers(0, 256, 3)
            try:
                image = decode_image(write(tmp_path, f"{kind}_{attempt}", damaged.tobytes()), channels=3)
            except UnreadableImage:
                continue
            assert image.shape[0] == 3


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "There is no such file."),
        (lambda path: path.mkdir(), "It is not a regular file."),
        (lambda path: path.symlink_to("nowhere"), "There is no such file."),
        (lambda path: os.mkfifo(path), "It is not a regular file."),
        (lambda path: path.symlink_to("/dev/zero"), "It is not a regular file."),
        (lambda path: bind(path), "It is not a regular file."),
        (lambda path: sparse(path, b"\xff\xd8\xff"), r"It has 102,400 MiB, more than the 528 MiB"),
        (lambda path: sparse(path, b"", size=2**29), "It holds nothing but zero bytes"),
    ],
    ids=["missing", "folder", "broken link", "pipe", "device", "socket", "sparse", "sparse zeros"],
)
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, make, reason):
    path = tmp_path / "x.jpg"
    monkeypatch.chdir(tmp_path)
    make(path)
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(str(path), channels=3)


def test_the_limit_of_pixels_can_be_lowered_and_raised(tmp_path):
    path = write(tmp_path, "x.png", png(picture()))
    with pytest.raises(UnreadableImage, match=r"40 x 24 pixels, more than data.max_pixels=959"):
        decode_file(path, DecodeOptions(max_pixels=959))
    assert decode_file(path, DecodeOptions(max_pixels=960)).shape == (24, 40, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_orientations_agree_with_pillow(tmp_path, orientation, kind):
    options = {"lossless": True} if kind == "WebP" else {"quality": 95}
    data = saved(stored_for(picture(), orientation), kind, exif=exif(orientation), **options)
    path = write(tmp_path, "x", data)
    with Image.open(path) as image:
        reference = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert_close(decode_image(path, channels=3).permute(1, 2, 0).numpy(), reference, 0.4)


@pytest.mark.parametrize("channels", [1, 3])
def test_without_torch_the_pixels_are_equal(monkeypatch, channels):
    files = {file.name: file.data for file in READABLE}
    files |= {f"{quality}.webp": saved(photo(200, 150), "WebP", quality=quality) for quality in (20, 90)}
    files |= {
        f"{orientation}.jpg": saved(stored_for(photo(90, 60), orientation), "JPEG", exif=exif(orientation))
        for orientation in range(1, 9)
    }
    options, taken = DecodeOptions(channels=channels), []
    with_torchvision = decode._decode_lossy_webp

    def counted(image, channels):
        pixels = with_torchvision(image, channels)
        taken.append(pixels is not None)
        return pixels

    for name, data in files.items():
        with monkeypatch.context() as patched:
            patched.setattr(decode, "_decode_lossy_webp", counted)
            with_torch = decode_bytes(data, options, path=name)
        with monkeypatch.context() as patched:
            patched.delitem(sys.modules, "torch")
            assert np.array_equal(decode_bytes(data, options, path=name), with_torch), name
    assert sum(taken) == (3 if channels == 3 else 0)


@pytest.mark.parametrize("min_side", [None, 20, 10])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_has_the_pixels_that_pillow_gives(mode, min_side):
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            for size in ((200, 150), (37, 53)):
                image = Image.fromarray(photo(*size)).convert(mode)
                data = saved(image, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
                reference = Image.open(io.BytesIO(data))
                ours = decode_bytes(data, DecodeOptions(), path="", min_side=min_side)
                scale = round(size[0] / ours.shape[1])
                reference.draft(mode, (size[0] // scale, size[1] // scale))
                assert np.array_equal(ours, np.asarray(reference.convert("RGB")))


def test_pixels_of_every_layout_become_a_tensor_of_the_same_memory():
    for pixels in (np.zeros((4, 5, 1), np.uint8), np.zeros((4, 5, 3), np.uint8)):
        tensor = to_tensor(pixels)
        pixels[1, 2] = 7
        assert tensor.shape == (pixels.shape[2], 4, 5)
        assert tensor[:, 1, 2].tolist() == [7] * pixels.shape[2]


def test_a_jpeg_with_a_whole_thumbnail_is_refused_where_its_own_rest_is_zeros():
    thumbnail = saved(picture(), "JPEG")
    data = saved(photo(200, 150), "JPEG", exif=exif(1) + thumbnail)
    assert data.count(b"\xff\xd9") == 2
    half = data[: len(data) // 2] + bytes(len(data) // 2)
    with pytest.raises(UnreadableImage, match="filled with zero bytes"):
        decode_bytes(half, DecodeOptions(), path="half.jpg")


def test_an_orientation_that_only_xmp_states_is_ignored_in_jpeg_as_by_viewers():
    described = Image.Exif()
    described[0x010E] = "a picture"
    for metadata in ({}, {"exif": described.tobytes()}):
        data = saved(picture(), "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="6"/>', **metadata)
        assert decode_bytes(data, DecodeOptions(), path="").shape == (24, 40, 3)
    turned = saved(picture(), "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="3"/>', exif=exif(6))
    assert decode_bytes(turned, DecodeOptions(), path="").shape == (40, 24, 3)


def test_a_profile_longer_than_a_segment_is_applied(tmp_path):
    profile = icc_profile("RGB ", gamma=1)
    long = profile + np.random.default_rng(0).bytes(150_000)
    short, cut = (saved(picture(), "JPEG", icc_profile=one) for one in (profile, long))
    plain = decode_bytes(saved(picture(), "JPEG"), DecodeOptions(), path="")
    converted = decode_bytes(short, DecodeOptions(), path="")
    assert not np.array_equal(converted, plain)
    assert np.array_equal(decode_bytes(cut, DecodeOptions(), path=""), converted)


@pytest.mark.parametrize(
    ("min_side", "expected"),
    [
        (None, (384, 512)),
        (193, (384, 512)),
        (192, (192, 256)),
        (96, (96, 128)),
        (50, (96, 128)),
        (48, (48, 64)),
        (1, (48, 64)),
    ],
)
def test_a_large_jpeg_is_decoded_no_smaller_than_asked(tmp_path, min_side, expected):
    path = write(tmp_path, "x.jpg", saved(photo(512, 384), "JPEG", quality=90))
    assert decode_image(path, channels=3, min_side=min_side).shape[1:] == expected


@pytest.mark.parametrize("size", [(501, 377), (1023, 769), (33, 400)])
@pytest.mark.parametrize("min_side", [16, 30, 47, 90])
def test_scaled_decoding_of_uneven_sizes_keeps_the_shorter_side(tmp_path, size, min_side):
    path = write(tmp_path, "x.jpg", saved(photo(*size), "JPEG", quality=90))
    assert min(decode_image(path, channels=3, min_side=min_side).shape[1:]) >= min(min_side, min(size))


def test_scaled_decoding_shows_the_same_picture(tmp_path):
    pixels = photo(512, 384)
    path = write(tmp_path, "x.jpg", saved(pixels, "JPEG", quality=95, subsampling=0))
    blocks = pixels.reshape(96, 4, 128, 4, 3).mean(axis=(1, 3))
    assert_close(decode_image(path, channels=3, min_side=96).permute(1, 2, 0).numpy(), blocks, 1.0)


def test_scaled_decoding_turns_the_picture_too(tmp_path):
    pixels = photo(512, 384)
    path = write(tmp_path, "x.jpg", saved(stored_for(pixels, 6), "JPEG", quality=95, exif=exif(6)))
    blocks = pixels.reshape(96, 4, 128, 4, 3).mean(axis=(1, 3))
    assert_close(decode_image(path, channels=3, min_side=96).permute(1, 2, 0).numpy(), blocks, 1.5)


def test_stretching_spreads_the_few_levels_an_instrument_used(tmp_path):
    values = np.array([[[100], [150]], [[200], [300]]], np.uint16)
    path = write(tmp_path, "x.png", png(values))
    assert decode_image(path, channels=1).flatten().tolist() == [0, 1, 1, 1]
    stretched = decode_file(path, DecodeOptions(channels=1, high_depth="stretch"))
    assert stretched.flatten().tolist() == [0, 64, 128, 255]


def test_the_error_survives_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(UnreadableImage("a/b.jpg", "The file is empty.")))
    assert (error.path, error.reason) == ("a/b.jpg", "The file is empty.")
    assert str(error) == "a/b.jpg: cannot be read as an image. The file is empty."


def test_the_pixels_do_not_depend_on_the_tiles_they_are_converted_in(tmp_path, monkeypatch):
    for file in READABLE:
        path = write(tmp_path, file.name, file.data)
        for channels, depth in ((1, "full"), (3, "full"), (3, "stretch")):
            options = DecodeOptions(channels=channels, high_depth=depth)
            whole = decode_file(path, options)
            with monkeypatch.context() as tiny:
                tiny.setattr(color, "_TILE_PIXELS", 37)
                assert np.array_equal(decode_file(path, options), whole), file.name


def test_dark_numbers_of_16_bits_are_scaled_alike_in_either_byte_order(tmp_path):
    dark = np.arange(200, dtype=np.uint16).reshape(10, 20, 1)
    for order in "<>":
        path = write(tmp_path, "dark.tif", tiff(dark, photometric=1, byte_order=order))
        assert decode_image(path, channels=1).tolist() == [((dark[..., 0].astype(int) * 255 + 32767) // 65535).tolist()]


MEMORY = """
import sys
from pathlib import Path
from finetune.data.decode import DecodeOptions, decode_bytes, decode_file, decode_image, to_tensor
from finetune.data.transforms import eval_view, train_view
from finetune.input_spec import InputSpec

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

for path in sys.argv[1:]:
    for channels in (1, 3):
        for interpolation in ("nearest", "bilinear", "bicubic"):
            spec = InputSpec(size=(64, 64), channels=channels, interpolation=interpolation)
            for view in (eval_view(spec), train_view(spec, augment="standard")):
                Path("/proc/self/clear_refs").write_text("5")
                before = peak()
                view(decode_image(path, channels=channels, min_side=view.min_side))
                print(Path(path).name, channels, interpolation, peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads the peak of memory in /proc")
def test_a_view_of_any_aspect_takes_at_most_20_bytes_a_pixel(tmp_path):
    # 8 of them are Pillow's: a pointer to each row, and a row may be one pixel
    pixels, paths = 4_000_000, []
    for width in (1, 2, 40, 2000, 100_000, 2_000_000, 4_000_000):
        paths.append(tmp_path / f"{width}.png")
        Image.new("1", (width, pixels // width)).save(paths[-1])
    for name, mode in (("deep.png", "I;16"), ("float.tif", "F"), ("clear.png", "RGBA")):
        paths.append(tmp_path / name)
        Image.new(mode, (2000, 2000)).save(paths[-1])
    command = [sys.executable, "-c", MEMORY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = [line.split() for line in done.stdout.splitlines()]
    assert len(peaks) == 10 * 2 * 3 * 2
    # a tile of a million pixels and the file are beside it
    too_much = [peak for peak in peaks if int(peak[-1]) > 20 * pixels + 60_000_000]
    assert not too_much
