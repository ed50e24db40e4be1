"""The figures show the numbers that were measured, and nothing where nothing was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from llava_pat.evaluation.alignment.report import plots, style
from llava_pat.evaluation.alignment.report.files import Row, read_run
from llava_pat.evaluation.alignment.report.style import looks, shorten
from llava_pat.pages import figures


@pytest.fixture(autouse=True)
def inside() -> Iterator[None]:
    with figures.drawing():
        yield


@pytest.fixture
def rows(make_run) -> tuple[Row, ...]:
    return read_run(make_run()).rows


def curve(row: Row, name: str) -> np.ndarray:
    return row.curves[name]


def test_every_metric_panel_has_one_dot_a_row_at_its_value(rows) -> None:
    figure = plots.metrics(rows)
    panel = next(p for p in figure.axes if p.get_title(loc="left").startswith("cosine with the label"))
    dots = [line.get_xdata()[0] for line in panel.get_lines() if len(line.get_xdata()) == 1]
    assert dots == [row.metrics["patch_cosine"] for row in rows]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["none-seed0", "none-seed1", "pat-seed0", "random projector", "mean patch"]
    means = [c for c in panel.collections if len(c.get_segments())]
    expected = np.mean([row.metrics["patch_cosine"] for row in rows[:2]])
    assert [c.get_segments()[0][0][0] for c in means] == [expected], "only two checkpoints differ in the seed alone"


def test_nan_has_no_dot(rows) -> None:
    odd = replace(rows[0], metrics={**rows[0].metrics, "tacs": float("nan")})
    panel = next(p for p in plots.metrics([odd, rows[1]]).axes if p.get_title(loc="left").startswith("TACS"))
    assert [line.get_xdata()[0] for line in panel.get_lines()] == [rows[1].metrics["tacs"]]


def test_arrows_of_compression_go_from_before_to_after(rows) -> None:
    figure = plots.compression(rows[:3])
    for panel, end in zip(figure.axes, ("", "_centred"), strict=True):
        arrows = [(t.xyann[0], t.xy[0]) for t in panel.texts]
        assert arrows == [(r.metrics[f"entropy_features{end}"], r.metrics[f"entropy_patches{end}"]) for r in rows[:3]]


def test_spectra_are_drawn_once_before_and_once_a_row_after(rows) -> None:
    figure = plots.spectra(rows)
    panel = figure.axes[0]
    lines = panel.get_lines()
    assert len(lines) == 1 + 5, "the same tower's spectrum is one line; of the mean patches the first is drawn"
    drawn = lines[0].get_ydata()
    assert np.allclose(drawn, curve(rows[0], "spectrum_features"))
    assert panel.get_xscale() == panel.get_yscale() == "log"


def test_a_single_direction_is_no_spectrum(rows) -> None:
    one = replace(rows[0], curves={"spectrum_patches": np.array([1.0, 0.0, 0.0])})
    assert not plots.spectra([one]).axes[0].get_lines()


def test_long_lines_are_thinned_but_keep_their_ends() -> None:
    for count in (1, 2, 7, 250, 4096):
        places = plots._logarithmic(count)
        assert places[0] == 0 and places[-1] == count - 1
        assert (np.diff(places) > 0).all() and len(places) <= plots.POINTS
    assert len(plots._logarithmic(0)) == 0


def test_histograms_of_cosines_have_area_one(rows) -> None:
    figure = plots.cosines(rows)
    assert len(figure.axes) == 5, "one panel for a kind of baseline"
    for panel in figure.axes:
        assert len(panel.patches) == 4
        for stairs in panel.patches:
            values, edges, _ = stairs.get_data()
            assert (values * np.diff(edges)).sum() == pytest.approx(1)


def test_hits_are_the_cumulative_ranks(rows) -> None:
    lines = plots.hits(rows).axes[0].get_lines()
    for line, row in zip(lines, style.one_of_a_kind(rows), strict=True):
        ranks = np.repeat(np.arange(len(curve(row, "rank_counts"))), curve(row, "rank_counts"))
        assert np.allclose(line.get_ydata(), [(ranks < k).mean() for k in line.get_xdata()])


def test_layers_and_explained_energy_are_the_curves(rows) -> None:
    for line, row in zip(plots.layers(rows).axes[0].get_lines(), style.one_of_a_kind(rows), strict=True):
        assert np.array_equal(line.get_ydata(), curve(row, "ima"))
    free, positive = plots.explained(rows).axes
    assert np.array_equal(free.get_lines()[2].get_ydata(), curve(rows[2], "omp_explained"))
    assert np.array_equal(positive.get_lines()[2].get_ydata(), curve(rows[2], "omp_explained_nonnegative"))


def test_image_entropies_mark_the_median(rows) -> None:
    panel = plots.image_entropies(rows).axes[0]
    medians = [line.get_xdata()[0] for line in panel.get_lines() if len(line.get_xdata()) == 1]
    assert medians[:2] == [np.median(curve(rows[0], f"entropy_{key}_image")) for key in ("features", "patches")]


def test_words_are_ordered_by_patches_and_those_without_are_left_out(rows) -> None:
    panel = plots.words(rows).axes[0]
    table = panel.images[0].get_array()
    assert table.shape == (5, 6), "three checkpoints, two kinds of baselines; blue has no patch"
    counts = [int(label.get_text().split("(")[1].strip(")")) for label in panel.get_xticklabels()]
    assert counts == sorted(counts, reverse=True)
    most = panel.get_xticklabels()[0].get_text().split(" ")[0]
    hit = dict(zip(curve(rows[1], "label_words"), curve(rows[1], "label_hit_at_1"), strict=True))
    assert table[1, 0] == hit[most]


@pytest.mark.parametrize("plot", plots.PLOTS, ids=lambda plot: plot.name)
def test_nothing_measured_is_no_figure(plot: plots.Plot) -> None:
    assert plot.draw([Row("a", False, {}, {}, {})]) is None


def test_what_all_names_begin_with_is_left_out() -> None:
    assert shorten(["llava-pretrain-none-seed0", "llava-pretrain-pat+sea-seed0"]) == ["none", "pat+sea"]
    assert shorten(["llava-none-seed0", "llava-none-seed1", "llava-pat-s2"]) == ["none-seed0", "none-seed1", "pat-s2"]
    assert shorten(["a-b", "a-b-c"]) == ["b", "b-c"], "a name never becomes empty"
    assert shorten(["a-x", "a-x-x"]) == ["x", "x-x"]
    assert shorten(["a--b-c-z", "a--d/e-z"]) == ["b-c", "d/e"], "marks in between stay as they are"
    assert shorten(["only-one"]) == ["only-one"]
    assert shorten(["same", "same"]) == ["same", "same"]
    assert shorten(["folder/x", "folder/y"]) == ["x", "y"]


def test_seeds_share_a_colour_and_objectives_do_not() -> None:
    names = [f"x-{objective}-seed{seed}" for objective in ("none", "pat", "pat+sea") for seed in (0, 12)]
    found = looks([Row(name, False, {}, {}, {}) for name in names])
    assert [look.group for look in found.values()] == ["none", "none", "pat", "pat", "pat+sea", "pat+sea"]
    colours = [look.colour for look in found.values()]
    assert colours[::2] == colours[1::2] == list(figures.COLOURS[:3])
    assert [look.first for look in found.values()] == [True, False] * 3


def test_more_groups_than_colours_are_still_told_apart() -> None:
    found = looks([Row(f"m{number}", False, {}, {}, {}) for number in range(12)])
    assert len({(look.colour, look.marker) for look in found.values()}) == 12
    assert len({(look.colour, look.dashes) for look in found.values()}) == 12


def test_colours_differ_in_lightness_or_hue_for_colour_blind_readers() -> None:
    """Under a deuteranope's view (Vienot et al. 1999) any two of the palette stay well apart in linear RGB."""
    blind = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    linear = np.array([matplotlib.colors.to_rgb(colour) for colour in figures.COLOURS]) ** 2.2
    seen = linear @ blind.T
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(len(seen), dtype=bool)]
    assert apart.min() > 0.08


def test_drawing_leaves_the_callers_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    with figures.drawing():
        assert matplotlib.rcParams["font.size"] == 9
    assert dict(matplotlib.rcParams) == before
