"""Results of finished cells, read from JSON and laid side by side: values by seed, tallies by seed and scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava_pat.types import DataError
from playground.study.cells import OF_OBJECTIVES
from playground.study.files import read_json
from playground.study.hypotheses import BASELINE
from playground.study.pairing import check_starts
from playground.study.statistics import Difference, crossed, difference, over_seeds
from playground.study.tallies import BY_NAME

Column = tuple[str, tuple[str, ...]]
"""An objective and its setting's overrides, sorted: their order on the command line means nothing."""

_OF_OBJECTIVES = tuple(f"stage1.{flag}" for flag in OF_OBJECTIVES)

SHARED = "shared.json"
"""What all results of a folder have in common: hashes of the inputs."""


class Results:
    """The results of one folder. Seeds are matched: what is compared has the same seeds on both sides."""

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        """Raises DataError for two results of one cell, and for runs of one seed that started differently."""
        self.entries = sorted(entries, key=lambda one: (one["seed"], one["objective"], one["setting"]))
        unpaired = check_starts(self.entries)
        if unpaired:
            raise DataError(f"runs of one seed did not start alike: {unpaired[0]} ({len(unpaired)} such figures)")
        self._by: dict[Column, dict[int, dict[str, Any]]] = {}
        for one in self.entries:
            seeds = self._by.setdefault((one["objective"], tuple(sorted(one["setting"]))), {})
            if one["seed"] in seeds:
                raise DataError(f"two results of {one['objective']}, seed {one['seed']}, {one['setting']}")
            seeds[one["seed"]] = one

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Every result of a folder; none is no error."""
        return cls([read_json(file) for file in sorted(folder.glob("*.json")) if file.name != SHARED])

    @property
    def columns(self) -> list[Column]:
        """(objective, setting): what is as configured first; of a setting the baseline first, sums last."""
        return sorted(self._by, key=lambda key: (self.own(key), key[0] != BASELINE, key[0].count("+"), key[0]))

    @property
    def common(self) -> tuple[str, ...]:
        """Overrides that all runs have: they distinguish none."""
        if not self._by:
            return ()
        first, *others = (setting for _, setting in self._by)
        return tuple(one for one in first if all(one in setting for setting in others))

    def own(self, column: Column) -> str:
        """What of a column's setting not all have."""
        return " ".join(one for one in column[1] if one not in self.common)

    def name(self, column: Column) -> str:
        """Objective and its own setting: unique among the columns."""
        return f"{column[0]} {self.own(column)}".rstrip()

    def seeds(self, column: Column) -> list[int]:
        return sorted(self._by[column])

    def starts(self, metric: str) -> list[float]:
        """Before training, by seed: what training measured, which is on `val`; [] for other splits and metrics."""
        name = f"{metric.removeprefix('stage1_')}_init"
        first = {one["seed"]: one for one in self.entries if one["split"] == "val" and name in one["initial"]}
        return [one["initial"][name] for _, one in sorted(first.items())] if metric.startswith("stage1_") else []

    def is_whole(self, column: Column) -> bool:
        """Whether all scenes of the split were asked about."""
        return all(run["whole"] for run in self._by[column].values())

    def values(self, column: Column, metric: str, seeds: Sequence[int] | None = None) -> list[float]:
        """By seed; [] where one of the runs lacks the metric."""
        runs = self._by.get(column, {})
        chosen = sorted(runs) if seeds is None else seeds
        if not all(seed in runs and metric in runs[seed]["metrics"] for seed in chosen):
            return []
        return [runs[seed]["metrics"][metric] for seed in chosen]

    def baseline_of(self, column: Column) -> Column:
        """`none` with the same stage 2; what is set for stage 1's alignment has no meaning there."""
        return BASELINE, tuple(one for one in column[1] if not one.startswith(_OF_OBJECTIVES))

    def plainer(self, column: Column) -> list[Column]:
        """The same objective with fewer settings of its own, and all else equal."""
        mine = set(column[1])
        return [
            other
            for other in self.columns
            if other[0] == column[0] and set(other[1]) < mine
            and all(one.startswith(_OF_OBJECTIVES) for one in mine - set(other[1]))
        ]  # fmt: skip

    def compare(self, treated: Column, baseline: Column, metric: str) -> Difference | None:
        """Treated minus baseline over the seeds that both have; None where one of them lacks the metric."""
        if treated not in self._by or baseline not in self._by:
            return None
        seeds = sorted(self._by[treated].keys() & self._by[baseline].keys())
        mine, theirs = self.values(treated, metric, seeds), self.values(baseline, metric, seeds)
        if not mine or not theirs:
            return None
        known = BY_NAME.get(metric)
        tables = [self._tallies(column, known.tallies, seeds) for column in (treated, baseline)] if known else [None]
        if any(table is None for table in tables):
            return difference(mine, theirs, over_seeds(mine, theirs), over_scenes=False)
        return difference(mine, theirs, crossed(known, *tables), over_scenes=True)

    def _tallies(self, column: Column, names: Sequence[str], seeds: Sequence[int]) -> dict[str, np.ndarray] | None:
        """Name -> [seeds, scenes, columns]; None where they were not kept, or are not about the same scenes."""
        runs = [self._by[column][seed] for seed in seeds]
        if not all(name in run["tallies"] for run in runs for name in names):
            return None
        if len({run["scenes"] for run in runs}) > 1:
            return None
        return {name: np.stack([np.array(run["tallies"][name], float).T for run in runs]) for name in names}
