"""The table of export formats. A new one is a file like those beside this, and a line in :data:`FORMATS`."""

import importlib.util

from finetune.errors import UserError
from finetune.export.formats.backbone import BACKBONE_ALONE
from finetune.export.formats.head import HEAD_ALONE
from finetune.export.formats.kind import ExportFormat, ExportRequest
from finetune.export.formats.onnx import ONNX
from finetune.export.formats.timm import TIMM
from finetune.export.formats.torch_export import TORCH_EXPORT
from finetune.export.formats.torchvision import TORCHVISION
from finetune.export.formats.transformers import TRANSFORMERS
from finetune.export.formats.web import WEB

FORMATS: dict[str, ExportFormat] = {
    "onnx": ONNX,
    "torch_export": TORCH_EXPORT,
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "transformers": TRANSFORMERS,
    "web": WEB,
    "head": HEAD_ALONE,
    "backbone": BACKBONE_ALONE,
}


def check_request(request: ExportRequest) -> None:
    """Check that the format has the precision and that the libraries it needs are installed.

    Raises:
        UserError: The format has no such precision, or a library is missing.
    """
    chosen = request.format
    if request.precision not in chosen.precisions:
        having = [name for name, other in FORMATS.items() if request.precision in other.precisions]
        raise UserError(
            f"--precision {request.precision}: exists for --format {', '.join(having)} only. Given: --format {chosen.name}."
        )
    missing = [name for name in chosen.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {chosen.name}: needs {', '.join(chosen.needs)}. Not installed: {', '.join(missing)}. "
            f"Install with: pip install 'stagewise-finetune[{chosen.extra}]'"
        )
