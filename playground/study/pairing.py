"""Runs of one seed are pairs: the same start, the same order of data, whatever the objective. Both are checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import yaml

from llava_pat.types import DataError
from playground.study.cells import OF_OBJECTIVES, Cell, shown

MAY_DIFFER = (*OF_OBJECTIVES, "output_dir")
"""How keys begin that objectives' configs may differ in."""


def check_configs(cells: Sequence[Cell]) -> None:
    """DataError where stage-1 configs differ in more than the alignment: then differences are not the objective's."""
    configs = {cell.objective: cell.study.stage1_config(cell.objective) for cell in cells}
    read = {name: yaml.safe_load(path.read_text()) for name, path in configs.items()}
    first = next(iter(read))
    for name, settings in read.items():
        differing = [
            key
            for key in sorted(settings.keys() | read[first].keys())
            if settings.get(key) != read[first].get(key) and not key.startswith(MAY_DIFFER)
        ]
        if differing:
            raise DataError(
                f"{shown(configs[name])} and {shown(configs[first])} differ in {', '.join(differing)}: a comparison of "
                f"{name} with {first} would be one of these settings as well; make them equal"
            )


def check_starts(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for every two results that should have started alike and did not: they are no pairs. [] is good.

    Alike start runs of one seed whose stage 1 differs in the alignment alone.
    """
    first: dict[tuple[int, tuple[str, ...]], dict[str, Any]] = {}
    wrong = []
    for result in results:
        changed = (one for one in result["setting"] if one.startswith("stage1."))
        kept = tuple(one for one in changed if not one.removeprefix("stage1.").startswith(MAY_DIFFER))
        other = first.setdefault((result["seed"], kept), result)
        for name in sorted(result["initial"].keys() & other["initial"].keys()):
            here, there = result["initial"][name], other["initial"][name]
            if not math.isclose(here, there, rel_tol=1e-6):
                wrong.append(
                    f"seed {result['seed']}: {name} is {here} for {result['objective']}, {there} for "
                    f"{other['objective']}"
                )
    return wrong
