"""A line on the terminal for a job that goes through many images."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskProgressColumn, TextColumn

from finetune.terminal import unguarded


@contextmanager
def image_progress(done: int) -> Iterator[Callable[[int], None]]:
    """Show images done and images a second on standard error, where that is a terminal.

    Args:
        done: Images done in earlier attempts.

    Yields:
        A function that is told how many more images are done.
    """
    columns = (TextColumn("{task.completed:,} images"), TaskProgressColumn(show_speed=True))
    with Progress(*columns, console=Console(file=unguarded(sys.stderr)), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=None, completed=done)
        yield lambda count: progress.advance(task, count)
