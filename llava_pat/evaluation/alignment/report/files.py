"""What a measuring run leaves, as the report reads it. A row is a checkpoint or a baseline.

metrics.json    {"checkpoints": {row: {metric: number}}, "baselines": {row: {metric: number}}, "settings": {...}}
                settings["rows"][row]: title, path, note, each optional; a baseline may be called
                <kind>-of-<checkpoint>, its title then ends in " of <checkpoint>"
data/<row>.npz  arrays by name, each optional: CURVES has them
data/<row>-pictures.json, data/<row>-pictures.npz   checkpoints only: the same images in the same order for all of them

Letters: I images, N patches, W words of the heat map (the V words of the object vocabulary first), R regions,
k as many as were asked for. Others: llava_pat/types.py.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_pat.data.json_files import read_json
from llava_pat.types import DataError

METRICS, DATA = "metrics.json", "data"

CURVES = {
    "spectrum_features": "[<=Dv] shares of the pooled eigenvalues, descending; _centred likewise",
    "spectrum_features_centred": "[<=Dv]",
    "spectrum_patches": "[<=D]",
    "spectrum_patches_centred": "[<=D]",
    "entropy_features_image": "[I] nats; _centred likewise",
    "entropy_features_image_centred": "[I]",
    "entropy_patches_image": "[I]",
    "entropy_patches_image_centred": "[I]",
    "cosine_edges": "[H + 1] edges of the bins of the next two",
    "cosine_right": "[H] pairs of a labelled patch and a right word of the vocabulary",
    "cosine_wrong": "[H] pairs with a wrong word",
    "rank_counts": "[V] labelled patches whose nearest right word has 0, 1, ... wrong words as near",
    "label_words": "[V] strings",
    "label_patches": "[V] labelled patches of each word",
    "label_cosine": "[V] mean cosine of these patches with the word; NaN without a patch",
    "label_hit_at_1": "[V] share of these patches whose nearest word is right; NaN without a patch",
    "label_iou": "[V] PatchDis; NaN where the word is never seen",
    "ima": "[layers + 1] cosine of the mean image and mean text state; 0 is the input of the first layer",
    "omp_explained": "[k] mean share of a patch's energy after 1..k words",
    "omp_explained_nonnegative": "[k]",
}


@dataclass(frozen=True)
class Row:
    """One checkpoint or baseline."""

    name: str
    is_baseline: bool
    metrics: Mapping[str, float]
    about: Mapping[str, Any]
    """settings["rows"][name]"""
    curves: Mapping[str, NDArray]

    @property
    def title(self) -> str:
        return str(self.about.get("title", self.name))

    @property
    def kind(self) -> str:
        """Baselines that every checkpoint has its own of, <kind>-of-<checkpoint>, are of one kind."""
        return self.name.split("-of-")[0] if self.is_baseline else self.name


@dataclass(frozen=True)
class Decomposition:
    """One patch as a sum of words, in the order in which the pursuit found them."""

    patch: int
    labels: tuple[str, ...]
    words: tuple[str, ...]
    coefficients: tuple[float, ...]
    explained: tuple[float, ...]
    nonnegative: bool


@dataclass(frozen=True)
class Picture:
    """One image as one checkpoint sees it."""

    name: str
    caption: str
    grid: tuple[int, int]
    labels: tuple[str, ...]  # R
    pixels: NDArray[np.uint8]  # [H, W, 3]
    masks: NDArray[np.bool_]  # [R, H, W]
    cosine: NDArray[np.float32]  # [N, W]
    nearest_words: NDArray[np.str_]  # [N, k] of the language model's own words, nearest first
    nearest_cosine: NDArray[np.float32]  # [N, k]
    nearest_entry: NDArray[np.int64]  # [N] of the object vocabulary; [0] without one
    decompositions: tuple[Decomposition, ...]


@dataclass(frozen=True)
class Pictures:
    """The pictures of one checkpoint."""

    words: tuple[str, ...]  # W
    vocabulary_size: int  # V
    images: tuple[Picture, ...]


@dataclass(frozen=True)
class Run:
    """A finished measuring run."""

    out: Path
    rows: tuple[Row, ...]  # checkpoints first
    settings: Mapping[str, Any]

    @property
    def checkpoints(self) -> list[Row]:
        return [row for row in self.rows if not row.is_baseline]

    @property
    def baselines(self) -> list[Row]:
        return [row for row in self.rows if row.is_baseline]

    @cached_property
    def pictures(self) -> dict[str, Pictures]:
        """By checkpoint; those without pictures are left out. DataError where two are of different images."""
        found = {}
        for row in self.checkpoints:
            pictures = read_pictures(self.out / DATA, row.name)
            if pictures is not None:
                found[row.name] = pictures
        seen = {name: [image.name for image in pictures.images] for name, pictures in found.items()}
        for name, images in seen.items():
            first = next(iter(seen))
            if images != seen[first]:
                raise DataError(
                    f"{self.out / DATA}: the pictures of {first} and {name} are of different images "
                    f"({len(seen[first])} and {len(images)}); measure both in one run"
                )
        return found


def read_run(out: Path) -> Run:
    """Reads metrics.json and the curves of every row.

    Raises:
        DataError: missing or unreadable files, a value that is no number, no checkpoint, arrays that do not fit.
    """
    path = out / METRICS
    if not path.exists():
        raise DataError(f"{path}: no such file; measure first: bash scripts/analyze.sh CHECKPOINT --out {out}")
    content = read_json(path)
    for key in ("checkpoints", "baselines", "settings"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise DataError(f"{path}: expected an object {key!r}; measure again")
    if not content["checkpoints"]:
        raise DataError(f"{path}: it has no checkpoint to report on; measure again")
    about = content["settings"].get("rows", {})
    rows = []
    for kind in ("checkpoints", "baselines"):
        for name, metrics in content[kind].items():
            if not re.fullmatch(r"[A-Za-z0-9._+-]+", name) or name.strip(".") == "":
                raise DataError(f"{path}: {kind}/{name!r} is no file name (letters, digits and . _ + - only)")
            if any(row.name == name for row in rows):
                raise DataError(f"{path}: {name!r} is both a checkpoint and a baseline; name one of them differently")
            for metric, value in metrics.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise DataError(f"{path}: {kind}/{name}/{metric} is {value!r}, not a number; measure again")
            curves = read_curves(out / DATA / f"{name}.npz")
            rows.append(Row(name, kind == "baselines", metrics, about.get(name, {}), curves))
    return Run(out, tuple(rows), content["settings"])


def read_curves(path: Path) -> dict[str, NDArray]:
    """The arrays of one row; none when there is no such file."""
    if not path.exists():
        return {}
    curves = {name: array for name, array in _load(path).items() if name in CURVES}
    for name, array in curves.items():
        if array.ndim != 1:
            raise DataError(f"{path}: {name} has the shape {array.shape}, expected one dimension; measure again")
    together = [
        ("cosine_right", "cosine_wrong", 0),
        ("cosine_edges", "cosine_right", 1),
        *(("label_words", name, 0) for name in ("label_patches", "label_cosine", "label_hit_at_1", "label_iou")),
    ]
    for first, second, more in together:
        if first in curves and second in curves and len(curves[first]) != len(curves[second]) + more:
            raise DataError(
                f"{path}: {first} has {len(curves[first])} values and {second} {len(curves[second])}, "
                f"expected {len(curves[second]) + more} and {len(curves[second])}; measure again"
            )
    return curves


def read_pictures(data: Path, name: str) -> Pictures | None:
    """The pictures of one checkpoint; None when it has none.

    Raises:
        DataError: one of the two files is missing or unreadable, a key is missing, an array has another shape.
    """
    head, arrays = data / f"{name}-pictures.json", data / f"{name}-pictures.npz"
    if not head.exists() and not arrays.exists():
        return None
    for path in (head, arrays):
        if not path.exists():
            raise DataError(f"{path}: no such file, though the other half of these pictures is there; measure again")
    content, stored = read_json(head), _load(arrays)
    try:
        words = tuple(content["words"])
        images = tuple(
            _picture(arrays, stored, i, entry, len(words), content["vocabulary_size"])
            for i, entry in enumerate(content["images"])
        )
        return Pictures(words, content["vocabulary_size"], images)
    except KeyError as error:
        raise DataError(f"{head} or {arrays.name}: {error} is missing; measure again") from error


def _picture(
    path: Path, stored: Mapping[str, NDArray], i: int, entry: Mapping[str, Any], words: int, vocabulary: int
) -> Picture:
    rows, columns = entry["grid"]
    patches = rows * columns
    labels = tuple(region["label"] for region in entry["regions"])
    pixels = _shaped(path, stored, f"pixels_{i}", (None, None, 3))
    masks = _shaped(path, stored, f"masks_{i}", (len(labels), *pixels.shape[:2]))
    nearest = _shaped(path, stored, f"nearest_words_{i}", (patches, None))
    best = np.zeros(0, dtype=np.int64)
    if vocabulary:
        best = _shaped(path, stored, f"nearest_entry_{i}", (patches,))
    if vocabulary > words or not ((0 <= best) & (best < vocabulary)).all():
        raise DataError(f"{path}: nearest_entry_{i} names an entry outside the vocabulary of {vocabulary} words")
    decompositions = tuple(
        Decomposition(
            patch=item["patch"],
            labels=tuple(item["labels"]),
            words=tuple(atom["word"] for atom in item["atoms"]),
            coefficients=tuple(atom["coefficient"] for atom in item["atoms"]),
            explained=tuple(item["explained"]),
            nonnegative=item["nonnegative"],
        )
        for item in entry["decompositions"]
    )
    outside = [item.patch for item in decompositions if not 0 <= item.patch < patches]
    if outside:
        raise DataError(f"{path}: image {i} has {patches} patches, a decomposition is of patch {outside[0]}")
    return Picture(
        name=entry["image"],
        caption=entry.get("caption", ""),
        grid=(rows, columns),
        labels=labels,
        pixels=pixels,
        masks=masks,
        cosine=_shaped(path, stored, f"cosine_{i}", (patches, words)).astype(np.float32),
        nearest_words=nearest,
        nearest_cosine=_shaped(path, stored, f"nearest_cosine_{i}", nearest.shape).astype(np.float32),
        nearest_entry=best,
        decompositions=decompositions,
    )


def _shaped(path: Path, stored: Mapping[str, NDArray], name: str, shape: tuple[int | None, ...]) -> NDArray:
    array = stored[name]
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise DataError(f"{path}: {name} has the shape {array.shape}, expected ({expected}); measure again")
    return array


def _load(path: Path) -> dict[str, NDArray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no readable .npz ({error}); measure again") from error
