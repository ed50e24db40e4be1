"""Figures of the study as SVG: differences to the baseline, seed by seed; and what sweeps change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_pat.evaluation.alignment.report.style import MARKERS
from llava_pat.pages.figures import COLOURS, GREY, drawing, svg_bytes
from playground.study.hypotheses import BASELINE, HYPOTHESES
from playground.study.report import MAIN
from playground.study.results import Column, Results
from playground.study.rows import ROWS

COLUMNS = 3
SWEPT = ("stage1_patch_cosine", "object_f1", "rec", "qa", "instruct")


def write_figures(folder: Path) -> list[Path]:
    """differences.svg of the study, and one figure a sweep whose setting is a number; those that have data."""
    written = []
    main = Results.read(folder / "results" / MAIN)
    with drawing():
        if any(column[0] == BASELINE for column in main.columns) and len(main.columns) > 1:
            written.append(_save(folder / "differences.svg", differences(main)))
        for place in sorted((folder / "results").glob("*")):
            if place.is_dir() and place.name != MAIN:
                figure = sweep(Results.read(place))
                if figure is not None:
                    written.append(_save(folder / f"{place.name}.svg", figure))
    return written


def differences(results: Results) -> Figure:
    """A panel a claim: each objective minus `none`; bars are 95 % bootstrap intervals, dots single seeds."""
    treated = [column for column in results.columns if column[0] != BASELINE]
    rows = -(-len(HYPOTHESES) // COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, (0.9 + 0.42 * len(treated)) * rows))
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for panel, hypothesis in zip(panels, HYPOTHESES, strict=False):
        title, _ = ROWS[hypothesis.metric]
        panel.set_title(f"{hypothesis.claim.split(' (')[0]}\n{title}", fontsize=8.5)
        panel.axvline(0, color=GREY, linewidth=0.8)
        for place, column in enumerate(treated):
            found = results.compare(column, results.baseline_of(column), hypothesis.metric)
            if found is not None:
                _difference(panel, -place, found, COLOURS[place % len(COLOURS)])
        panel.set_yticks([-place for place in range(len(treated))], [results.name(column) for column in treated])
        panel.set_ylim(0.6 - len(treated), 0.5)
        panel.grid(axis="y", visible=False)
        better = "right" if hypothesis.direction > 0 else "left"
        panel.set_xlabel(f"difference to {BASELINE}; the claim points {better}", fontsize=7.5)
    for panel in list(figure.axes)[len(HYPOTHESES) :]:
        panel.set_axis_off()
    return figure


def _difference(panel: Axes, height: float, found, colour: str) -> None:
    panel.plot(found.interval, [height, height], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.45)
    panel.plot(found.values, np.full(len(found.values), height), "o", color=colour, markersize=3, alpha=0.8)
    panel.plot([found.mean], [height], "|", color=colour, markersize=13, markeredgewidth=2)


def sweep(results: Results) -> Figure | None:
    """A panel a metric over the one override that varies; None where nothing varies, or it is no number."""
    varying = _axis(results.columns)
    if varying is None:
        return None
    metrics = [metric for metric in SWEPT if any(results.values(column, metric) for column in results.columns)]
    figure = Figure(figsize=(2.5 * len(metrics), 2.6))
    objectives = list(dict.fromkeys(column[0] for column in results.columns))
    for panel, metric in zip(figure.subplots(1, len(metrics), squeeze=False).flat, metrics, strict=True):
        for number, objective in enumerate(objectives):
            look = {"color": COLOURS[number % len(COLOURS)], "label": objective}
            points = _points(results, objective, varying, metric)
            if [value for value, *_ in points] == [None]:  # the baseline, which does not feel the setting
                panel.axhline(points[0][1], linestyle=":", **look)
            elif points:
                values, centres, spreads = zip(*points, strict=True)
                panel.errorbar(values, centres, yerr=spreads, marker=MARKERS[number % len(MARKERS)], markersize=4,
                               capsize=2, **look)  # fmt: skip
        panel.set_title(ROWS[metric][0], fontsize=8.5)
        panel.set_xlabel(varying.partition(".")[2], fontsize=8)
    figure.axes[0].legend(fontsize=7.5)
    return figure


def _axis(columns: Sequence[Column]) -> str | None:
    """The override whose values differ among the columns and are numbers."""
    seen: dict[str, set[str]] = {}
    for _, setting in columns:
        for one in setting:
            key, _, value = one.partition("=")
            seen.setdefault(key, set()).add(value)
    for key, values in seen.items():
        if len(values) > 1 and all(_number(value) is not None for value in values):
            return key
    return None


def _points(results: Results, objective: str, key: str, metric: str) -> list[tuple[float | None, float, float]]:
    found = []
    for column in results.columns:
        values = results.values(column, metric)
        if column[0] == objective and values:
            place = next((_number(one.partition("=")[2]) for one in column[1] if one.startswith(f"{key}=")), None)
            found.append((place, float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0))
    return sorted(found, key=lambda point: (point[0] is None, point[0]))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _save(path: Path, figure: Figure) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(svg_bytes(figure))
    return path
