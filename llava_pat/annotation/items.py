"""The images that are to be annotated: which they are, what is said about them, and how they are opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from llava_pat.annotation.converters.base import LeftOut
from llava_pat.annotation.decoding import BOMB_PIXELS, decode_image
from llava_pat.data.images import BROKEN, MISSING, TOO_LARGE
from llava_pat.data.records import LEAVES_FOLDER, resolve_image
from llava_pat.types import DataError, Record

REASONS = {
    LEAVES_FOLDER: "its name leads out of the image folder",
    MISSING: "no such image file",
    TOO_LARGE: "more than max_pixels pixels",
    BROKEN: "not an image that can be read",
}
"""By the kind of DataError."""


@dataclass(frozen=True)
class Item:
    """One image of the training data."""

    id: str
    image: str
    """As records spell it."""
    caption: str
    """Everything the records say about it, a line a turn."""
    where: str
    """File, record and id, for errors."""


def find_items(records: Iterable[Record]) -> list[Item]:
    """Every image of the records once, in the order of their first mention, with all that its records answer."""
    items: dict[str, Item] = {}
    for record in records:
        said = "\n".join(turn.value for turn in record.turns if turn.role == "gpt")
        for name in dict.fromkeys(record.images):
            first = items.get(name)
            if first is None:
                items[name] = Item(record.id, name, said, record.where)
            else:
                items[name] = replace(first, caption=f"{first.caption}\n{said}")
    return list(items.values())


def open_item(item: Item, image_folder: Path, max_pixels: int = BOMB_PIXELS) -> Image.Image | LeftOut:
    """Decoded as training sees it, or why not."""
    try:
        return decode_image(resolve_image(image_folder, item.image), item.where, max_pixels)
    except DataError as error:
        return LeftOut("images", REASONS[error.kind], str(error))
