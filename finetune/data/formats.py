"""Image formats, recognised by a file's first bytes whatever its name says."""

# the format that each suffix promises; the audit reports files that hold another one
FORMAT_OF_SUFFIX = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".gif": "GIF",
    ".webp": "WebP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

_FOREIGN = (
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"{", "a JSON document"),
)

_BOXES = {
    b"heic": "a HEIC",
    b"heix": "a HEIC",
    b"mif1": "a HEIC",
    b"msf1": "a HEIC",
    b"avif": "an AVIF",
    b"avis": "an AVIF",
}


def sniff(head: bytes | bytearray) -> str | None:
    """Return the image format that the first 16 bytes announce, or None.

    >>> sniff(b"GIF89a" + bytes(10))
    'GIF'
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    return "WebP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def what_instead(head: bytes | bytearray) -> str:
    """Describe a file that is not an image in a supported format, as a sentence for the user.

    >>> what_instead(b"<!DOCTYPE html><html>")
    'It is a web page, not an image.'
    """
    start = bytes(head[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head[4:8] == b"ftyp" and bytes(head[8:12]) in _BOXES:
        return f"It is {_BOXES[bytes(head[8:12])]} image, which is not supported: convert it to JPEG or PNG."
    if not any(head):
        return "It holds nothing but zero bytes, as after an interrupted download or copy."
    for magic, words in _FOREIGN:
        if start.startswith(magic.lower()):
            return f"It is {words}, not an image."
    return f"Its first bytes ({bytes(head[:8]).hex(' ')}) belong to no known image format."
