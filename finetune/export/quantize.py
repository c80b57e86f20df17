"""ONNX with eight-bit weights and activations: static, calibrated on images, one scale per channel of the weights."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.decode import DecodeOptions, decode_file
from finetune.data.image_file import UnreadableImage
from finetune.export.export_metadata import KEY, as_text
from finetune.export.onnx import INPUT, OUTPUT, UNKNOWN_OUTPUT

# convolutions and matrix products gain from eight bits; the resize already computes in whole numbers
QUANTISED = ["Conv", "Gemm", "MatMul"]
CALIBRATION_IMAGES = 128


def quantise_onnx(
    source: Path,
    target: Path,
    *,
    files: Sequence[str],
    layout: str,
    decode_options: DecodeOptions,
) -> None:
    """Write an int8 version of an fp32 ONNX file that we exported.

    Args:
        source: fp32 ONNX file.
        target: File to write.
        files: Images that determine the ranges of the activations.
        layout: ``nhwc`` or ``nchw``, layout of the model's input.
        decode_options: How the run decodes files.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends preparations that the exporter has already made
    try:
        quantize_static(
            str(source),
            str(target),
            _Images(files, layout=layout, decode_options=decode_options),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=nodes_of_score(onnx.load(str(source)).graph),
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


def nodes_of_score(graph: Any) -> list[str]:
    """Return the names of the nodes that serve the score of unknown images alone, which needs more than eight bits."""
    makers = {name: node for node in graph.node for name in node.output}

    def behind(output: str) -> set[str]:
        found, waiting = set(), [output]
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                waiting.extend(node.input)
        return found

    outputs = [output.name for output in graph.output]
    return sorted(behind(UNKNOWN_OUTPUT) - behind(OUTPUT)) if UNKNOWN_OUTPUT in outputs else []


class _Images:
    """Raw pixels of image files, one at a time, as ONNX Runtime's calibration expects them."""

    def __init__(self, files: Sequence[str], *, layout: str, decode_options: DecodeOptions) -> None:
        self.images = self._read(files[:CALIBRATION_IMAGES], layout, decode_options)

    @staticmethod
    def _read(
        files: Sequence[str], layout: str, decode_options: DecodeOptions
    ) -> Iterator[dict[str, npt.NDArray[np.uint8]]]:
        for file in files:
            try:
                image_HWC = decode_file(file, decode_options)
            except UnreadableImage:
                continue
            image = image_HWC.transpose(2, 0, 1) if layout == "nchw" else image_HWC
            yield {INPUT: np.ascontiguousarray(image)[None]}

    def get_next(self) -> dict[str, Any] | None:
        """Return the next image, or None after the last."""
        return next(self.images, None)
