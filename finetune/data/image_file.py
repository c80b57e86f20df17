"""Reads the bytes of an image file; refuses before reading what is not a regular file or is too large."""

import os
import stat

from finetune.data.formats import sniff, what_instead

# the limit at which Pillow itself refuses: a file of a few kilobytes can claim to hold this many pixels
MAX_PIXELS = 178_956_970
# length of the start of a file from which its format is recognised
HEAD_BYTES = 64


class Refused(Exception):  # noqa: N818 (it names what happened; callers raise their own error, which names the file)
    """A refusal to read a file as an image.

    Args:
        reason: Reason, as a sentence for the user.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def largest_file(max_pixels: int = MAX_PIXELS) -> int:
    """Return the largest size of an image file: ``max_pixels`` colour pixels (512 MiB at least) and 16 MiB of metadata.

    >>> largest_file() // 2**20
    528
    """
    return 3 * max(max_pixels, MAX_PIXELS) + 2 + 2**24


def read_image_file(path: str, *, max_pixels: int = MAX_PIXELS) -> bytearray:
    """Read the bytes of a file that starts like an image.

    Pipes, devices, sockets and folders are recognised by their type and never opened. A file that does not start like
    an image is not read any further, because a sparse file may claim any size.

    Raises:
        Refused: The file is missing, empty, not a regular file, too large, not an image, or not readable.
    """
    try:
        _check(os.stat(path), max_pixels)
        # between the check and the opening it may have become a pipe, which would wait for its other end
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            _check(status, max_pixels)
            head = file.read(HEAD_BYTES)
            if sniff(head) is None:
                raise Refused(what_instead(head))
            data = bytearray(max(status.st_size, len(head)))
            data[: len(head)] = head
            with memoryview(data) as view:
                filled = len(head)
                while filled < len(data) and (count := file.readinto(view[filled:])):
                    filled += count
    except FileNotFoundError:
        raise Refused("There is no such file.") from None
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise Refused(f"{getattr(error, 'strerror', None) or error}.") from None
    del data[filled:]
    return data


def read_head(path: str) -> bytes:
    """Return the first bytes of a regular file, which show its format; empty if it is not one or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            return file.read(HEAD_BYTES) or b""
    except (OSError, ValueError):
        return b""


def _check(status: os.stat_result, max_pixels: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Refused("It is not a regular file.")
    if not status.st_size:
        raise Refused("The file is empty.")
    if status.st_size > largest_file(max_pixels):
        raise Refused(
            f"It has {status.st_size / 2**20:,.0f} MiB, more than the {largest_file(max_pixels) // 2**20:,} MiB of an image file "
            f"under data.max_pixels={max_pixels}. Raise the limit if the file is meant to be so large."
        )
