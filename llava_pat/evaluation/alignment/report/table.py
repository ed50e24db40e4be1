"""The table of the report: metrics down, checkpoints and baselines across."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from llava_pat.evaluation.alignment.report.definitions import Metric, in_order, shown
from llava_pat.evaluation.alignment.report.files import Row
from llava_pat.evaluation.alignment.report.style import looks

MISSING = "–"
ABOVE = "†"


def table(rows: Sequence[Row], apart: bool = False) -> str:
    """An HTML table. Bold: the best checkpoint; a dagger: a baseline better than every checkpoint.

    apart: baselines that every checkpoint has its own of get a column each; otherwise one column for all, with the
    lowest and the highest of their values.
    """
    look = looks(rows)
    columns = [[row] for row in rows] if apart else _columns(rows)
    lines = ['<table class="metrics">', "<thead><tr><th scope=col>metric</th>"]
    for column in columns:
        title = column[0].title if apart and column[0].is_baseline else look[column[0].name].title
        told = escape("; ".join(str(row.about.get("path", row.name)) for row in column))
        lines.append(f'<th scope=col class="{_kind(column[0])}" title="{told}">{escape(title)}</th>')
    lines.append("</tr></thead><tbody>")
    group = None
    for metric in in_order({name for row in rows for name in row.metrics}):
        if metric.group != group:
            group = metric.group
            lines.append(f'<tr class="group"><th scope=rowgroup colspan="{len(columns) + 1}">{escape(group)}</th></tr>')
        marks = marked(metric, rows)
        arrow = {"higher": "↑", "lower": "↓", None: ""}[metric.better]
        told = f"{metric.name}: {metric.text}" if metric.text else metric.name
        head = f'<th scope=row title="{escape(told)}">{escape(metric.title)} <span class="arrow">{arrow}</span></th>'
        cells = (f'<td class="{_kind(column[0])}">{_cell(metric, column, marks)}</td>' for column in columns)
        lines.append(f"<tr>{head}{''.join(cells)}</tr>")
    lines.append("</tbody></table>")
    return "\n".join(lines)


def marked(metric: Metric, rows: Sequence[Row]) -> Mapping[str, str]:
    """row -> "best" (all checkpoints that print as the best one, unless all do) or "above" (a better baseline)."""
    if metric.better is None:
        return {}
    sign = 1 if metric.better == "higher" else -1
    values = {row.name: sign * row.metrics[metric.name] for row in rows if math.isfinite(_value(row, metric))}
    checkpoints = [row.name for row in rows if not row.is_baseline and row.name in values]
    if not checkpoints:
        return {}
    best = max(values[name] for name in checkpoints)
    printed = shown(sign * best, metric.unit)
    differ = len({shown(sign * values[name], metric.unit) for name in checkpoints}) > 1
    marks = {}
    for row in rows:
        if row.name not in values:
            continue
        same = shown(sign * values[row.name], metric.unit) == printed
        if row.is_baseline and values[row.name] > best and not same:
            marks[row.name] = "above"
        elif not row.is_baseline and differ and same:
            marks[row.name] = "best"
    return marks


def definitions(rows: Sequence[Row]) -> str:
    """An HTML list: every metric of the table and what it means."""
    items = [
        f"<dt>{escape(metric.title)} <code>{escape(metric.name)}</code></dt><dd>{escape(metric.text)}</dd>"
        for metric in in_order({name for row in rows for name in row.metrics})
        if metric.text
    ]
    return f"<dl>{''.join(items)}</dl>"


def _columns(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one kind stand in one column."""
    columns: dict[str, list[Row]] = {}
    for row in rows:
        columns.setdefault(row.kind, []).append(row)
    return list(columns.values())


def _cell(metric: Metric, column: Sequence[Row], marks: Mapping[str, str]) -> str:
    values = sorted(row.metrics[metric.name] for row in column if metric.name in row.metrics)
    if not values:
        return MISSING
    texts = dict.fromkeys(shown(value, metric.unit) for value in (values[0], values[-1]))
    text = " – ".join(texts)
    found = {marks.get(row.name) for row in column}
    if "best" in found:
        return f"<strong>{text}</strong>"
    return f'{text}<sup title="better than every checkpoint">{ABOVE}</sup>' if "above" in found else text


def _kind(row: Row) -> str:
    return "baseline" if row.is_baseline else "checkpoint"


def _value(row: Row, metric: Metric) -> float:
    return row.metrics.get(metric.name, math.nan)
