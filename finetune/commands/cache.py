"""``finetune cache``: list or delete the cached outputs of frozen prefixes."""

import argparse
import time
from collections.abc import Sequence

from finetune.commands.options import Arguments
from finetune.counted import counted
from finetune.errors import did_you_mean
from finetune.terminal import printable

ABOUT = """\
list   one line per entry: what it holds, its size, when it was last used
clear  delete all entries that no process is using

Later runs, other phases and resumed runs with the same frozen weights, data and views reuse entries. They are stored in
$FINETUNE_CACHE/features (else $XDG_CACHE_HOME/finetune or ~/.cache/finetune); cache.max_gb=20 limits their total size,
and schedule.cache=off trains without a cache."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune cache`` and return the exit status."""
    parser = Arguments("cache", ABOUT, ending="")
    parser.usage = "finetune cache list | clear"
    parser.add_argument("words", metavar="list | clear", nargs="*", help=argparse.SUPPRESS)
    words = parser.read(argv).words
    if len(words) != 1 or words[0] not in ("list", "clear"):
        hint = did_you_mean(words[0], ("list", "clear")) if words else ""
        parser.error(f"takes list or clear. Given: {' '.join(words) or 'nothing'}.{hint}")

    from finetune.activation_cache.store import delete, features_folder, list_entries

    folder = features_folder()
    if folder is None:
        print("FINETUNE_CACHE=off: there is no cache")
        return 0
    entries = list_entries()
    if words == ["list"]:
        for entry in entries:
            # an entry may come from another program or user
            about = {key: printable(str(value)) for key, value in entry.about.items()}
            views = f"{about.get('augment', '?')} view {about.get('view', '?')}"
            state = "" if entry.complete else "  unfinished"
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
            print(
                f"{entry.bytes / 1e6:>10.1f} MB  {used}  {about.get('backbone', '?')} after {about.get('cached_stage', '?')}, "
                f"{about.get('rows', '?')} {about.get('split', '?')} images, {views}{state}"
            )
        print(
            f"{sum(entry.bytes for entry in entries) / 1e6:.1f} MB in {counted(len(entries), 'entry', 'entries')} in {folder}"
        )
        return 0
    deleted = [entry for entry in entries if delete(entry.folder)]
    print(f"deleted {len(deleted)} entries, {sum(entry.bytes for entry in deleted) / 1e6:.1f} MB, from {folder}")
    if kept := len(entries) - len(deleted):
        print(f"{kept} entries are in use and were kept")
    return 0
