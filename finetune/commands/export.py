"""``finetune export``: write the model, or a part of it, in a form that other programs open."""

from collections.abc import Sequence

from finetune.commands.options import TRUST, Arguments, home_path, numeric
from finetune.export.formats import FORMATS
from finetune.runners.export import export_run

_LINES = "\n".join(f"  {name:13} {export_format.about}" for name, export_format in FORMATS.items())
ABOUT = f"""\
Write the trained model, or a part of it, in a format that other programs open.
{_LINES}
Each export is opened by its own library in a fresh process, where finetune cannot be imported, and compared with the trained
model on real images before it is put in place; the figures go to parity.json, and those of onnx also to the model card."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune export`` and return the exit status."""
    parser = Arguments("export", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--format", required=True, choices=list(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    parser.examples["--format"] = ("onnx", *(name for name in FORMATS if name != "onnx"))
    parser.add_argument("--output", type=home_path, metavar="PATH", help="default: exports/ in RUN")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="fp32", help="for onnx")
    parser.add_argument(
        "--layout", choices=["nhwc", "nchw"], default="nhwc", help="of the pixels, onnx and torch_export"
    )
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="compare on these; default: RUN's validation images"
    )
    parser.add_argument(
        "--check", type=numeric(int, least=1), metavar="N", help="number of images to compare on (64; int8: 256)"
    )
    parser.add_argument("--trust", action="store_true", help=TRUST)
    given = parser.read(argv)
    target, lines = export_run(
        given.run,
        given.format,
        output=given.output,
        images=given.images,
        precision=given.precision,
        layout=given.layout,
        check=given.check,
        trust=given.trust,
    )
    print(f"{given.format}: {target}")
    print("\n".join(lines))
    return 0
