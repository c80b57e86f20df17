"""``finetune export``: the model, or a part of it, in a form that others open."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.arguments import Arguments

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier

ABOUT = """\
Write the trained model, or a part of it, as a file.
  head      safetensors with its settings and classes, tied to the backbone it was trained on: head.weights=FILE
  backbone  safetensors in the layout of the library that the network comes from: backbone.weights=FILE"""


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = Arguments("export", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--format", required=True, choices=["head", "backbone"], metavar="FORMAT")
    parser.add_argument("--output", metavar="FILE", help="default: FORMAT.safetensors in RUN")
    given = parser.parse_args(list(argv))

    from finetune.bundle import find_bundle, load_bundle
    from finetune.export.parts import export_backbone, export_head

    folder = find_bundle(given.run)
    classifier = load_bundle(given.run)
    writers: dict[str, Callable[[Classifier, Path], None]] = {"head": export_head, "backbone": export_backbone}
    output = Path(given.output) if given.output else folder.parent / f"{given.format}.safetensors"
    writers[given.format](classifier, output)
    print(f"{given.format}: {output}")
    return 0
