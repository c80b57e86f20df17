"""Progress line on the terminal for a job over many images."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskProgressColumn, TextColumn

from finetune.terminal import unguarded


@contextmanager
def image_progress(done: int) -> Iterator[Callable[[int], None]]:
    """Show the number of images done and the images per second on standard error, if that is a terminal.

    Args:
        done: Number of images done in earlier attempts.

    Yields:
        A function to call with the number of further images done.
    """
    columns = (TextColumn("{task.completed:,} images"), TaskProgressColumn(show_speed=True))
    with Progress(*columns, console=Console(file=unguarded(sys.stderr)), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=None, completed=done)
        yield lambda count: progress.advance(task, count)
