"""One hash of what a run is trained on: equal hashes, equal data, whatever the files are called.

sha256 over the sha256 of every record that is kept, in order. A record's: its canonical JSON, and per image the name
that the record gives it, the name of the file, the file's size in bytes (or its sha256), and its regions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llava_pat.types import ImageRegions, Record

_FORMAT = "llava-pat manifest 1"
BLANK = "blank"
"""In the place of an image's size where an empty one is trained on."""


@dataclass(frozen=True)
class SeenImages:
    """What a manifest says of image files, by the names of the records: to make it again without the files."""

    bytes: Mapping[str, int] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)  # the file's name, where it is another one

    def __contains__(self, name: str) -> bool:
        return name in self.bytes

    def facts(self, name: str) -> tuple[str, int]:
        """(name of the file, its size in bytes)."""
        return self.renamed.get(name, name), self.bytes[name]


def record_digest(record: Record, images: Sequence[tuple[str, int | str, ImageRegions | None]]) -> bytes:
    """32 bytes. images: file name, size (bytes, sha256 or BLANK) and regions of every image of the record."""
    content = {
        "id": record.id,
        "conversations": [[turn.role, turn.value] for turn in record.turns],
        "image": [
            [name, file, size, _regions(regions)]
            for name, (file, size, regions) in zip(record.images, images, strict=True)
        ],
    }
    return hashlib.sha256(_canonical(content)).digest()


def manifest(digests: Iterable[bytes]) -> str:
    """The hash of all; digests may come in pieces of any number of records."""
    whole = hashlib.sha256(_FORMAT.encode())
    for piece in digests:
        whole.update(piece)
    return whole.hexdigest()


def _regions(annotated: ImageRegions | None) -> list | None:
    if annotated is None:
        return None
    return [annotated.height, annotated.width, [[r.label, r.segmentation, r.bbox] for r in annotated.regions]]


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
