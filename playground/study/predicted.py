"""PAT on regions that were predicted, beside the study: the part of docs/study.md about it.

    python -m playground.study publish --split test --name predicted --having stage1.regions_path

docs/study/results/predicted has these runs alone; those without the override, and `none`, are the study's.
"""

from __future__ import annotations

from pathlib import Path

from llava_pat.types import DataError
from playground.study.files import read_json
from playground.study.hypotheses import BASELINE
from playground.study.results import SHARED, Results

FOLDER = "predicted"


def with_the_study(results: Path, study: Path) -> Results:
    """Runs on predicted regions, the same objectives on exact ones, and `none`; empty where none was published.

    results, study: folders of published results. DataError where they are of different data or base models.
    """
    own = Results.read(results)
    if not own.entries:
        return own
    sides = [read_json(folder / SHARED)["inputs"] for folder in (study, results)]
    if sides[0] != sides[1]:
        raise DataError(f"{results} and {study} are of different inputs (data or base models): run both on one kind")
    objectives = {BASELINE, *(one["objective"] for one in own.entries)}
    return Results([*(one for one in Results.read(study).entries if one["objective"] in objectives), *own.entries])
