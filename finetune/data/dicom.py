"""Read DICOM files with pydicom, which the extra ``dicom`` installs: the first frame, as a viewer shows it.

The rescale slope or modality table is applied, then the first window in the file (PS3.3, C.7.6.3 and C.11.2); a file without a
window keeps its values, which are scaled like those of other files of high bit depth. MONOCHROME1 is shown with its smallest
value white. No text of the file is read: names and dates of patients are not used.
"""

import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.array_image import ArrayImage, Samples
from finetune.data.image_file import UnreadableImage

# bytes, and times its own size, that a file may inflate to; pydicom has no limit, and a megabyte can hold a gigabyte of zeros
_MOST_INFLATED, _MOST_INFLATION = 2**26, 40


def open_dicom(data: bytes | bytearray, *, path: str) -> ArrayImage:
    """Read the header of a DICOM file.

    Raises:
        UnreadableImage: pydicom or a decoder that it needs is not installed, the file does not hold a picture, or it inflates
            to many times its size.
    """
    try:
        import pydicom
    except ImportError:
        raise UnreadableImage(
            path,
            "It is a DICOM file. Install pydicom with: pip install 'stagewise-finetune[dicom]', or convert the file to PNG.",
        ) from None
    _check_inflation(data, path)
    dataset = pydicom.dcmread(BytesIO(data))
    if "PixelData" not in dataset or "Rows" not in dataset:
        raise UnreadableImage(path, "It is a DICOM file without a picture.")
    _check_decoder(dataset, path)
    number, shown = int(dataset.SamplesPerPixel), str(dataset.PhotometricInterpretation)
    shallow = _has_window(dataset) or int(dataset.BitsStored) <= 8
    return ArrayImage(
        width=int(dataset.Columns),
        height=int(dataset.Rows),
        mode="RGB" if number == 3 or shown == "PALETTE COLOR" else "L" if shallow else "I;16",
        format="DICOM",
        load=lambda: _samples(dataset, number, shown),
        channels=3 if shown == "PALETTE COLOR" else number,
        is_animated=int(dataset.get("NumberOfFrames") or 1) > 1,
    )


def _check_decoder(dataset: Any, path: str) -> None:
    """Refuse a file of a compression that pydicom cannot decode with the libraries that are installed.

    Raises:
        UnreadableImage: It is of one.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        return  # the decoder reports it
    what = f"It is a DICOM file of the compression {syntax.name}"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableImage(
            path, f"{what}, which is not supported. Convert it to an uncompressed DICOM file, or to PNG."
        ) from None
    # Pillow reads this compression at 8 bits only
    eight_bits_only = (
        syntax == JPEGExtended12Bit and int(dataset.BitsStored) > 8 and decoder.available_plugins == ("pillow",)
    )
    if eight_bits_only or not decoder.is_available:
        raise UnreadableImage(
            path,
            f"{what}{f', {dataset.BitsStored} bits' * eight_bits_only}, which needs another decoder. Install it with: "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or convert the file to an uncompressed DICOM file.",
        )


def _check_inflation(data: bytes | bytearray, path: str) -> None:
    """Refuse a file whose data set, if that is deflated (PS3.5, A.5), is many times as large as the file.

    Raises:
        UnreadableImage: It is.
    """
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = BytesIO(data)
    read_preamble(file, force=False)
    meta = read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag.group != 2
    )
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    most = max(_MOST_INFLATED, _MOST_INFLATION * len(data))
    if len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), most + 1)) > most:
        raise UnreadableImage(path, f"Its deflated data set has more than {most:,} bytes, the file {len(data):,}.")


def _has_table(dataset: Any) -> bool:
    """Tell whether pydicom applies a table of the file; one whose elements are there without values is none."""
    table = (dataset.get("VOILUTSequence") or [{}])[0]
    return None not in (table.get("LUTDescriptor"), table.get("LUTData"))


def _has_window(dataset: Any) -> bool:
    """Tell whether pydicom applies a table or a window of the file."""
    return _has_table(dataset) or None not in (dataset.get("WindowCenter"), dataset.get("WindowWidth"))


def _samples(dataset: Any, number: int, shown: str) -> Samples:
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    values: npt.NDArray[Any] = pixel_array(dataset, index=0)
    bits = int(dataset.BitsStored)
    if shown == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        return Samples(values_HWS=values, space="rgb", bits=8 * values.dtype.itemsize)
    if number == 3:
        return Samples(values_HWS=values, space="rgb", bits=bits)
    numbers = apply_modality_lut(values, dataset)
    if _has_window(dataset):
        numbers, bits = _window(np.asarray(apply_voi_lut(numbers, dataset, index=0), np.float64), dataset), 8
    elif numbers.dtype.kind == "f" and (numbers == np.rint(numbers)).all():
        numbers = numbers.astype(np.int32)  # a rescale slope of 1 has turned whole numbers into floating point
    kept = numbers if numbers.dtype.kind != "f" else numbers.astype(np.float32)
    return Samples(
        values_HWS=kept[..., None],
        space="grey",
        bits=bits if kept.dtype.kind == "u" else 0,
        white_is_zero=shown == "MONOCHROME1",
    )


def _window(numbers: npt.NDArray[np.float64], dataset: Any) -> npt.NDArray[np.uint8]:
    """Scale the output of a window, which spans the range of the stored or rescaled values, to 0..255."""
    if _has_table(dataset):
        table = dataset.VOILUTSequence[0].LUTDescriptor
        low, high = 0.0, 2.0 ** int(table[2]) - 1
    else:
        signed, bits = int(dataset.PixelRepresentation) == 1, int(dataset.BitsStored)
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
        if dataset.get("ModalityLUTSequence"):
            low, high = 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
        elif None not in (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")):
            slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
            low, high = low * slope + intercept, high * slope + intercept
    return np.floor(((numbers - low) * (255 / (high - low))).clip(0, 255) + 0.5).astype(np.uint8)
