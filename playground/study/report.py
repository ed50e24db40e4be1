"""Writes the generated parts of docs/study.md, and its figures, from the JSON in docs/study/results.

    python -m playground.study report            # after `publish`; a second time it changes nothing

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`; the text around it is written by hand.
docs/study/results/test is the study, predicted belongs to it; every other folder is a sweep, in the order of names.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava_pat.types import DataError
from playground.study.cells import ROOT, shown
from playground.study.files import read_json
from playground.study.hypotheses import BASELINE, HYPOTHESES, verdict
from playground.study.overview import mean_and_spread, means, row
from playground.study.predicted import FOLDER as PREDICTED
from playground.study.predicted import with_the_study
from playground.study.results import SHARED, Column, Results
from playground.study.rows import AFTERWARDS, ALIGNMENT, COST, ROWS, TASKS
from playground.study.statistics import DRAWS, Difference, holm

PAGE = ROOT / "docs" / "study.md"
FOLDER = ROOT / "docs" / "study"
MAIN = "test"
_PART = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SWEPT = ("stage1_patch_cosine", "cider", "object_f1", "rec", "qa", "instruct")
NOTHING = "*No results yet: `bash scripts/compare.sh --split test`, then `python -m playground.study publish`.*"


def write(page: Path = PAGE, folder: Path = FOLDER) -> list[str]:
    """Renews the page; returns the names of its generated parts. DataError for a part that nothing makes."""
    text = page.read_text(encoding="utf-8")
    main = Results.read(folder / "results" / MAIN)
    makers: dict[str, Callable[[], str]] = {
        "setup": lambda: setup(main, folder / "results" / MAIN),
        "claims": lambda: f"{claims(main)}\n\n{_figure(folder, 'differences')}".rstrip(),
        "alignment": lambda: means(main, main.columns, ALIGNMENT | AFTERWARDS),
        "tasks": lambda: means(main, main.columns, TASKS | COST),
        "differences": lambda: differences(main),
        "sweeps": lambda: sweeps(folder),
        "predicted": lambda: predicted(folder),
    }
    found = []

    def renewed(match: re.Match) -> str:
        part = match[2]
        if part not in makers:
            raise DataError(f"{page}: nothing makes the part {part!r}; there are: {', '.join(makers)}")
        found.append(part)
        made = makers[part]() if main.entries or part == "sweeps" else NOTHING
        return f"{match[1]}\n{made}\n\n{match[3]}"

    renewed_text = _PART.sub(renewed, text)
    if renewed_text != text:
        page.write_text(renewed_text, encoding="utf-8")
    return found


def setup(results: Results, folder: Path) -> str:
    """What was run: seeds, scenes, versions, command lines."""
    shared = read_json(folder / SHARED)
    seeds = sorted({one["seed"] for one in results.entries})
    first = results.entries[0]
    asked = ", ".join(f"{count:,} {what}" for what, count in first["questions"].items())
    commits = ", ".join(commit[:12] for commit in shared["git"]["commits"]) or "unknown"
    versions = ", ".join(f"{package} {number}" for package, number in shared["versions"].items())
    dates = sorted(one["finished"] for one in results.entries)
    lines = [
        f"- {len(results.entries)} runs: {', '.join(f'`{results.name(column)}`' for column in results.columns)}; seeds "
        f"{', '.join(map(str, seeds))}; {dates[0]} to {dates[-1]}.",
        f"- Split `{first['split']}`: {scenes(first)}; {asked}.",
        f"- Code: {commits}{' with changes' if shared['git']['changed'] else ''}; {versions}; {shared['machine']}.",
        *(f"- Base model {folder}: sha256 {digest[:16]}." for folder, digest in shared["inputs"]["models"].items()),
        "- Command lines of one run (all are in docs/study/results):",
        "",
        *(f"      {line}" for line in first["commands"].values()),
    ]
    return "\n".join(lines)


def scenes(result: dict[str, Any]) -> str:
    """How many scenes a result's questions are about."""
    if result["scenes"] is None:
        return "stage 1 alone"
    return f"{result['scenes']} scenes" if result["whole"] else f"the first {result['scenes']} scenes"


def claims(results: Results) -> str:
    """A table a family: each claim about one objective against `none`."""
    tables = []
    for treated in results.columns:
        baseline = results.baseline_of(treated)
        if treated[0] == BASELINE or not set(results.seeds(treated)) & set(_seeds(results, baseline)):
            continue
        found = [(one, results.compare(treated, baseline, one.metric)) for one in HYPOTHESES]
        adjusted = holm([np.nan if one is None else one.p for _, one in found])
        seeds = len(_both(results, treated, baseline))
        lines = [
            f"**`{results.name(treated)}` against `{results.name(baseline)}`**, {seeds} seeds",
            "",
            row(["claim", "metric", f"`{baseline[0]}`", f"`{treated[0]}`", "difference", "95 %, bootstrap", "95 %, t",
                 "relative", "p (Holm)", "shown"]),
            row(["---"] * 10),
        ]  # fmt: skip
        for (one, difference), p in zip(found, adjusted, strict=True):
            lines.append(row([one.claim, *_claim(results, treated, baseline, one.metric, difference, p),
                              "not measured" if difference is None else verdict(one, difference, p)]))  # fmt: skip
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _claim(
    results: Results, treated: Column, baseline: Column, metric: str, found: Difference | None, p: float
) -> list[str]:
    title, digits = ROWS[metric]
    if found is None:
        return [title, *[""] * 7]
    seeds = _both(results, treated, baseline)
    cells = [mean_and_spread(results.values(column, metric, seeds), digits) for column in (baseline, treated)]
    return [title, *cells, f"{found.mean:+.{digits}f}", between(found.interval, digits) + _seeds_only(found),
            between(found.t_interval, digits), f"{100 * found.relative:+.1f} %", _p(p)]  # fmt: skip


def differences(results: Results) -> str:
    """Every metric and every pair of interest, with bootstrap intervals and without p values."""
    pairs = contrasts(results)
    if not pairs:
        return "*One objective: nothing to compare.*"
    head = ["", *(f"`{results.name(a)}` - `{results.name(b)}`" for a, b in pairs)]
    lines = [row(head), row(["---"] * len(head))]
    for metric, (title, digits) in (ALIGNMENT | TASKS | AFTERWARDS).items():
        found = [results.compare(a, b, metric) for a, b in pairs]
        cells = [
            "" if one is None else f"{one.mean:+.{digits}f} {between(one.interval, digits)}{_seeds_only(one)}"
            for one in found
        ]
        if any(cells):
            lines.append(row([title, *cells]))
    return "\n".join([*lines, "", f"Intervals: {DRAWS:,} draws of seeds and scenes; * of seeds alone."])


def contrasts(results: Results) -> list[tuple[Column, Column]]:
    """Each objective against the baseline; sums against their parts; settings of one against it without them; the
    single ones against each other."""
    columns = results.columns
    pairs = [(one, results.baseline_of(one)) for one in columns if one[0] != BASELINE]
    for one in columns:
        parts = set(one[0].split("+"))
        pairs += [(one, other) for other in columns if one[1] == other[1] and other[0] in parts - {one[0]}]
    pairs += [(one, other) for one in columns for other in results.plainer(one)]
    single = [one for one in columns if "+" not in one[0] and one[0] != BASELINE]
    pairs += [(b, a) for i, a in enumerate(single) for b in single[i + 1 :] if a[1] == b[1]]
    return [(a, b) for a, b in pairs if set(_seeds(results, a)) & set(_seeds(results, b))]


def predicted(folder: Path) -> str:
    """Predicted regions against exact ones: means, and differences."""
    together = with_the_study(folder / "results" / PREDICTED, folder / "results" / MAIN)
    if not together.entries:
        return "*Not run yet.*"
    return f"{means(together, together.columns, ALIGNMENT | TASKS)}\n\n{differences(together)}"


def sweeps(folder: Path) -> str:
    """A table a sweep: settings and objectives below each other, differences to `none` in brackets."""
    parts = []
    places = (one for one in (folder / "results").glob("*") if one.is_dir() and one.name not in (MAIN, PREDICTED))
    for place in sorted(places):
        results = Results.read(place)
        metrics = [one for one in _SWEPT if any(results.values(column, one) for column in results.columns)]
        first = results.entries[0]
        common = f"; all with {' '.join(results.common)}" if results.common else ""
        lines = [f"**{place.name}** (split `{first['split']}`, {scenes(first)}{common})", "",
                 row(["setting", "objective", "seeds", *(ROWS[one][0] for one in metrics)]),
                 row(["---"] * (3 + len(metrics)))]  # fmt: skip
        for column in results.columns:
            cells = [_swept(results, column, metric) for metric in metrics]
            setting = results.own(column) or "as configured"
            lines.append(row([setting, f"`{column[0]}`", str(len(results.seeds(column))), *cells]))
        parts += ["\n".join(lines), *filter(None, [_figure(folder, place.name)])]
    return "\n\n".join(parts) or "*No sweep yet: `python -m playground.study sweep --over ...`, then `publish --name`.*"


def _swept(results: Results, column: Column, metric: str) -> str:
    digits = ROWS[metric][1]
    cell = mean_and_spread(results.values(column, metric), digits)
    found = None if column[0] == BASELINE else results.compare(column, results.baseline_of(column), metric)
    return cell if found is None else f"{cell} ({found.mean:+.{digits}f})"


def _figure(folder: Path, stem: str) -> str:
    """A link to a figure, if plots.py has drawn it."""
    return f"![{stem}]({folder.name}/{stem}.svg)" if (folder / f"{stem}.svg").is_file() else ""


def between(interval: tuple[float, float], digits: int) -> str:
    low, high = interval
    return "" if np.isnan(low) else f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def _p(value: float) -> str:
    return "" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _seeds_only(found: Difference) -> str:
    return "" if found.over_scenes else "*"


def _seeds(results: Results, column: Column) -> list[int]:
    return results.seeds(column) if column in results.columns else []


def _both(results: Results, a: Column, b: Column) -> list[int]:
    return sorted(set(_seeds(results, a)) & set(_seeds(results, b)))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("study report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of results/ and figures")
    arguments = parser.parse_args(argv)
    from playground.study.plots import write_figures

    try:
        figures = write_figures(arguments.folder)  # first: the page shows those that are there
        parts = write(arguments.page, arguments.folder)
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{shown(arguments.page)}: {', '.join(parts)}; figures: {', '.join(map(shown, figures)) or 'none yet'}")
    return 0
