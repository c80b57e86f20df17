"""Shell completion: commands, options, settings and their values from our own tables; paths and choices from Hydra."""

import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress


def run(argv: Sequence[str], commands: Mapping[str, bool], run_command: Callable[[str, list[str]], int]) -> int:
    """Answer ``finetune -sc install=bash`` and the shell's ``finetune -sc query=bash``.

    Args:
        argv: Words of the query.
        commands: Commands, and whether each takes a run's configuration.
        run_command: Function that runs a command; its help has its options.
    """
    from finetune.config import conf_dir, register_schema

    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    open_word = "" if line.endswith(" ") or len(words) < 2 else words[-1]
    if "query" in "".join(argv):
        answers = _answers(words, open_word, commands, run_command)
        if answers:
            meanings = _meanings(answers) if "query=fish" in argv else {}
            print("\n".join(f"{one}\t{meanings[one]}" if one in meanings else one for one in answers))
            return 0
    if len(words) > 1 and words[1] in commands:
        # Hydra knows the overrides, but not the command word before them
        cut = line.replace(f" {words[1]}", "", 1)
        os.environ["COMP_POINT"] = str(max(int(os.environ.get("COMP_POINT", len(line))) - len(line) + len(cut), 0))
        os.environ["COMP_LINE"] = cut
    import hydra

    register_schema()
    sys.argv = [sys.argv[0], *argv]
    hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(lambda config: None)()
    return 0


def _answers(
    words: Sequence[str],
    open_word: str,
    commands: Mapping[str, bool],
    run_command: Callable[[str, list[str]], int],
) -> list[str]:
    """Return the completions of the open word that our own tables know."""
    if len(words) <= 1 or (len(words) == 2 and open_word):
        names = [name for name in commands if name.startswith(open_word)]
        if names:
            return names
    command = words[1] if len(words) > 1 and words[1] in commands else "train"
    if open_word.startswith("-"):
        return [flag for flag in _flags(command, run_command) if flag.startswith(open_word)]
    if not open_word or not commands[command]:
        return []
    from finetune.config.overrides import SHORT
    from finetune.config.settings import setting_texts, values_allowed

    key, joined, value = open_word.partition("=")
    if joined:
        return [f"{key}={one}" for one in values_allowed(SHORT.get(key, key)) if one.startswith(value)]
    from finetune.config.groups import group_choices

    texts = [text for text in setting_texts() if ".N." not in text.key]
    keys = [*group_choices(), *(text.short for text in texts if text.short), *(text.key for text in texts)]
    return [f"{one}=" for one in dict.fromkeys(keys) if one.startswith(open_word)]


def _meanings(answers: Sequence[str]) -> dict[str, str]:
    """Return what the keys among the answers mean; fish shows it beside each."""
    from finetune.config.settings import setting_texts

    meant = {f"{name}=": text.meaning for text in setting_texts() for name in (text.key, text.short) if name}
    return {one: meant[one] for one in answers if one in meant}


def _flags(command: str, run_command: Callable[[str, list[str]], int]) -> list[str]:
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        run_command(command, ["--help"])
    return list(dict.fromkeys(re.findall(r"^\s+(?:-\w+(?: \w+)?, )?(--[\w-]+)", text.getvalue(), re.MULTILINE)))
