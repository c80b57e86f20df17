"""ONNX export: raw pixels of any size to probabilities in one file, with class names and provenance in its metadata."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from finetune.data.decode import DecodeOptions
from finetune.errors import UserError
from finetune.export.export_metadata import KEY, as_text, provenance
from finetune.export.graph import ImageGraph, Layout
from finetune.models.classifier import Classifier

INPUT, OUTPUT, UNKNOWN_OUTPUT = "images", "probabilities", "unknown_score"
# limit of protobuf, the format of ONNX files; larger models would need their weights in a second file
LARGEST_FILE = 2**31 - 1


def export_onnx(
    classifier: Classifier,
    path: Path,
    *,
    layout: Layout = "nhwc",
    half: bool = False,
    program: torch.export.ExportedProgram | None = None,
    decode_options: DecodeOptions | None = None,
) -> None:
    """Write one ``.onnx`` file with free batch, height and width.

    Args:
        classifier: Trained model in evaluation mode, on the CPU; it is not changed.
        path: File to write.
        layout: Pixel layout of the input.
        half: Whether weights and network are in half precision.
        program: Result of :func:`trace` for the same arguments; None traces the model here.
        decode_options: How the run decodes files, stored for code that predicts with the export.

    Raises:
        UserError: The weights do not fit into one file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in classifier.state_dict().values())
    if size > LARGEST_FILE:
        raise UserError(
            f"--format onnx: an ONNX file holds at most 2 GiB. These weights have {size / 2**30:.1f}. "
            "Use --format torch_export."
        )
    with quiet_exporter():
        written = torch.onnx.export(
            # traced here because the ONNX exporter's own tracing defers every check on a size and spends a minute on it
            program or trace(classifier, layout=layout, half=half),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT] if classifier.unknown is None else [OUTPUT, UNKNOWN_OUTPUT],
            dynamic_shapes=(free_dimensions(layout),),  # already traced: only the names are used
            verbose=False,
        )
    assert written is not None
    described = provenance(
        classifier, layout=layout, precision="fp16" if half else "fp32", decode_options=decode_options
    )
    written.model.metadata_props[KEY] = as_text(described)
    written.model.metadata_props["classes"] = as_text(list(classifier.classes))
    written.save(path, external_data=False)


@torch.no_grad()
def trace(classifier: Classifier, *, layout: Layout, half: bool = False) -> torch.export.ExportedProgram:
    """Trace the whole path from pixels to probabilities as a PyTorch exported program."""
    return torch.export.export(
        image_graph(classifier, layout=layout, half=half),
        (example_images(classifier, layout=layout),),
        dynamic_shapes=(free_dimensions(layout),),
    )


def image_graph(classifier: Classifier, *, layout: Layout, half: bool = False) -> ImageGraph:
    """Build the module to export, in evaluation mode."""
    graph = ImageGraph(classifier, layout=layout, half=half).eval()
    if half:
        from copy import deepcopy

        graph = deepcopy(graph)
        graph.backbone.half()
        graph.head.half()
    return graph


def example_images(classifier: Classifier, *, layout: Layout) -> torch.Tensor:
    """Return two images to trace with, larger than the crop and not square: exporters treat sizes of 1 as constants."""
    height, width = (side + side // 2 + 3 for side in classifier.input_spec.size)
    shape = (2, height, width + 2, classifier.input_spec.channels)
    images_BHWC = torch.zeros(shape, dtype=torch.uint8)
    return images_BHWC if layout == "nhwc" else images_BHWC.permute(0, 3, 1, 2).contiguous()


def free_dimensions(layout: Layout) -> dict[int, Any]:
    """Return the free dimensions, batch, height and width, by position; the names appear in the graph."""
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    return {0: batch, 1: height, 2: width} if layout == "nhwc" else {0: batch, 2: height, 3: width}


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's progress lines and deprecation warnings, but not its errors."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
