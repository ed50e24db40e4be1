"""The figures of the report: numbers in, matplotlib Figure out, or None where there is nothing to show. Call inside
pages.figures.drawing. Words are not drawn here but in words.py, since no font has the letters of all labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from llava_pat.annotation.report.metrics import spread
from llava_pat.annotation.report.survey import Survey
from llava_pat.pages.figures import COLOURS, GREY, HEAT

NARROW = (5.4, 2.9)  # inches; two of these stand beside each other
MOST_BARS = 40  # numbers of regions that have a bar each
AREA_BINS = 36
SMALLEST_AREA = 1e-5  # of an image; below, bars would be of single pixels
SCORE_BINS = 40
SHARE_BINS = 25
MIDDLE = COLOURS[1]
BARS = COLOURS[0]


@dataclass(frozen=True)
class Plot:
    """One figure of the page."""

    title: str
    caption: str
    draw: Callable[[Survey], Figure | None]


def regions_per_image(survey: Survey) -> Figure | None:
    """A bar for every number of regions; images without any are grey."""
    measures = survey.measures
    if not measures.images:
        return None
    figure, panel = _panel()
    values = spread(measures.regions_per_image)
    step = -(-int(values.max()) // MOST_BARS)
    counts = np.bincount((values - 1) // step)
    panel.bar(np.arange(len(counts)) * step + (step + 1) / 2, counts, width=0.85 * step, color=BARS)
    if survey.without_regions and not survey.quick:
        panel.bar(0, survey.without_regions, width=0.85 * step, color="#b5b5b5")
    _middle(panel, float(np.median(values)), "{:g}")
    panel.set(xlabel="regions of an image", ylabel="images")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _thousands(panel)
    return figure


def areas(survey: Survey) -> Figure | None:
    """Regions by their share of the image, logarithmically."""
    values = np.asarray(survey.measures.areas, np.float64)
    if not len(values):
        return None
    figure, panel = _panel()
    patch = 1 / survey.measures.patches
    low, high = min(float(values.min()), patch), max(float(values.max()), patch)
    edges = np.geomspace(max(low / 1.2, SMALLEST_AREA), min(high * 1.2, 1), AREA_BINS + 1)
    panel.hist(values.clip(edges[0], edges[-1]), edges, color=BARS, edgecolor="white", linewidth=0.5)
    panel.set_xscale("log")
    panel.set(xlabel="area of a region, of its image", ylabel="regions", xlim=(edges[0], edges[-1]))
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if edges[-1] < 500 * edges[0] else (1.0,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    if edges[0] < patch < edges[-1]:
        panel.axvline(patch, color=GREY, linewidth=1, linestyle=(0, (1, 1)))
        _say(panel, patch, "one patch", GREY, left=patch < np.median(values))
    _middle(panel, 100 * float(np.median(values)), "{:.2g} %", 0.01, left=patch >= np.median(values))
    _thousands(panel)
    return figure


def scores(survey: Survey) -> Figure | None:
    """Regions by the detector's score."""
    values = np.asarray(survey.measures.scores, np.float64)
    if not len(values):
        return None
    figure, panel = _panel()
    edges = np.linspace(min(0.0, float(values.min())), max(1.0, float(values.max())), SCORE_BINS + 1)
    panel.hist(values, edges, color=BARS, edgecolor="white", linewidth=0.5)
    panel.set(xlabel="score of a region", ylabel="regions", xlim=(edges[0], edges[-1]))
    _middle(panel, float(np.median(values)), "{:.2f}")
    _thousands(panel)
    return figure


def labelled_per_image(survey: Survey) -> Figure | None:
    """Images by the share of their patches that are labelled."""
    measures = survey.measures
    if not measures.images:
        return None
    figure, panel = _panel()
    values = spread(measures.labelled_per_image) / measures.patches
    panel.hist(values, np.linspace(0, 1, SHARE_BINS + 1), color=BARS, edgecolor="white", linewidth=0.5)
    panel.set(xlabel="labelled patches of an image", ylabel="images", xlim=(0, 1))
    panel.xaxis.set_major_formatter(_PERCENT)
    _middle(panel, 100 * float(np.median(values)), "{:.1f} %", 0.01)
    _thousands(panel)
    return figure


def labelled_places(survey: Survey) -> Figure | None:
    """In how many images each patch is labelled."""
    measures = survey.measures
    if not measures.images:
        return None
    figure = Figure(figsize=(NARROW[0], 3.6))
    panel = figure.subplots()
    side = int(measures.patches**0.5)
    shares = (measures.labelled / measures.images).reshape(side, side)
    drawn = panel.imshow(shares, cmap=HEAT, vmin=0, vmax=max(float(shares.max()), 1e-9), interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    colours = figure.colorbar(drawn, ax=panel, format=_PERCENT, pad=0.02, label="images in which it is labelled")
    colours.outline.set_visible(False)
    return figure


def label_ranks(survey: Survey) -> Figure | None:
    """How often the labels occur, most frequent first, both axes logarithmic."""
    counts = np.sort(np.fromiter(survey.measures.labels.values(), np.int64))[::-1]
    if len(counts) < 2:
        return None
    figure = Figure(figsize=(NARROW[0], 3.6))
    panel = figure.subplots()
    drawn = np.unique(np.geomspace(1, len(counts), 250).round().astype(int)) - 1
    few = {"marker": "o", "markersize": 3} if len(drawn) < 60 else {}
    panel.plot(drawn + 1, counts[drawn], color=BARS, clip_on=False, **few)
    panel.set(xscale="log", yscale="log", xlabel="label, most frequent first", ylabel="regions", xlim=(1, len(counts)))
    panel.set_ylim(bottom=1)
    for axis, most in ((panel.xaxis, len(counts)), (panel.yaxis, int(counts[0]))):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if most < 200 else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    return figure


_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.3g} %")

PLOTS = (
    Plot("Regions of an image", "Orange: the median of images with regions. Grey: images without.", regions_per_image),
    Plot("Area of a region", "Pixels of the region, of its image's. Orange: the median. Dotted: the area of one patch, "
         "of a square image.", areas),
    Plot("Labelled patches of an image", "Share of the patches, after stage 1's crop or padding, of which a region "
         "covers enough (--min_coverage). Images with regions. Orange: the median.", labelled_per_image),
    Plot("Score of a region", "As the detector gave it. Orange: the median.", scores),
    Plot("Where labels lie", "Each square is a patch of the cropped or padded image: the share of the images with "
         "regions in which it is labelled.", labelled_places),
    Plot("Frequency of labels", "A straight line is a power law: a few labels are everywhere, most are rare.",
         label_ranks),
)  # fmt: skip


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=NARROW)
    return figure, figure.subplots()


def _middle(panel: Axes, value: float, style: str, scale: float = 1.0, left: bool = False) -> None:
    """scale: what the axis has where `value` is 1."""
    panel.axvline(value * scale, color=MIDDLE, linewidth=1.4)
    panel.get_xlim()  # the limits that follow from the bars are not there before
    at_right = panel.transAxes.inverted().transform(panel.transData.transform((value * scale, 0.0)))[0] > 0.8
    _say(panel, value * scale, f"median {style.format(value)}", MIDDLE, left or at_right)


def _say(panel: Axes, x: float, text: str, colour: str, left: bool) -> None:
    """Beside the end of a vertical line, above the bars."""
    panel.annotate(
        text, (x, 1), (-4 if left else 4, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=colour, fontsize=8.5, va="bottom", ha="right" if left else "left",
    )  # fmt: skip


def _thousands(panel: Axes) -> None:
    panel.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.grid(False, axis="x")
