"""The table: values as measured, the best marked, baselines apart."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from llava_pat.evaluation.alignment.report.definitions import GROUPS, KNOWN, in_order, metric, shown
from llava_pat.evaluation.alignment.report.files import Row, read_run
from llava_pat.evaluation.alignment.report.table import definitions, marked, table


def row(name: str, baseline: bool = False, title: str | None = None, **metrics: float) -> Row:
    return Row(name, baseline, metrics, {} if title is None else {"title": title}, {})


class Cells(HTMLParser):
    """Text of every cell, line by line; classes of the cells; which texts are bold or carry a dagger."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self.classes: list[list[str]] = []
        self.bold: set[str] = set()
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.lines.append([])
            self.classes.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")
            self.classes[-1].append(dict(attrs).get("class", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.lines[-1][-1] += data
            if "strong" in self.open:
                self.bold.add(data)

    def line(self, start: str) -> list[str]:
        return next(line for line in self.lines if line[0].startswith(start))


def test_values_stand_where_they_belong(make_run) -> None:
    rows = read_run(make_run()).rows
    cells = Cells(table(rows))
    assert not cells.open
    assert cells.lines[0] == ["metric", "none-seed0", "none-seed1", "pat-seed0", "random projector", "mean patch"]
    line = cells.line("cosine with the label")
    assert line[1:4] == [f"{r.metrics['patch_cosine']:.3f}" for r in rows[:3]]
    low, high = (f"{r.metrics['patch_cosine']:.3f}" for r in (rows[4], rows[6]))
    assert line[5] == f"{low} – {high}", "three baselines of one kind share a column"
    number = cells.lines.index(line)
    assert cells.classes[number][1:] == ["checkpoint"] * 3 + ["baseline"] * 2
    assert cells.line("something_new")[1] == "3.25", "a metric without a definition is shown all the same"


def test_apart_every_baseline_has_a_column(make_run) -> None:
    rows = read_run(make_run()).rows
    cells = Cells(table(rows, apart=True))
    assert cells.lines[0][4:] == ["random projector"] + [
        f"mean patch of run-{name}" for name in ("none-seed0", "none-seed1", "pat-seed0")
    ]
    assert cells.line("hit@5")[7] == f"{rows[6].metrics['hit_at_5']:.3f}"


def test_the_best_checkpoint_is_bold_whichever_way_is_better() -> None:
    rows = [row("a", hit_at_1=0.51, median_rank=3), row("b", hit_at_1=0.62, median_rank=2), row("c", hit_at_1=0.62)]
    assert marked(metric("hit_at_1"), rows) == {"b": "best", "c": "best"}
    assert marked(metric("median_rank"), rows) == {"b": "best"}
    assert Cells(table(rows)).bold == {"0.620", "2"}


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ({"a": 0.3}, {}),  # nothing to be better than
        ({"a": 0.3, "b": 0.3}, {}),
        ({"a": 0.30001, "b": 0.30002}, {}),  # what prints alike is not told apart
        ({"a": 0.3, "b": 0.4, "base": 0.5}, {"b": "best", "base": "above"}),
        ({"a": 0.3, "b": 0.4, "base": 0.4}, {"b": "best"}),
        ({"a": math.nan, "b": 0.4, "base": math.inf}, {}),
        ({"a": 0.3, "base": 0.5}, {"base": "above"}),
        ({"base": 0.5}, {}),
    ],
)
def test_marks(values: dict[str, float], marks: dict[str, str]) -> None:
    rows = [row(name, name == "base", hit_at_1=value) for name, value in values.items()]
    assert marked(metric("hit_at_1"), rows) == marks


def test_a_lower_baseline_is_above_where_lower_is_better() -> None:
    rows = [row("a", median_rank=4), row("base", True, median_rank=3)]
    assert marked(metric("median_rank"), rows) == {"base": "above"}
    assert "3†" in Cells(table(rows)).line("median rank")


def test_neither_way_is_better_for_entropy_and_distance() -> None:
    rows = [row("a", entropy_change=-1.0, modality_distance=3.0), row("b", entropy_change=1.0, modality_distance=5.0)]
    assert not Cells(table(rows)).bold


def test_names_cannot_break_the_page() -> None:
    html = table([row("x", title="<script>alert(1)</script>"), row("y", title='"><b>', hit_at_1=0.5)])
    assert "<script" not in html and "<b>" not in html
    assert Cells(html).line("hit@1")[1] == "–"


def test_definitions_are_of_the_metrics_shown_and_of_no_others() -> None:
    html = definitions([row("a", hit_at_1=0.1, hit_colour=0.2, odd_one=1.0)])
    assert re.findall(r"<code>(.*?)</code>", html) == ["hit_at_1", "hit_colour"]


def test_every_metric_has_a_text_and_a_known_group() -> None:
    assert all(m.text.endswith(".") and m.group in GROUPS for m in KNOWN.values())


def test_pursuits_with_and_without_signs_stand_together() -> None:
    names = ["omp_explained_nonnegative", "omp_overlap", "omp_explained", "omp_overlap_nonnegative"]
    found = in_order(set(names))
    assert [m.name for m in found] == sorted(names, key=lambda n: ("overlap" in n, "nonnegative" in n))
    assert found[1].title == "energy explained, weights ≥ 0" and "never subtracted" in found[1].text


def test_order_keeps_groups_together_and_facets_beside_hits() -> None:
    names = ["odd", "images", "entropy_patches", "hit_kind", "hit_at_1", "hit_at_10", "median_rank", "patches_kind"]
    assert [m.name for m in in_order(set(names))] == [
        "hit_at_1", "hit_at_10", "hit_kind", "median_rank", "entropy_patches", "images", "patches_kind", "odd",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.12345, "share", "0.123"),
        (-0.5, "nats", "−0.500"),
        (-0.0001, "cosine", "0.000"),
        (12345, "count", "12,345"),
        (2.0, "number", "2"),
        (14.25678, "number", "14.26"),
        (-3.5, "number", "−3.5"),
        (math.nan, "share", "nan"),
    ],
)
def test_numbers_as_printed(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text
