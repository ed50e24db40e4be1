"""Differences of runs: against scipy, against loops, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from playground.study.hypotheses import Hypothesis, verdict
from playground.study.statistics import Difference, crossed, difference, holm, over_seeds, paired
from playground.study.tallies import BY_NAME, METRICS, f1, figures, pool, share

RNG = np.random.default_rng(0)


def shares(seeds: int, scenes: int, rate: float, questions: int = 3) -> np.ndarray:
    """[seeds, scenes, 2]: right answers of `questions` (some scenes have fewer)."""
    asked = RNG.integers(1, questions + 1, size=scenes)
    right = RNG.binomial(asked, rate, size=(seeds, scenes))
    return np.stack([right, np.broadcast_to(asked, right.shape)], -1).astype(float)


def test_paired_is_scipys_test_of_related_samples():
    treated, baseline = RNG.normal(1, 1, 5), RNG.normal(0, 1, 5)
    expected = stats.ttest_rel(treated, baseline)
    interval, p = paired(treated, baseline)
    assert p == pytest.approx(expected.pvalue) and interval == pytest.approx(expected.confidence_interval(0.95))
    # by hand: 1, 2, 3 has mean 2, standard error 1 / sqrt(3); Student's 97.5 % point of 2 degrees is 4.3027
    assert paired([1, 2, 3], [0, 0, 0])[0] == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)


def test_paired_without_spread():
    assert paired([3, 4], [1, 2]) == ((2.0, 2.0), 0.0)
    assert paired([1, 2], [1, 2])[1] == 1.0
    interval, p = paired([1], [0])
    assert np.isnan([*interval, p]).all(), "one pair says nothing"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]), "3 x .01, then 2 x .03, then no less"
    assert holm([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    adjusted = holm([0.02, float("nan"), 0.01])
    assert adjusted[0] == adjusted[2] == pytest.approx(0.02) and np.isnan(adjusted[1]), "not measured, not counted"
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_rule_rejects():
    for _ in range(200):
        values = RNG.uniform(0, 0.1, size=6)
        rejected = set()
        for place, index in enumerate(np.argsort(values)):
            if values[index] > 0.05 / (6 - place):
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(holm(values)) if p <= 0.05} == rejected


def test_a_draw_is_the_metric_on_the_drawn_scenes_of_the_drawn_seeds():
    """The weights' way against a loop that repeats scenes and seeds."""
    metric = BY_NAME["object_f1"]
    treated, baseline = (RNG.integers(0, 4, size=(3, 20, 3)).astype(float) for _ in range(2))
    draws = 50
    found = crossed(metric, {"objects": treated}, {"objects": baseline}, draws=draws, seed=7)
    rng = np.random.default_rng(7)
    scenes = rng.multinomial(20, np.full(20, 1 / 20), size=draws)
    seeds = rng.multinomial(3, np.full(3, 1 / 3), size=draws)
    for draw in range(draws):
        rows = np.repeat(np.arange(20), scenes[draw])
        means = []
        for tallies in (treated, baseline):
            by_seed = []
            for seed in np.repeat(np.arange(3), seeds[draw]):
                tp, fp, fn = tallies[seed, rows].sum(0)
                by_seed.append(100 * 2 * tp / (2 * tp + fp + fn))
            means.append(np.mean(by_seed))
        assert [found[0][draw], found[1][draw]] == pytest.approx(means)


def test_one_seed_is_scipys_paired_bootstrap_over_scenes():
    metric = BY_NAME["rec"]
    treated, baseline = shares(1, 300, 0.6), shares(1, 300, 0.45)
    baseline[..., 1] = treated[..., 1]
    baseline[..., 0] = np.minimum(baseline[..., 0], baseline[..., 1])
    mine, theirs = crossed(metric, {"rec": treated}, {"rec": baseline}, draws=20_000)
    low, high = np.percentile(mine - theirs, [2.5, 97.5])

    def gap(a, b, asked, axis=-1):
        return 100 * (a.sum(axis) - b.sum(axis)) / asked.sum(axis)

    data = (treated[0, :, 0], baseline[0, :, 0], treated[0, :, 1])
    expected = stats.bootstrap(
        data, gap, paired=True, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.25)


def test_scenes_of_one_kind_leave_only_the_seeds_to_vary():
    """Every scene alike: the interval is that of a bootstrap over seeds."""
    treated, baseline = np.zeros((4, 30, 2)), np.zeros((4, 30, 2))
    treated[..., 1] = baseline[..., 1] = 1
    treated[..., 0] = np.array([0.5, 0.6, 0.7, 0.9])[:, None]
    draws = crossed(BY_NAME["rec"], {"rec": treated}, {"rec": baseline}, draws=5_000)
    plain = over_seeds([50, 60, 70, 90], [0, 0, 0, 0], draws=5_000)
    assert np.percentile(draws[0], [5, 50, 95]) == pytest.approx(np.percentile(plain[0], [5, 50, 95]), abs=1.5)
    assert set(np.round(over_seeds([1, 2], [0, 0])[0], 6)) == {1.0, 1.5, 2.0}


def test_pairing_narrows_the_interval():
    """Scenes are hard or easy for both: drawn together, the difference is much surer than drawn apart."""
    hard = RNG.random(400)
    table = np.stack([np.stack([(hard < limit).astype(float), np.ones(400)], -1)[None] for limit in (0.55, 0.5)])
    mine, theirs = crossed(BY_NAME["rec"], {"rec": table[0]}, {"rec": table[1]}, draws=4_000)
    apart = crossed(BY_NAME["rec"], {"rec": table[1]}, {"rec": table[1]}, draws=4_000, seed=1)[0]
    assert (mine - theirs).std() < 0.5 * (mine - apart).std()


def test_a_difference_holds_all_of_it():
    treated, baseline = [60.0, 66.0, 63.0], [50.0, 55.0, 54.0]
    found = difference(treated, baseline, over_seeds(treated, baseline), over_scenes=False)
    assert found.values == (10.0, 11.0, 9.0) and found.mean == 10.0 and found.spread == pytest.approx(1.0)
    assert found.relative == pytest.approx(63 / 53 - 1), "the means' ratio: +18.9 %"
    assert 9 <= found.interval[0] <= 10 <= found.interval[1] <= 11
    assert found.relative_interval[0] <= found.relative <= found.relative_interval[1]


@pytest.mark.parametrize(
    ("mean", "interval", "p", "direction", "expected"),
    [
        (2.0, (1.0, 3.0), 0.01, +1, "yes"),
        (2.0, (1.0, 3.0), 0.01, -1, "the opposite"),
        (-2.0, (-3.0, -1.0), 0.01, -1, "yes"),
        (2.0, (1.0, 3.0), 0.05, +1, "not shown"),
        (2.0, (-0.1, 3.0), 0.01, +1, "not shown"),
        (2.0, (1.0, 3.0), float("nan"), +1, "not shown"),
    ],
)
def test_verdicts(mean, interval, p, direction, expected):
    found = Difference((mean,) * 3, mean, 0.1, interval, p, 0.1, interval, (0.0, 0.2), True)
    assert verdict(Hypothesis("", "rec", direction), found, p) == expected


def test_figures_by_hand():
    tallies = {"rec": np.array([[1, 2], [2, 2.0]]), "objects": np.array([[2, 1, 0], [1, 0, 1.0]])}
    assert figures(tallies) == pytest.approx({"rec": 75.0, "object_f1": 75.0})
    assert figures({"rec": np.zeros((2, 2))}) == {}, "nothing was asked: no figure"
    assert f1(np.array([0, 0, 0])) == 0.0 and np.isnan(share(np.array([0, 0.0])))
    kinds = {f"qa_{kind}": np.array([[n, 4.0]]) for n, kind in enumerate(("kind", "colour", "count", "existence"))}
    found = figures(kinds | {"qa_relation": np.array([[4.0, 4.0]])})
    assert found["qa"] == pytest.approx((0 + 25 + 50 + 75 + 100) / 5), "the mean of the types, however many questions"
    assert pool({"a": np.ones((3, 2))})["a"].tolist() == [3, 3]


def test_metric_names_are_distinct():
    assert len(BY_NAME) == len(METRICS) and all(metric.definition for metric in METRICS)
