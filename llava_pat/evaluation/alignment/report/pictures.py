"""Pictures: an image, the outlines of its regions, the nearest word of every patch, and patches as sums of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from llava_pat.analysis.patch_alignment import labelled_patches
from llava_pat.analysis.vocabulary import Vocabulary
from llava_pat.evaluation.alignment.report.files import Decomposition, Picture
from llava_pat.evaluation.alignment.report.style import RIGHT, WRONG
from llava_pat.pages.figures import COLOURS, GREY

COLUMNS = 4  # panels of nearest words beside each other, one fewer where words are narrow
MOST_NARROW = 8  # patches across, before they are
MOST_BARS = 5  # checkpoints beside each other
SIDE = 2.9  # inches of a panel
MOST_TEXT = 14  # patches across: with more of them, words are colours
NO_COLOUR = "#d0d0d0"
POINTS = 72  # per inch
LETTER = 0.62  # width of a letter of the font, as a share of its size
LONGEST = 9  # letters of a word inside a patch


def nearest_words(pictures: Mapping[str, tuple[Picture, Vocabulary]], min_coverage: float) -> Figure:
    """One image: its outlines, then each patch's nearest word by checkpoint: title -> (picture, object vocabulary).

    min_coverage: share of a patch that a region must cover to label it.
    """
    first = next(iter(pictures.values()))[0]
    fine = any(picture.grid[1] > MOST_TEXT for picture, _ in pictures.values())
    roomy = fine or all(picture.grid[1] <= MOST_NARROW for picture, _ in pictures.values())
    down, across = _balanced(len(pictures) + 1, COLUMNS if roomy else COLUMNS - 1)
    height, width = first.pixels.shape[:2]
    figure = Figure(figsize=(SIDE * across, (SIDE * height / width + 0.3) * down + (0.35 if fine else 0)))
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels[len(pictures) + 1 :]:
        panel.remove()
    _show(panels[0], first.pixels)
    _outline(panels[0], first)
    panels[0].set_title(first.name, fontsize=8.5)
    judged = {title: judge(picture, vocabulary, min_coverage) for title, (picture, vocabulary) in pictures.items()}
    colours = _word_colours([(picture, judged[title]) for title, (picture, _) in pictures.items()]) if fine else {}
    for panel, (title, (picture, _)) in zip(panels[1:], pictures.items(), strict=False):
        _show(panel, _faded(picture.pixels))
        if fine:
            _paint_words(panel, picture, colours)
            _outline(panel, picture, plain=True)
        else:
            _write_words(panel, picture, SIDE * 0.95 / picture.grid[1] * POINTS)
            _frame(panel, picture, judged[title])
        panel.set_title(f"{title}: {(judged[title] == 1).sum()} of {(judged[title] >= 0).sum()} right", fontsize=8.5)
    if fine:
        named = [*colours.items(), ("other words", NO_COLOUR)]
        handles = [Rectangle((0, 0), 1, 1, color=colour, label=word) for word, colour in named]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8.5)
    return figure


def decompositions(pictures: Mapping[str, Picture]) -> Figure | None:
    """One image: a line for each decomposed patch, a column for each checkpoint; None where there is none.

    Patches of two checkpoints belong together by their label: another geometry may put the same object elsewhere.
    """
    found = {title: _by_label(picture) for title, picture in pictures.items()}
    wanted = list(dict.fromkeys(key for mine in found.values() for key in mine))
    if not wanted:
        return None
    lines, across = _balanced(len(pictures), MOST_BARS)
    figure = Figure(figsize=(max(5.5, 2.3 * (across + 1)), 1.55 * len(wanted) * lines + 0.2))
    grid = figure.subplots(len(wanted) * lines, across + 1, squeeze=False)
    for number, key in enumerate(wanted):
        mine = grid[number * lines : (number + 1) * lines]
        title, first = next((title, items[key]) for title, items in found.items() if key in items)
        _show(mine[0, 0], pictures[title].pixels)
        top, left, height, width = _cell(pictures[title], first.patch)
        mine[0, 0].add_patch(_box(left, top, width, height, COLOURS[4], 2.2))
        name = " ".join(first.labels) or "no label"
        mine[0, 0].set_title(name + (", weights ≥ 0" if first.nonnegative else ""), fontsize=8)
        longest = max(len(items[key].words) for items in found.values() if key in items)
        panels = iter(mine[:, 1:].flat)
        for title, items in found.items():
            panel = next(panels)
            if key not in items:
                panel.remove()
                continue
            item = items[key]
            _bars(panel, item, longest)
            share = f": {item.explained[-1]:.0%}" if item.explained else ""
            columns = pictures[title].grid[1]
            row, column = item.patch // columns + 1, item.patch % columns + 1
            elsewhere = "" if item.patch == first.patch else f" (row {row}, column {column})"
            panel.set_title(title + share + elsewhere, fontsize=8)
        for panel in (*panels, *mine[1:, 0]):
            panel.remove()
    return figure


def judge(picture: Picture, vocabulary: Vocabulary, min_coverage: float) -> NDArray[np.int8]:
    """Of each patch [N]: 1, the nearest word of the object vocabulary is in its label; 0, it is not; -1, no label."""
    judged = np.full(picture.grid[0] * picture.grid[1], -1, dtype=np.int8)
    targets = vocabulary.targets(picture.labels)
    covered = torch.from_numpy(coverage(picture))
    _, patches, right = labelled_patches(covered, torch.zeros(len(covered), dtype=torch.int64), targets, min_coverage)
    for patch, words in zip(patches.tolist(), right.numpy(), strict=True):
        judged[patch] = words[picture.nearest_entry[patch]]
    return judged


def coverage(picture: Picture) -> NDArray[np.float64]:
    """[R, N]: share of each patch under each mask; cells by whole pixels where the sides do not divide."""
    rows, columns = picture.grid
    height, width = picture.pixels.shape[:2]
    down = np.linspace(0, height, rows + 1).round().astype(int)
    across = np.linspace(0, width, columns + 1).round().astype(int)
    result = np.zeros((len(picture.masks), rows, columns))
    for row in range(rows):
        for column in range(columns):
            cell = picture.masks[:, down[row] : down[row + 1], across[column] : across[column + 1]]
            result[:, row, column] = cell.mean((1, 2))
    return result.reshape(len(picture.masks), rows * columns)


def _by_label(picture: Picture) -> dict[tuple[str, int, bool], Decomposition]:
    """(first label, which one of that label, weights >= 0) -> decomposition."""
    found: dict[tuple[str, int, bool], Decomposition] = {}
    for item in picture.decompositions:
        label = item.labels[0] if item.labels else ""
        earlier = sum(key[::2] == (label, item.nonnegative) for key in found)
        found[label, earlier, item.nonnegative] = item
    return found


def _balanced(count: int, most: int) -> tuple[int, int]:
    """Lines and columns for so many panels, at most `most` beside each other."""
    lines = -(-count // most)
    return lines, -(-count // lines)


def _show(panel: Axes, pixels: NDArray[np.uint8]) -> None:
    height, width = pixels.shape[:2]
    panel.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest" if width <= 128 else "antialiased")
    panel.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    panel.spines[:].set_visible(False)
    panel.grid(False)


def _faded(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (255 - (255 - pixels.astype(np.float32)) * 0.35).astype(np.uint8)


def _outline(panel: Axes, picture: Picture, plain: bool = False) -> None:
    """plain: black and without its label."""
    height, width = picture.pixels.shape[:2]
    for number, (mask, label) in enumerate(zip(picture.masks, picture.labels, strict=True)):
        if not mask.any():
            continue
        colour = "black" if plain else COLOURS[number % len(COLOURS)]
        padded = np.pad(mask, 1).astype(float)
        x, y = np.arange(-0.5, width + 1), np.arange(-0.5, height + 1)
        for line in (("white", 3.0), (colour, 1.6)):
            panel.contour(x, y, padded, levels=[0.5], colors=[line[0]], linewidths=[line[1]])
        if plain:
            continue
        rows, columns = np.nonzero(mask)
        panel.text(
            columns.mean() + 0.5, max(rows.min(), 0.06 * height), label, color=colour, fontsize=7, ha="center",
            va="bottom", fontweight="bold", path_effects=[withStroke(linewidth=2.2, foreground="white")], clip_on=True,
        )  # fmt: skip


def _write_words(panel: Axes, picture: Picture, cell: float) -> None:
    """cell: width of a patch in points."""
    for patch, word in enumerate(picture.nearest_words[:, 0].tolist()):
        short = word if len(word) <= LONGEST else word[: LONGEST - 1] + "…"
        top, left, height, width = _cell(picture, patch)
        size = min(7.5, 0.92 * cell / (LETTER * max(len(short), 3)))
        panel.text(left + width / 2, top + height / 2, short, fontsize=size, ha="center", va="center", color="black")


def _word_colours(pictures: Sequence[tuple[Picture, NDArray[np.int8]]]) -> dict[str, str]:
    """A colour for the most frequent nearest words of all checkpoints, labelled patches (judged >= 0) first."""
    found = [Counter[str](), Counter[str]()]
    for picture, judged in pictures:
        for word, verdict in zip(picture.nearest_words[:, 0].tolist(), judged.tolist(), strict=True):
            found[verdict < 0][word] += 1
    ranked = dict.fromkeys(word for counter in found for word, _ in counter.most_common())
    return dict(zip(ranked, COLOURS, strict=False))


def _paint_words(panel: Axes, picture: Picture, colours: Mapping[str, str]) -> None:
    """Patches too small for text: coloured by their word."""
    shades = [to_rgba(colours.get(word, NO_COLOUR), 0.75) for word in picture.nearest_words[:, 0].tolist()]
    height, width = picture.pixels.shape[:2]
    panel.imshow(np.reshape(shades, (*picture.grid, 4)), extent=(0, width, height, 0), interpolation="nearest")


def _frame(panel: Axes, picture: Picture, judged: NDArray[np.int8]) -> None:
    for patch in np.flatnonzero(judged >= 0):
        top, left, height, width = _cell(picture, int(patch))
        right = judged[patch] == 1
        inset = 0.04 * width
        panel.add_patch(_box(left + inset, top + inset, width - 2 * inset, height - 2 * inset,
                             RIGHT if right else WRONG, 1.3, "-" if right else (0, (2.5, 1.5))))  # fmt: skip


def _bars(panel: Axes, item: Decomposition, longest: int) -> None:
    """longest: most words of all that stand in one line, so that bars are equally thick."""
    right = {part for label in item.labels for part in label.casefold().split()}
    colours = [RIGHT if word.casefold() in right else GREY for word in item.words]
    places = -np.arange(len(item.words))
    panel.barh(places, item.coefficients, color=colours, height=0.7)
    panel.set_yticks(places, item.words, fontsize=7.5)
    panel.set_ylim(0.6 - max(longest, 1), 0.6)
    panel.axvline(0, color="#444444", linewidth=0.7)
    panel.locator_params(axis="x", nbins=3)
    panel.tick_params(axis="x", labelsize=7)
    panel.grid(False, axis="y")


def _cell(picture: Picture, patch: int) -> tuple[float, float, float, float]:
    """top, left, height, width in pixels."""
    rows, columns = picture.grid
    height, width = picture.pixels.shape[0] / rows, picture.pixels.shape[1] / columns
    return patch // columns * height, patch % columns * width, height, width


def _box(
    left: float, top: float, width: float, height: float, colour: str, line: float, dashes: object = "-"
) -> Rectangle:
    return Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=line, linestyle=dashes)


def outlines(masks: Sequence[NDArray[np.bool_]]) -> list[list[list[float]]]:
    """Each mask's outline as closed lines [x0, y0, x1, y1, ...] in pixels, for the page's own drawing."""
    found = []
    for mask in masks:
        x, y = np.arange(-0.5, mask.shape[1] + 1), np.arange(-0.5, mask.shape[0] + 1)
        lines = contour_generator(x, y, np.pad(mask, 1).astype(float)).lines(0.5)
        found.append([np.asarray(line).round(1).ravel().tolist() for line in lines])
    return found
