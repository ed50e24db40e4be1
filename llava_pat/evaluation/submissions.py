"""Writing the files that evaluation servers want."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any, indent: int | None = None) -> Path:
    """JSON, whole or not at all."""
    return _write(path, json.dumps(content, indent=indent))


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    """JSON lines, all or none."""
    return _write(path, "".join(json.dumps(line) + "\n" for line in lines))


def _write(path: Path, text: str) -> Path:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path
