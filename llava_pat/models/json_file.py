"""The small JSON files of a model folder: an object, or one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any]:
    """The object that a file holds. Raises ValueError, with the file, for anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{file}: not JSON (nested too deeply)") from error
    except ValueError as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}, expected an object")
    return content
