"""Entry point of ``python -m finetune``."""

from finetune.cli import entry

if __name__ == "__main__":
    entry()
