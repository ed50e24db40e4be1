"""The figures of the report, except the pictures: one function a figure, rows in, matplotlib Figure out, or None
where no row has what it shows. Checkpoints are coloured, baselines grey; of a kind of baseline that every checkpoint
has its own of, the first one stands for all where each row has a line or a panel of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from llava_pat.evaluation.alignment.report.definitions import in_order
from llava_pat.evaluation.alignment.report.files import Row
from llava_pat.evaluation.alignment.report.style import RIGHT, WRONG, Look, looks, one_of_a_kind
from llava_pat.pages.figures import GREY, HEAT

WIDTH = 11.0  # inches
NARROW = 5.4  # two of these stand beside each other
MOST_WORDS = 40  # lines of the figure of words
POINTS = 250  # of a long line
SMALLEST_SHARE = 1e-6  # eigenvalue shares below are rounding, and are not drawn

Draw = Callable[[Sequence[Row]], Figure | None]


@dataclass(frozen=True)
class Plot:
    """One figure of the page."""

    name: str
    title: str
    caption: str
    draw: Draw


def metrics(rows: Sequence[Row]) -> Figure | None:
    """One panel a metric: a dot per row; a short line marks the mean of checkpoints that differ in the seed alone."""
    look = looks(rows)
    shown = [m for m in in_order({name for row in rows for name in row.metrics}) if m.plotted]
    shown = [m for m in shown if any(np.isfinite(row.metrics[m.name]) for row in rows if m.name in row.metrics)]
    if not shown:
        return None
    figure, panels = _panels(len(shown), 4, height=0.62 + 0.19 * len(one_of_a_kind(rows)), sharey=True)
    heights = _heights(rows)
    for panel, metric in zip(panels, shown, strict=True):
        values = {row.name: row.metrics[metric.name] for row in rows if metric.name in row.metrics}
        values = {name: value for name, value in values.items() if np.isfinite(value)}
        for row in rows:
            if row.name in values:
                mine = look[row.name]
                panel.plot(
                    values[row.name], heights[row.name], mine.marker, color=mine.colour, markersize=5.5,
                    markerfacecolor="white" if row.is_baseline else mine.colour, clip_on=False, zorder=3,
                )  # fmt: skip
        for group in {mine.group for mine in look.values() if not mine.is_baseline}:
            alike = [name for name in values if look[name].group == group and not look[name].is_baseline]
            if len(alike) > 1:
                at = [heights[name] for name in alike]
                mean = float(np.mean([values[name] for name in alike]))
                panel.vlines(mean, min(at) - 0.35, max(at) + 0.35, color=look[alike[0]].colour, linewidth=1, alpha=0.7)
        arrow = {"higher": "  →", "lower": "  ←", None: ""}[metric.better]
        panel.set_title(metric.title + arrow)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        if metric.unit == "share" and values and min(values.values()) >= 0 and max(values.values()) > 0.5:
            panel.set_xlim(0, 1)
    _name_rows(panels[0], rows, look, heights)
    return figure


def compression(rows: Sequence[Row]) -> Figure | None:
    """Pooled entropy before and after the projector, as arrows; not centred and centred."""
    pairs = [("entropy_features" + end, "entropy_patches" + end) for end in ("", "_centred")]
    rows = one_of_a_kind([row for row in rows if any(a in row.metrics and b in row.metrics for a, b in pairs)])
    if not rows:
        return None
    look, heights = looks(rows), _heights(rows)
    figure, panels = _panels(2, 2, height=0.75 + 0.24 * len(rows), sharey=True)
    for panel, (before, after), title in zip(panels, pairs, ("not centred", "centred"), strict=True):
        for row in rows:
            if before not in row.metrics or after not in row.metrics:
                continue
            start, end, mine = row.metrics[before], row.metrics[after], look[row.name]
            panel.plot(start, heights[row.name], "|", color="#333333", markersize=9, markeredgewidth=1.5)
            panel.annotate(
                "", (end, heights[row.name]), (start, heights[row.name]),
                arrowprops={"arrowstyle": "-|>", "color": mine.colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
            panel.plot(end, heights[row.name], ",", color=mine.colour)  # so that the axis reaches the arrow's head
        panel.set_title(title)
        panel.set_xlabel("Von Neumann entropy of all patches (nats)")
        panel.margins(x=0.08)
    _name_rows(panels[0], rows, look, heights)
    return figure


def spectra(rows: Sequence[Row]) -> Figure | None:
    """Shares of the pooled eigenvalues, before (one black line per tower) and after the projector."""
    ends = [end for end in ("", "_centred") if any("spectrum_patches" + end in row.curves for row in rows)]
    if not ends:
        return None
    rows = one_of_a_kind(rows)
    look = looks(rows)
    figure, panels = _panels(len(ends), 2, height=3.3)
    for panel, end in zip(panels, ends, strict=True):
        towers: list[np.ndarray] = []
        for row in rows:
            before = row.curves.get("spectrum_features" + end)
            if before is not None and not any(len(b) == len(before) and np.allclose(b, before) for b in towers):
                towers.append(before)
                label = "tower's features (before)" if len(towers) == 1 else None
                panel.plot(*_ranked(before), color="black", linewidth=1.2, label=label)
            after = row.curves.get("spectrum_patches" + end)
            if after is not None and (after > SMALLEST_SHARE).sum() > 1:  # one value alone is no line
                _line(panel, *_ranked(after), look[row.name])
        panel.set(xscale="log", yscale="log", ylim=(SMALLEST_SHARE, 1.2))
        panel.set_title("centred" if end else "not centred")
        panel.set_xlabel("eigenvalue, largest first")
        _plain_numbers(panel)
    panels[0].set_ylabel("share of the sum")
    _legend(figure, panels)
    return figure


def image_entropies(rows: Sequence[Row]) -> Figure | None:
    """Per-image entropy before and after: median, middle half, and 5th to 95th percentile of the images."""
    ends = [end for end in ("", "_centred") if any(f"entropy_patches_image{end}" in row.curves for row in rows)]
    if not ends:
        return None
    rows = one_of_a_kind([row for row in rows if any(f"entropy_patches_image{end}" in row.curves for end in ends)])
    look, heights = looks(rows), _heights(rows)
    figure, panels = _panels(len(ends), 2, height=0.85 + 0.28 * len(rows), sharey=True)
    for panel, end in zip(panels, ends, strict=True):
        for row in rows:
            for key, shift, colour in (("features", 0.17, "black"), ("patches", -0.17, look[row.name].colour)):
                values = row.curves.get(f"entropy_{key}_image{end}")
                if values is not None and len(values):
                    low, quarter, middle, most, high = np.percentile(values, (5, 25, 50, 75, 95))
                    y = heights[row.name] + shift
                    panel.plot((low, high), (y, y), color=colour, linewidth=0.9)
                    panel.plot((quarter, most), (y, y), color=colour, linewidth=4, alpha=0.55, solid_capstyle="butt")
                    panel.plot(middle, y, "o", color=colour, markersize=4)
        panel.set_title("centred" if end else "not centred")
        panel.set_xlabel("entropy of one image's patches (nats)")
    _name_rows(panels[0], rows, look, heights)
    return figure


def cosines(rows: Sequence[Row]) -> Figure | None:
    """Cosine of labelled patches with right and with wrong words, as densities; one panel a row."""
    keys = ("cosine_edges", "cosine_right", "cosine_wrong")
    rows = [row for row in rows if all(k in row.curves for k in keys) and row.curves["cosine_right"].sum()]
    rows = one_of_a_kind(rows)
    if not rows:
        return None
    look = looks(rows)
    used = [row.curves["cosine_edges"] for row in rows]
    taken = [np.flatnonzero(row.curves["cosine_right"] + row.curves["cosine_wrong"]) for row in rows]
    low = min(float(edges[bins[0]]) for edges, bins in zip(used, taken, strict=True))
    high = max(float(edges[bins[-1] + 1]) for edges, bins in zip(used, taken, strict=True))
    figure, panels = _panels(len(rows), 4, height=1.75, sharex=True)
    for panel, row in zip(panels, rows, strict=True):
        edges = row.curves["cosine_edges"]
        for key, colour, label in (("cosine_wrong", WRONG, "wrong words"), ("cosine_right", RIGHT, "right words")):
            counts = row.curves[key]
            if counts.sum():
                density = counts / counts.sum() / np.diff(edges)
                panel.stairs(density, edges, fill=True, color=colour, alpha=0.35, label=label)
                panel.stairs(density, edges, color=colour, linewidth=1.1)
        panel.set_title(look[row.name].title, color=GREY if row.is_baseline else "black")
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.set_xlim(low - 0.02, high + 0.02)
        panel.grid(False, axis="y")
        panel.xaxis.set_major_locator(MaxNLocator(4))
    for panel in panels[-4:]:
        panel.set_xlabel("cosine with the word")
        panel.tick_params(axis="x", labelbottom=True)
    _legend(figure, panels, columns=2)
    return figure


def hits(rows: Sequence[Row]) -> Figure | None:
    """hit@k for every k."""
    rows = one_of_a_kind([row for row in rows if "rank_counts" in row.curves and row.curves["rank_counts"].sum()])
    if not rows:
        return None
    look = looks(rows)
    figure, (panel,) = _panels(1, 1, height=3.2, width=NARROW)
    for row in rows:
        counts = row.curves["rank_counts"]
        k = _logarithmic(len(counts))
        _line(panel, k + 1, counts.cumsum()[k] / counts.sum(), look[row.name])
    panel.set(xscale="log", ylim=(0, 1.02), xlabel="k", ylabel="labelled patches with a hit at k")
    _plain_numbers(panel)
    _legend(figure, [panel], columns=3)
    return figure


def layers(rows: Sequence[Row]) -> Figure | None:
    """IMA: cosine of the mean image and mean text state, layer by layer."""
    rows = one_of_a_kind([row for row in rows if "ima" in row.curves])
    if not rows:
        return None
    look = looks(rows)
    figure, (panel,) = _panels(1, 1, height=3.2, width=NARROW)
    for row in rows:
        _line(panel, np.arange(len(row.curves["ima"])), row.curves["ima"], look[row.name], dots=True)
    panel.set(xlabel="after layer (0: input embeddings)", ylabel="cosine of mean image and text state")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, [panel], columns=3)
    return figure


def explained(rows: Sequence[Row]) -> Figure | None:
    """Energy that the first k words of matching pursuit explain; free weights, and weights of at least 0."""
    keys = [k for k in ("omp_explained", "omp_explained_nonnegative") if any(k in row.curves for row in rows)]
    rows = one_of_a_kind(rows)
    if not keys:
        return None
    look = looks(rows)
    figure, panels = _panels(len(keys), 2, height=3.1, sharey=True)
    for panel, key in zip(panels, keys, strict=True):
        for row in rows:
            if key in row.curves:
                values = row.curves[key]
                _line(panel, np.arange(1, len(values) + 1), values, look[row.name], dots=True)
        panel.set_title("weights ≥ 0" if key.endswith("nonnegative") else "free weights")
        panel.set_xlabel("words")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("share of a patch's energy")
    panels[0].set_ylim(bottom=0)
    _legend(figure, panels)
    return figure


def words(rows: Sequence[Row]) -> Figure | None:
    """hit@1 of the most frequent words of the vocabulary, row by row."""
    needed = ("label_words", "label_patches", "label_hit_at_1")
    rows = one_of_a_kind([row for row in rows if all(key in row.curves for key in needed)])
    if not rows:
        return None
    look = looks(rows)
    seen: dict[str, int] = {}
    for row in rows:
        for word, count in zip(row.curves["label_words"].tolist(), row.curves["label_patches"].tolist(), strict=True):
            seen[word] = max(seen.get(word, 0), int(count))
    chosen = sorted((word for word in seen if seen[word]), key=lambda word: -seen[word])[:MOST_WORDS]
    if not chosen:
        return None
    table = np.full((len(rows), len(chosen)), np.nan)
    for number, row in enumerate(rows):
        hit = dict(zip(row.curves["label_words"].tolist(), row.curves["label_hit_at_1"].tolist(), strict=True))
        table[number] = [hit.get(word, np.nan) for word in chosen]
    figure, (panel,) = _panels(1, 1, height=1.3 + 0.24 * len(rows))
    drawn = panel.imshow(table, cmap=HEAT, norm=Normalize(0, 1), aspect="auto", interpolation="none")
    slant = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if len(chosen) > 10 else {}
    panel.set_xticks(range(len(chosen)), [f"{word} ({seen[word]:,})" for word in chosen], fontsize=7.5, **slant)
    panel.vlines(np.arange(len(chosen) - 1) + 0.5, -0.5, len(rows) - 0.5, color="white", linewidth=1)
    panel.hlines(np.arange(len(rows) - 1) + 0.5, -0.5, len(chosen) - 0.5, color="white", linewidth=1)
    panel.set_yticks(range(len(rows)), [look[row.name].title for row in rows])
    for tick, row in zip(panel.get_yticklabels(), rows, strict=True):
        tick.set_color(GREY if row.is_baseline else "black")
    panel.grid(False)
    panel.spines[:].set_visible(False)
    panel.set_facecolor("#dddddd")
    figure.colorbar(drawn, ax=panel, label="hit@1", pad=0.01, aspect=12)
    return figure


PLOTS = (
    Plot("metrics", "Metrics",
         "Each dot is a column of the table; grey, hollow: baselines. The arrow beside a title points to better. A "
         "short line is the mean of checkpoints that differ in the seed alone. Scales differ from panel to panel.",
         metrics),
    Plot("compression", "Compression by the projector",
         "From the tower's features (bar) to the projected patches (arrow head). Pointing left: the projector "
         "compresses. The two definitions may disagree: read both.", compression),
    Plot("spectra", "Spectra behind the entropies",
         "Eigenvalues of all patches' second moments, each patch at length 1, as shares of their sum. The entropy is "
         "that of these shares. A line that falls sooner uses fewer directions.", spectra),
    Plot("image_entropies", "Entropy image by image",
         "Dot: median over images; thick: middle half; thin: 5th to 95th percentile. Black: before the projector.",
         image_entropies),
    Plot("cosines", "Right and wrong words",
         "Cosine of labelled patches with the words of their label (right) and with all others of the object "
         "vocabulary (wrong). Areas are 1. The less they overlap, the better a patch tells its word.", cosines),
    Plot("words", "Word by word",
         f"hit@1 of the patches that carry each word, most frequent first (at most {MOST_WORDS}; patches in brackets). "
         "Light grey: no patch.", words),
    Plot("explained", "Patches as sums of words",
         "Orthogonal matching pursuit with the language model's own words: how much of a labelled patch's squared "
         "length the first words explain.", explained),
    Plot("hits", "Hits at k",
         "Share of labelled patches with fewer than k wrong words of the object vocabulary as near as the nearest "
         "right one.", hits),
    Plot("layers", "Inside the language model",
         "IMA: cosine of the mean hidden state over image positions with that over text positions.", layers),
)  # fmt: skip


def _panels(
    count: int, columns: int, height: float, width: float = WIDTH, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """`height` inches a line of panels; unused ones are not there."""
    columns = min(columns, count) if count > 1 else 1
    lines = -(-count // columns)
    figure = Figure(figsize=(width, height * lines + 0.35))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=sharex, sharey=sharey)
    for panel in grid.flat[count:]:
        panel.remove()
    return figure, list(grid.flat[:count])


def _heights(rows: Sequence[Row]) -> dict[str, float]:
    """Where each row stands on a vertical axis, first on top, a gap before the baselines; one line a kind of these."""
    lines = {row.kind: number for number, row in enumerate(one_of_a_kind(rows))}
    return {row.name: -(lines[row.kind] + (0.6 if row.is_baseline else 0)) for row in rows}


def _name_rows(panel: Axes, rows: Sequence[Row], look: Mapping[str, Look], heights: Mapping[str, float]) -> None:
    rows = one_of_a_kind(rows)
    panel.set_yticks([heights[row.name] for row in rows], [look[row.name].title for row in rows])
    panel.set_ylim(min(heights.values()) - 0.6, 0.6)
    for label, row in zip(panel.get_yticklabels(), rows, strict=True):
        label.set_color(GREY if row.is_baseline else "black")


def _ranked(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number and share of the eigenvalues worth drawing; of thousands, as many as a logarithmic axis can show."""
    kept = shares[shares > SMALLEST_SHARE]
    drawn = _logarithmic(len(kept))
    return drawn + 1, kept[drawn]


def _logarithmic(count: int) -> np.ndarray:
    """Places 0 .. count - 1, ever sparser, both ends among them."""
    return np.unique(np.geomspace(1, max(count, 1), POINTS).round().astype(int))[:count] - 1


def _plain_numbers(panel: Axes) -> None:
    for axis, scale in ((panel.xaxis, panel.get_xscale()), (panel.yaxis, panel.get_yscale())):
        if scale == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _line(panel: Axes, x: np.ndarray, y: np.ndarray, look: Look, dots: bool = False) -> None:
    panel.plot(
        x, y, linestyle=look.dashes, color=look.colour, marker=look.marker if dots else None, markersize=3.5,
        linewidth=1.1 if look.is_baseline else 1.6, label=look.group if look.first else None,
        zorder=2 if look.is_baseline else 3, alpha=0.9,
    )  # fmt: skip


def _legend(figure: Figure, panels: Sequence[Axes], columns: int = 6) -> None:
    named = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=min(columns, len(named)))
