import io
import sys

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
)

from finetune.data.decode import DecodeOptions, decode_bytes
from finetune.data.dicom import open_dicom
from finetune.data.image_file import UnreadableImage
from tests.data.odd_images import grey_picture, picture, saved


def dicom(values, *, photometric="MONOCHROME2", bits=None, syntax=ExplicitVRLittleEndian, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["test"])
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset("x.dcm", {}, file_meta=meta, preamble=bytes(128))
    dataset.Rows, dataset.Columns = values.shape[-2:] if photometric != "RGB" else values.shape[:2]
    dataset.SamplesPerPixel = 3 if photometric == "RGB" else 1
    if photometric == "RGB":
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return written(dataset)


def written(dataset):
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def compressed(frame, values, *, syntax, bits=None):
    """A file whose picture is one compressed frame."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(values, bits=bits)))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def shown(data):
    return decode_bytes(data, DecodeOptions(channels=1), path="x.dcm")[..., 0]


def test_numbers_without_a_window_are_scaled_by_the_bits_that_the_file_declares():
    grey = grey_picture()
    assert np.array_equal(shown(dicom(grey)), grey)
    twelve = grey.astype(np.uint16) * 16
    expected = np.floor(twelve.astype(float) * 255 / 4095 + 0.5)
    assert np.array_equal(shown(dicom(twelve, bits=12)), expected)
    assert np.array_equal(shown(dicom(twelve, bits=12, photometric="MONOCHROME1")), 255 - expected)


def test_a_window_is_applied_to_rescaled_numbers():
    hounsfield = grey_picture().astype(np.int16) * 10 - 1000
    data = dicom(
        hounsfield + 1024, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )  # a usual abdomen window
    # DICOM PS3.3 C.11.2.1.2.1
    expected = ((hounsfield - (40 - 0.5)) / (400 - 1) + 0.5).clip(0, 1) * 255
    assert np.abs(shown(data) - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    "empty",
    [
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowWidth": 400},
        {"VOILUTSequence": pydicom.Sequence()},
        {"ModalityLUTSequence": pydicom.Sequence()},
        {"VOILUTSequence": pydicom.Sequence([pydicom.Dataset()])},
    ],
    ids=["values", "no centre", "no table", "no modality table", "a table without values"],
)
def test_a_window_without_values_is_none(empty):
    twelve = grey_picture().astype(np.uint16) * 16
    assert open_dicom(dicom(twelve, bits=12, **empty), path="x.dcm").mode == "I;16"
    assert np.array_equal(shown(dicom(twelve, bits=12, **empty)), shown(dicom(twelve, bits=12)))


def test_a_window_is_applied_beside_tables_without_values():
    twelve = grey_picture().astype(np.uint16) * 16
    window = {"WindowCenter": 1000, "WindowWidth": 800}
    tables = {"VOILUTSequence": pydicom.Sequence(), "ModalityLUTSequence": pydicom.Sequence()}
    assert np.array_equal(shown(dicom(twelve, bits=12, **window, **tables)), shown(dicom(twelve, bits=12, **window)))


def test_colour_and_the_first_of_several_frames():
    data = dicom(picture(), photometric="RGB")
    assert np.array_equal(decode_bytes(data, DecodeOptions(), path="x.dcm"), picture())
    frames = np.stack([grey_picture(), 255 - grey_picture()])
    assert np.array_equal(shown(dicom(frames, NumberOfFrames=2)), grey_picture())


def test_what_holds_no_whole_picture_is_refused():
    whole = dicom(grey_picture())
    with pytest.raises(UnreadableImage, match="damaged or cut short"):
        shown(whole[:-200])
    with pytest.raises(UnreadableImage, match="claims 40 x 24 pixels"):
        decode_bytes(whole, DecodeOptions(max_pixels=10), path="x.dcm")


def test_without_pydicom_the_way_to_read_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadableImage, match=r"pip install 'stagewise-finetune\[dicom\]'"):
        shown(dicom(grey_picture()))


def test_a_deflated_file_is_read_unless_it_grows_beyond_bounds(monkeypatch):
    grey = grey_picture()
    assert np.array_equal(shown(dicom(grey, syntax=DeflatedExplicitVRLittleEndian)), grey)
    bomb = dicom(np.zeros((8192, 8193), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr(pydicom, "dcmread", lambda file: pytest.fail("it would be inflated whole"))
    with pytest.raises(UnreadableImage, match="deflated data set has more than 67,108,864 bytes"):
        open_dicom(bomb, path="x.dcm")


def test_a_compression_is_read_or_the_decoder_that_it_needs_is_named():
    grey = grey_picture()
    frame = saved(grey, "JPEG", quality=95)
    assert np.abs(shown(compressed(frame, grey, syntax=JPEGBaseline8Bit)).astype(int) - grey).max() <= 4
    needs = r"which needs another decoder\. Install it with: pip install pylibjpeg "
    for syntax in (JPEGLosslessSV1, JPEGLSLossless):
        assert not get_decoder(syntax).is_available, "no extra of ours installs one"
        with pytest.raises(UnreadableImage, match=rf"It is a DICOM file of the compression JPEG.*{needs}"):
            shown(compressed(frame, grey, syntax=syntax))
    with pytest.raises(UnreadableImage, match=rf"JPEG Extended.*, 12 bits, {needs}"):
        shown(compressed(frame, grey.astype(np.uint16) * 16, syntax=JPEGExtended12Bit, bits=12))
    with pytest.raises(UnreadableImage, match=r"the compression MPEG2 .* is not supported. Convert it to"):
        shown(compressed(frame, grey, syntax=MPEG2MPML))
