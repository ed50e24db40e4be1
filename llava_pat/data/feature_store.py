"""Features of a frozen tower, image by image, in a folder that many runs read (`--feature_cache`; docs/performance.md).

    meta.json                    what they are features of (FeatureMeta)
    images.json                  names of the images, row by row
    features-00000.safetensors   a shard, rows k * rows_per_shard and on; moved into its place when it is whole, so a
                                 kill costs the shards that are being made and no others
        features                 [rows, N, Dv] as feature_dtypes.py packs them; for int8 scales float32 [rows, N]
        file_bytes, file_mtime_ns, file_sha256     int64 [rows] twice, uint8 [rows, 32]: the image files (FileFacts)
        error_sum, error_max     float64 scalars: of the positions' relative errors

Shards are memory-mapped: a worker reads the rows that it needs, and processes share what the system keeps of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_pat.data.feature_dtypes import FEATURES, SCALES, unpack
from llava_pat.data.feature_meta import FeatureMeta, names_sha256
from llava_pat.data.file_facts import FileFacts
from llava_pat.data.kept_folder import read_json, write_json
from llava_pat.types import DataError

META, IMAGES = "meta.json", "images.json"
_LEFT_OVER = 3600  # seconds: a shard that is still being written after an hour belongs to a run that was killed

_KEYS = {FEATURES, "file_bytes", "file_mtime_ns", "file_sha256", "error_sum", "error_max"}  # of a shard; int8: SCALES


class FeatureStore:
    """The features of a folder, by image name. Copies in other processes open the files for themselves."""

    def __init__(self, folder: Path, meta: FeatureMeta, names: Sequence[str]) -> None:
        self.folder, self.meta, self.names = folder, meta, tuple(names)
        self._rows = {name: row for row, name in enumerate(self.names)}
        self._shards: dict[int, dict[str, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": {}}  # a mapped tensor would travel with all its bytes

    @classmethod
    def create(cls, folder: Path, meta: FeatureMeta, names: Sequence[str]) -> FeatureStore:
        """A folder without features. DataError when it holds anything else."""
        if folder.is_dir() and any(not path.name.startswith(".") and path.name != IMAGES for path in folder.iterdir()):
            raise DataError(f"{folder} is not empty and holds no {META}, so no features; give another --feature_cache")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / IMAGES, list(names))
        write_json(folder / META, asdict(meta), indent=2)  # last: from here on the folder is these features'
        return cls(folder, meta, names)

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """DataError when the folder holds no store, is damaged or of another format."""
        if not (folder / META).is_file():
            raise DataError(f"{folder}: holds no {META}; --feature_cache must be a folder that all machines share")
        again = f"delete {folder}, and it is made again"
        raw = read_json(folder / META, again)
        try:
            meta = FeatureMeta.from_json(raw)
        except ValueError as error:
            raise DataError(f"{folder / META}: {error}; {again}") from error
        names = read_json(folder / IMAGES, again) if (folder / IMAGES).is_file() else None
        if not isinstance(names, list) or names_sha256(names) != meta.names_sha256:
            raise DataError(f"{folder / IMAGES}: is not the list of images that {META} was written with; {again}")
        return cls(folder, meta, names)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    # ---- shards

    def shard_file(self, shard: int) -> Path:
        return self.folder / f"features-{shard:05d}.safetensors"

    def shard_of(self, name: str) -> int:
        return self._rows[name] // self.meta.rows_per_shard

    def rows_of(self, shard: int) -> range:
        start = shard * self.meta.rows_per_shard
        return range(start, min(start + self.meta.rows_per_shard, len(self.names)))

    def shards(self) -> tuple[list[int], list[int]]:
        """(those that are there, those that are not yet)."""
        present = {path.name for path in self.folder.iterdir()}
        every = range(self.meta.shards)
        there = [shard for shard in every if self.shard_file(shard).name in present]
        return there, sorted(set(every) - set(there))

    def write(self, shard: int, packed: Mapping[str, Tensor], facts: Sequence[FileFacts], errors: Tensor) -> None:
        """A whole shard or none. errors: relative, one per position. OSError or SafetensorError for a full disk."""
        tensors = {
            **packed,
            "file_bytes": torch.tensor([fact.bytes for fact in facts]),
            "file_mtime_ns": torch.tensor([fact.mtime_ns for fact in facts]),
            "file_sha256": torch.tensor([list(bytes.fromhex(fact.sha256).ljust(32, b"\0")) for fact in facts]).byte(),
            "error_sum": errors.sum(dtype=torch.float64),
            "error_max": errors.max().double(),
        }
        file = self.shard_file(shard)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            save_file(tensors, aside, metadata=self._mark(shard))
            with aside.open("rb+") as written:
                os.fsync(written.fileno())  # else the name may be on the disk before the bytes
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)

    def _mark(self, shard: int) -> dict[str, str]:
        return {"features": f"{self.meta.sha256} {shard}"}

    def remove_left_over(self) -> None:
        """What killed runs were writing. Another run may be writing just now: only what is old goes."""
        for path in self.folder.glob(".features-*"):
            if time.time() - path.stat().st_mtime > _LEFT_OVER:
                path.unlink(missing_ok=True)

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._shards:
            self._shards[number] = self._map(number)
        return self._shards[number]

    def _map(self, number: int) -> dict[str, Tensor]:
        file = self.shard_file(number)
        again = "delete this file and start the run again: it alone is made anew"
        try:
            with safe_open(file, "pt") as stored:
                belongs = stored.metadata() == self._mark(number)
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  not a dict
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file}: cannot be read ({error}); {again}") from error
        shape = (len(self.rows_of(number)), self.meta.account.positions, self.meta.account.width)
        lacking = (_KEYS | ({SCALES} if self.meta.account.dtype == "int8" else set())) - tensors.keys()
        if lacking:
            raise DataError(f"{file}: lacks {', '.join(sorted(lacking))}; {again}")
        if not belongs or tuple(tensors[FEATURES].shape) != shape:
            raise DataError(f"{file}: was not made for the {META} beside it; {again}")
        return tensors

    # ---- what is in them

    def features(self, names: Sequence[str], dtype: torch.dtype, where: str) -> Tensor:
        """[len(names), N, Dv] in `dtype`, in memory. DataError, with `where`, for an image that has none."""
        if not names:
            return torch.zeros(0, self.meta.account.positions, self.meta.account.width, dtype=dtype)
        return torch.stack([self._row(name, dtype, where) for name in names])

    def _row(self, name: str, dtype: torch.dtype, where: str) -> Tensor:
        if name not in self._rows:
            raise DataError(f"{where}: image {name!r} is not among the {len(self.names)} images of {self.folder}")
        number, row = divmod(self._rows[name], self.meta.rows_per_shard)
        shard = self._shard(number)
        return unpack({key: shard[key][row] for key in (FEATURES, SCALES) if key in shard}, dtype)

    def facts(self, shards: Sequence[int]) -> dict[str, FileFacts]:
        """The image files that these shards were made from, by name."""
        found = {}
        for number in shards:
            shard = self._shard(number)
            sizes, times = shard["file_bytes"].tolist(), shard["file_mtime_ns"].tolist()
            digests = shard["file_sha256"].numpy()
            for row, size, changed, digest in zip(self.rows_of(number), sizes, times, digests, strict=True):
                found[self.names[row]] = FileFacts(size, changed, digest.tobytes().hex() if size >= 0 else "")
        return found

    def errors(self) -> tuple[float, int, float]:
        """Relative errors of all positions: (their sum, how many, the largest)."""
        shards = [self._shard(number) for number in self.shards()[0]]
        total = sum(float(shard["error_sum"]) for shard in shards)
        return total, len(self.names) * self.meta.account.positions, max(float(shard["error_max"]) for shard in shards)
