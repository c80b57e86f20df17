"""Images of a data set as small pictures inside a page."""

from finetune.data.decode import UnreadableImage
from finetune.data.image_source import Source
from finetune.report.thumbnails import SIDE_PX as THUMBNAIL_PX
from finetune.report.thumbnails import data_url as data_url  # the name under which pages know it
from finetune.report.thumbnails import pixels_url as pixels_url  # likewise
from finetune.report.thumbnails import thumbnail as small


def thumbnail(source: Source, row: int | None) -> str | None:
    """The whole image of a row as a data URL; None where it cannot be read."""
    if row is None:
        return None
    try:
        image = source.read(row, at_least=THUMBNAIL_PX)
    except UnreadableImage:
        return None
    return small(image)
