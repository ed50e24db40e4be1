"""A share of the conversations of stage 2, for runs with little fine-tuning: `sft_share=0.25`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from playground.study.files import write_text


def write_subset(source: Path, share: float, out: Path) -> Path:
    """The same records for every objective and seed, smaller shares inside larger ones; in the file's order.

    source: a LLaVA JSON. Returns the file in `out`, written once.
    """
    target = out / f"{source.stem}-{share:g}.json"
    if target.is_file():
        return target
    records = json.loads(source.read_text())
    order = np.random.default_rng(len(records)).permutation(len(records))
    kept = sorted(order[: max(1, round(share * len(records)))].tolist())
    write_text(target, json.dumps([records[index] for index in kept]))
    return target
