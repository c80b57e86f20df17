"""The names of timm's networks, read from its source: importing timm takes seconds, a mistyped name deserves a quick answer."""

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

_REGISTERED = re.compile(r"^@register_model\s+(?:@.*\s+)*def (\w+)", re.MULTILINE)


@lru_cache(maxsize=1)
def timm_names() -> tuple[str, ...]:
    """Return the networks of the installed timm, without the tags of their weights, sorted.

    >>> {"resnet18", "efficientnet_b0", "convnext_tiny"} <= set(timm_names())
    True
    """
    found = find_spec("timm")
    if found is None or found.origin is None:
        return ()
    files = (Path(found.origin).parent / "models").glob("*.py")
    return tuple(sorted({name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))}))


def is_timm_name(name: str) -> bool:
    """Tell whether a name is a network of timm, with or without a tag of its weights.

    >>> is_timm_name("resnet50.a1_in1k"), is_timm_name("resnet19")
    (True, False)
    """
    return name.partition(".")[0] in timm_names()
