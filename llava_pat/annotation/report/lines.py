"""The lines of a regions file, one after the other; those that training would refuse are counted and left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llava_pat.annotation.report.faults import LINES, WITHOUT, Faults
from llava_pat.annotation.report.measure import Line, parse_line
from llava_pat.data.check.findings import KINDS
from llava_pat.data.region_rows import read_rows
from llava_pat.data.regions import Broken
from llava_pat.types import DataError

EMPTY = "a line without regions"


@dataclass
class Reading:
    """One pass over the lines, and what was met on the way."""

    shards: tuple[Path, ...]
    most: int | None = None
    """Lines that are read; None: all."""
    faults: Faults = field(default_factory=Faults)
    seen: set[str] = field(default_factory=set)
    """Images that have a line."""
    bare: list[str] = field(default_factory=list)
    """Of them, those with a line without regions."""

    def blocks(self, size: int) -> Iterator[list[Line]]:
        """The images that have regions, so many at a time. DataError for what is no regions file at all."""
        lines = self._lines()
        while block := list(islice(lines, size)):
            yield block

    def _lines(self) -> Iterator[Line]:
        broken: Broken = []
        rows = islice(chain.from_iterable(read_rows(shard, broken) for shard in self.shards), self.most)
        for file, number, raw in rows:
            self._refuse(broken)
            try:
                line = self._parse(file, number, raw)
            except DataError as error:
                self._refuse([(file, number, error)])
                continue
            self.seen.add(line.regions.image)
            if line.regions.regions:
                yield line
            else:
                self.bare.append(line.regions.image)
                self.faults.add(WITHOUT, EMPTY, line.regions.where, line.regions.image)
        self._refuse(broken)

    def _parse(self, file: str, number: int, raw: Any) -> Line:
        line = parse_line(raw, file, number)
        if line.regions.image in self.seen:
            raise DataError(f"{line.regions.where}: the image is on an earlier line as well", "region_twice")
        return line

    def _refuse(self, broken: Broken) -> None:
        """Counts them and forgets them."""
        for _, _, error in broken:
            self.faults.add(LINES, KINDS[error.kind].meaning, str(error))
        broken.clear()
