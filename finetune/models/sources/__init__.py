"""Sources of networks, one module per library; no other code imports these libraries' models.

Each module has three functions: ``architecture(name, kwargs)`` builds a :class:`~finetune.models.backbone.Backbone` with
random weights and downloads at most a configuration; ``load_imagenet(backbone, member)`` loads the library's own
weights into it (``member`` names one of several; None is the default); ``network_alone(name, kwargs, channels, size)`` builds
the network without this package, and is None where no library can. A new source is such a module, and a name in
``NETWORK_SOURCES``; the text of ``backbone.source`` in ``config/schema.py`` names it, and a preset is a file in
``conf/backbone/``.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from finetune.errors import UserError, did_you_mean
from finetune.models.pools import POOLS
from finetune.models.user_modules import OWN

if TYPE_CHECKING:  # the modules of the sources import it
    from finetune.models.backbone import Backbone

NETWORK_SOURCES = ("timm", "torchvision", "transformers", "residual")
OWNED_KEYS = ("num_classes", "in_chans", "pretrained", "weights", "global_pool", "features_only")
# keywords of timm's and torchvision's builders that open files or addresses, whose pickles may execute code
FILE_KEYS = frozenset(
    {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir"}
    | {"weights_backbone", "progress", "file", "url", "hf_hub_id"}
)


def source_module(source: str) -> ModuleType:
    """Import the module of :mod:`finetune.models.sources` for a source, and with it the source's library.

    Raises:
        UserError: The source is unknown, or its library is not installed.
    """
    if source == OWN:
        raise UserError(
            "backbone.source='own': needs the class of the network. Give backbone._target_=my.module.Net and backbone.stages, "
            "or in Python finetune.build_backbone(module, stages={...})."
        )
    if source not in NETWORK_SOURCES:
        hint = did_you_mean(source, NETWORK_SOURCES)
        raise UserError(f"backbone.source={source!r}: unknown. Sources: {', '.join(NETWORK_SOURCES)}.{hint}")
    try:
        return importlib.import_module(f"finetune.models.sources.from_{source}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"backbone.source={source!r}: needs the package {error.name!r}, which is not installed. "
            f"Install it: pip install {error.name}."
        ) from None


def fit_pool(backbone: "Backbone", pool: str | None) -> None:
    """Make a network pool its last maps or tokens in this way.

    Args:
        backbone: Network, changed in place.
        pool: One of :data:`finetune.models.pools.POOLS`; None for the way in which it does.

    Raises:
        UserError: The network does not pool so, or its library does not let its pooling be chosen.
    """
    if pool is None:
        return
    if pool not in POOLS:
        raise UserError(f"backbone.pool={pool!r}: must be one of {', '.join(POOLS)}.{did_you_mean(str(pool), POOLS)}")
    if backbone.source != "timm":
        whose = "your own module" if backbone.source == OWN else backbone.source
        raise UserError(
            f"backbone.pool={pool!r}: is chosen for networks of timm, not for one of {whose}. Leave it out."
        )
    source_module(backbone.source).set_pool(backbone, pool)


def fit_to_size(backbone: "Backbone", size: tuple[int, int] | None) -> None:
    """Make a network that takes images of one size only take those of this size; leave any other network as it is.

    Args:
        backbone: Network, changed in place; its position tables are resampled.
        size: Height and width in pixels; None for the size that it takes.

    Raises:
        UserError: The network does not take this size.
    """
    if backbone.fixed_size and size is not None and size != backbone.input_spec.size:
        source_module(backbone.source).resize(backbone, size)
