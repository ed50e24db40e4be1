"""`ANSWERS.provenance.json`: what an answer file was made with, so that nothing else is added to it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_pat.types import DataError

_DECIDES = (
    "model_id", "checkpoint", "parts", "template", "image_aspect_ratio", "dtype", "decoding", "max_new_tokens",
    "questions",
)  # fmt: skip
"""Answers made with another of these do not belong into one file; paths may differ."""


def provenance_file(answers: str | Path) -> Path:
    """Beside the answers."""
    return Path(f"{answers}.provenance.json")


def write_provenance(answers: str | Path, provenance: Mapping[str, Any]) -> None:
    """Whole, or not at all."""
    file = provenance_file(answers)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.partial")
    beside.write_text(json.dumps(provenance, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, file)


def check_provenance(answers: str | Path, provenance: Mapping[str, Any], *, answered: int) -> None:
    """DataError when the file's answers were made with something else, or nobody knows with what.

    answered: how many answers there are; without any, everything goes. The versions of libraries may differ.
    """
    if not answered:
        return
    way_out = f"choose another answer file, or start {answers} anew (--restart)"
    file = provenance_file(answers)
    if not file.is_file():
        raise DataError(
            f"{answers} holds {answered} answers, but {file.name} is not beside it: what made them is unknown; "
            f"{way_out}"
        )
    written = json.loads(file.read_text(encoding="utf-8"))
    then = _flat({name: value for name, value in written.items() if name in _DECIDES})
    now = _flat({name: provenance[name] for name in _DECIDES})
    differing = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if differing:
        shown = "; ".join(f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in differing[:4])
        raise DataError(f"{answers} holds {answered} answers that were made otherwise ({shown}); {way_out}")


def _flat(tree: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{under}{name}.")
        elif name != "path":
            leaves[f"{under}{name}"] = value
    return leaves
