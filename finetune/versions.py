"""Versions that a result may depend on, read without importing the libraries."""

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    names = {"finetune": "stagewise-finetune", "torch": "torch", "torchvision": "torchvision", "lightning": "lightning"}
    names |= {"timm": "timm", "torchmetrics": "torchmetrics"}
    installed = {"python": platform.python_version()}
    for name, distribution in names.items():
        try:
            installed[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed
