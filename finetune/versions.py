"""Versions that a result may depend on, read without importing anything."""

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    names = {"finetune": "stagewise-finetune", "torch": "torch", "torchvision": "torchvision", "lightning": "lightning"}
    names |= {"timm": "timm", "torchmetrics": "torchmetrics"}
    found = {"python": platform.python_version()}
    for name, distribution in names.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
