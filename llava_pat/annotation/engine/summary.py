"""What became of all images, from what every shard says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from llava_pat.annotation.converters.base import LeftOut
from llava_pat.annotation.engine.shards import ShardFolder, write_whole
from llava_pat.annotation.tally import Tally
from llava_pat.data.records import Skipped

SUMMARY = "summary.json"


def add_up(folder: ShardFolder, shards: int, skipped: Iterable[Skipped]) -> Tally:
    """All shards together. skipped: the records that were left out before."""
    tally = Tally()
    for bad in skipped:
        tally.leave_out(LeftOut("records", "cannot be trained on", bad.reason))
    for shard in range(shards):
        read = folder.read_tally(shard)
        tally.images += read["annotated"]
        tally.labels.update(read["labels"])
        for image in read["images"]:
            tally.leave_out(LeftOut("images", image["reason"], image["where"]))
        for reason, count in read["counts"].items():
            tally.left_out["regions", reason] += count
    return tally


def write_summary(out: Path, tally: Tally, images: int) -> None:
    """images: with and without regions."""
    content = {
        "images": images,
        "annotated": tally.images,
        "regions": sum(tally.labels.values()),
        "labels": len(tally.labels),
        "left_out": [
            {"unit": unit, "reason": reason, "count": count, "first": tally.first.get((unit, reason))}
            for (unit, reason), count in tally.left_out.most_common()
        ],
    }
    write_whole(out / SUMMARY, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
