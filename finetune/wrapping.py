"""Lines of at most 80 columns: prose is wrapped at words, tables are cut to fit, a command or a path stays whole."""

import re
import textwrap
from collections.abc import Sequence

WIDTH = 80
_HANGING = 4
# columns that are set apart by two spaces: a row of a table
_ROW = re.compile(r"\S {2,}\S")
# a command, a setting or a path, perhaps after its name: it is copied, so it stays in one line
_ONE_THING = re.compile(r"\s*(?:[\w ]+: )?(?:\S+|finetune .*|'[^']*'|(?:[.~]{0,2}|runs)/.*)")
_COMMAND_AT_THE_END = re.compile(r"(?<=: )finetune [a-z-]+ (?:(?!\. ).)*$")
# what a cell keeps at least when it is cut
_LEAST = 8


def wrapped(text: str) -> str:
    """Return text with every line of prose wrapped at words, with a hanging indent.

    >>> print(wrapped("phase 3 of 3: all, training stem, layer1, layer2, layer3, layer4, head, lr 9.4e-06 ... 0.0003"))
    phase 3 of 3: all, training stem, layer1, layer2, layer3, layer4, head, lr
        9.4e-06 ... 0.0003
    >>> wrapped("run: /" + 90 * "x") == "run: /" + 90 * "x"
    True
    """
    return "\n".join(_wrapped(line) for line in text.split("\n"))


def _wrapped(line: str) -> str:
    if len(line) <= WIDTH or _ROW.search(line) or _ONE_THING.fullmatch(line):
        return line
    indent = len(line) - len(line.lstrip())
    command = _COMMAND_AT_THE_END.search(line)
    hanging = " " * (indent + _HANGING)
    lines = textwrap.wrap(
        line[indent : None if command is None else command.start()],
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join([*lines, *([hanging + command[0]] if command is not None else [])])


def aligned(rows: Sequence[Sequence[str]], *, left: int, indent: int = 0) -> list[str]:
    """Return rows of cells as lines with straight columns, of at most 80 columns: long cells lose their middle.

    Args:
        rows: Cells as text, equally many in each row.
        left: Number of columns, from the first, that are flush left; the others are flush right.
        indent: Spaces before each line.

    >>> aligned([["a", "1"], ["bc", "10"]], left=1)
    ['a    1', 'bc  10']
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    room = WIDTH - indent - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _LEAST:
        widths[widths.index(max(widths))] -= 1
    return [
        " " * indent
        + "  ".join(
            shown.ljust(width) if column < left else shown.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            for shown in (_cut(cell, width),)
        ).rstrip()
        for row in rows
    ]


def _cut(cell: str, width: int) -> str:
    """Return a cell without its middle where it is too wide.

    >>> _cut("tf_efficientnet_lite0", 12), _cut("resnet18", 12)
    ('tf_ef..lite0', 'resnet18')
    """
    if len(cell) <= width:
        return cell
    kept = width - 2
    return f"{cell[: kept - kept // 2]}..{cell[len(cell) - kept // 2 :]}"
