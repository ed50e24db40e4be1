"""Means, spreads and paired differences of runs that share seeds and scenes.

Runs of one seed share their start and their order of data, and all runs answer about the same scenes. So a difference
of two objectives is taken seed by seed, and two things vary: the seed, and the scenes that happened to be drawn.

- Bootstrap over seeds and scenes (`crossed`): every draw takes K of the K seeds and S of the S scenes, both with
  replacement, and the same ones for both objectives; the metric is computed for each seed on those scenes, the
  differences are averaged over the drawn seeds. The interval is from the 2.5th to the 97.5th percentile of the draws.
  With few seeds such an interval is too narrow: for the spread over seeds alone by the factor sqrt((K - 1) / K), and
  percentiles of so few values are narrower than Student's.
- Student's t over seeds (`paired`): mean difference, its interval and two-sided p with K - 1 degrees of freedom. It
  says nothing of scenes, and takes differences over seeds for normal.
- `holm`: p values of a family of hypotheses, adjusted so that the chance of any false finding is at most the level that
  they are compared with (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from playground.study.tallies import Metric

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Of treated minus baseline. Intervals are (low, high); `relative` is the difference of means / the baseline's."""

    values: tuple[float, ...]
    """By seed."""
    mean: float
    spread: float
    """Standard deviation over seeds (n - 1); nan for one."""
    t_interval: tuple[float, float]
    p: float
    relative: float
    interval: tuple[float, float]
    """By bootstrap, over seeds and, where `over_scenes`, over scenes."""
    relative_interval: tuple[float, float]
    over_scenes: bool


def paired(treated: Sequence[float], baseline: Sequence[float]) -> tuple[tuple[float, float], float]:
    """Interval and two-sided p of the mean difference, by Student's t; (nan, nan), nan for a single pair.

    Differences that are all equal have no spread: the interval is a point, p 0 (or 1 where they are 0).
    """
    differences = np.subtract(treated, baseline)
    if len(differences) < 2:
        return (np.nan, np.nan), np.nan
    if np.ptp(differences) == 0:
        mean = float(differences[0])
        return (mean, mean), 0.0 if mean else 1.0
    found = stats.ttest_1samp(differences, 0.0)
    low, high = found.confidence_interval(LEVEL)
    return (float(low), float(high)), float(found.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given; nan stays nan and does not count."""
    order = [index for index in np.argsort(values, kind="stable") if not np.isnan(values[index])]
    adjusted = [float("nan")] * len(values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * values[index]))
        adjusted[index] = largest
    return adjusted


def difference(
    treated: Sequence[float],
    baseline: Sequence[float],
    replicates: tuple[np.ndarray, np.ndarray],
    over_scenes: bool,
) -> Difference:
    """From the two objectives' values by seed, and draws of their means ([draws] each, see `crossed`, `over_seeds`)."""
    values = np.subtract(treated, baseline)
    t_interval, p = paired(treated, baseline)
    mine, theirs = replicates
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = mine / theirs - 1
        overall = float(np.mean(treated) / np.mean(baseline) - 1)
    return Difference(
        values=tuple(map(float, values)),
        mean=float(values.mean()),
        spread=float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
        t_interval=t_interval,
        p=p,
        relative=overall,
        interval=_percentiles(mine - theirs),
        relative_interval=_percentiles(relative),
        over_scenes=over_scenes,
    )


def crossed(
    metric: Metric, treated: Tallies, baseline: Tallies, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the two means, [draws] each: seeds and scenes drawn again, the same for both.

    Tallies: name -> [seeds, scenes, columns]. Drawing S of S scenes gives each a multinomial weight, and a tally is a
    sum over scenes: so a draw is a weighted sum.
    """
    seeds, scenes = next(iter(treated.values())).shape[:2]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=draws).astype(np.float64)
    chosen = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    return tuple((_redrawn(metric, tallies, weights) * chosen).sum(1) for tallies in (treated, baseline))


def over_seeds(
    treated: Sequence[float], baseline: Sequence[float], draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the two means, [draws] each, for figures that are known by seed only."""
    rng = np.random.default_rng(seed)
    chosen = rng.multinomial(len(treated), np.full(len(treated), 1 / len(treated)), size=draws) / len(treated)
    return chosen @ np.asarray(treated, float), chosen @ np.asarray(baseline, float)


Tallies = Mapping[str, np.ndarray]


def _redrawn(metric: Metric, tallies: Tallies, weights: np.ndarray) -> np.ndarray:
    """[draws, scenes] weights -> the metric of each draw and seed, [draws, seeds]."""
    pooled = {name: np.einsum("rs,ksc->rkc", weights, tallies[name], optimize=True) for name in metric.tallies}
    return metric.of(pooled)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
