"""``finetune settings``: look up a setting."""

from collections.abc import Sequence

from finetune.commands.options import Arguments, home_path
from finetune.config.settings import as_markdown, explain

ABOUT = """\
List every setting with its default and meaning. WORD is a key (schedule.lr), a part of one (lr), a group (schedule),
a choice of one (schedule=full, which shows its file), or any word of a meaning (seed, pixels): then also the allowed
values and an example."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune settings`` and return the exit status."""
    parser = Arguments("settings", ABOUT, ending="")
    parser.add_argument("word", metavar="WORD", nargs="?", help="what to look up (default: all settings)")
    parser.add_argument("--markdown", action="store_true", help="print all as a page of Markdown")
    parser.add_argument(
        "-cd", "--config-dir", type=home_path, action="append", default=[], metavar="DIR", help="a folder of your own"
    )
    given = parser.read(argv)
    print(as_markdown() if given.markdown else "\n".join(explain(given.word, given.config_dir)))
    return 0
