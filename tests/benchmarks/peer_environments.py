"""One environment a library, made by uv where it is missing: the same torch in all of them."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS: list[str] = _PROJECT["tool"]["uv"]["constraint-dependencies"]
# as in the constraints of pyproject.toml
SAME = ("torch==2.15.0", "torchvision==0.29.2", "safetensors==0.8.0", "numpy==2.4.6", "pillow==13.0.0")
LIBRARIES: dict[str, tuple[str, ...]] = {
    # as a user installs it, without the tools of those who work on it
    "ours": tuple(_PROJECT["project"]["dependencies"]),
    "fastai": ("fastai==2.8.12",),
    "lightning": ("lightning==2.6.6", "torchmetrics==1.9.0"),
    "finetuning_scheduler": ("finetuning-scheduler==2.14.1", "lightning==2.6.6", "torchmetrics==1.9.0"),
    "transformers": ("transformers==5.23.0", "accelerate==1.15.0"),
    "timm": ("timm==1.0.31",),
}


def interpreter(name: str, folder: Path) -> Path:
    """The Python of a library's environment; what has no environment of its own runs in this process's.

    Raises:
        RuntimeError: There is no uv, or it could not install.
    """
    if name not in LIBRARIES:
        return Path(sys.executable)
    environment = folder / name
    python = environment / "bin" / "python"
    wanted = [*SAME, *LIBRARIES[name]]
    # written last, so that a half-made environment is made again
    made = environment / "made_from.txt"
    if made.is_file() and made.read_text(encoding="utf-8").splitlines() == wanted:
        return python
    uv = shutil.which("uv")
    if uv is None:
        raise RuntimeError("uv is not on the path. Install it: pip install uv")
    print(f"environment for {name}: {' '.join(wanted)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    held = folder / "constraints.txt"
    held.write_text("\n".join(CONSTRAINTS) + "\n", encoding="utf-8")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        # compiled now, as pip does, so that the first run is not timed compiling
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), "-c", str(held), *wanted],
    ):
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{found.stderr.strip()}")
    made.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return python
