import io

import numpy as np
import pytest
from PIL import Image

from finetune.data.decode import DecodeOptions, decode_bytes, decode_file
from finetune.data.image_file import UnreadableImage
from finetune.data.sources.folder import folder_source
from finetune.errors import UserError
from tests.data.folders import write_folder

OPTIONS = DecodeOptions(channels=3)


def tiff(compression: str) -> bytes:
    """A picture with detail everywhere, so that no damage falls on flat areas."""
    ramp = np.add.outer(np.arange(120), 3 * np.arange(160)) % 256
    noise = np.random.default_rng(0).integers(0, 9, ramp.shape)
    image = Image.fromarray((ramp * 0.9 + noise).astype(np.uint8))
    file = io.BytesIO()
    (image.convert("1") if compression.startswith(("group", "tiff_ccitt")) else image).save(
        file, "TIFF", compression=compression
    )
    return file.getvalue()


# LZW raised before, without the reason
COMPRESSIONS = ["group4", "tiff_ccitt", "tiff_adobe_deflate", "tiff_deflate", "jpeg", "tiff_lzw"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tiff_that_libtiff_repairs_is_refused_with_the_reason_and_without_a_line_on_the_terminal(compression, capfd):
    whole = tiff(compression)
    assert decode_bytes(bytearray(whole), OPTIONS, path="whole.tif").std() > 10
    damaged = bytearray(whole)
    # random bytes in the middle of the coded pixels
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = np.random.default_rng(1).integers(0, 256, 64, np.uint8).tobytes()
    with pytest.raises(UnreadableImage, match=r"^cut\.tif: .*(libtiff|libjpeg) reports: \w|a strip is damaged: Error"):
        decode_bytes(damaged, OPTIONS, path="cut.tif")
    assert capfd.readouterr() == ("", "")


def test_zero_bytes_in_a_deflated_strip_are_noticed_by_its_checksum():
    damaged = bytearray(tiff("tiff_adobe_deflate"))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 64] = bytes(64)
    with pytest.raises(UnreadableImage, match="a strip is damaged"):
        decode_bytes(damaged, OPTIONS, path="x.tif")


def test_a_damaged_tiff_is_skipped_where_unreadable_files_are(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 5, "b": 5})
    damaged = bytearray(tiff("group4"))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 64] = b"\x55" * 64
    (root / "a" / "scan.tif").write_bytes(damaged)
    with pytest.raises(UserError, match=r"scan\.tif.*libtiff reports: Fax4Decode"):
        folder_source(root=str(root))
    assert folder_source(root=str(root), on_unreadable="skip").index.skipped[0][0].endswith("scan.tif")


def test_unknown_tags_are_no_damage(tmp_path):
    file = tmp_path / "tags.tif"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(
        file, compression="tiff_lzw", tiffinfo={34022: "private", 65000: 3}
    )
    assert decode_file(str(file), OPTIONS).shape == (8, 8, 3)
