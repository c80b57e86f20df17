"""Options of commands that take a RUN: argparse, with our own error messages."""

import argparse
from pathlib import Path
from typing import NoReturn

from finetune.errors import UserError


class Arguments(argparse.ArgumentParser):
    """An argument parser that raises errors as :class:`UserError`."""

    def __init__(self, command: str, about: str) -> None:
        super().__init__(
            prog=f"finetune {command}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog="RUN is a run folder or a bundle folder.",
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing it and exiting."""
        raise UserError(f"{self.prog}: {message}.\n{self.format_usage().strip()}")


def output_folder(given: str | None, default: Path) -> Path:
    """Return the folder into which a command writes several files.

    Raises:
        UserError: The path is a file.
    """
    folder = default if given is None else Path(given).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: must be a folder. It is a file.")
    return folder
