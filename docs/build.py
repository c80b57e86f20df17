"""The pages of the API, from the docstrings: the one command that builds them.

    uv run python docs/build.py             # into site/; open site/index.html

They need no network, neither to be built nor to be read. A warning of pdoc's (a name that does not resolve, a module that
cannot be imported) is an error here.
"""

import argparse
import importlib
import pkgutil
import warnings
from pathlib import Path
from types import ModuleType

import pdoc

import finetune

ROOT = Path(__file__).parent.parent


def parts() -> list[str]:
    """What lies directly in the package; pdoc finds what is inside folders by itself."""
    # importing __main__ would run the program
    return [f"finetune.{part.name}" for part in pkgutil.iter_modules(finetune.__path__) if part.name != "__main__"]


def build(output: Path) -> None:
    """Write a page a module, and an index."""
    # packages that are functions too; once they are imported, Python does not set them over the functions again
    for package in ("finetune.export", "finetune.ladder"):
        importlib.import_module(package)
    for name in finetune.__all__:
        # the package imports its heavy names when they are first asked for, which pdoc does not do
        known = vars(finetune).get(name)
        setattr(finetune, name, finetune.__getattr__(name) if known is None or isinstance(known, ModuleType) else known)
    pdoc.render.configure(docformat="google", show_source=True, search=True)
    with warnings.catch_warnings():
        # of pdoc alone: libraries warn of other things while they are imported
        warnings.filterwarnings("error", module="pdoc")
        pdoc.pdoc("finetune", *parts(), output_directory=output)


def main() -> None:
    """Build, and say where."""
    parser = argparse.ArgumentParser(description="Build the pages of the API.")
    parser.add_argument("--output", type=Path, default=ROOT / "site")
    output = parser.parse_args().output
    build(output)
    print(f"{len(list(output.rglob('*.html')))} pages: {output / 'index.html'}")


if __name__ == "__main__":
    main()
