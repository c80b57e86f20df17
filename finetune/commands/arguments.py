"""Commands that take a RUN and options: argparse, with mistakes told in our own way."""

import argparse
from typing import NoReturn

from finetune.errors import UserError


class Arguments(argparse.ArgumentParser):
    """An argument parser whose errors are a user's mistake like any other."""

    def __init__(self, command: str, about: str) -> None:
        super().__init__(
            prog=f"finetune {command}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog="RUN is a run folder or a bundle folder.",
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise UserError(f"{self.prog}: {message}.\n{self.format_usage().strip()}")
