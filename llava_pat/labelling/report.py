"""The label report: every sign x centring x source on a sample of the images, and which of them is chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llava_pat.labelling.agreement import LabelStatistics, Truth
from llava_pat.models.patch_labels import CENTRINGS, SIGNS, LabelSwitches, best_words, word_means
from llava_pat.models.patch_text import SOURCES, PatchText

REPORT, TABLE = "report.json", "report.txt"
_SHOWN = 10
_VARIED = ("source", "sign", "centring", "min_score")
_COLUMNS = {
    "with_label": "with label", "labels_per_patch": "per patch", "best_words": "best words", "top_share": "top share",
    "caption_best": "in caption", "right_best": "best right", "right_any": "any right", "right_drawn": "drawn right",
    "outside_with_label": "outside",
}  # fmt: skip


def evenly_spaced(total: int, most: int) -> list[int]:
    """At most `most` places of `total`, evenly spaced."""
    count = min(total, most)
    return [number * total // count for number in range(count)]


def mean_patches(
    clip: PatchText, batches: Iterable[Tensor], device: torch.device, sources: Sequence[str]
) -> dict[str, Tensor]:
    """The mean of all patches' unit vectors [d], float64, by source."""
    sums: dict[str, Tensor] = {}
    seen = 0
    for pixels in batches:
        for source in sources:
            patches = clip.patches(pixels.to(device), source).flatten(0, 1).double().sum(0).cpu()
            sums[source] = sums.get(source, torch.zeros_like(patches)) + patches
        seen += len(pixels) * clip.num_patches
    return {source: total / seen for source, total in sums.items()}


def compare_settings(
    clip: PatchText,
    word_vectors: Tensor,
    words: Sequence[str],
    chosen: LabelSwitches,
    means: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Sequence[Truth]]],
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row a setting: its switches, whether it is `chosen`, and its statistics.

    All are compared without a min_score, which means something else in each; a chosen one has a row of its own.

    means: the mean patch vector by source; batches: pixels [I, 3, S, S] with what is known of each image.
    """
    settings = [
        replace(chosen, source=source, sign=sign, centring=centring, min_score=0.0)
        for source, sign, centring in product(SOURCES, SIGNS, CENTRINGS)
    ]
    settings += [chosen] * (chosen not in settings)
    statistics = {setting: LabelStatistics(words) for setting in settings}
    device = word_vectors.device
    by_source = {source: word_means(means[source].to(device), word_vectors) for source in SOURCES}
    for pixels, truth in tqdm(batches, desc="label report", unit="batch", disable=not progress):
        for source in SOURCES:
            patches = clip.patches(pixels.to(device), source)
            for setting in settings:
                if setting.source == source:
                    ids, scores = best_words(patches, word_vectors, setting, by_source[source])
                    for image in zip(ids, scores, truth, strict=True):
                        statistics[setting].update(*image)
    return [
        {
            "chosen": setting == chosen,
            **{name: value for name, value in asdict(setting).items() if name in _VARIED},
            **statistics[setting].result(),
            "words": statistics[setting].histogram(None if setting == chosen else _SHOWN),
        }
        for setting in settings
    ]


def render_table(rows: Sequence[Mapping[str, Any]], sample: str) -> str:
    """The rows as text, the chosen one marked, with its most frequent words below."""
    columns = [name for name in _COLUMNS if any(name in row for row in rows)]
    header = ["", "source", "sign", "centring", "min_score", *(_COLUMNS[name] for name in columns)]
    lines = [header]
    for row in rows:
        cells = ["->" if row["chosen"] else "", row["source"], f"{row['sign']:+d}", row["centring"]]
        lines.append([*cells, f"{row['min_score']:g}"] + [_number(row.get(name)) for name in columns])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "-" * len(text[0]))
    chances = {name: row[name] for row in rows for name in ("right_chance", "caption_chance") if name in row}
    text = [f"labels of {sample}; -> is what these labels are made with", "", *text]
    text.append(
        "columns: llava_pat/labelling/agreement.py. A word drawn evenly from the list would have: "
        + ", ".join(
            f"{_COLUMNS[name]} {value:.3f}"
            for name, value in (
                ("caption_best", chances.get("caption_chance")),
                ("right_best", chances.get("right_chance")),
            )
            if value is not None
        )
    )
    chosen = next((row for row in rows if row["chosen"]), None)
    if chosen is not None:
        frequent = list(chosen["words"].items())[:_SHOWN]
        text.append("most frequent best words: " + ", ".join(f"{word} {count['best']}" for word, count in frequent))
        if not chosen["with_label"]:
            text.append("NO PATCH HAS A LABEL with these switches: take another sign or centring from the table")
    return "\n".join(text)


def _number(value: float | int | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def write_report(folder: Path, report: Mapping[str, Any], table: str) -> None:
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / TABLE).write_text(table + "\n", encoding="utf-8")
