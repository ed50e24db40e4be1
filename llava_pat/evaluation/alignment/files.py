"""What the measuring run writes, and its table for the terminal. report/files.py has the layout of the files."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

METRICS, DATA = "metrics.json", "data"

_COLUMNS = {
    "caption_loss": "loss",
    "patch_cosine": "cosine",
    "hit_at_1": "hit@1",
    "hit_at_5": "hit@5",
    "patchdis_miou": "mIoU",
    "omp_overlap": "in sum",
    "tacs": "TACS",
    "modality_distance": "D",
    "ima_mean": "IMA",
    "entropy_features": "S before",
    "entropy_patches": "S after",
    "entropy_patches_centred": "centred",
}
"""Metrics of the table: what stands above them."""


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Whole, or not at all; no pickles within."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{os.getpid()}-{file.name}")
    with aside.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    os.replace(aside, file)


def write_json(file: Path, content: Any) -> None:
    """Whole, or not at all; ValueError for NaN or infinity, which JSON does not have."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{os.getpid()}-{file.name}")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, file)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without what is not a number: a measure that does not exist for a row is left out, never 0."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def table(content: Mapping[str, Any]) -> str:
    """Rows by metrics, checkpoints first, of what metrics.json holds."""
    rows = {**content["checkpoints"], **content["baselines"]}
    shown = [name for name in _COLUMNS if any(name in metrics for metrics in rows.values())]
    width = max(map(len, rows))
    lines = [" " * width + "".join(f" {_COLUMNS[name]:>8s}" for name in shown)]
    for number, (row, metrics) in enumerate(rows.items()):
        if number == len(content["checkpoints"]):
            lines.append("-" * len(lines[0]))
        cells = (f" {metrics[name]:8.3f}" if name in metrics else f" {'–':>8s}" for name in shown)
        lines.append(f"{row:{width}s}" + "".join(cells))
    return "\n".join(lines)


def git_commit(folder: Path) -> str | None:
    """The commit that a file of ours is from, with "+" behind it when something was changed; None outside of git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
