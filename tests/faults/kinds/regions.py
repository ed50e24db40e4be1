"""Regions files: lines, masks, labels."""

from __future__ import annotations

import random
from collections.abc import Iterator

from llava_pat.data.regions import Broken, build_patch_regions, load_regions
from llava_pat.types import DataError
from tests.faults.bad_regions import bad_lines
from tests.faults.examples import generated
from tests.faults.registry import Outcome, Run, fault_kind
from tests.faults.small_data import GEOMETRY, PATCH, PATCHES, small_data


@fault_kind("bad lines of regions files", "each is used or reported by file and line; shares of patches are 0 to 1")
def bad_regions(run: Run) -> Iterator[Outcome]:
    tokenizer = small_data(run.folder).tokenizer
    file = run.folder / "regions.jsonl"

    def one(rng: random.Random) -> Iterator[Outcome]:
        bad = bad_lines(rng)
        file.write_text(bad.text, encoding="utf-8")
        broken: Broken = []
        found = load_regions(file, broken)
        assert len(found) + len(broken) == bad.lines, "a line is lost"
        for name, number, error in broken:
            assert name == str(file) and str(error).startswith(f"{file}:{number}"), str(error)[:200]
        for entry in found.values():
            try:
                coverage, labels, dropped = build_patch_regions(entry, GEOMETRY, PATCH, tokenizer)
            except DataError as error:
                assert str(error).startswith(f"{entry.file}:{entry.line} (image "), str(error)[:200]
                continue
            assert coverage.shape == (len(labels), PATCHES) and len(labels) + dropped == len(entry.regions)
            assert bool((coverage >= 0).all()) and bool((coverage <= 1).all()), "a share of memory, not of a patch"
        yield Outcome(True, "lines with faults", count=bad.faults)

    yield from generated(run, 1500, one)
