"""Every setting with its default, allowed values, meaning and example: what ``finetune settings`` and the documentation show."""

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config.groups import conf_dir, group_choices
from finetune.config.keys import Key, all_keys, choices_of
from finetune.config.overrides import SHORT
from finetune.config.schema import setting_of
from finetune.errors import UserError, did_you_mean
from finetune.foreign_words import FOREIGN, MISPLACED
from finetune.wrapping import wrapped

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
_PRECISION = (
    "Precision of the computation, an argument of Lightning's Trainer: auto, 32-true, bf16-mixed, 16-mixed, ...",
    "auto, the default, is bf16-mixed where this machine computes the network faster in it, else 32-true.",
)
# in a phase alone: all its other keys stand under schedule too
_OF_A_PHASE = ("schedule.phases.N.name", "schedule.phases.N.train")


@dataclass(frozen=True, kw_only=True)
class SettingText:
    """What is shown of a setting.

    Args:
        key: Dotted path.
        default: Default, as it is written on a command line.
        allowed: Allowed values in words.
        meaning: What it does.
        example: An override to copy; empty if the key and a value say enough.
        short: A shorter name, or empty.
    """

    key: str
    default: str
    allowed: str
    meaning: str
    example: str
    short: str

    def lines(self) -> list[str]:
        """Return the setting as lines for a terminal."""
        lines = [f"{self.key}={self.default}", f"  {self.meaning}", f"  allowed: {self.allowed}"]
        if self.short:
            lines.append(f"  shorter: {self.short}=")
        if self.key.startswith("schedule.") and ".phases" not in self.key and self.key != "schedule.name":
            lines.append(f"  of one phase: {self.key.replace('schedule.', 'schedule.phases.N.')}, with N from 0")
        return [*lines, *([f"  example: {self.example}"] if self.example else [])]


def setting_texts() -> list[SettingText]:
    """Return all settings in the order of the schema; those of a phase stand under ``schedule``.

    >>> next(text for text in setting_texts() if text.key == "head.drop_rate").allowed
    'a number, at least 0 and below 1'
    """
    short = {key: name for name, key in SHORT.items()}
    return [
        SettingText(
            key=key.path,
            default=_written(key.default),
            allowed=_allowed(key),
            meaning=setting_of(key.field).meaning,
            example=setting_of(key.field).example,
            short=short.get(key.path, ""),
        )
        for key in all_keys()
        if ".N." not in key.path or key.path in _OF_A_PHASE
    ]


def _written(default: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[default] if default is None or isinstance(default, bool) else str(default).replace("'", "")


def _allowed(key: Key) -> str:
    known = setting_of(key.field)
    if choices := choices_of(key.field):
        return " | ".join(choices)
    origin = typing.get_origin(key.kind)
    if origin is list:
        kind = "a list: one value, or several with commas"
    elif origin is dict:
        kind = "keys and values: {key: value, ...}"
    else:
        kind = _KINDS.get(key.kind, "see the meaning")
    return ", ".join(filter(None, (kind, known.limits())))


def values_allowed(path: str) -> list[str]:
    """Return the words that a key allows; empty if it allows others than words.

    >>> values_allowed("schedule.phases.1.solver"), values_allowed("report")
    (['gradient', 'lbfgs', 'auto'], ['true', 'false'])
    """
    generic = ".".join("N" if part.isdigit() else part for part in path.split("."))
    key = next((key for key in all_keys() if key.path == generic), None)
    if key is None:
        return []
    return ["true", "false"] if key.kind is bool else choices_of(key.field)


def about_choice(group: str, name: str, extra_dirs: Sequence[Path] = ()) -> str:
    """Return the comment at the top of a file of ``conf/`` as one line.

    >>> about_choice("schedule", "full")
    'All stages train from the first step on.'
    """
    files = [folder / group / f"{name}.yaml" for folder in (*extra_dirs, conf_dir())]
    file = next(file for file in files if file.is_file())
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package ")]
    comment: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    text = " ".join(" ".join(comment).removeprefix("Purpose:").split())
    return re.split(r"(?<=\.)(?<!et al\.)\s| Command:", text)[0]


def explain(word: str | None, extra_dirs: Sequence[Path] = ()) -> list[str]:
    """Return lines on all settings, or on those that a word concerns.

    Args:
        word: Part of a key or of a meaning, or a group; None for an overview of every key.
        extra_dirs: Folders with further configurations.

    Raises:
        UserError: The word concerns no setting.
    """
    texts, groups = setting_texts(), group_choices(extra_dirs)
    if word is None:
        rows = [line for text in texts for line in (f"{text.key}={text.default}", f"    {text.meaning}")]
        ending = "finetune settings WORD says more about a key, a group or a word."
        return wrapped("\n".join([*rows, "", f"groups: {', '.join(groups)}", ending])).splitlines()
    name, _, choice = word.partition("=")
    name = SHORT.get(name.replace("-", "_"), name.replace("-", "_"))
    lines: list[str] = []
    if choice and choice in groups.get(name, []):
        file = next(
            f / name / f"{choice}.yaml" for f in (*extra_dirs, conf_dir()) if (f / name / f"{choice}.yaml").is_file()
        )
        return file.read_text(encoding="utf-8").rstrip().splitlines()
    if name in groups:
        for one in groups[name]:
            lines += [f"{name}={one}", f"    {about_choice(name, one, extra_dirs)}"]
    exact = [text for text in texts if text.key == name or text.key.rpartition(".")[2] == name]
    below = [text for text in texts if text.key.startswith(f"{name}.")]
    found = exact or below if name not in groups else [*exact, *below]
    if not found and not lines:
        plain = name.lower().replace("_", " ")
        found = [
            text
            for text in texts
            if plain in text.key.replace("_", " ") or plain in f"{text.meaning} {text.allowed}".lower()
        ]
    if not found and not lines:
        lines = _elsewhere(word, texts)
    for text in found:
        lines += ["", *text.lines()] if lines else text.lines()
    if not lines:
        known = {text.key for text in texts} | {text.key.rpartition(".")[2] for text in texts} | set(groups)
        raise UserError(
            f"finetune settings {word}: no setting is about that.{did_you_mean(name, sorted(known))} "
            "finetune settings lists all."
        )
    return wrapped("\n".join(lines)).splitlines()


def _elsewhere(word: str, texts: Sequence[SettingText]) -> list[str]:
    """Return the settings that a word of another tool, or an argument of Lightning's Trainer, stands for; empty if none."""
    name, _, value = word.partition("=")
    name = name.replace("-", "_").lower()
    foreign = FOREIGN.get(name)
    if name in MISPLACED:
        foreign = MISPLACED[name][1]
    elif foreign is None and name.startswith("trainer."):
        foreign = name
    if foreign is None:
        return []
    written = foreign(value or "VALUE") if callable(foreign) else [f"{foreign}={value or 'VALUE'}"]
    lines = [f"{name}: written {' '.join(written)}"]
    for one in written:
        key = one.partition("=")[0]
        key = SHORT.get(key, key)
        if key == "trainer.precision":
            lines += [f"  {line}" for line in _PRECISION]
        for text in texts:
            if (
                text.key == key
                or key.startswith(f"{text.key}.")
                or (key in group_choices() and text.key == f"{key}.name")
            ):
                lines += ["", *text.lines()]
    return lines


def as_markdown() -> str:
    """Return all settings as a page of Markdown, a table for each section."""
    groups = group_choices()
    parts = [
        "# Settings",
        "",
        "Each is `key=value` on the command line, shown with its default. `finetune settings WORD` prints the same text.",
        "",
    ]
    sections: dict[str, list[SettingText]] = {}
    for text in setting_texts():
        sections.setdefault(text.key.partition(".")[0] if "." in text.key else "", []).append(text)
    for section, texts in sections.items():
        parts += [f"## {section or 'The run'}", ""]
        if section == "schedule":
            parts += ["Of one phase: `schedule.phases.N.` and the key, with N from 0.", ""]
        if section in groups:
            parts += [f"- `{section}={one}`: {_prose(about_choice(section, one))}" for one in groups[section]] + [""]
        parts += ["| setting | meaning |", "|---|---|"]
        for text in texts:
            default = text.default.replace("|", r"\|")
            meaning = f"{_prose(text.meaning)}<br>*allowed:* {_prose(text.allowed)}"
            meaning += f"<br>*shorter:* `{text.short}=`" if text.short else ""
            meaning += f"<br>*example:* `{text.example}`" if text.example else ""
            parts.append(f"| `{text.key}={default}` | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def _prose(text: str) -> str:
    r"""Return text so that Markdown shows every character of it, in a table too.

    >>> print(_prose("null | a _target_, of DIR/<class>/*"))
    null \| a \_target\_, of DIR/&lt;class&gt;/\*
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", text)
