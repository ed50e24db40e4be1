"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llava_pat.annotation.report.definitions import GROUPS, METRICS, shown
from llava_pat.annotation.report.survey import Survey

_WORDS = 5
_FAULTS = 8
_WHERE = 150  # letters


def render_table(metrics: Mapping[str, Any], survey: Survey) -> str:
    """Numbers, the most frequent words, and what is missing with the first of each."""
    wide = max(len(metric.title) for metric in METRICS) + 2
    lines = []
    for group in GROUPS:
        lines.append(group)
        for metric in METRICS:
            if metric.group == group and metrics[metric.name] is not None:
                lines.append(f"  {metric.title:<{wide}}{shown(metrics[metric.name], metric.unit):>10}")
    lines.append("Words")
    lines += _words(survey)
    ranked = survey.faults.ranked()
    if ranked:
        lines.append("What is missing, and why")
    for fault in ranked[:_FAULTS]:
        lines.append(f"  {fault.count:>10,}  {fault.unit}: {fault.reason}. First: {_short(fault.where)}")
    if len(ranked) > _FAULTS:
        lines.append(f"  and {len(ranked) - _FAULTS} more reasons: metrics.json")
    return "\n".join(lines)


def _words(survey: Survey) -> Iterator[str]:
    frequent = survey.measures.labels.most_common(_WORDS)
    yield f"  labels: {', '.join(f'{label} {count:,}' for label, count in frequent)}"
    if survey.all_nouns is not None:
        bare = survey.all_nouns.without.most_common(_WORDS)
        yield f"  nouns without a region: {', '.join(f'{noun} {count:,}' for noun, count in bare) or 'none'}"


def _short(where: str) -> str:
    """Cut in the middle: a path begins it, what is wrong ends it."""
    text = " ".join(where.split())
    return text if len(text) <= _WHERE else f"{text[: _WHERE // 2]} ... {text[5 - _WHERE // 2 :]}"
