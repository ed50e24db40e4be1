"""Folders that one run makes and later runs read (patch labels, a feature cache): compared, measured, written whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_pat.data.json_text import parse_json
from llava_pat.types import DataError


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two accounts, both values each; "" where nothing does. Hashes are cut short."""
    differ = [key for key in now | there if there.get(key) != now.get(key)]
    return "; ".join(f"{key}: {_short(there.get(key))} there, {_short(now.get(key))} now" for key in differ)


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)


def free_bytes(folder: Path) -> int:
    """What is left on the disk of a folder, which need not be there yet."""
    here = folder.absolute()
    while not here.is_dir():
        here = here.parent
    return shutil.disk_usage(here).free


def read_json(file: Path, way_out: str) -> Any:
    """A file's content; DataError with the way out when it is damaged."""
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise DataError(f"{file}: cannot be read ({error}); {way_out}") from error


def write_json(file: Path, content: Any, indent: int | None = None) -> None:
    """The whole file or none: it is written aside and moved."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, file)
