"""Copies the results of a finished study into the repository, where `report` reads them.

    python -m playground.study publish --out checkpoints/study --split test
    python -m playground.study publish --out checkpoints/trials --split val --name weights --light \\
        --having stage2.sft_share=0.25 --lacking stage2.freeze_backbone

docs/study/results/NAME/<cell>.json: what was run and measured; shared.json: hashes of the inputs, versions, commits.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_pat.types import DataError
from playground.study.cells import ROOT, shown
from playground.study.files import read_json, write_json
from playground.study.results import SHARED, Results

RESULTS = ROOT / "docs" / "study" / "results"
_COMMON = ("inputs", "versions", "machine", "git")
_LOCAL = ("configs",)


def publish(source: Path, target: Path, light: bool, having: Sequence[str] = (), lacking: Sequence[str] = ()) -> int:
    """Copy results; returns how many. light: without the tallies of scenes.

    having, lacking: overrides (`stage2.sft_share=0.25`; `stage2.sft_share` whatever its value) of which a run must have
    all, and none, to be copied.
    DataError where there is none, and where they are of different inputs or scenes.
    """
    read = {file: read_json(file) for file in sorted(source.glob("*.json"))}
    chosen = {file: entry for file, entry in read.items() if _is_chosen(entry["setting"], having, lacking)}
    files, entries = list(chosen), list(chosen.values())
    if read and not entries:
        raise DataError(f"{source}: none of the {len(read)} results is of such settings; there are: {_settings(read)}")
    if not entries:
        raise DataError(f"{source}: no result to publish; run bash scripts/compare.sh first")
    asked = {entry["scenes"]: file for file, entry in zip(files, entries, strict=True)}
    if len(asked) > 1:
        counts = ", ".join(f"{file.name}: {scenes}" for scenes, file in asked.items())
        raise DataError(f"{source}: results about different numbers of scenes ({counts}): run them on the same")
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


def _is_chosen(setting: Sequence[str], having: Sequence[str], lacking: Sequence[str]) -> bool:
    def has(beginning: str) -> bool:
        return any(one == beginning or one.startswith(f"{beginning}=") for one in setting)

    return all(map(has, having)) and not any(map(has, lacking))


def _settings(read: Mapping[Path, dict[str, Any]]) -> str:
    return ", ".join(sorted({one for entry in read.values() for one in entry["setting"]})) or "no overrides at all"


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
    for flag, words in (("--having", "only runs with these overrides"), ("--lacking", "only runs without these")):
        parser.add_argument(flag, nargs="+", default=[], metavar="FLAG[=VALUE]", help=words)
    arguments = parser.parse_args(argv)
    target = RESULTS / (arguments.name or arguments.split)
    try:
        source = arguments.out / "results" / arguments.split
        count = publish(source, target, arguments.light, arguments.having, arguments.lacking)
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{count} results in {shown(target)}; now: python -m playground.study report")
    return 0
