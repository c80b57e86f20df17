"""Tell whether labels of a table are several labels joined by a separator, such as ``cat;dog``."""

from collections.abc import Collection

_SEPARATORS = (";", "|", ",", " ")


def separator_of(labels: Collection[str]) -> str | None:
    """Return the separator of labels of which some are joined; None if none seems to be.

    Joined labels repeat those that stand alone, so there are no more parts than labels; names of classes have blanks too, so a
    part between blanks must also stand alone.

    >>> separator_of(["cat;dog", "cat"]), separator_of(["red fox", "wolf"]), separator_of(["tench, Tinca tinca", "goldfish"])
    (';', None, None)
    """
    texts = set(labels)
    for separator in _SEPARATORS:
        parts = {part.strip() for text in texts for part in text.split(separator)}
        joined = any(separator in text for text in texts) and len(parts) <= len(texts)
        if joined and (separator != " " or parts & texts):
            return separator
    return None


def joined_classes_note(classes: Collection[str]) -> str | None:
    """Return a warning that classes look like several labels each; None if they do not."""
    separator = separator_of(classes)
    if separator is None:
        return None
    joined = [name for name in classes if separator in name]
    return (
        f"warning: {len(joined)} of {len(classes)} classes hold {separator!r}, such as {joined[0]!r}, and each is a class of its "
        f"own. If an image shows several classes, set data.label_separator='{separator}'."
    )
