"""Numbers of things and of bytes, in words."""


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


def in_bytes(number: int) -> str:
    """Return a number of bytes in the unit that suits it, of 1,000 or 1,000,000 bytes.

    >>> in_bytes(225_800_000), in_bytes(4_096), in_bytes(40_000)
    ('225.8 MB', '4.1 kB', '40.0 kB')
    """
    return f"{number / 1e6:,.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"
