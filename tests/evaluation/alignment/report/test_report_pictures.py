"""Coverage, verdicts, outlines and figures of single images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llava_pat.analysis.vocabulary import Vocabulary
from llava_pat.evaluation.alignment.report.files import Decomposition, Picture, read_run
from llava_pat.evaluation.alignment.report.pictures import coverage, decompositions, judge, nearest_words, outlines
from llava_pat.pages import figures


@pytest.fixture(autouse=True)
def inside() -> Iterator[None]:
    with figures.drawing():
        yield


def picture(**changes) -> Picture:
    """2 x 2 patches of 4 pixels; a red circle over the first patch and half of the second."""
    mask = np.zeros((1, 8, 8), dtype=bool)
    mask[0, :4, :6] = True
    fields = {
        "name": "a.png", "caption": "", "grid": (2, 2), "labels": ("red circle",),
        "pixels": np.zeros((8, 8, 3), np.uint8), "masks": mask, "cosine": np.zeros((4, 3), np.float32),
        "nearest_words": np.array([["red"], ["blue"], ["the"], ["a"]]), "nearest_cosine": np.zeros((4, 1), np.float32),
        "nearest_entry": np.array([1, 2, 0, 0]), "decompositions": (),
    }  # fmt: skip
    return Picture(**{**fields, **changes})


VOCABULARY = Vocabulary(("circle", "red", "blue"))


def test_coverage_by_hand() -> None:
    assert coverage(picture()).tolist() == [[1.0, 0.5, 0.0, 0.0]]


def test_coverage_where_patches_do_not_divide_the_image() -> None:
    mask = np.ones((1, 7, 7), dtype=bool)
    assert coverage(picture(grid=(3, 3), pixels=np.zeros((7, 7, 3), np.uint8), masks=mask)).tolist() == [[1.0] * 9]


@pytest.mark.parametrize(("least", "verdicts"), [(0.5, [1, 0, -1, -1]), (0.51, [1, -1, -1, -1]), (0.0, [1, 0, -1, -1])])
def test_verdicts_by_hand(least: float, verdicts: list[int]) -> None:
    assert judge(picture(), VOCABULARY, least).tolist() == verdicts


def test_no_verdict_without_regions_or_words() -> None:
    bare = picture(labels=(), masks=np.zeros((0, 8, 8), bool))
    assert judge(bare, VOCABULARY, 0.5).tolist() == [-1] * 4
    assert judge(picture(nearest_entry=np.zeros(0, int)), Vocabulary(()), 0.5).tolist() == [-1] * 4
    assert judge(picture(labels=("green ring",)), VOCABULARY, 0.5).tolist() == [-1] * 4


def area(line: list[float]) -> float:
    """Of a closed polygon, by the shoelace formula."""
    x, y = np.array(line[::2]), np.array(line[1::2])
    return abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())) / 2


def test_outlines_go_around_the_mask() -> None:
    masks = np.zeros((3, 20, 30), dtype=bool)
    masks[0, 5:15, 10:25] = True
    masks[1, :, :] = True  # up to the border
    found = outlines(masks)
    assert len(found[0]) == 1 and found[2] == []
    assert area(found[0][0]) == pytest.approx(150, abs=1), "corners are cut by half a pixel"
    assert area(found[1][0]) == pytest.approx(600, abs=1)
    xs, ys = found[0][0][::2], found[0][0][1::2]
    assert (min(xs), max(xs), min(ys), max(ys)) == (10, 25, 5, 15)


def test_a_word_stands_in_every_patch_and_frames_tell_right_from_wrong() -> None:
    figure = nearest_words({"a": (picture(), VOCABULARY)}, min_coverage=0.5)
    panel = figure.axes[1]
    assert [text.get_text() for text in panel.texts] == ["red", "blue", "the", "a"]
    assert [(text.get_position()) for text in panel.texts] == [(2, 2), (6, 2), (2, 6), (6, 6)]
    right, wrong = panel.patches
    assert right.get_linestyle() == "-" and wrong.get_linestyle() != "-"
    assert panel.get_title(loc="left") == "a: 1 of 2 right"


def test_patches_too_small_for_text_are_coloured_by_word() -> None:
    grid = (16, 16)
    fine = picture(
        grid=grid, pixels=np.zeros((32, 32, 3), np.uint8), masks=np.ones((1, 32, 32), bool),
        nearest_words=np.array([["red"]] * 255 + [["blue"]]), nearest_entry=np.array([1] * 255 + [2]),
    )  # fmt: skip
    figure = nearest_words({"a": (fine, VOCABULARY)}, min_coverage=0.5)
    panel = figure.axes[1]
    assert not panel.texts
    shades = panel.images[-1].get_array().reshape(256, 4)
    assert (shades[:255] == shades[0]).all() and not (shades[255] == shades[0]).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["red", "blue", "other words"]


def test_sums_of_words_are_bars_in_the_order_found() -> None:
    one = Decomposition(1, ("red circle",), ("red", "the"), (2.0, -0.5), (0.6, 0.9), False)
    figure = decompositions({"a": picture(decompositions=(one,)), "b": picture()})
    image, bars = figure.axes
    assert [bar.get_width() for bar in bars.patches] == [2.0, -0.5]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["red", "the"]
    assert bars.patches[0].get_facecolor() != bars.patches[1].get_facecolor(), "a word of the label stands out"
    assert "90%" in bars.get_title(loc="left")
    assert image.patches[0].get_xy() == (4, 0), "the second patch is framed"


def test_many_checkpoints_wrap() -> None:
    one = Decomposition(0, (), ("red",), (1.0,), (0.5,), True)
    figure = decompositions({f"m{i}": picture(decompositions=(one,)) for i in range(6)})
    assert len(figure.axes) == 7, "the image, and two lines of three"
    assert figure.get_figwidth() < 12


def test_the_same_object_elsewhere_stands_in_the_same_line() -> None:
    here, there = (
        Decomposition(patch, ("red circle",), words, (1.0,) * len(words), (0.5,) * len(words), True)
        for patch, words in ((0, ("red",)), (3, ("red", "the", "a")))
    )
    figure = decompositions({"a": picture(decompositions=(here, here)), "b": picture(decompositions=(there,))})
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == [
        "red circle, weights ≥ 0", "a: 50%", "b: 50% (row 2, column 2)",
        "red circle, weights ≥ 0", "a: 50%",
    ]  # fmt: skip
    assert figure.axes[1].get_ylim() == figure.axes[2].get_ylim(), "bars are equally thick"


def test_no_decomposition_is_no_figure() -> None:
    assert decompositions({"a": picture()}) is None


def test_the_made_up_run_is_drawn(make_run) -> None:
    run = read_run(make_run())
    each = {name: (p.images[0], Vocabulary(p.words)) for name, p in run.pictures.items()}
    assert len(nearest_words(each, 0.25).axes) == 4
