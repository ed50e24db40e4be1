"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Keys a line, lists on one: readable, and small in git."""
    write_text(path, _laid_out(content) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # cells are threads: two that write the same file need a name each
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _laid_out(content: Any, depth: int = 0) -> str:
    if not isinstance(content, dict) or not content:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    pad = " " * (depth + 1)
    lines = [f"{pad}{json.dumps(str(key))}: {_laid_out(value, depth + 1)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + f"\n{' ' * depth}}}"
