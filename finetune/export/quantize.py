"""ONNX with eight-bit weights and activations: static, calibrated on images, one scale a channel of the weights."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.decode import UnreadableImage, decode_image
from finetune.export.export_metadata import KEY, as_text
from finetune.export.onnx import INPUT

# what is worth eight bits: convolutions and matrix products. The resize is whole numbers already.
QUANTISED = ["Conv", "Gemm", "MatMul"]
CALIBRATION_IMAGES = 128


def quantise_onnx(
    source: Path,
    target: Path,
    *,
    files: Sequence[str],
    channels: int,
    layout: str,
    reading: Mapping[str, Any] | None = None,
) -> None:
    """Write an int8 version of an fp32 ONNX file of ours.

    Args:
        source: The fp32 file.
        target: The file to write.
        files: Images that the ranges of the activations are taken from.
        channels: Of the images.
        layout: ``nhwc`` or ``nchw``, of the model's input.
        reading: How the run reads files.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises preparations that the exporter has made already
    try:
        quantize_static(
            str(source),
            str(target),
            _Images(files, channels=channels, layout=layout, reading=reading or {}),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=QUANTISED,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    finally:
        root.setLevel(level)
    model = onnx.load(str(target))
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = as_text({**json.loads(entry.value), "precision": "int8"})
    onnx.save(model, str(target))


class _Images:
    """Raw pixels of image files, one after another, as ONNX Runtime's calibration asks for them."""

    def __init__(self, files: Sequence[str], *, channels: int, layout: str, reading: Mapping[str, Any]) -> None:
        self.images = self._read(files[:CALIBRATION_IMAGES], channels, layout, reading)

    @staticmethod
    def _read(
        files: Sequence[str], channels: int, layout: str, reading: Mapping[str, Any]
    ) -> Iterator[dict[str, npt.NDArray[np.uint8]]]:
        for file in files:
            try:
                image_CHW = decode_image(file, channels=channels, **reading).numpy()
            except UnreadableImage:
                continue
            image = image_CHW if layout == "nchw" else image_CHW.transpose(1, 2, 0)
            yield {INPUT: np.ascontiguousarray(image)[None]}

    def get_next(self) -> dict[str, Any] | None:
        """The next image, or None after the last."""
        return next(self.images, None)
