"""Checkpoint folders: which one a run goes on from, and weights that ZeRO-3 holds in shards."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

TRAINER_STATE = "trainer_state.json"


@contextlib.contextmanager
def gathered(*modules: torch.nn.Module) -> Iterator[None]:
    """Under ZeRO-3 the modules' weights are whole inside; elsewhere nothing happens."""
    sharded = [p for module in modules for p in module.parameters() if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest `checkpoint-N` that is whole: trainer_state.json is written last; a killed save has none or half."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    found = {}
    for path in folder.iterdir():
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if match and _is_json(path / TRAINER_STATE):
            found[int(match[1])] = str(path)
    return found[max(found)] if found else None


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True
