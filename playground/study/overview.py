"""The table at the end of a run: mean and spread over seeds, a row a metric, a column an objective and setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from playground.study.results import Column, Results
from playground.study.rows import ROWS


def overview(out: Path, split: str) -> str:
    """Markdown of all results of a study's folder; OUT/table-SPLIT.md holds the same."""
    results = Results.read(out / "results" / split)
    if not results.entries:
        return f"no result in {out / 'results' / split} yet"
    text = means(results, results.columns, ROWS)
    if results.common:
        text += f"\n\nAll: {' '.join(results.common)}."
    partial = [results.name(column) for column in results.columns if not results.is_whole(column)]
    if partial:
        text += f"\n\nOnly the first scenes were asked about: {', '.join(partial)}."
    (out / f"table-{split}.md").write_text(text + "\n")
    return text


def means(results: Results, columns: Sequence[Column], rows: Mapping[str, tuple[str, int]]) -> str:
    """Mean ± standard deviation over seeds; rows that no column has are left out."""
    table = [["seeds", "", *(" ".join(map(str, results.seeds(column))) for column in columns)]]
    for metric, (title, digits) in rows.items():
        cells = [mean_and_spread(results.values(column, metric), digits) for column in columns]
        if any(cells):
            table.append([title, mean_and_spread(results.starts(metric), digits), *cells])
    head = ["", "at the start", *(f"`{results.name(column)}`" for column in columns)]
    if not any(cells[1] for cells in table):
        head, table = [head[0], *head[2:]], [[cells[0], *cells[2:]] for cells in table]
    return "\n".join(map(row, [head, ["---"] * len(head), *table]))


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
