"""Thumbnails of images with any number of channels."""

import base64
import io

import pytest
import torch
from PIL import Image

from finetune.report.thumbnails import thumbnail


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (5, "RGB")])
def test_of_many_channels_the_first_are_shown(channels: int, mode: str) -> None:
    address = thumbnail(torch.full((channels, 20, 10), 200, dtype=torch.uint8))
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert (picture.mode, picture.size) == (mode, (10, 20))
    assert abs(picture.convert("L").getpixel((5, 5)) - 200) <= 2
