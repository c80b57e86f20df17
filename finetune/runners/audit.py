"""Audit the data of a configuration."""

from dataclasses import replace
from typing import TYPE_CHECKING

from finetune.config.schema import Config
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.data.audit import Audit
    from finetune.data.image_source import Source


def audit_source(config: Config) -> "tuple[Audit, Source]":
    """Audit the data of one configuration, and return it with its source.

    Raises:
        UserError: There is no such data, or it has no files.
    """
    from finetune.build.data import build_source
    from finetune.build.paths import check_paths
    from finetune.data.audit import audit
    from finetune.data.sources import source_kind

    listing = check_paths(config, use="audit")
    kind = source_kind(config.data.source)
    if kind.decodes:
        # unreadable files are findings, so they must not end the audit
        config = replace(config, data=replace(config.data, on_unreadable="skip"))
    source = build_source(config, use="audit", listing=listing, download=True)
    if source.facts is None:
        raise UserError(f"data.source={config.data.source!r}: has no files to audit.")
    left_out = kind.left_out(**kind.specific_settings(config.data)) if kind.left_out is not None else ()
    return audit(source, left_out=left_out), source
