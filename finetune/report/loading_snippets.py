"""How to load a trained model in each client, as Markdown with runnable code."""

from finetune.export.client import LibraryClient
from finetune.export.formats import FORMATS
from finetune.input_spec import InputSpec

_IMAGE = """\
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")
"""
_GREY = (
    "The model was trained on grey images. Convert to grey first, as below; the layout holds colour, so the grey channel is "
    'repeated by `.convert("RGB")`.\n'
)
_FINETUNE = """\
import finetune

model = finetune.load("{path}")  # uint8 images (B, C, H, W) of the size below to logits (B, K)
"""


def how_to_load(form: str, spec: InputSpec, *, path: str) -> str:
    """Return the Markdown section for one client.

    Args:
        form: ``finetune``, or a format that has a snippet.
        spec: Input of the model.
        path: Path of the export.
    """
    grey = spec.channels == 1
    chosen = FORMATS.get(form)
    repeated = grey and chosen is not None and issubclass(chosen.client, LibraryClient)
    snippet = _FINETUNE if chosen is None else chosen.snippet
    code = snippet.format(
        image=_IMAGE.format(mode="L" if grey else "RGB"), path=path, rgb='.convert("RGB")' if repeated else ""
    )
    caution = f"{chosen.caution}\n" if chosen is not None and chosen.caution else ""
    return f"## {form}\n\n{caution}{_GREY if repeated else ''}\n```python\n{code}```\n"
