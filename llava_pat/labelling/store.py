"""Writing a label folder: memory-mapped, in order, going on after a kill where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llava_pat.data.kept_folder import differences, free_bytes, write_json
from llava_pat.data.patch_words import (
    IMAGE_BYTES,
    IMAGES,
    META,
    PROGRESS,
    SCORES,
    WORD_LIST,
    WORD_MEANS,
    WORDS,
    FolderMeta,
    from_storage,
    load_meta,
    load_own_words,
    read_images,
    rows_done,
    storage_type,
    to_storage,
)
from llava_pat.data.word_list import WordList
from llava_pat.labelling.agreement import LabelStatistics
from llava_pat.labelling.report import REPORT, TABLE
from llava_pat.types import DataError

_ROWS_BETWEEN_FLUSHES = 4096
_ROWS_AT_ONCE = 256


def open_folder(folder: Path, meta: FolderMeta, words: WordList, images: Sequence[str]) -> bool:
    """Make `folder` that of these labels; True when it was already.

    DataError when it holds labels of something else (what differs is named), or files that are no labels.
    """
    if (folder / META).is_file():
        shown = differences(_flat(load_meta(folder)), _flat(meta))
        if shown:
            raise DataError(f"{folder} holds other labels ({shown}). Delete it, or choose another folder")
        if read_images(folder) != list(images):
            raise DataError(f"{folder} holds labels of other images than now. Delete it, or choose another folder")
        load_own_words(folder, meta)
        return True
    others = {path.name for path in folder.iterdir()} - {REPORT, TABLE} if folder.is_dir() else set()
    if others and not (folder / IMAGES).is_file():
        raise DataError(f"{folder} is not empty and holds no labels; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    words.save(folder / WORD_LIST)
    write_json(folder / IMAGES, list(images))
    meta.save(folder)  # last: from here on the folder is these labels'
    return False


def _flat(meta: FolderMeta) -> dict[str, object]:
    """Every switch by its own name; without the names of files, which may be spelt in several ways."""
    values = asdict(meta)
    switches = values.pop("switches")
    return {key: value for key, value in values.items() if key not in ("tower", "data_path")} | switches


def check_space(folder: Path, images: int, meta: FolderMeta) -> int:
    """Bytes that the two files take. DataError when the disk has less left."""
    kind = storage_type(meta.words)
    needed = images * meta.patches * meta.switches["n"] * (kind.itemsize + np.dtype(np.float16).itemsize)
    free = free_bytes(folder)
    # mapped files are sparse: what is there already may not be on the disk yet
    there = sum((folder / name).stat().st_blocks * 512 for name in (WORDS, SCORES) if (folder / name).is_file())
    if free + there < needed:
        raise DataError(
            f"{folder}: labels take {needed / 1e9:.1f} GB ({images} images x {meta.patches} patches x "
            f"{meta.switches['n']} words) and the disk has {free / 1e9:.1f} GB free; take another disk, or a smaller n"
        )
    return needed


def write_labels(
    folder: Path,
    meta: FolderMeta,
    image_bytes: Sequence[int],
    label: Callable[[range], Iterator[tuple[Tensor, Tensor]]],
    progress: bool = True,
) -> None:
    """Label all images that are not labelled yet.

    label: rows -> batches of (ids int64 [I, N, n], scores [I, N, n]), in order.
    """
    kind, shape = storage_type(meta.words), (len(image_bytes), meta.patches, meta.switches["n"])
    done = rows_done(folder)
    fresh = done == 0
    words, scores = (
        np.lib.format.open_memmap(
            folder / name, mode="w+" if fresh else "r+", **({"dtype": dtype, "shape": shape} if fresh else {})
        )
        for name, dtype in ((WORDS, kind), (SCORES, np.dtype(np.float16)))
    )
    if words.shape != shape or scores.shape != shape:
        raise DataError(f"{folder}: its files have shapes {words.shape} and {scores.shape}, not {shape}; delete it")
    if fresh:
        np.save(folder / IMAGE_BYTES, np.asarray(image_bytes, dtype=np.int64))
    with tqdm(total=len(image_bytes), initial=done, desc="labelling", unit="image", disable=not progress) as bar:
        flushed = done
        for ids, values in label(range(done, len(image_bytes))):
            rows = slice(done, done + len(ids))
            words[rows], scores[rows] = to_storage(ids, values, kind)
            done += len(ids)
            bar.update(len(ids))
            if done - flushed >= _ROWS_BETWEEN_FLUSHES or done == len(image_bytes):
                words.flush()
                scores.flush()
                _remember(folder, done)
                flushed = done


def _remember(folder: Path, rows: int) -> None:
    write_json(folder / PROGRESS, {"rows": rows})


def save_word_means(folder: Path, means: Tensor) -> None:
    np.save(folder / WORD_MEANS, means.to(torch.float32).cpu().numpy())


def whole_statistics(folder: Path, words: Sequence[str], progress: bool = True) -> LabelStatistics:
    """Of all stored labels, a few hundred images in memory at a time."""
    stored, scores = (np.load(folder / name, mmap_mode="r") for name in (WORDS, SCORES))
    statistics = LabelStatistics(words)
    for start in tqdm(range(0, len(stored), _ROWS_AT_ONCE), desc="counting labels", disable=not progress):
        rows = slice(start, start + _ROWS_AT_ONCE)
        ids, values = from_storage(stored[rows], scores[rows])
        statistics.update(ids.flatten(0, 1), values.flatten(0, 1))
    return statistics
