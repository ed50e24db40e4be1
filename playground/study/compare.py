"""The table at the end of a run: mean over seeds of each metric, a column an objective and setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from playground.study.files import read_json
from playground.study.pairing import check_starts

STAGE1 = {
    "stage1_caption_loss": ("caption loss, held out (nats a token)", 3),
    "stage1_patch_cosine": ("patch cosine with its label", 3),
    "stage1_hit_colour": ("right colour nearest", 3),
    "stage1_hit_kind": ("right kind nearest", 3),
    "stage1_hit_at_1": ("hit@1 among the vocabulary", 3),
    "stage1_hit_at_5": ("hit@5", 3),
    "stage1_entropy_features": ("entropy before the projector (nats)", 3),
    "stage1_entropy_patches": ("entropy after the projector (nats)", 3),
    "stage1_entropy_features_centred": ("entropy before, centred", 3),
    "stage1_entropy_patches_centred": ("entropy after, centred", 3),
    "stage1_seconds": ("stage 1, seconds", 0),
}
STAGE2 = {
    "stage2_caption_loss": ("answers' loss, held out (nats a token)", 3),
    "cider": ("caption CIDEr", 1),
    "meteor": ("caption METEOR", 1),
    "object_f1": ("caption object F1", 1),
    "kind_f1": ("caption kind F1", 1),
    "rec": ("REC accuracy at IoU 0.5", 1),
    "rec_iou": ("REC mean IoU", 1),
    "qa": ("QA, mean of types", 1),
    "qa_kind": ("QA kind", 1),
    "qa_colour": ("QA colour", 1),
    "qa_count": ("QA count", 1),
    "qa_existence": ("QA existence", 1),
    "qa_relation": ("QA relation", 1),
    "pope": ("POPE F1", 1),
    "instruct": ("instruction mix", 1),
    "stage2_patch_cosine": ("patch cosine after stage 2", 3),
    "stage2_seconds": ("stage 2, seconds", 0),
}


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every result file of a folder, by name."""
    return [read_json(file) for file in sorted(folder.glob("*.json"))]


def columns(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Objective and setting -> its results, one a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(" ".join([result["objective"], *result["setting"]]), []).append(result)
    return found


def text(out: Path, split: str, stages: int) -> str:
    """Markdown: mean ± standard deviation over seeds; `out`/table-SPLIT.md holds the same."""
    results = read_results(out / "results" / split)
    if not results:
        return f"no result in {out / 'results' / split}"
    found = columns(results)
    rows = STAGE1 | (STAGE2 if stages == 2 else {})
    lines = ["| | " + " | ".join(f"`{name}`" for name in found) + " |", "|---" * (len(found) + 1) + "|"]
    lines.append("| seeds | " + " | ".join(_seeds(runs) for runs in found.values()) + " |")
    for metric, (title, digits) in rows.items():
        measured = ([run["metrics"] for run in runs] for runs in found.values())
        cells = [_cell([one[metric] for one in runs if metric in one], digits) for runs in measured]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    partial = [name for name, runs in found.items() if not all(run["whole"] for run in runs)]
    notes = [f"Only the first scenes were asked about: {', '.join(partial)}."] if partial else []
    notes += [f"NOT PAIRED: {line}" for line in check_starts(results)]
    table = "\n".join([*lines, "", *notes])
    (out / f"table-{split}.md").write_text(table + "\n")
    return table


def _seeds(runs: list[dict[str, Any]]) -> str:
    return " ".join(str(run["seed"]) for run in sorted(runs, key=lambda run: run["seed"]))


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
