"""``--format onnx``: raw pixels to probabilities, for ONNX Runtime."""

import json
from collections.abc import Sequence
from pathlib import Path

from finetune.export.client import Array, ClientJob, GraphClient
from finetune.export.formats.kind import ExportFormat, ExportJob
from finetune.export.parity_report import Speed

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class OnnxClient(GraphClient):
    """``onnxruntime.InferenceSession(FILE).run(None, {"images": pixels})``."""

    def __init__(self, target: str, options: ClientJob) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(target, settings, providers=["CPUExecutionProvider"])
        described = json.loads(self.session.get_modelmeta().custom_metadata_map["finetune"])
        self.classes = described["classes"]
        self.layout = described["pixels"]["layout"]
        self.grey = self.session.get_inputs()[0].shape[3 if self.layout == "nhwc" else 1] == 1
        self.opened_by = f"onnxruntime {onnxruntime.__version__}"

    def run(self, pixels: Array) -> Sequence[Array]:
        outputs: Sequence[Array] = self.session.run(None, {"images": pixels})
        return outputs


_SNIPPET = """\
import json
import numpy as np, onnxruntime
{image}
session = onnxruntime.InferenceSession("{path}")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
pixels = np.atleast_3d(np.asarray(image))[None]  # uint8, any size
probabilities = session.run(None, {{"images": pixels}})[0][0]
print(classes[probabilities.argmax()], probabilities.max())
"""
_SNIPPET_MULTI_LABEL = """\
import json
import numpy as np, onnxruntime
{image}
session = onnxruntime.InferenceSession("{path}")
described = json.loads(session.get_modelmeta().custom_metadata_map["finetune"])
pixels = np.atleast_3d(np.asarray(image))[None]  # uint8, any size
probabilities = session.run(None, {{"images": pixels}})[0][0]
print([name for name, p, t in zip(described["classes"], probabilities, described["thresholds"]) if p > t])
"""


def _full(path: Path) -> Path:
    """Return the model at full precision that an int8 model is made of, beside it; no name of an export is this one."""
    return path.with_name(f"{path.name}.full.onnx")


def _write(job: ExportJob, path: Path) -> None:
    from finetune.export.onnx import export_onnx

    request, decode_options = job.request, job.images.decode_options
    full = _full(path) if request.precision == "int8" else path
    export_onnx(
        job.classifier, full, layout=request.layout, half=request.precision == "fp16", decode_options=decode_options
    )
    if request.precision == "int8":
        from finetune.data.decode import DecodeOptions
        from finetune.export.quantize import quantise_onnx

        decode_options = decode_options or DecodeOptions(channels=job.classifier.input_spec.channels)
        quantise_onnx(full, path, files=job.images.calibration, layout=request.layout, decode_options=decode_options)


def _measure(job: ExportJob, path: Path) -> Speed:
    from finetune.export.speed import measure_speed

    request = job.request
    full = {"fp32": _full(path)} if request.precision == "int8" else {}
    return measure_speed(job.classifier, {**full, request.precision: path}, layout=request.layout)


ONNX = ExportFormat(
    name="onnx",
    about="uint8 pixels of any size to probabilities, class names in the metadata: ONNX Runtime",
    filename="model.onnx",
    write=_write,
    client=OnnxClient,
    snippet=_SNIPPET,
    snippet_multi_label=_SNIPPET_MULTI_LABEL,
    precisions=("fp32", "fp16", "int8"),
    needs=LIBRARIES,
    extra="onnx",
    measure=_measure,
)
