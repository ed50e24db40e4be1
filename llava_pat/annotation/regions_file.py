"""Writes stage 1's regions file: whole or not at all. llava_pat/data/regions.py reads it.

    FILE.jsonl     one line an image
    FILE.parquet   one row an image, the same keys (pyarrow, an optional extra)
    FOLDER         Parquet shards part-00000.parquet, part-00001.parquet ...

    {"id": "9", "image": "coco/train2017/000000000009.jpg", "width": 640, "height": 480, "regions": [
        {"label": "bowl", "segmentation": {"size": [480, 640], "counts": "..."}, "bbox": [1, 187, 612, 286],
         "area": 120057, "score": 0.9}],
     "source": "coco_instances: instances_train2017.json", "tools": {"llava_pat": "0.1.0", "pycocotools": "2.0.11"}}

`segmentation` is absent (null in Parquet) where the box is all there is; `area` counts pixels; `score` is optional.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from llava_pat.annotation.masks import Rle
from llava_pat.data.region_rows import PARQUET, import_pyarrow
from llava_pat.types import DataError

_ROW_GROUP = 512  # images that wait in memory for a Parquet row group


def region_entry(
    label: str, segmentation: Rle | None, bbox: list[float], area: int, score: float | None = None
) -> dict[str, Any]:
    """One region as the file has it."""
    entry: dict[str, Any] = {"label": label}
    if segmentation is not None:
        entry["segmentation"] = segmentation
    entry |= {"bbox": bbox, "area": area}
    return entry if score is None else entry | {"score": score}


class RegionsWriter:
    """`with RegionsWriter(path) as writer: writer.write(line)`, line as above.

    What was written appears under its name when the block ends well, and not at all when it ends by an error. A kill
    leaves a hidden .partial beside it, which the next writer of that name removes.
    """

    def __init__(self, path: str | Path, overwrite: bool = False, shard_size: int = 10_000) -> None:
        self.path = Path(path)
        self.count = 0
        if self.path.suffix not in (".jsonl", PARQUET, ""):
            raise DataError(f"{self.path}: a regions file ends in .jsonl or .parquet; a folder of shards has no ending")
        if self.path.exists() and not overwrite:
            raise DataError(f"{self.path} is already there; give another name, or --overwrite")
        if self.path.exists() and self.path.is_dir() != (self.path.suffix == ""):
            raise DataError(
                f"{self.path} is a {'folder' if self.path.is_dir() else 'file'}; remove it, or take another name"
            )
        self._aside = self.path.with_name(f".{self.path.name}.partial")
        if self.path.suffix != ".jsonl":
            import_pyarrow(self.path, "written")  # before hours of work, not after
        self._shard_size = shard_size

    def __enter__(self) -> RegionsWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _remove(self._aside)
        if self.path.suffix == ".jsonl":
            self._sink: _Sink = _Jsonl(self._aside)
        elif self.path.suffix == PARQUET:
            self._sink = _Parquet(self._aside)
        else:
            self._aside.mkdir()
            self._sink = _Shards(self._aside, self._shard_size)
        return self

    def write(self, line: dict[str, Any]) -> None:
        """One image."""
        self._sink.write(line)
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.close()
        if kind is not None:
            _remove(self._aside)
            return
        if self.path.is_dir():  # a folder cannot be put in the place of one that has files
            shutil.rmtree(self.path)
        os.replace(self._aside, self.path)


class _Sink(Protocol):
    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _Jsonl:
    def __init__(self, file: Path) -> None:
        self._stream = file.open("w", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        self._stream.close()


class _Parquet:
    def __init__(self, file: Path) -> None:
        self._arrow, parquet = import_pyarrow(file, "written")
        self._schema = _schema(self._arrow)
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, line: dict[str, Any]) -> None:
        # a map's entries are pairs to Arrow
        self._rows.append(line | {"tools": list(line.get("tools", {}).items())})
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


class _Shards:
    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._shard: _Parquet | None = None
        self._count = 0

    def write(self, line: dict[str, Any]) -> None:
        if self._count % self._size == 0:
            self.close()
            self._shard = _Parquet(self._folder / f"part-{self._count // self._size:05d}{PARQUET}")
        self._shard.write(line)
        self._count += 1

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()


def _schema(arrow: Any) -> Any:
    segmentation = arrow.struct([("size", arrow.list_(arrow.int32())), ("counts", arrow.string())])
    region = arrow.struct(
        [
            ("label", arrow.string()),
            ("segmentation", segmentation),
            ("bbox", arrow.list_(arrow.float64())),
            ("area", arrow.int64()),
            ("score", arrow.float64()),
        ]
    )
    return arrow.schema(
        [
            ("id", arrow.string()),
            ("image", arrow.string()),
            ("width", arrow.int32()),
            ("height", arrow.int32()),
            ("regions", arrow.list_(region)),
            ("source", arrow.string()),
            ("tools", arrow.map_(arrow.string(), arrow.string())),
        ]
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
