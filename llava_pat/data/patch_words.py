"""Labels of patches by words, as a folder holds them and as a batch carries them (SEA; docs/objectives.md).

A label folder, made by `bash scripts/label_patches.sh` (llava_pat/labelling):

    meta.json         what the labels are of: tower, word list, corpus, geometry, switches, sizes (FolderMeta)
    word_list.json    the words that ids stand for (word_list.py)
    images.json       names of the images, row by row, and image_bytes.npy, int64 [images], the sizes of their files
    words.npy         uint16, or uint32 beyond 65,534 words: [images, N, n], best first; the type's largest value: none
    scores.npy        float16 [images, N, n], > 0 and descending; 0: no candidate
    word_means.npy    float32 [W]: a word's mean similarity over patches; only where the centring needs it
    report.json, report.txt

The two large files are memory-mapped: a worker reads the rows that it needs. Without them (labels are then computed in
the run, `--patch_words online`) the folder still says with which words and switches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_pat.data.geometry import CenterCrop, Geometry
from llava_pat.data.json_text import BadJson, parse_json
from llava_pat.data.kept_folder import read_json
from llava_pat.data.tokenize import encode_words
from llava_pat.data.word_list import WordList, load_word_list
from llava_pat.types import DataError

META, WORD_LIST, IMAGES, IMAGE_BYTES = "meta.json", "word_list.json", "images.json", "image_bytes.npy"
WORDS, SCORES, WORD_MEANS, PROGRESS = "words.npy", "scores.npy", "word_means.npy", "progress.json"
_MAKE_THEM = "make the labels with `bash scripts/label_patches.sh`"
_FORMAT = 1


@dataclass(frozen=True)
class FolderMeta:
    """What the labels of a folder were made from.

    Two folders of equal meta hold equal labels, but for a centring over patches: its means are of the report's sample.
    """

    tower: str  # as it was named
    tower_sha256: str  # of the vision tower's weights
    text_sha256: str  # of the text encoder's and both projections'
    word_list_sha256: str
    data_path: str
    data_sha256: str
    geometry: dict[str, Any]  # how images were placed (placement_of)
    patches: int  # N
    words: int  # W
    switches: dict[str, Any]  # n, sign, centring, source, prompt ...
    format: int = _FORMAT

    def save(self, folder: Path) -> None:
        (folder / META).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_meta(folder: str | Path) -> FolderMeta:
    """meta.json of a label folder. DataError when there is none or it is of another format."""
    file = Path(folder) / META
    if not file.is_file():
        raise DataError(f"{folder}: holds no {META}, so it is no folder of patch labels; {_MAKE_THEM}")
    try:
        raw = parse_json(file.read_text(encoding="utf-8"))
        if raw.get("format") != _FORMAT:
            raise DataError(f"{file}: format {raw.get('format')!r}, this version reads {_FORMAT}; {_MAKE_THEM} again")
        return FolderMeta(**raw)
    except (UnicodeDecodeError, BadJson, TypeError, AttributeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {_MAKE_THEM} again") from error


def placement_of(geometry: Geometry, patch_size: int) -> dict[str, Any]:
    """How a geometry places an image on the grid, whatever its size in pixels.

    Where two agree in this and in the number of patches, patch p shows the same part of the image.
    """
    edge = geometry.edge if isinstance(geometry, CenterCrop) else None
    return {
        "kind": type(geometry).__name__,
        "edge": 1.0 if edge is None else edge / geometry.size,  # the shorter edge before the crop; 1: the square's
        "seen": geometry.size // patch_size * patch_size / geometry.size,  # share of the square that patches tile
    }


class PatchWordsFolder:
    """The labels of a folder, by image name.

    Raises DataError for a folder that is none, is not finished, or whose files do not fit each other.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.meta = load_meta(folder)
        self.word_list = load_own_words(self.folder, self.meta)
        self._rows = {name: row for row, name in enumerate(read_images(self.folder))}
        missing = [name for name in (WORDS, SCORES, IMAGE_BYTES) if not (self.folder / name).is_file()]
        if missing:
            raise DataError(
                f"{self.folder}: holds no {' and no '.join(missing)}; {_MAKE_THEM}, or compute them in the run: "
                "--patch_words online"
            )
        done = rows_done(self.folder)
        if done < len(self._rows):
            raise DataError(
                f"{self.folder}: {done} of {len(self._rows)} images are labelled; run `bash scripts/label_patches.sh` "
                "again, it goes on where it stopped"
            )
        images = len(self._rows)
        expected = (images, self.meta.patches, self.meta.switches["n"])
        self._words = load_array(self.folder / WORDS, expected, mapped=True)
        self._scores = load_array(self.folder / SCORES, expected, mapped=True)
        self._bytes = load_array(self.folder / IMAGE_BYTES, (images,))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def check_image(self, name: str, path: Path, where: str) -> None:
        """DataError when an image has no row, or when the file that was labelled had another size."""
        row = self._row(name, where)
        size = path.stat().st_size
        if size != int(self._bytes[row]):
            raise DataError(
                f"{where}: image {path} has {size} bytes, but the file that {self.folder} labelled under this name had "
                f"{int(self._bytes[row])}: labels of another corpus ({self.meta.data_path}). {_MAKE_THEM.capitalize()} "
                "of this one"
            )

    def row(self, name: str, where: str) -> tuple[Tensor, Tensor]:
        """words int64 [N, n] (ids in the word list, -1: none) and scores float32 [N, n] of one image."""
        row = self._row(name, where)
        words, scores = from_storage(self._words[row], self._scores[row])
        if int(words.max()) >= self.meta.words:
            raise DataError(
                f"{self.folder / WORDS}: has word {int(words.max())} at image {name!r}, but its word list has "
                f"{self.meta.words} words: the file is of another folder. {_MAKE_THEM.capitalize()} again"
            )
        return words, scores

    def no_words(self) -> tuple[Tensor, Tensor]:
        """As `row`, of an image without any candidate."""
        shape = self._words.shape[1:]
        return torch.full(shape, -1, dtype=torch.int64), torch.zeros(shape)

    def _row(self, name: str, where: str) -> int:
        if name not in self._rows:
            raise DataError(
                f"{where}: image {name!r} is not among the {len(self._rows)} images that {self.folder} labels "
                f"(of {self.meta.data_path}, such as {next(iter(self._rows), None)!r}); {_MAKE_THEM} of this corpus"
            )
        return self._rows[name]


def load_own_words(folder: Path, meta: FolderMeta) -> WordList:
    """The folder's word list. DataError when it is not the one that the labels were made with."""
    words = load_word_list(folder / WORD_LIST)
    if words.sha256 != meta.word_list_sha256:
        raise DataError(
            f"{folder / WORD_LIST}: its words have hash {words.sha256[:12]} but the labels were made with "
            f"{meta.word_list_sha256[:12]}; ids would stand for other words. {_MAKE_THEM.capitalize()} again"
        )
    return words


def read_images(folder: Path) -> list[str]:
    """Names of the images, row by row."""
    file = folder / IMAGES
    if not file.is_file():
        raise DataError(f"{file}: no such file; {_MAKE_THEM}")
    names = read_json(file, f"{_MAKE_THEM} again")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: holds no list of names; {_MAKE_THEM} again")
    return names


def rows_done(folder: Path) -> int:
    """How many rows are on disk."""
    file = folder / PROGRESS
    if not file.is_file():
        return 0
    progress = read_json(file, f"{_MAKE_THEM} again")
    if not isinstance(progress, dict) or not isinstance(progress.get("rows"), int):
        raise DataError(f"{file}: does not say how many rows are done; {_MAKE_THEM} again")
    return progress["rows"]


def load_array(file: Path, shape: tuple[int, ...], mapped: bool = False) -> np.ndarray:
    """An array of a label folder. DataError when it is damaged, or of another shape than the folder's meta says."""
    try:
        array = np.load(file, mmap_mode="r" if mapped else None)
    except (ValueError, EOFError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {_MAKE_THEM} again") from error
    if array.shape != shape:
        raise DataError(f"{file}: has shape {array.shape} where {META} says {shape}")
    return array


def storage_type(words: int) -> np.dtype:
    """The smallest type for ids below `words`; its largest value marks no candidate."""
    return np.dtype(np.uint16) if words < np.iinfo(np.uint16).max else np.dtype(np.uint32)


def to_storage(words: Tensor, scores: Tensor, kind: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """int64 words (-1: none) and float32 scores -> as the files have them. A score that is 0 in float16 is none."""
    stored = scores.to(torch.float16).cpu().numpy()
    ids = words.cpu().numpy()
    return np.where((ids < 0) | (stored == 0), np.iinfo(kind).max, ids).astype(kind), np.where(ids < 0, 0, stored)


def from_storage(words: np.ndarray, scores: np.ndarray) -> tuple[Tensor, Tensor]:
    """The way back."""
    none = words == np.iinfo(words.dtype).max
    return torch.from_numpy(np.where(none, -1, words.astype(np.int64))), torch.from_numpy(scores.astype(np.float32))


@dataclass(frozen=True)
class WordTokens:
    """A word list in the language model's tokens.

    ids: per word of the list its tokens as it reads inside a sentence, no BOS; empty where the tokenizer has none.
    """

    ids: tuple[tuple[int, ...], ...]
    dropped: tuple[str, ...]  # the words without tokens

    @classmethod
    def of(cls, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> WordTokens:
        """Words that the tokenizer splits to nothing (or knows nothing of) are dropped; DataError when all are."""
        ids, dropped = [], []
        for word in words:
            tokens = tuple(encode_words(word, tokenizer))
            if not tokens or all(token == tokenizer.unk_token_id for token in tokens):
                dropped.append(word)
                tokens = ()
            ids.append(tokens)
        if len(dropped) > len(words) - 2:
            raise DataError(
                f"{len(dropped)} of the word list's {len(words)} words (such as {dropped[0]!r}) have no tokens in this "
                "tokenizer; at least two are needed. Is it a list for another language or model?"
            )
        return cls(tuple(ids), tuple(dropped))

    def batch(self, words: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """words int64 [I, N, n] (ids in the list, -1: none), scores float32 [I, N, n] -> what a batch carries:

        patch_words int64 [I, N, n]       rows of the next, -1: none; best first
        patch_word_ids int64 [W', L]      tokens of the W' distinct words of the batch, padded with 0; W' may be 0
        patch_word_mask bool [W', L]      L is at least 1
        patch_word_scores float32 [I, N, n]

        Candidates without tokens are taken out, and the others move up.
        """
        known = torch.tensor([bool(tokens) for tokens in self.ids], device=words.device)
        kept = (words >= 0) & known[words.clamp_min(0)]
        if not bool((kept == (words >= 0)).all()):
            order = kept.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
            words, scores, kept = (tensor.gather(-1, order) for tensor in (words, scores, kept))
        distinct, local = torch.unique(words[kept], return_inverse=True)
        rows = torch.full_like(words, -1)
        rows[kept] = local
        tokens = [self.ids[number] for number in distinct.tolist()]
        longest = max((len(row) for row in tokens), default=1)
        padded = [[*row, *([0] * (longest - len(row)))] for row in tokens]
        token_ids = torch.tensor(padded, dtype=torch.int64, device=words.device).reshape(len(tokens), longest)
        lengths = torch.tensor([len(row) for row in tokens], dtype=torch.int64, device=words.device)
        return {
            "patch_words": rows,
            "patch_word_scores": torch.where(kept, scores, 0.0),
            "patch_word_ids": token_ids,
            "patch_word_mask": torch.arange(longest, device=words.device) < lengths[:, None],
        }


def same_switches(meta: FolderMeta, asked: Mapping[str, Any], folder: str | Path) -> None:
    """DataError when a run's `patch_words_args` are not those of the folder."""
    differ = [key for key, value in asked.items() if meta.switches.get(key) != value]
    if differ:
        shown = "; ".join(f"{key}: {meta.switches.get(key)!r} there, {asked[key]!r} asked for" for key in differ)
        raise DataError(f"{folder}: holds labels with other switches ({shown}); {_MAKE_THEM} into another folder")
