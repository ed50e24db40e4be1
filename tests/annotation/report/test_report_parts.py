"""What the numbers are counted with."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import numpy as np
import pytest

from llava_pat.annotation.report import plots
from llava_pat.annotation.report.captions import NounFinder
from llava_pat.annotation.report.definitions import shown
from llava_pat.annotation.report.faults import INSIDE, LINES, WITHOUT, Faults
from llava_pat.annotation.report.lines import Reading
from llava_pat.annotation.report.measure import Grid, Measures, measure_lines, parse_line
from llava_pat.annotation.report.metrics import fewest_for_half, spread
from llava_pat.annotation.report.sample import Reservoir
from llava_pat.annotation.report.survey import Survey
from llava_pat.data.geometry import CenterCrop
from llava_pat.pages.figures import drawing
from tests.annotation.report.conftest import lines, write_lines

GRID = Grid(CenterCrop(32, (0.5,) * 3, (0.5,) * 3), 8, 0.25)


def survey(measures: Measures, without: int | None = None) -> Survey:
    return Survey(measures, measures.images, without, False, [], Faults(), None, None, None)


def test_what_is_added_up_is_what_is_measured_at_once() -> None:
    parsed = [parse_line(line | {"image": f"{n}.png"}, "f", n) for n in range(4) for line in lines()[n % 2 :][:1]]
    whole, parts = measure_lines(parsed, GRID, None), Measures(16)
    for line in parsed:
        parts.merge(measure_lines([line], GRID, None))
    assert whole.images == 4 and whole.regions_per_image == {2: 4}
    for name, value in vars(whole).items():
        assert np.array_equal(vars(parts)[name], value) if name == "labelled" else vars(parts)[name] == value, name


def test_scores_that_are_no_numbers_are_no_scores() -> None:
    raw = lines()[0]
    for value in ("0.5", True, float("nan"), None):
        raw["regions"][0]["score"] = value
        assert parse_line(raw, "f", 1).scores == (None, None)


def test_lines_are_read_when_they_are_asked_for(tmp_path) -> None:
    file = write_lines(tmp_path / "r.jsonl", [lines()[0] | {"image": f"{n}.png"} for n in range(6)] + ["{"])
    reading = Reading((file,))
    blocks = reading.blocks(2)
    assert [line.regions.image for line in next(blocks)] == ["0.png", "1.png"]
    assert len(reading.seen) == 2 and not reading.faults.found
    assert [len(block) for block in blocks] == [2, 2]
    assert reading.faults.count(LINES) == 1


def test_every_item_of_a_stream_has_the_same_chance() -> None:
    drawn: Counter[int] = Counter()
    for seed in range(3000):
        reservoir = Reservoir[int](3, seed)
        for item in range(12):
            reservoir.offer(item)
        assert reservoir.kept == sorted(reservoir.kept) and len(set(reservoir.kept)) == 3
        drawn.update(reservoir.kept)
    # 3,000 draws with p = 1/4: standard deviation 24
    assert all(abs(drawn[item] - 750) < 5 * 24 for item in range(12))
    short = Reservoir[int](3, 0)
    short.offer(1)
    assert short.kept == [1]
    none = Reservoir[int](0, 0)
    none.offer(1)
    assert none.kept == []


@pytest.mark.parametrize(
    ("noun", "labels", "exactly", "loosely"),
    [
        ("dog", ["dog"], True, True),
        ("dog", ["The Dogs"], True, True),  # labels are cleaned as nouns are
        ("brown dog", ["dog"], False, True),
        ("dog", ["brown dog"], False, True),
        ("brown dog", ["black dog"], False, False),
        ("hotdog", ["dog"], False, False),
        ("dog house", ["dog"], False, False),
        ("couch", ["sofa"], True, True),
    ],
)
def test_when_a_noun_has_a_region(noun, labels, exactly, loosely) -> None:
    finder = NounFinder({})
    ((clean,),) = [finder.find([f"a {noun}"])[0]]
    assert finder.covered([clean], labels) == [exactly]
    assert finder.loosely_covered([clean], labels) == [loosely]


def test_other_taggers_options_are_not_the_caption_taggers() -> None:
    assert NounFinder({"tagger": {"kind": "clip", "vocabulary": "words.txt"}}).version.startswith("caption (")


def test_faults_are_ranked_and_the_first_of_each_stays() -> None:
    faults, later = Faults(), Faults()
    faults.add(INSIDE, "small", "x", count=50)
    faults.add(WITHOUT, "no file", "first", "a.png")
    later.add(WITHOUT, "no label", "other", count=2)
    later.add(WITHOUT, "no file", "second", "b.png")
    faults.merge(later)
    assert [(fault.reason, fault.count, fault.where) for fault in faults.ranked()] == [
        ("no file", 2, "first"), ("no label", 2, "other"), ("small", 50, "x"),
    ]  # fmt: skip
    assert faults.count(WITHOUT) == 4 and faults.count(WITHOUT, "no file") == 2 and faults.count(LINES) == 0


@pytest.mark.parametrize(
    ("counts", "expected"), [({}, 0), ({"a": 5}, 1), ({"a": 1, "b": 1}, 1), ({"a": 2, "b": 2, "c": 1}, 2)]
)
def test_fewest_labels_for_half(counts, expected) -> None:
    assert fewest_for_half(Counter(counts)) == expected


def test_spread() -> None:
    assert spread(Counter({3: 2, 1: 1})).tolist() == [1, 3, 3]
    assert spread(Counter()).tolist() == []


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(None, "share", "–"), (True, "flag", "yes"), (12345, "count", "12,345"), (0.5, "share", "50.0 %"),
     (0.0005, "share", "0.05 %"), (0, "share", "0.0 %"), (0.5, "number", "0.500"), (12.34, "number", "12.3")],
)  # fmt: skip
def test_how_values_are_printed(value, unit, text) -> None:
    assert shown(value, unit) == text


def test_bars_of_regions_per_image_stand_at_their_numbers() -> None:
    measures = Measures(16, images=3, regions_per_image=Counter({2: 2, 5: 1}))
    with drawing():
        found = {
            round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height()
            for bar in plots.regions_per_image(survey(measures, without=4)).axes[0].patches
            if bar.get_height()
        }
    assert found == {0: 4, 2: 2, 5: 1}


def test_many_regions_share_bars_and_none_is_lost() -> None:
    measures = Measures(16, images=100, regions_per_image=Counter(range(1, 101)))
    with drawing():
        drawn = plots.regions_per_image(survey(measures)).axes[0].patches
    assert len(drawn) <= plots.MOST_BARS and sum(bar.get_height() for bar in drawn) == 100


def test_histograms_hold_every_region() -> None:
    rng = random.Random(0)
    measures = Measures(16, images=1, areas=array("f", [0.0, 1.0, *(rng.random() ** 8 for _ in range(98))]))
    measures.scores.extend([0.0, 1.0, *(rng.random() for _ in range(48))])
    with drawing():
        for draw, count in ((plots.areas, 100), (plots.scores, 50)):
            assert sum(bar.get_height() for bar in draw(survey(measures)).axes[0].patches) == count


@pytest.mark.parametrize(("score", "side"), [(0.2, "left"), (0.9, "right")])
def test_the_median_is_said_inside_of_the_figure(score, side) -> None:
    measures = Measures(16, images=1, scores=array("f", [score]))
    with drawing():
        (said,) = plots.scores(survey(measures)).axes[0].texts
    assert said.get_text() == f"median {score:.2f}" and said.get_ha() == side


def test_the_map_of_labelled_places_is_by_rows() -> None:
    measures = Measures(4, images=2, labelled_per_image=Counter({1: 2}))
    measures.labelled[:] = [2, 1, 0, 0]
    with drawing():
        (drawn,) = plots.labelled_places(survey(measures)).axes[0].images
    assert drawn.get_array().tolist() == [[1.0, 0.5], [0.0, 0.0]]


def test_nothing_measured_is_no_figure() -> None:
    with drawing():
        assert all(plot.draw(survey(Measures(16), without=3)) is None for plot in plots.PLOTS)
