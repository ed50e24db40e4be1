"""Copies the results of a finished study into the repository, where `report` reads them.

    python -m playground.study publish --out checkpoints/study --split test
    python -m playground.study publish --out checkpoints/sweep-weight --split val --name sweep-weight --light

docs/study/results/NAME/<cell>.json: what was run and measured; shared.json: hashes of the inputs, versions, commits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_pat.types import DataError
from playground.study.cells import ROOT, shown
from playground.study.files import read_json, write_json
from playground.study.results import SHARED, Results

RESULTS = ROOT / "docs" / "study" / "results"
_COMMON = ("inputs", "versions", "machine", "git")
_LOCAL = ("configs",)


def publish(source: Path, target: Path, light: bool) -> int:
    """Copy all results; returns how many. light: without the tallies of scenes.

    DataError where there is none, and where they are of different inputs or only of some scenes.
    """
    files = sorted(source.glob("*.json"))
    entries = [read_json(file) for file in files]
    if not entries:
        raise DataError(f"{source}: no result to publish; run bash scripts/compare.sh first")
    partial = [file.name for file, entry in zip(files, entries, strict=True) if not entry["whole"]]
    if partial:
        raise DataError(f"{source / partial[0]} is about the first scenes only (--scenes): run it on all of them")
    if any(entry["inputs"] != entries[0]["inputs"] for entry in entries):
        raise DataError(f"{source}: results of different inputs (data or base models); publish one kind")
    Results(entries)  # refuses what cannot be compared
    for old in target.glob("*.json"):
        old.unlink()
    for file, entry in zip(files, entries, strict=True):
        write_json(target / file.name, _kept(entry, light))
    commits = sorted({entry["git"]["commit"] for entry in entries if entry["git"]})
    changed = any(entry["git"]["changed"] for entry in entries if entry["git"])
    shared = {name: entries[0][name] for name in ("inputs", "versions", "machine")}
    write_json(target / SHARED, shared | {"git": {"commits": commits, "changed": changed}})
    return len(entries)


def _kept(entry: dict[str, Any], light: bool) -> dict[str, Any]:
    left_out = (*_COMMON, *_LOCAL, *(["tallies"] if light else []))
    kept = {name: value for name, value in entry.items() if name not in left_out}
    kept["metrics"] = {name: _rounded(value) for name, value in kept["metrics"].items()}
    return kept | ({"tallies": {}} if light else {})


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("study publish", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints" / "study", help="the study's folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--name", help="folder below docs/study/results (default: the split)")
    parser.add_argument("--light", action="store_true", help="without the tallies of scenes, for sweeps")
    arguments = parser.parse_args(argv)
    target = RESULTS / (arguments.name or arguments.split)
    try:
        count = publish(arguments.out / "results" / arguments.split, target, arguments.light)
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{count} results in {shown(target)}; now: python -m playground.study report")
    return 0
