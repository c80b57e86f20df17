"""Refuses TIFF files that libtiff had to repair.

libtiff continues after an error in fax data, and prints it without a path. A handler of our own, set in the copy of libtiff
that Pillow uses, collects errors while a file is decoded. Where that copy shows no functions (Windows), all stays as Pillow
has it. Pillow switches libtiff's warnings off for every file, so lines that a fax machine cut short are not noticed.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import _imaging

# of libtiff's functions: (module, format, arguments), in which the module is a function or the file
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
# errors about tags, which decide no pixel; where they do, Pillow raises
_OF_TAGS = ("TIFF", "_TIFF")
_LONGEST = 300


class _Collector(threading.local):
    """What libtiff said in this thread about the coded pixels; None while nothing is collected."""

    messages: list[str] | None = None


_collector = _Collector()
_lock = threading.Lock()
# kept alive, because libtiff holds its address
_handler: Any = None


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Decode a TIFF file by Pillow; what libtiff says about damaged pixels becomes an error.

    Raises:
        ValueError: libtiff reported damage; the message is its first.
    """
    _set_handler()
    outer, _collector.messages = _collector.messages, []
    try:
        try:
            yield
        except Exception:
            if not _collector.messages:
                raise
        if _collector.messages:
            raise ValueError(f"libtiff reports: {_collector.messages[0]}")
    finally:
        _collector.messages = outer


def _set_handler() -> None:
    """Set the handler, once in a process."""
    global _handler
    with _lock:
        if _handler is not None:
            return
        try:
            set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
            format_text = ctypes.CDLL(None).vsnprintf
        except (AttributeError, OSError, TypeError):
            _handler = False
            return
        format_text.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p)
        set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (_HANDLER,)
        before: Any = None

        def collect(module: bytes | None, text: bytes, arguments: int | None) -> None:
            if _collector.messages is None:
                if before is not None:
                    before(module, text, arguments)
                return
            buffer = ctypes.create_string_buffer(_LONGEST)
            format_text(buffer, _LONGEST, text, arguments)
            place, said = (module or b"").decode(errors="replace"), buffer.value.decode(errors="replace").rstrip(".")
            if not place.startswith(_OF_TAGS):
                _collector.messages.append(said if "." in place else f"{place}: {said}")

        _handler = _HANDLER(collect)
        if address := set_handler(_handler):
            before = _HANDLER(address)
