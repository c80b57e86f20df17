import numpy as np
import pytest
from PIL import Image

from finetune.data.jpeg_header import read_jpeg_header
from tests.data.odd_images import picture, saved
from tests.data.raw_formats import exif, icc_profile


def header(data):
    return read_jpeg_header(bytearray(data))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_the_header_agrees_with_pillow(mode, progressive):
    data = saved(Image.fromarray(picture()).convert(mode), "JPEG", progressive=progressive)
    found = header(data)
    assert (found.width, found.height, found.precision) == (40, 24, 8)
    assert found.components == {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    assert found.complete


def test_profiles_longer_than_a_segment_are_put_together():
    profile = icc_profile("RGB ", gamma=1) + np.random.default_rng(0).bytes(150_000)
    assert header(saved(picture(), "JPEG", icc_profile=profile)).icc == profile


def test_exif_is_handed_on_as_pillow_reads_it():
    assert header(saved(picture(), "JPEG", exif=exif(6))).exif == exif(6)


def test_an_end_marker_inside_a_thumbnail_does_not_make_a_cut_file_complete():
    thumbnail = saved(picture(), "JPEG")
    data = saved(picture(), "JPEG", exif=exif(1) + thumbnail)
    assert header(data).complete
    assert not header(data[:-2]).complete


def test_no_prefix_of_a_file_is_taken_for_a_header_or_raises():
    data = saved(picture(), "JPEG")
    first_scan = data.index(b"\xff\xda")
    assert all(header(data[:cut]) is None for cut in range(3, first_scan))
