"""``finetune audit``: report the contents and the problems of a data set."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from finetune.commands.hydra_job import ComposingArguments, run_composed
from finetune.commands.options import home_path
from finetune.config.schema import Config
from finetune.errors import UserError
from finetune.runners.audit import audit_source
from finetune.wrapping import wrapped

ABOUT = """\
Check the images before training: counts, sizes, unreadable files, copies within and across splits, conflicting labels,
pictures that look alike across splits, constant, tiny and long ones, imbalance. Nothing is changed in your folder.
Takes the same key=value as finetune train. The exit status is 1 if a finding would make results wrong."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune audit`` and return the exit status."""
    parser = ComposingArguments("audit", ABOUT)
    parser.add_argument(
        "--output",
        type=home_path,
        metavar="DIR",
        help="where audit.json and audit.html are written (audit); also output=DIR",
    )
    parser.add_argument(
        "--views", action="store_true", help="show sixteen training views of each class on the page; also views=true"
    )
    own = {"output": "audit", "views": "false"}
    parser.also_as_settings = frozenset(own)
    given, line = parser.parse(argv)
    for word in given.words:
        name, joined, value = word.partition("=")
        if joined and name in own:  # a word without = may be a folder of that name
            own[name] = value
            line.overrides.remove(word)
    if own["views"].lower() not in ("true", "false"):
        raise UserError(f"views={own['views']!r}: must be true or false.")
    output = given.output or home_path(own["output"])
    if output.exists() and not output.is_dir():
        raise UserError(f"output={str(output)!r}: must be a folder. It is a file.")
    views = given.views or own["views"].lower() == "true"
    return run_composed("audit", line, partial(task, output=output, views=views))


def task(config: Config, *, output: Path, views: bool) -> int:
    """Audit the data of one configuration."""
    result, source = audit_source(config)

    from finetune.data.audit_text import as_text
    from finetune.report.audit_page import audit_page

    print(wrapped(as_text(result)))
    view, words = None, ""
    if views:
        # imported here: torchvision takes seconds
        from finetune.augment_settings import augment_settings
        from finetune.build.augment_lists import build_augment_lists
        from finetune.data.transforms import in_words, train_view
        from finetune.input_spec import InputSpec

        size = config.input.size if config.input.size is not None else 128
        pair = (size, size) if isinstance(size, int) else tuple(size)
        spec = InputSpec(channels=source.decode_options.channels, size=pair, mean=(0.5,), std=(0.5,))
        augment = augment_settings(config.data.augment).text
        view = train_view(spec, augment=augment, lists=build_augment_lists(config, spec=spec, trusted=True))
        words = in_words(spec, augment=augment)
    name = str(config.data.root or config.data.path or config.data.name or config.data.source)
    page = audit_page(result, source, name=name, view=view, view_words=words)

    from finetune.atomic_files import write_text

    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "audit.json", json.dumps(result.to_dict(), indent=1))
    write_text(output / "audit.html", page)
    print(f"\nwritten: {output / 'audit.html'}, {output / 'audit.json'}")
    return 1 if result.wrong else 0
