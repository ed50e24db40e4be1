"""An annotation and the image that it is of."""

from __future__ import annotations

from llava_pat.types import DataError, ImageRegions, Record


def compare_sizes(record: Record, annotated: ImageRegions, size: tuple[int, int]) -> None:
    """DataError when an annotation was made on an image of another size than `size` (height, width) on disk."""
    if (annotated.height, annotated.width) != size:
        raise DataError(
            f"{annotated.where}: its regions are for {annotated.height}x{annotated.width} (height x width) but the "
            f"image of {record.where} is {size[0]}x{size[1]}; annotate the file that is trained on",
            "region_size",
        )
