"""The words that set a run's configuration: short forms are spelled out, and a mistake is answered with the line to type."""

import os
import re
import shlex
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.augment_settings import AUGMENTS
from finetune.config.groups import group_choices, phase_names
from finetune.config.keys import all_keys, find_key, path_keys, type_of
from finetune.config.timm_names import is_timm_name, timm_names
from finetune.data.sources import ANY_FOLDER, DATA_SOURCES, place_settings, recognised
from finetune.errors import ConfigError, UserError, did_you_mean, first_line
from finetune.foreign_words import FOREIGN, MISPLACED
from finetune.near_paths import near_path
from finetune.run_names import RECORD
from finetune.terminal import printable

# short names of settings that are typed often
SHORT = {"batch_size": "data.batch_size", "weights": "backbone.weights"}
# commands that take several values of a setting, by -m
_SWEEPING = ("train", "plan", "audit", "lr-find")
_OVERRIDE = re.compile(r"(\+\+|\+|~)?([^=]+)=(.*)", re.DOTALL)
# a quoted name or path that Hydra reads alike without its quotes
_QUOTED = re.compile(r"^([\w.+]+=)'(?!(?:null|true|false|nan|inf)')([A-Za-z./][\w./-]*)'$", re.IGNORECASE)
# starts of values with a meaning in Hydra's grammar: a list, a node, a quoted text, an interpolation, a function
_HYDRA_VALUE = re.compile(r"[\[{'\"$]|\w+\(")


def command_line(command: str, words: Sequence[str]) -> str:
    """Return a command as a line to paste into a shell; ``train`` is the default command and left out.

    >>> command_line("train", ["data=digits", "freeze=[stem,layer1]"])
    "finetune data=digits 'freeze=[stem,layer1]'"
    """
    return shlex.join(["finetune", *([] if command == "train" else [command]), *words])


@dataclass(frozen=True)
class TypedLine:
    """The command line around the overrides, to answer a mistake with the right line.

    Args:
        command: The command.
        before: Words between the command and the overrides: options, or a run.
    """

    command: str
    before: tuple[str, ...] = ()


class _WrongWordError(Exception):
    """Raised for a word that is not an override of this configuration.

    Args:
        problem: Message about the word.
        fix: Words to type instead; empty if unknown.
    """

    def __init__(self, problem: str, fix: Sequence[str] = ()) -> None:
        super().__init__(problem)
        self.problem, self.fix = problem, list(fix)


class OverridesError(ConfigError):
    """Raised for words that are not overrides.

    Args:
        problems: Messages, one per word.
        corrected: The whole line to type; None if it is unknown.
    """

    def __init__(self, problems: Sequence[str], corrected: str | None) -> None:
        self.corrected = corrected
        super().__init__([*problems, *([] if corrected is None else [f"Use: {corrected}"])])


def check_overrides(
    overrides: Sequence[str],
    extra_dirs: Sequence[Path] = (),
    *,
    several: bool = False,
    line: TypedLine | None = None,
) -> list[str]:
    """Spell out short forms, and refuse words that name no key, group or choice; all problems at once.

    A folder is a data set, ``backbone=`` takes any name of timm, a list needs no brackets, ``~`` is the home folder.

    Args:
        overrides: Words as typed.
        extra_dirs: Folders with further configurations.
        several: Whether commas separate the values of a sweep; otherwise those of a list.
        line: The command line that holds the words; None if they come from Python.

    Returns:
        The overrides in Hydra's form: new keys in free-form parts get its ``++``, which users need not know.

    Raises:
        OverridesError: One message for each wrong word, then the whole line to type if it is known.
    """
    words = _joined(overrides)
    reader = _Reader(words, extra_dirs, several=several, command=None if line is None else line.command)
    accepted: list[str] = []
    problems: list[str] = []
    corrected: list[str] = []
    answered = True
    for word in words:
        try:
            accepted += reader.read(word)
            corrected.append(word)
        except _WrongWordError as wrong:
            problems.append(wrong.problem)
            answered &= bool(wrong.fix)
            corrected += wrong.fix
    if problems:
        known = None if line is None or not answered else command_line(line.command, [*line.before, *corrected])
        raise OverridesError(problems, known)
    return accepted


def as_hydra_writes(overrides: Sequence[str]) -> list[str]:
    """Return single-value overrides as the jobs of a sweep repeat them, without overrides of several values.

    >>> as_hydra_writes(["report=false", "seed=1,2"])
    ['report=False']
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in parsed
        if not override.is_sweep_override()
    ]


def values_of(accepted: Sequence[str]) -> dict[str, Any]:
    """Return the values of checked overrides by their dotted keys, for an existing configuration.

    >>> values_of(["++trainer.devices=2", "data.root='a b'"])
    {'trainer.devices': 2, 'data.root': 'a b'}
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(list(accepted))}


def quoted(value: object) -> str:
    """Quote a value for Hydra's override grammar.

    Raises:
        UserError: It holds ``${``, which a configuration replaces by a value of this machine, also when it is read again.

    >>> quoted("a b=c")
    "'a b=c'"
    """
    if "${" in str(value):
        raise UserError(
            f"{printable(str(value))!r}: cannot be a setting. A configuration would replace what begins with '${{'. Rename it."
        )
    return _in_quotes(str(value))


def _in_quotes(typed: str) -> str:
    """Quote what was typed as a value for Hydra's grammar; it may interpolate."""
    # Hydra reads backslashes literally, except a run of them before a quote
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), typed)
    return f"'{text}'"


def plain_words(words: Sequence[str]) -> list[str]:
    """Return overrides without quotes that Hydra's grammar does not need, which would be quoted again for the shell.

    >>> plain_words(["data.root='pets'", "name='null'", "data.root='a b'"])
    ['data.root=pets', "name='null'", "data.root='a b'"]
    """
    return [_QUOTED.sub(r"\1\2", word) for word in words]


def _joined(words: Sequence[str]) -> list[str]:
    """Join a setting that the shell has taken apart at its spaces.

    >>> _joined(["freeze=[stem,", "layer1]", "epochs", "=", "5", "seed=1,", "2", "lr=1"])
    ['freeze=[stem, layer1]', 'epochs=5', 'seed=1,2', 'lr=1']
    """
    joined: list[str] = []
    for word in words:
        before = joined[-1] if joined else ""
        if re.search(r"=[\[{]", before) and _depth(before) > 0:
            joined[-1] = f"{before} {word}"
        elif (word.startswith("=") and re.fullmatch(r"[\w.]+", before)) or (
            re.match(r"[\w.]+[=:]", before)
            and before.endswith(("=", ",", ":"))
            and "=" not in word
            and not looks_like_a_path(word)
        ):
            joined[-1] = before + word
        else:
            joined.append(word)
    return joined


def _depth(text: str) -> int:
    return sum(text.count(letter) for letter in "[{") - sum(text.count(letter) for letter in "]}")


def _parts(value: str) -> list[str]:
    """Split a value at the commas outside brackets.

    >>> _parts("[stem,layer1],[stem]")
    ['[stem,layer1]', '[stem]']
    """
    parts = [""]
    for letter in value:
        if letter == "," and _depth(parts[-1]) == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _with_home(value: str, replacement: Callable[[str], str] = str) -> str:
    """Quote paths that begin with ``~``, because Hydra's grammar does not have this character.

    Args:
        value: Value as typed.
        replacement: Function applied to each of these paths. By default they stay as typed:
            :func:`finetune.config.to_config` replaces the ``~`` of settings.

    >>> _with_home("[~/a,~/b c]"), _with_home("a~b")
    ("['~/a','~/b c']", 'a~b')
    """
    return re.sub(
        r"(^|[\[,:]\s*)(~(?:[/\\\w][^,\[\]{}]*)?)(?=$|[,\]}])",
        lambda m: m[1] + _in_quotes(replacement(m[2])),
        value,
    )


def looks_like_a_path(text: str) -> bool:
    """Tell whether a word names a place on the disk: it exists, or has the form of a path.

    >>> looks_like_a_path("./pets"), looks_like_a_path("resnet18")
    (True, False)
    """
    path = Path(text)
    return "/" in text or text.startswith(("~", ".")) or recognised(path) is not None or path.expanduser().exists()


def data_words(place: str) -> list[str]:
    """Return the overrides that make a folder, a table or a saved data set the data of a run.

    >>> data_words("labels.csv")
    ['data=manifest', "data.path='labels.csv'"]
    """
    typed = Path(place)
    name = recognised(typed.expanduser()) or ANY_FOLDER
    return [f"data={name}", f"data.{DATA_SOURCES[name].place}={quoted(typed)}"]


def moved_data(word: str) -> str:
    """Return the override for the new location of a run's data; ``key=value`` stays as it is.

    >>> moved_data("pets"), moved_data("labels.csv"), moved_data("data.num_workers=2")
    ("data.root='pets'", "data.path='labels.csv'", 'data.num_workers=2')
    """
    path = Path(word).expanduser()
    if "=" in word and not path.exists():
        return word
    return f"data.{DATA_SOURCES[recognised(path) or ANY_FOLDER].place}={quoted(word)}"


class _Reader:
    """Reads one word after the other.

    Args:
        words: All words; one may depend on another.
        extra_dirs: Folders with further configurations.
        several: Whether commas separate the values of a sweep.
        command: The command; None if the words come from Python.
    """

    def __init__(self, words: Sequence[str], extra_dirs: Sequence[Path], *, several: bool, command: str | None) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self._words, self._extra_dirs, self._groups = list(words), extra_dirs, group_choices(extra_dirs)
        self._several, self._command = several, command
        self._parser = OverridesParser.create()

    def read(self, word: str) -> list[str]:
        """Return the overrides that a word stands for.

        Raises:
            _WrongWordError: The word is not an override.
        """
        if word.startswith("~") and "=" not in word and word != "~" and not word.startswith("~/"):
            return self._checked(word, word[1:])
        match = _OVERRIDE.fullmatch(word)
        if match is None or Path(word).expanduser().exists():
            return self._bare(word)
        sign, key, value = match[1] or "", match[2], match[3]
        key = re.sub(r"\[(\d+)\]", r".\1", key.strip())
        if key in self._groups:
            return self._choice(sign, key, value.strip())
        if key.startswith(("hydra", "/")) or "@" in key:
            # Hydra's own settings do not pass to_config
            return self._checked(f"{sign}{key}={_with_home(value, os.path.expanduser)}", key)
        if "-" in key and (key.replace("-", "_") in SHORT or find_key(key.replace("-", "_"))[0] is None):
            key = key.replace("-", "_")
        key = SHORT.get(key, key)
        if key in MISPLACED and sign != "~":
            why, place = MISPLACED[key]
            raise _WrongWordError(f"{word}: {why}", [f"{place}={value}"])
        if (unknown := find_key(key)[0]) is not None:
            if fix := self._guess(key, value):
                near = " and ".join(f"{one.partition('=')[0]!r}" for one in fix)
                raise _WrongWordError(f"{word}: no such key. Did you mean {near}?", fix)
            raise _WrongWordError(f"{word}: {unknown}")
        return self._checked(f"{sign}{key}={self._value(key, value)}", key, typed=word)

    def _bare(self, word: str) -> list[str]:
        """Read a word without ``=``: a folder or a table is the data of the run."""
        path = Path(word).expanduser()
        given_by = ("data=", *(f"{key}=" for key in place_settings()))
        others = [other for other in self._words if other.startswith(given_by)]
        if (path / RECORD).is_file():
            lines = "\n".join(f"  {command_line(name, [word])}" for name in ("resume", "evaluate", "report"))
            raise _WrongWordError(f"{word}: is a run, not a data set. To work with a run, use:\n{lines}")
        if path.is_dir() or recognised(path) is not None:
            places = [other for other in self._words if "=" not in other and looks_like_a_path(other)]
            if others or len(places) > 1:
                given = ", ".join([*others, *places])
                raise _WrongWordError(f"{given}: the data is given more than once. Keep one of them.")
            return data_words(word)
        takes = f"finetune {self._command} takes" if self._command else "An override is"
        if looks_like_a_path(word) and not path.exists():
            near = near_path(word)
            hint = f"Did you mean {near!r}?" if near else f"{takes} a folder of images, or key=value."
            raise _WrongWordError(f"{word}: no such folder. {hint}", [near] if near else [])
        if path.suffix in (".yaml", ".yml"):
            options = ["--config-dir", str(path.parent), "--config-name", path.stem]
            raise _WrongWordError(f"{word}: a configuration of your own is given by its folder and its name.", options)
        if (colon := re.fullmatch(r"([\w.]+):\s*(.+)", word)) and find_key(colon[1])[0] is None:
            raise _WrongWordError(f"{word}: not understood. A setting is key=value.", [f"{colon[1]}={colon[2]}"])
        fix = next(([f"{group}={word}"] for group, names in self._groups.items() if word in names), [])
        if not fix and is_timm_name(word):
            fix = [f"backbone={word}"]
        example = ", for example data=digits" if self._command else ", for example 'data=digits'"
        # a word that names nothing else was most likely meant as a folder
        problem = "not understood" if fix else "no such folder"
        if path.is_file():
            raise _WrongWordError(
                f"{word}: is a file. {takes} a folder of images with a folder for each class, or a table."
            )
        if not fix and (near := near_path(word)):
            raise _WrongWordError(f"{word}: no such folder. Did you mean {near!r}?", [near])
        raise _WrongWordError(f"{word}: {problem}. {takes} key=value{example}, or a folder of images.", fix)

    def _choice(self, sign: str, group: str, value: str) -> list[str]:
        """Read ``group=choice``."""
        names = self._groups[group]
        parts = _parts(value)
        strange = [part for part in parts if part not in names]
        if group == "data" and len(strange) == len(parts) and all(looks_like_a_path(part) for part in parts):
            if len(parts) == 1:
                return data_words(value)
            place = DATA_SOURCES[ANY_FOLDER].place
            return [f"data={ANY_FOLDER}", f"data.{place}={','.join(quoted(Path(part)) for part in parts)}"]
        if group == "augment" and len(parts) == 1 and value in AUGMENTS:
            return self._checked(f"{sign}data.augment={value}", "data.augment")
        if group == "backbone" and strange and all(is_timm_name(part) for part in parts):
            return ["backbone=timm", f"backbone.name={value}"]
        return self._checked(f"{sign}{group}={value}", group)

    def _value(self, key: str, value: str) -> str:
        """Return a value in Hydra's grammar."""
        kind = type_of(key)
        if value == "None":
            return "none" if key == "backbone.weights" else "null"
        if value and value.isspace():  # a separator may be a blank, which Hydra's grammar would drop
            return quoted(value)
        if key == "backbone.weights" and value.lower() in ("false", "null", "random", "scratch"):
            return "none"
        if key in path_keys() and re.search(r"[^\w./-]", value) and Path(value).expanduser().exists():
            return quoted(Path(value))
        if kind is float and not self._several and re.fullmatch(r"0,\d+", value):
            raise _WrongWordError(
                f"{key}={value}: must be a number, with a point.", [f"{key}={value.replace(',', '.')}"]
            )
        value = _with_home(value)
        if value in ("", "null") or (_HYDRA_VALUE.match(value) and not (self._several and value.startswith("'"))):
            return value
        if typing.get_origin(kind) is list or (key == "data.root" and "," in value and not self._several):
            if self._several:
                return ",".join(part if part.startswith("[") else f"[{part}]" for part in _parts(value))
            return f"[{value}]"
        if typing.get_origin(kind) is dict and re.match(r"[\w.]+:", value):
            return f"{{{value}}}"
        return value

    def _checked(self, text: str, key: str, *, typed: str | None = None) -> list[str]:
        """Return one override in Hydra's form."""
        from hydra.errors import HydraException

        shown = text if typed is None else typed
        try:
            override = self._parser.parse_override(text)
        except HydraException as error:
            name, _, value = text.partition("=")
            if value and not _HYDRA_VALUE.match(value) and key not in self._groups:
                return self._checked(f"{name}={_in_quotes(value)}", key, typed=shown)
            why = first_line(error)
            raise _WrongWordError(
                f"{shown}: not an override. {why}. Use key=value, and quote values with spaces or '='."
            ) from None
        if override.is_sweep_override() and not self._several and not self._sweeps():
            raise _WrongWordError(
                f"{shown}: several values. Add -m to run each of them; write 'key=[value1,value2]' for a list.",
                ["-m", shown] if self._command in _SWEEPING else (),
            )
        key = override.key_or_group.split("@")[0].lstrip("/")
        if key.startswith("hydra") and key not in self._groups:
            return [text]
        if key in self._groups and not override.is_delete():
            self._check_choice(shown, key, override)
            # a group whose default is an empty choice is already in the defaults list, so Hydra must not append it
            return [text.removeprefix("+")]
        why_not, free = find_key(key)
        if why_not:
            raise _WrongWordError(f"{shown}: {why_not}")
        return [f"++{text}"] if free and not text.startswith(("+", "~")) else [text]

    def _sweeps(self) -> bool:
        """Tell whether a preset or Hydra's mode makes a sweep of the line."""
        return any(word.startswith(("sweep=", "hydra.mode=", "hydra/sweeper=")) for word in self._words)

    def _check_choice(self, text: str, group: str, override: Any) -> None:
        names = override.value() if not override.is_sweep_override() else list(override.sweep_string_iterator())
        if names is None:
            raise _WrongWordError(f"{text}: not a choice. Leave it out to have none.")
        for name in map(str, names if isinstance(names, list) else [names]):
            valid = self._groups[group]
            if name in valid:
                continue
            if group == "augment":  # also those without a file
                valid = sorted({*valid, *AUGMENTS})
            near = did_you_mean(name, valid) or did_you_mean(name.lower(), valid)
            if not near and group == "backbone":
                near = did_you_mean(name, timm_names())
            if group == "backbone":
                near = f"{near} Any network of timm can be named too."
            if group == "optimizer" and not near:
                near = " Another one: optimizer._target_=torch.optim.NAdam, for example."
            guess = re.search(r"Did you mean '(.+?)'", near)
            problem = "not a choice, and no such folder or table" if group == "data" and not guess else "not a choice"
            raise _WrongWordError(
                f"{group}={name!r}: {problem}. Choices: {', '.join(valid)}.{near}",
                [text.replace(name, guess[1])] if guess else [],
            )

    def _guess(self, key: str, value: str) -> list[str]:
        """Return the override that an unknown key most likely means, if it is accepted."""
        near = re.search(r"Did you mean '(.+?)'", str(find_key(key)[0]))
        if near is not None and "." in key:
            return self._accepted([f"{near[1]}={value}"])
        if named := re.fullmatch(r"schedule\.phases\.([A-Za-z]\w*)\.(.+)", key):
            names = phase_names(self._schedule(), self._extra_dirs)
            return self._accepted(
                [f"schedule.phases.{names.index(named[1])}.{named[2]}={value}"] if named[1] in names else []
            )
        name = key.replace("-", "_").lower()
        known, last = _by_last_part(), name.rpartition(".")[2]
        foreign = FOREIGN.get(name) or FOREIGN.get(last)
        if foreign is not None:
            words = foreign(value) if callable(foreign) else [f"{foreign}={value}"]
        elif last in known:
            words = [f"{known[last]}={value}"]
        else:
            near = near or re.search(r"Did you mean '(.+?)'", did_you_mean(last, [*known, *FOREIGN]))
            if near is None:
                return []
            place = known.get(near[1], near[1])
            if near[1] in FOREIGN and near[1] not in known:
                return self._guess(near[1], value)
            words = [f"{place}={value}"]
        return self._accepted(words)

    def _schedule(self) -> str:
        chosen = [word.partition("=")[2] for word in self._words if word.startswith("schedule=")]
        return chosen[-1] if chosen else "gradual"

    def _accepted(self, words: list[str]) -> list[str]:
        """Return the words if all of them are correct."""
        try:
            for word in words:
                self.read(word)
        except _WrongWordError:
            return []
        return words


@lru_cache(maxsize=1)
def _by_last_part() -> dict[str, str]:
    """Return keys outside the phases by their last part, if only one key has it, and the short forms."""
    paths: dict[str, list[str]] = {}
    for key in all_keys():
        if ".N." not in key.path:
            paths.setdefault(key.path.rpartition(".")[2], []).append(key.path)
    return {last: found[0] for last, found in paths.items() if len(found) == 1 or "." not in found[0]} | {
        short: short for short in SHORT
    }
