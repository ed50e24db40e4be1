"""A file as one number."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 1 << 22


def file_sha256(path: str | Path) -> str:
    """sha256 of a file, read in blocks; of a folder of shards, over its visible files: sorted names and sha256."""
    digest = hashlib.sha256()
    if Path(path).is_dir():
        for file in sorted(Path(path).iterdir()):
            if file.is_file() and not file.name.startswith("."):
                digest.update(f"{file.name} {file_sha256(file)}\n".encode())
        return digest.hexdigest()
    with Path(path).open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
