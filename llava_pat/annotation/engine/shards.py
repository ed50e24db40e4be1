"""The output of annotation, a folder; a shard is there completely or not at all.

    OUT/annotation.yaml             the settings, every default written out
    OUT/run.json                    what is annotated: records and their hash, image folder, shard size
    OUT/regions/part-00000.jsonl    the regions file's shards (or .parquet): --regions_path OUT/regions
    OUT/left_out/part-00000.json    {"images": [{"id", "image", "reason", "where"}], "counts": {reason: of boxes},
                                    "annotated": images with a line, "labels": {label: regions}}
    OUT/summary.json                when all shards are there

A shard's images without a line are written first, its regions last and by one rename: where they are, it is done.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from llava_pat.annotation.pipeline import Annotated
from llava_pat.annotation.regions_file import RegionsWriter

Format = Literal["jsonl", "parquet"]
REGIONS, LEFT_OUT = "regions", "left_out"


class ShardFolder:
    """Shards of one run."""

    def __init__(self, out: Path, format: Format) -> None:
        self.out, self.format = out, format

    def done(self, shards: int) -> set[int]:
        """Which of the shards 0 ... shards - 1 are there."""
        return {shard for shard in range(shards) if self._regions(shard).is_file()}

    def write(self, shard: int, answers: Iterable[Annotated]) -> None:
        """All images of a shard, in their order."""
        answers = list(answers)
        lines = [answer.line for answer in answers if answer.line is not None]
        left = [
            {"id": one.item.id, "image": one.item.image, "reason": one.reason.reason, "where": one.reason.where}
            for one in answers
            if one.reason is not None
        ]
        tally = {
            "images": left,
            "counts": dict(sum((one.left_out for one in answers), Counter())),
            "annotated": len(lines),
            "labels": dict(Counter(region["label"] for line in lines for region in line["regions"])),
        }
        self._left_out(shard).parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._left_out(shard), json.dumps(tally, ensure_ascii=False, indent=1) + "\n")
        with RegionsWriter(self._regions(shard), overwrite=True) as writer:
            for line in lines:
                writer.write(line)

    def read_tally(self, shard: int) -> dict[str, Any]:
        """What `write` says about a shard beside its regions."""
        return json.loads(self._left_out(shard).read_text(encoding="utf-8"))

    def _regions(self, shard: int) -> Path:
        return self.out / REGIONS / f"part-{shard:05d}.{self.format}"

    def _left_out(self, shard: int) -> Path:
        return self.out / LEFT_OUT / f"part-{shard:05d}.json"


class ShardCollector:
    """Takes batches in any order and writes a shard when its last batch has come."""

    def __init__(self, folder: ShardFolder) -> None:
        self._folder = folder
        self._waiting: dict[int, dict[int, list[Annotated]]] = {}

    def add(self, shard: int, place: int, answers: list[Annotated], batches: int) -> None:
        """place: which of the shard's `batches` batches these are."""
        parts = self._waiting.setdefault(shard, {})
        parts[place] = answers
        if len(parts) == batches:
            del self._waiting[shard]
            self._folder.write(shard, (answer for part in range(batches) for answer in parts[part]))


def write_whole(path: Path, text: str) -> None:
    """Under its name when it is on the disk, and not before."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, path)
