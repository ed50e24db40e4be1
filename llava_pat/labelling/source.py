"""What labels are made from: images, their geometry, a whole CLIP and a word list, opened together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from llava_pat.data.geometry import CenterCrop, Geometry, geometry_for
from llava_pat.data.records import load_records, resolve_image
from llava_pat.data.word_list import captions
from llava_pat.models.loading import load_image_processor, tower_config, tower_image_size
from llava_pat.models.open_clip_tower import is_open_clip
from llava_pat.models.patch_text import PatchText
from llava_pat.types import DataError


def image_captions(data_path: str | Path) -> dict[str, list[str]]:
    """The images of a LLaVA file in the order in which records name them, each once, with all that is said about it."""
    records = load_records(data_path, on_bad="skip")
    found: dict[str, list[str]] = {}
    for record in records:
        for name in record.images:
            found.setdefault(name, []).extend(captions([record]))
    if not found:
        raise DataError(f"{data_path}: none of its {len(records)} records has an image, so there is nothing to label")
    return found


def file_sizes(names: Sequence[str], folder: str | Path) -> list[int]:
    """Bytes of every image; DataError names the first that is not there."""
    sizes = []
    for name in names:
        path = resolve_image(folder, name)
        try:
            sizes.append(path.stat().st_size)
        except OSError as error:
            raise DataError(f"image {name!r}: {path} cannot be read ({error.strerror})") from error
    return sizes


def labelling_geometry(clip_at: str, clip: PatchText, trained_at: str, aspect: str) -> Geometry:
    """How images are placed for the labels: as the tower that is trained on sees them, in the CLIP's pixels.

    The two are mostly one. DataError when their grids differ: patch p must be one place in both.
    """
    own = geometry_for(aspect, load_image_processor(clip_at, clip.tower.image_size))
    if trained_at == clip_at:
        return own
    if is_open_clip(trained_at):
        raise DataError(
            f"{trained_at}: labels of another tower ({clip_at}) for an open_clip tower are not supported; "
            "label with the tower itself"
        )
    config = tower_config(trained_at)
    side = tower_image_size(trained_at, config)
    grid = side // config.patch_size
    if grid != clip.tower.grid:
        raise DataError(
            f"{clip_at} sees {clip.tower.grid} x {clip.tower.grid} patches but {trained_at} sees {grid} x {grid}: "
            "their labels cannot be exchanged; take a CLIP of the same grid"
        )
    theirs = geometry_for(aspect, load_image_processor(trained_at, side))
    changes = {"size": own.size, "mean": own.mean, "std": own.std, "resample": own.resample, "rescale": own.rescale}
    if isinstance(theirs, CenterCrop) and theirs.edge is not None:
        changes["edge"] = round(theirs.edge * own.size / side)
    return dataclasses.replace(theirs, **changes)
