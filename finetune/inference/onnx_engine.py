"""Prediction with an exported ONNX file, without PyTorch."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.confidence.conformal import ConformalCurve, read_conformal
from finetune.confidence.selective import RiskCoverage, read_curve
from finetune.confidence.thresholds import threshold_problems
from finetune.data.decode import DecodeOptions, decode_bytes, decode_file
from finetune.data.evaluation_pixels import evaluation_pixels, resize_target, sharp_side
from finetune.errors import UserError, first_line, shortened
from finetune.file_schema import THRESHOLD
from finetune.inference.answers import Answers
from finetune.inference.onnx_operators import LOOPS, operators
from finetune.input_spec import MOST_CHANNELS, InputSpec
from finetune.memory_limit import memory_limit
from finetune.plain import Json
from finetune.safe_files import parse_json, read_bytes

FORMAT = 1
# bytes: size limit of a protobuf file
LARGEST_FILE = 2**31 - 1
# bytes that opening a file and its first image may take: a part for any network, a multiple of the file for its weights,
# and a part for activations. ResNet-152 at 224 pixels takes 606 MiB, 2.7 times its file; ResNet-18 at 32 pixels 4 times.
_MEMORY = 512 * 2**20
_MEMORY_PER_BYTE = 6
_MEMORY_PER_PIXEL = 8_192
# none, or the score of unknown images
_FURTHER_OUTPUTS: tuple[list[tuple[str, str]], ...] = ([], [("unknown_score", "tensor(float)")])


class OnnxEngine:
    """An ONNX file written by ``finetune export --format onnx``, ready to classify.

    Args:
        path: ONNX file.

    Raises:
        UserError: The file is missing, is not an ONNX model, was not written by finetune, or has a newer format.
    """

    selective: RiskCoverage | None = None
    conformal: ConformalCurve | None = None

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError(
                "--runtime onnx: needs onnxruntime. Install with: pip install 'stagewise-finetune[onnx]'"
            ) from None
        if not os.path.lexists(path):
            raise UserError(f"RUN='{path}': no such file. Make one with: finetune export RUN --format onnx")
        content = read_bytes(path, name=f"RUN='{path}'", largest=LARGEST_FILE)
        try:
            repeats = sorted(operators(content) & LOOPS)
        except ValueError as error:
            raise UserError(f"RUN='{path}': cannot be opened as an ONNX model: {error}.") from None
        if repeats:
            raise UserError(
                f"RUN='{path}': not an ONNX file of finetune. It holds {', '.join(repeats)}, which no export has and "
                "which could run forever. Make one with: finetune export RUN --format onnx"
            )
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        memory = _MEMORY + _MEMORY_PER_BYTE * len(content)
        try:
            # loaded from memory: our models are single files, and references to external tensor files cannot be resolved
            with memory_limit(memory):
                self.session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen of its own exception classes
            first = first_line(error)
            raise UserError(f"RUN='{path}': cannot be opened as an ONNX model. {first}") from None
        described = self._described(path)
        self.classes = tuple(described["classes"])
        self.multi_label: bool = described.get("multi_label", False)
        self.thresholds = tuple(described.get("thresholds", [THRESHOLD] * len(self.classes)))
        self.tells_unknown = len(self.session.get_outputs()) > 1
        if described.get("selective") is not None:
            self.selective = read_curve(described["selective"])
        if described.get("conformal") is not None:
            self.conformal = read_conformal(described["conformal"])
        self._path = path
        self.layout, self.channels = described["pixels"]["layout"], described["input"]["channels"]
        self.spec = InputSpec.from_dict(described["input"])
        self.min_side = sharp_side(self.spec)
        # older files lack this entry; they are read with the defaults
        recorded = described.get("reading", {})
        self.options = DecodeOptions(channels=self.channels, **recorded)
        digest = hashlib.sha256(content).hexdigest()
        self.identity: dict[str, Json] = {"runtime": "onnx", "model": digest, "classes": list(self.classes)}
        if self.multi_label:
            self.identity |= {"multi_label": True, "thresholds": list(self.thresholds)}
        self.identity |= recorded
        # a graph of a few bytes can ask for any amount of memory; it shows at the first image
        height, width = resize_target(self.spec)
        with memory_limit(memory + _MEMORY_PER_PIXEL * height * width):
            self.classify([self.prepare(np.zeros((height, width, self.channels), np.uint8))])

    def _described(self, path: Path) -> dict[str, Any]:
        text = self.session.get_modelmeta().custom_metadata_map.get("finetune")
        inputs = [(tensor.name, tensor.type) for tensor in self.session.get_inputs()]
        if text is None or inputs != [("images", "tensor(uint8)")]:
            raise UserError(
                f"RUN='{path}': not an ONNX file of finetune. Its inputs: {shortened([name for name, _ in inputs])}. "
                "Make one with: finetune export RUN --format onnx"
            )
        described = parse_json(text, dict, name=f"RUN='{path}'", remedy="Export it again.")
        version = described.get("format")
        whole = isinstance(version, (int, float))
        if isinstance(version, (int, float)) and version > FORMAT:
            raise UserError(f"RUN='{path}': format {version} is newer than this program reads ({FORMAT}). Upgrade.")
        try:
            classes, channels = described["classes"], described["input"]["channels"]
            whole = (
                whole
                and all(isinstance(name, str) for name in classes)
                and type(channels) is int
                and 0 < channels <= MOST_CHANNELS
            )
            whole = whole and described["pixels"]["layout"] in ("nhwc", "nchw")
            outputs = self.session.get_outputs()
            whole = whole and outputs[0].shape[1] == len(classes)
            whole = whole and [(output.name, output.type) for output in outputs[1:]] in _FURTHER_OUTPUTS
            whole = whole and type(described.get("multi_label", False)) is bool
            whole = whole and not threshold_problems(
                described.get("thresholds", [THRESHOLD] * len(classes)), classes=len(classes)
            )
            if described.get("selective") is not None:
                read_curve(described["selective"])
            if described.get("conformal") is not None:
                read_conformal(described["conformal"])
            DecodeOptions.from_plain(described.get("reading", DecodeOptions().to_plain()), channels=channels)
            spec = InputSpec.from_dict(described["input"])
            whole = whole and spec.channels == channels
        except UserError as error:
            raise UserError(f"RUN='{path}': its description is damaged. {error} Export it again.") from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            whole = False
        if not whole:
            raise UserError(f"RUN='{path}': its description is damaged. Export it again.")
        return dict(described)

    def read(self, path: str) -> npt.NDArray[np.uint8]:
        """Return the evaluation view of a file, uint8 (1, H, W, C) or (1, C, H, W); see :meth:`prepare`."""
        return self.prepare(decode_file(path, self.options, min_side=self.min_side))

    def read_bytes(self, data: bytes, name: str, *, max_pixels: int) -> npt.NDArray[np.uint8]:
        """Return the evaluation view of an image file given as bytes; see :meth:`read`."""
        options = replace(self.options, max_pixels=max_pixels)
        return self.prepare(decode_bytes(data, options, path=name, min_side=self.min_side))

    def prepare(self, image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize the image to the size that the graph would resize it to, so that the graph leaves it unchanged.

        The graph accepts any image and resizes it to the same pixel values, but it needs 20 bytes per pixel for that, and 500 per
        pixel of a single row that it squashes. An image prepared here waits for its batch at the network's own size.
        """
        height, width = resize_target(self.spec)
        pixels_HWC = evaluation_pixels(image_HWC, self.spec)
        window = pixels_HWC.shape[:2]
        # pixels outside the crop may stay empty
        canvas = np.zeros((height, width, self.channels), np.uint8)
        top, left = round((height - window[0]) / 2), round((width - window[1]) / 2)
        canvas[top : top + window[0], left : left + window[1]] = pixels_HWC
        image = canvas if self.layout == "nhwc" else canvas.transpose(2, 0, 1)
        return np.ascontiguousarray(image)[None]

    def classify(self, images: list[npt.NDArray[np.uint8]]) -> Answers:
        """Classify images, which run one at a time, so that a result does not depend on its batch.

        Raises:
            UserError: The model cannot be computed, or returns something other than probabilities.
        """
        try:
            outputs = [self.session.run(None, {"images": image}) for image in images]
        except Exception as error:  # ONNX Runtime raises a dozen of its own exception classes
            first = first_line(error)
            raise UserError(f"RUN='{self._path}': cannot be computed. {first}") from None
        expected = (1, len(self.classes))
        for probabilities, *scores in outputs:
            if getattr(probabilities, "shape", None) != expected:
                raise UserError(
                    f"RUN='{self._path}': must give one probability for each of its {len(self.classes)} classes. It does "
                    "not. Export it again."
                )
            if any(getattr(score, "shape", None) != (1,) for score in scores):
                raise UserError(f"RUN='{self._path}': must give one unknown_score. It does not. Export it again.")
        return Answers(
            probabilities_NK=np.concatenate([probabilities for probabilities, *_ in outputs]),
            unknown_N=np.concatenate([scores[0] for _, *scores in outputs]) if self.tells_unknown else None,
        )
