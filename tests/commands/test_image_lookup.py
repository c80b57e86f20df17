"""The images behind embeddings can be shown again, even if they are not files."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.commands.image_lookup import ImageLookup
from finetune.config.schema import DataConfig
from finetune.data.decode import decode_image
from finetune.data.sources.digits import digits_source


def test_files_are_read_by_their_path_and_samples_in_memory_by_their_name(pets: Path) -> None:
    metadata = {"data": {"seed": 3, "data": asdict(DataConfig(source="digits"))}, "reading": {"high_depth": "full"}}
    pictures = ImageLookup(metadata)
    path = str(pets / "1 cat/1.png")
    image = pictures(path)
    assert image is not None
    assert torch.equal(image, decode_image(path, channels=3))
    digit = pictures("digits/0123")
    assert digit is not None
    assert torch.equal(digit, digits_source().read(123))
    assert pictures("digits/9999") is None
    assert pictures("/no/such/file.png") is None


@pytest.mark.parametrize(
    "recorded",
    [
        {"seed": 0, "data": {"source": "digits", "colour": "red"}},
        {"seed": 0, "data": {"source": "folder", "root": "${oc.env:HOME}"}},
        {"seed": 0, "data": {"source": 7, "root": ["x"], "label_columns": 3}},
        {"seed": 0, "data": ["digits"]},
        {"seed": [0], "data": {"source": "digits"}},
    ],
)
def test_what_cannot_be_had_is_said_once(recorded: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    pictures = ImageLookup({"data": recorded})
    assert pictures("digits/0001") is None
    assert pictures("digits/0002") is None
    assert capsys.readouterr().out.count("the data set that was embedded cannot be opened") == 1
