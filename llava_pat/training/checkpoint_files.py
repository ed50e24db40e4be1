"""The list of a checkpoint's files, by which a whole one is known: written last, with the size and sha256 of each.

    {"format": "llava-pat checkpoint 1", "files": {"optimizer.pt": {"bytes": 5120, "sha256": "9f86d0..."}, ...}}

Names are relative to the folder. The list is called files.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llava_pat.data.hashes import file_sha256

FILES = "files.json"
_FORMAT = "llava-pat checkpoint 1"
_THREADS = 8  # sha256 runs outside Python's lock; the shards of a large model are many files


def seal(folder: Path) -> None:
    """Write the list for what is in `folder` now, and bring it all to the disk (fsync): nothing may follow."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != FILES)
    for file in files:
        to_disk(file)
    sums = _hashes(files)
    listed = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sums[file]} for file in files
    }
    text = json.dumps({"format": _FORMAT, "files": listed}, indent=2) + "\n"
    (folder / FILES).write_text(text, encoding="utf-8")
    to_disk(folder / FILES)
    for inside in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        to_disk(inside)


def damage(folder: Path, closely: bool = True) -> str | None:
    """What a folder lacks of what `seal` listed, in a few words; None when it is whole.

    closely: every byte is read; otherwise names and sizes are compared. Files that are not listed do not matter.
    """
    try:
        listed = _listed(folder)
    except FileNotFoundError:
        return f"it has no {FILES}: half written, or by a llava-pat that wrote none"
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        return f"its {FILES} cannot be read ({error})"
    for name, (size, _) in listed.items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != size:
            return f"{name} has {found} bytes, {size} were written"
    if closely:
        try:
            sums = _hashes([folder / name for name in listed])
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        for name, (_, written) in listed.items():
            if sums[folder / name] != written:
                return f"{name} was altered: its sha256 is {sums[folder / name]}, {written} was written"
    return None


def to_disk(path: Path) -> None:
    """fsync of a file, or of a folder, whose renames then last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _listed(folder: Path) -> Mapping[str, tuple[int, str]]:
    content = json.loads((folder / FILES).read_text(encoding="utf-8"))
    if content["format"] != _FORMAT:
        raise ValueError(f"its format is {content['format']!r}, not {_FORMAT!r}")
    files = content["files"]
    if not isinstance(files, dict) or not files:
        raise ValueError("it lists no files")
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}


def _hashes(files: Iterable[Path]) -> dict[Path, str]:
    files = list(files)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(files, pool.map(file_sha256, files), strict=True))
