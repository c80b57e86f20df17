"""The typed command line, with each word replaced that a message says was misspelt."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

# a problem: the word as the last part of what stands before the colon, and the word that was meant
_MEANT = re.compile(
    r"^(?P<head>[^\n]*?): .*?Did you mean (?:'(?P<meant>[^'\n]+)'|\"(?P<other>[^\"\n]+)\")\?", re.MULTILINE
)
_WORD = re.compile(r"(?:'(?P<quoted>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<plain>[^\s=]+))$")


def corrected_line(message: str, typed: Sequence[str]) -> str | None:
    """Return the line to paste in place of the typed one; None if the message names no misspelt word of it.

    Args:
        message: Message with a hint, ``Did you mean 'layer4'?``, for each of its problems; one problem a line.
        typed: Words after ``finetune``.

    >>> corrected_line("freeze[0]='layer5': not a stage. Did you mean 'layer4'?", ["plan", "pets", "freeze=stem,layer5"])
    'finetune plan pets freeze=stem,layer4'
    >>> corrected_line("--format onxn: not a choice. Did you mean 'onnx'?", ["export", "my_run", "--format", "onxn"])
    'finetune export my_run --format onnx'
    """
    if "Use: " in message:
        return None
    words, hints = list(typed), list(_MEANT.finditer(message))
    for hint in hints:
        word, meant = _WORD.search(hint["head"]), hint["meant"] or hint["other"]
        wrong = "" if word is None else word["quoted"] or word["double"] or word["plain"] or ""
        replaced = [_replaced(one, wrong, meant) for one in words]
        if not wrong or replaced == words:
            return None
        words = replaced
    return shlex.join(["finetune", *words]) if hints else None


def _replaced(word: str, wrong: str, meant: str) -> str:
    """Return a typed word with a part replaced: the whole of it, the value of a setting, or an entry of its list."""
    if wrong in (word, str(Path(word)), str(Path(word).expanduser())):
        return meant
    key, joined, value = word.partition("=")
    if not joined:
        return word
    if wrong in (value, str(Path(value)), str(Path(value).expanduser())):
        return f"{key}={meant}"
    entry = re.compile(r"(?<![^,\[ ])" + re.escape(wrong) + r"(?![^,\] ])")
    return f"{key}={entry.sub(lambda _: meant, value)}"
