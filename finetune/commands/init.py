"""``finetune init``: look at the data and write settings to start from, each with its reason."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.commands.options import Arguments, home_path
from finetune.config import check_overrides, command_line, compose, with_overrides
from finetune.config.overrides import TypedLine, data_words, values_of
from finetune.errors import UserError
from finetune.terminal import printable

ABOUT = """\
Look at a data set (grey or colour, bits, sizes, counts, several labels, groups of images) and write a file of settings to
start from. Each has its reason as a comment. Nothing is trained, and nothing is changed in your folder."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune init`` and return the exit status."""
    parser = Arguments("init", ABOUT, ending="")
    parser.add_argument("data", metavar="DIR", help="a folder of images, or a table of them (.csv, .tsv, .parquet)")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="how the data is read: data.label_column=tags")
    parser.add_argument("--output", type=home_path, metavar="FILE", help="default: DIR's name, .yaml, in this folder")
    given = parser.read(argv)
    place = home_path(given.data)
    if not place.exists():
        raise UserError(f"DIR='{given.data}': no such folder or table.")
    output = given.output or Path(f"{place.absolute().stem}.yaml")
    if output.suffix != ".yaml":
        raise UserError(f"--output {output}: must end in .yaml.")
    if output.exists():
        raise UserError(f"--output {output}: exists already. Choose another name: --output FILE.")

    text = starting_settings(str(place.absolute()), given.settings)

    from finetune.atomic_files import write_text

    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    print(text)
    print(f"written: {output}")
    named = ["--config-dir", str(output.parent), "--config-name", output.stem]
    print("\n".join(["next:", *(f"  {command_line(name, named)}" for name in ("plan", "train"))]))
    print("The first run downloads the network's ImageNet weights.")
    print("Without a network add weights=embedded, weights inside this package.")
    return 0


def starting_settings(place: str, typed: Sequence[str] = ()) -> str:
    """Return the text of a configuration for a folder or a table, with a comment for each setting.

    Args:
        place: Absolute path.
        typed: Settings that the user gave, which are written too.

    Raises:
        UserError: There is no image, or the table cannot be read.
    """
    words = data_words(place)
    given = values_of(check_overrides(typed, line=TypedLine("init", (place,))))
    table = words[0] == "data=manifest"
    # a table may name its columns in its own way, so it is looked at before it is read as a data set
    proposals = []
    if table:
        from finetune.data.manifest import read_columns
        from finetune.data.starting_settings import settings_of_table

        proposals = settings_of_table(read_columns(place), given=given)
    config = compose([*words, *typed])
    config = replace(config, data=replace(config.data, on_unreadable="skip"))
    proposals = [one for one in proposals if one.key not in given]
    config = with_overrides(config, check_overrides([f"{one.key}={_override(one.value)}" for one in proposals]))

    from finetune.build.data import build_source
    from finetune.data.audit import audit
    from finetune.data.sources import source_kind
    from finetune.data.starting_settings import Proposal, settings_of_images

    source = build_source(config)
    if source.facts is None:
        raise UserError(f"DIR='{place}': has no files to look at.")
    kind = source_kind(config.data.source)
    left_out = kind.left_out(**kind.specific_settings(config.data)) if kind.left_out is not None else ()
    found = audit(source, left_out=left_out)
    proposals += [one for one in settings_of_images(source, found) if one.key not in given]
    proposals += [Proposal(key=key, value=value, reason="as given.") for key, value in given.items()]
    sizes = " x ".join(str(found.sizes[name][1]) for name in ("width", "height"))
    modes = ", ".join(f"{count} {name}" for name, count in found.modes.items())
    labels = "several labels per image" if source.index.multi_label else "one label per image"
    splits = ", ".join(f"{name} {count}" for name, count in found.split_images.items())
    head = [
        f"{Path(place).name}: {found.images:,} images, {len(found.classes)} classes, {labels}; {modes}; median {sizes} px.",
        f"Splits: {splits}.",
        "Written by finetune init. Change what you like; finetune settings WORD explains a setting.",
    ]
    notes = [f"{finding.severity}: {finding.text}. {finding.remedy}" for finding in found.findings]
    lines = [*(line for text in head for line in _comment(text)), *(["#"] if notes else [])]
    lines += [line for text in notes for line in _comment(text)]
    lines += [
        "defaults:",
        "  - train # the settings of the package",
        f"  - override /{words[0].replace('=', ': ')}",
        "  - _self_",
        "",
    ]
    # by section and key; a setting of the top level stands under the empty key of its own name
    values: dict[str, dict[str, tuple[Any, list[str]]]] = {"data": {str(kind.place): (place, ["where the data is."])}}
    for one in proposals:
        section, _, key = one.key.rpartition(".")
        values.setdefault(section or key, {})[key if section else ""] = (one.value, [one.reason])
    for name, entries in values.items():
        lines += (
            _entry(name, entries[""], "")
            if "" in entries
            else [f"{name}:", *(line for key, inner in entries.items() for line in _entry(key, inner, "  "))]
        )
    lines += ["", *_comment("Not proposed, because the data does not decide it; these are the usual values:")]
    network, schedule = config.backbone, config.schedule.name
    lines += [f"# backbone: {network.name}, weights: {network.weights}, schedule: {schedule}"]
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str = "") -> list[str]:
    # without line ends of any kind: names of the data would begin a line of settings with them
    return [f"{indent}# {line}" for line in textwrap.wrap(printable(text.replace("\n", " ")), 116 - len(indent))]


def _entry(key: str, value: tuple[Any, list[str]], indent: str) -> list[str]:
    import yaml

    written = yaml.safe_dump(value[0], default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
    return [*(line for text in value[1] for line in _comment(text, indent)), f"{indent}{key}: {written}"]


def _override(value: Any) -> str:
    from finetune.config import quoted

    return f"[{','.join(quoted(one) for one in value)}]" if isinstance(value, list) else quoted(value)
