"""Numbers of things, in words."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, singular for one.

    Args:
        number: How many there are.
        noun: Singular of the noun.
        plural: Its plural; None appends an s.

    >>> counted(1, "image"), counted(12_000, "image"), counted(0, "class", "classes")
    ('1 image', '12,000 images', '0 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
